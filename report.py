"""One page on what runs are worth, which is better, how sure that is, and which labels look wrong.

    python report.py                                        # all that lies below runs/
    python report.py --data train.csv.gz --runs digits_fast convnext_atto ensemble --csv

Writes report.html, a single file that needs no network, and beside it report_labels.csv, the rows whose labels
deserve a second look; with --csv also every other table of the page, into report_tables/.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.base.cli import parse
from common.base.errors import UserError, run_script, warn
from common.base.files import check_folder, write_file
from common.data.competition import beside, competition_flags, read_competition
from common.data.folds import match_folds, read_folds
from common.data.tables import read_train_table
from common.report.blend_sections import blend_sections, sweep_sections
from common.report.evaluation import Evidence, read_blend, read_run
from common.report.page import Section, findings, page, text_table
from common.report.run_sections import comparison_sections, label_sections, noise_sections, run_sections
from common.runs.layout import WEIGHTS_FILE, run_names
from common.score.metrics import check_metric
from common.sweep.cells import SWEEP_FILE

# What the page has to say, in this order: each takes the evidence and gives its sections, which may be none.
SECTIONS: tuple[Callable[[Evidence], list[Section]], ...] = (
    comparison_sections,
    noise_sections,
    run_sections,
    label_sections,
    blend_sections,
    sweep_sections,
)


@dataclass(frozen=True)
class Options:
    """Write report.html on runs, blends and sweeps: python report.py --data train.csv.gz"""

    runs: tuple[str, ...] = ()  # names below runs_dir (default: every finished run, blend and sweep)
    data: str = "digits"  # train table whose images are shown
    folds: str = "folds.csv"  # the folds file that the runs were trained with
    runs_dir: str = "runs"  # folder that holds every run
    metric: str = "accuracy"  # what the table of runs is sorted by
    out: str = "report.html"  # the page
    csv: bool = False  # write the page's tables as csv too


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, argv, competition_flags)
    out = Path(options.out)
    check_folder(out.parent)
    if out.suffix != ".html":
        raise UserError("--out", f"{out} is not an html file", "give it a name that ends with .html")
    evidence = gather(options)
    chapters = [section for sections in SECTIONS for section in sections(evidence)]
    in_short = [sentence for section in chapters for sentence in section.findings]
    write_file(out, page("Fivefold report", about(evidence), [Section("In short", findings(in_short)), *chapters]))

    tables = {name: frame for section in chapters for name, frame in section.tables.items()}
    files = {out.with_name(f"{out.stem}_labels.csv"): tables["labels"]} if "labels" in tables else {}
    if options.csv:
        files |= {out.with_name(f"{out.stem}_tables") / f"{name}.csv": frame for name, frame in tables.items()}
    for path, frame in files.items():
        write_file(path, frame.to_csv(index=False))
    if "runs" in tables:
        print(text_table(tables["runs"]))
    print("\n".join(in_short))
    print(f"wrote {out}" + (f" and {len(files)} csv files beside it" if len(files) > 1 else ""))


def gather(options: Options) -> Evidence:
    """Read and check all that the options name.

    Raises:
        UserError: a name without a finished run, blend or sweep; runs of other folds; data that is not the folds'.
    """
    folds, runs_dir = read_folds(Path(options.folds)), Path(options.runs_dir)
    check_metric(options.metric, folds.classes)
    table = read_train_table(options.data, read_competition(beside(options.folds)))
    found = Evidence(folds, table, [], [], [], runs_dir, options.metric)
    match_folds(folds, found.images)
    named = run_names(runs_dir, options.runs)
    for name in dict.fromkeys(named or sorted(path.name for path in runs_dir.glob("[!.]*/"))):
        folder = runs_dir / name
        try:
            if (folder / SWEEP_FILE).is_file():
                found.sweeps.append(folder)
            elif (folder / WEIGHTS_FILE).is_file():
                found.blends.append(read_blend(folder, folds))
            else:
                found.runs.append(read_run(folder, folds))
        except UserError as error:
            if named:
                raise
            warn(f"left out: {error}")
    if not (found.runs or found.blends or found.sweeps):
        raise UserError(str(runs_dir), "holds nothing to report on", "train a run: python train_fold.py --fold all")
    return found


def about(evidence: Evidence) -> str:
    """What lies under every number of the page."""
    folds = evidence.folds
    return (
        f"{Path(evidence.images.source).name}: {len(folds.ids):,} rows, {len(folds.classes)} classes, {folds.count} "
        f"folds (fingerprint {folds.fingerprint[:16]}). Every score is out of fold: each row is predicted by a model "
        "that has not seen it. Intervals are 95 %."
    )


if __name__ == "__main__":
    run_script(main)
