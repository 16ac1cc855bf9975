"""One page on what runs are worth, which is better, how sure that is, and which labels look wrong.

    python report.py                                        # all that lies below runs/
    python report.py --data train.csv.gz --runs digits_fast convnext_atto ensemble --csv

Writes report.html, a single file that needs no network, and beside it report_labels.csv, the rows whose labels
deserve a second look; with --csv also every other table of the page, into report_tables/.
"""

import common  # noqa: F401  # isort: skip

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.base.cli import parse
from common.base.errors import UserError, run_script
from common.base.files import check_folder, write_file
from common.base.result import Result
from common.data.competition import competition_flags, told


@dataclass(frozen=True)
class Options:
    """Write report.html on runs, blends and sweeps: python report.py --data train.csv.gz"""

    runs: tuple[str, ...] = ()  # names below runs_dir (default: every finished run, blend and sweep)
    data: str = "digits"  # train table whose images are shown
    work: str = "."  # folder of one competition: DIR/folds.csv, DIR/runs, DIR/report.html
    folds: str = "folds.csv"  # the folds file that the runs were trained with
    runs_dir: str = "runs"  # folder that holds every run
    metric: str = "accuracy"  # what runs and blends are sorted by
    out: str = "report.html"  # the page
    public: tuple[str, ...] = ()  # public scores by --metric, RUN=0.9957 each; kept in public.csv beside the folds file
    public_share: float = 0.0  # share of the test rows that the public score is made of, such as 0.25
    csv: bool = False  # write the page's tables as csv too


def main(argv: Sequence[str] | None = None) -> None:
    run(parse(Options, argv, competition_flags))


def run(options: Options) -> Result:
    """Write the page and its tables, and print what it says in short.

    The result's score holds the row of each run and blend in the page's first table, the best first.

    Raises:
        UserError: runs, folds or data that do not belong together; a page that cannot be written.
    """
    options = told(options)
    out = Path(options.out)
    check_folder(out.parent, remedy="name a file elsewhere with --out")
    if out.suffix != ".html":
        raise UserError("--out", f"{out} is not an html file", "give it a name that ends with .html")
    # Not at the top: pandas and matplotlib take seconds that --help does not need.
    from common.report.chapters import CHAPTERS, about, gather
    from common.report.page import Section, findings, page, text_table
    from common.report.public_scores import public_scores
    from common.report.trust_sections import trust_sections

    evidence = gather(Path(options.runs_dir), options.runs, Path(options.folds), options.data, options.metric)
    public, share = public_scores(evidence, Path(options.folds), options.public, options.public_share)
    trust, *worth = trust_sections(evidence, Path(options.folds), public, share)
    chapters = worth + [section for sections in CHAPTERS for section in sections(evidence)]
    in_short = [sentence for section in chapters for sentence in section.findings]
    write_file(
        out, page("Fivefold report", about(evidence), [trust, Section("In short", findings(in_short)), *chapters])
    )

    tables = {name: frame for section in chapters for name, frame in section.tables.items()}
    files = {out.with_name(f"{out.stem}_labels.csv"): tables["labels"]} if "labels" in tables else {}
    if options.csv:
        files |= {out.with_name(f"{out.stem}_tables") / f"{name}.csv": frame for name, frame in tables.items()}
    for path, frame in files.items():
        write_file(path, frame.to_csv(index=False))
    if len(evidence.ranking):
        print(text_table(evidence.ranking))
    print("\n".join(in_short))
    print(f"wrote {out}" + (f" and {len(files)} csv files beside it" if len(files) > 1 else ""))
    scores = {row.pop("run"): row for row in evidence.ranking.to_dict("records")}
    return Result(scores or None, out.parent)


if __name__ == "__main__":
    run_script(main)
