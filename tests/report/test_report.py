"""The report: its numbers are the runs' own, its page stands alone and fits a phone, by day and by night."""

import base64
import dataclasses
import html
import html.parser
import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import report
import sweep
from common.base.errors import UserError
from common.base.files import read_json, write_file, write_json
from common.data.dealing import make_folds
from common.data.folds import Folds, read_folds, write_folds
from common.data.reading import read_train_table
from common.report.audit import AUDITS
from common.report.chapters import gather
from common.report.evaluation import read_run
from common.report.page import element, table
from common.report.public_scores import public_scores
from common.report.run_sections import RUN_SECTIONS
from common.report.run_tables import fold_scores
from common.report.trust_sections import trust_section
from common.runs.config import Config, training_settings
from common.runs.layout import CONFIG_FILE, INFERENCE_FILE, LOG_FILE, METRICS_FILE, OOF_FILE, fold_folder
from common.runs.oof import join_oof
from common.runs.predictions import Predictions, read_predictions, write_predictions
from common.score.leaderboard import worth_in_words
from common.score.task import TASKS
from common.sweep.cells import LAW_FILE
from common.trust.verdict import Verdict

EPOCHS = 3


def write_run(folder: Path, folds: Folds, seed: int, wrong: float = 0.05, **settings: object) -> None:
    """A finished run whose predictions are made up: right but for a share of ``wrong`` rows."""
    random = np.random.default_rng(seed)
    targets = np.array([folds.output_names.index(label) for label in folds.labels])
    answers = np.where(
        random.random(len(targets)) < wrong, random.integers(len(folds.output_names), size=len(targets)), targets
    )
    logits = 4 * np.eye(len(folds.output_names))[answers] + random.normal(size=(len(targets), len(folds.output_names)))
    cfg = Config(seed=seed, epochs=EPOCHS, img_size=8, channels=1, mixed_precision="no", **settings)
    for k in range(folds.count):
        path, rows = fold_folder(folder, k), folds.fold == k
        accuracy = float((answers[rows] == targets[rows]).mean())
        log = {"epoch": range(1, EPOCHS + 1), "lr": 1e-3, "train_loss": [2.0, 1.0, 0.8], "valid_loss": [1.5, 1.0, 0.9]}
        log |= {"accuracy": [accuracy - 0.1, accuracy + 0.01 * (k % 2), accuracy], "train_seconds": 1.0, "seconds": 1.5}
        facts = {"n": int(rows.sum()), "errors": 0, "accuracy": accuracy, "nll": 0.1, "last": accuracy, "steps": 90}
        facts |= {"best": max(log["accuracy"]), "best_epoch": 2 + (k + 1) % 2, "seconds": 4.5, "processes": 1}
        facts |= {"fold_count": folds.count, "folds_fingerprint": folds.fingerprint, "images_per_second": 1e3}
        facts |= {"threads": 1, "memory_format": "contiguous_format", "versions": {"torch": "2.6", "timm": "1.0"}}
        write_json(path / CONFIG_FILE, training_settings(cfg) | {"folds_fingerprint": folds.fingerprint})
        write_file(path / LOG_FILE, pd.DataFrame(log).to_csv(index=False))
        oof = Predictions(folds.ids[rows], logits[rows], folds.output_names, folds.labels[rows], folds.fold[rows])
        write_predictions(path / OOF_FILE, oof)
        write_json(path / METRICS_FILE, facts)


@pytest.fixture(scope="module")
def reported(chain, tiny, tmp_path_factory) -> Path:
    """A folder with the report of the chain's two runs, a twin of the first with another seed, and their blend."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(chain, folder / "runs")
    shutil.copytree(chain / "one", folder / "runs" / "again")
    random = np.random.default_rng(0)
    for path in (folder / "runs" / "again").glob("fold*"):
        write_json(path / CONFIG_FILE, read_json(path / CONFIG_FILE) | {"seed": 7})
        oof = read_predictions(path / OOF_FILE)
        noisy = oof.logits + random.normal(0, 2, size=oof.logits.shape).astype(np.float32)
        rewrite(path, dataclasses.replace(oof, logits=noisy))
    make(tiny / "train.csv", tiny / "folds.csv", folder, "--csv")
    return folder


def rewrite(fold_path: Path, predictions: Predictions) -> None:
    """Give a fold other predictions as its training would have: metrics.json says what belongs to it."""
    metrics = read_json(fold_path / METRICS_FILE)
    metrics["sha256_of"][OOF_FILE] = write_predictions(fold_path / OOF_FILE, predictions)
    write_json(fold_path / METRICS_FILE, metrics)


def make(data: Path, folds: Path, folder: Path, *arguments: str) -> str:
    """Write the report of ``folder``/runs into ``folder`` and return it."""
    places = ["--data", data, "--folds", folds, "--runs-dir", folder / "runs", "--out", folder / "report.html"]
    report.main([*map(str, places), *arguments])
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_expects_what_infer_says_and_keeps_public_scores(tiny, tmp_path):
    """A wrong name is not kept; a page of other runs leaves a kept score out."""
    folds, runs = read_folds(tiny / "folds.csv"), tmp_path / "runs"
    shutil.copy(tiny / "folds.csv", tmp_path / "folds.csv")
    for seed, name in enumerate("ab"):
        write_run(runs / name, folds, seed, wrong=0.3)
    write_json(runs / "a" / INFERENCE_FILE, {"averaging_gain": 0.05})
    flags = [tiny / "train.csv", tmp_path / "folds.csv", tmp_path]
    make(*flags, "--csv", "--public", "a=0.2", "--public-share", "0.5")
    worth = pd.read_csv(tmp_path / "report_tables" / "worth.csv").set_index("run")
    right = 1.0 - read_run(runs / "a", folds).answers.costs
    said = worth_in_words(right, len(right), 3, 0.05)
    assert all(f"{worth[column]['a']:.2%}" in said for column in ("expected", "test from", "test to")), said
    kept = (tmp_path / "public.csv").read_bytes()
    with pytest.raises(UserError, match="z is not on the page"):
        make(*flags, "--public", "z=0.9")
    assert (tmp_path / "public.csv").read_bytes() == kept
    assert "The public score of a is a surprise" in make(*flags)
    assert "The public score of a" not in make(*flags, "--runs", "b")
    (tmp_path / "public.csv").write_text("run,public,share\na,high,0.5\n")
    with pytest.raises(UserError, match="holds no scores"):
        make(*flags)


def test_public_scores_of_two_metrics_are_kept_apart(tiny, tmp_path, capsys):
    """A page shows those of its own metric and says which it leaves out; an older file's are the competition's."""
    folds, path, file = read_folds(tiny / "folds.csv"), tmp_path / "folds.csv", tmp_path / "public.csv"
    shutil.copy(tiny / "folds.csv", path)
    write_run(tmp_path / "runs" / "a", folds, seed=0)
    of_accuracy, of_nll = (
        gather(tmp_path / "runs", (), path, str(tiny / "train.csv"), metric) for metric in ("accuracy", "nll")
    )
    file.write_text("run,public,share\na,0.9,0.5\n")
    assert public_scores(of_accuracy, path, (), 0.0) == ({"a": 0.9}, 0.5)
    assert not capsys.readouterr().err
    assert public_scores(of_nll, path, (), 0.0) == ({}, 0.5)
    assert "left out on this page of nll: the public score of a (accuracy)" in capsys.readouterr().err
    assert public_scores(of_nll, path, ("a=0.3",), 0.0) == ({"a": 0.3}, 0.5)
    assert public_scores(of_accuracy, path, (), 0.0) == ({"a": 0.9}, 0.5)
    assert file.read_text() == "run,public,share,metric\na,0.9,0.5,accuracy\na,0.3,0.5,nll\n"


def test_the_page_does_not_praise_folds_with_a_fault(tiny, tmp_path):
    """Exact copies in two folds, of which train_fold.py warns, stand where it says whether scores can be trusted."""
    write_run(tmp_path / "runs" / "a", read_folds(tiny / "folds.csv"), seed=0)
    evidence = gather(tmp_path / "runs", (), tiny / "folds.csv", str(tiny / "train.csv"), "accuracy")
    verdict = Verdict(["all of it"], [])
    assert "nothing was found" in trust_section(evidence, tmp_path / "folds.csv", verdict).body
    shas, fold = evidence.folds.row_shas.copy(), evidence.folds.fold
    shas[np.flatnonzero(fold == 1)[0]] = shas[np.flatnonzero(fold == 0)[0]]
    divided = dataclasses.replace(evidence, folds=dataclasses.replace(evidence.folds, row_shas=shas))
    said = trust_section(divided, tmp_path / "folds.csv", verdict).body
    assert "exact copies that lie in different folds" in said and "nothing was found" not in said


class Page(html.parser.HTMLParser):
    """The text of every table cell and the source of every picture."""

    def __init__(self, text: str):
        super().__init__()
        self.rows, self.pictures, self.in_cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.in_cell = tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        elif self.in_cell:
            self.rows[-1].append("")
        elif tag == "img":
            self.pictures.append(dict(attrs).get("src"))

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        self.in_cell = False


def test_its_scores_are_those_of_the_runs(reported, tiny):
    """The comparison shows each run's errors as a count over its joined OOF predictions gives them, the best first."""
    folds = read_folds(tiny / "folds.csv")
    page = Page((reported / "report.html").read_text(encoding="utf-8"))
    errors = {}
    for run in ("one", "two", "again"):
        oof = join_oof(reported / "runs" / run, folds)
        errors[run] = int((oof.predicted != oof.labels).sum())
    rows = pd.read_csv(reported / "report_tables" / "runs.csv")
    assert rows.errors.is_monotonic_increasing and set(rows.run) == {*errors, "ensemble"}
    for run, wrong in errors.items():
        assert rows.set_index("run").errors[run] == wrong
        assert any(row[:2] == [run, str(wrong)] for row in page.rows)


def test_a_run_may_be_called_like_a_metric(tiny, tmp_path):
    """The columns of the settings that differ have the runs' names, and hold text."""
    folds = read_folds(tiny / "folds.csv")
    for seed, name in enumerate(("r2", "accuracy")):
        write_run(tmp_path / "runs" / name, folds, seed)
    page = Page(make(tiny / "train.csv", tiny / "folds.csv", tmp_path))
    assert ["seed", "0", "1"] in page.rows or ["seed", "1", "0"] in page.rows


def test_a_blend_under_views_is_not_compared_in_silence(reported):
    """The chain's runs are predicted with --tta digits: the page says that their blend has views and they have not."""
    page = (reported / "report.html").read_text(encoding="utf-8")
    assert "under test-time views (one digits, two digits); the runs themselves are shown without" in page


def test_the_metric_asked_for_is_the_one_order_of_the_page(reported, tiny, tmp_path):
    """--metric nll puts a run that is too sure of itself last in the table and among the chapters, and names the best
    by it; of each pair the one that it prefers is called better, and a copy of a run is called one."""
    shutil.copytree(reported / "runs", tmp_path / "runs")
    for path in (tmp_path / "runs" / "one").glob("fold*"):
        oof = read_predictions(path / OOF_FILE)
        rewrite(path, dataclasses.replace(oof, logits=1000 * oof.logits))  # the same errors, surer
    shutil.copytree(tmp_path / "runs" / "one", tmp_path / "runs" / "twin")
    page = make(tiny / "train.csv", tiny / "folds.csv", tmp_path, "--csv", "--metric", "nll")
    rows = pd.read_csv(tmp_path / "report_tables" / "runs.csv")
    assert rows.nll.is_monotonic_increasing and rows.run.iloc[-2:].tolist() == ["one", "twin"]
    assert not rows.errors.is_monotonic_increasing and f"nll {rows.nll[0]:.4f}" in page
    assert f"Best by nll is {rows.run[0]}: " in page and f"Behind {rows.run[0]}, nll" in page
    chapters = [run for run in rows.run if run != "ensemble"]
    assert sorted(chapters, key=lambda run: page.index(f">{run}</h2>")) == chapters
    pairs = pd.read_csv(tmp_path / "report_tables" / "pairs.csv")
    losses = rows.set_index("run").nll
    np.testing.assert_allclose(losses[pairs.than].to_numpy() - losses[pairs.better].to_numpy(), pairs.better_by)
    assert (pairs.better_by >= 0).all() and "better than again by nll, p " in page
    assert "one and twin have the same predictions, byte for byte" in page
    make(tiny / "train.csv", tiny / "folds.csv", tmp_path, "--csv", "--metric", "macro_f1")
    assert pd.read_csv(tmp_path / "report_tables" / "runs.csv").macro_f1.is_monotonic_decreasing


def test_every_table_of_the_page_is_also_a_csv(reported):
    """--csv writes tables that hold what the page shows: per class, the false alarms and the misses add up alike."""
    tables = {path.stem: pd.read_csv(path) for path in (reported / "report_tables").glob("*.csv")}
    for run in ("one", "two", "again"):
        of_run = {kind: tables[f"{run}_{kind}"] for kind in ("settings", "folds", "calibration", "classes", "errors")}
        wrong = of_run["folds"].errors.sum()
        assert wrong == of_run["classes"].missed.sum() == of_run["classes"].false_alarms.sum() == len(of_run["errors"])
        assert wrong == tables[f"{run}_confusions"].rows.sum()
    assert len(tables["pairs"]) == 6 and {"ensemble_methods", "ensemble_runs", "labels"} < tables.keys()
    assert (tables["pairs"].fewer_errors >= 0).all()
    assert (tables["pairs"].gained - tables["pairs"].lost == tables["pairs"].fewer_errors).all()


def test_two_seeds_of_one_setting_give_the_noise_floor(reported):
    """Runs that differ in their seed alone are found, and the rows that flip between them are theirs."""
    flips = pd.read_csv(reported / "report_tables" / "again_flips.csv")
    assert len(flips) and (flips.predicted_by_one != flips.predicted_by_again).all()
    text = (reported / "report.html").read_text(encoding="utf-8")
    assert "again and one differ in their seed alone: " in text and f"{len(flips)} rows change sides" in text
    assert pd.read_csv(reported / "report_tables" / "pairs.csv").noise_floor.gt(0).all()


def test_pictures_are_the_images_of_their_rows(reported, tiny):
    """The first picture of the label audit holds the pixels of the row that the csv beside the page names first."""
    images, first = read_train_table(str(tiny / "train.csv")), pd.read_csv(reported / "report_labels.csv").iloc[0]
    text = (reported / "report.html").read_text(encoding="utf-8")
    after = Page(text[text.index("Labels to look at</h2>") :])
    source = after.pictures[0].removeprefix("data:image/png;base64,")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))
    assert (shown == images.images[list(images.ids).index(str(first.id))]).all()


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_the_epoch_is_also_chosen_without_the_fold_that_it_is_scored_on(metric, tmp_path):
    """One fold's lucky epoch raises its own best and no other fold's; the others choose the epoch they agree on. What
    counts is the metric that the run was trained by; here a nll of 0.1 is as good as an accuracy of 0.9."""
    folds = Folds(
        *(np.array(column, dtype=object) for column in ([*"abcdef"], ["x", "y"] * 3)),
        np.arange(6) // 2,
        np.array([*"abcdef"]),
        np.array([]),
    )
    write_run(tmp_path / "run", folds, 0, metric=metric)
    for k, accuracy in enumerate(([0.5, 0.9, 0.6], [0.5, 0.55, 0.6], [0.5, 0.55, 0.7])):
        path = tmp_path / "run" / f"fold{k}"
        halves = {"even_accuracy": [0.5, 1.0, 0.6], "odd_accuracy": [0.5, 0.8, 0.9]}
        if metric == "nll":
            columns = {"nll": accuracy} | {name.replace("accuracy", "nll"): values for name, values in halves.items()}
            columns = {name: 1 - np.array(values) for name, values in columns.items()} | {"accuracy": 0.5}
        else:
            columns = {"accuracy": accuracy, **halves}
        log = pd.read_csv(path / LOG_FILE).rename(columns={"valid_loss": "nll"}).assign(**columns)
        if k == 2:  # stopped early
            log = log.iloc[:2]
        write_file(path / LOG_FILE, log.to_csv(index=False))
    per_fold = fold_scores(read_run(tmp_path / "run", folds))
    if metric == "nll":
        scored = ["last", "best", "other_half", "others_choice"]
        per_fold = per_fold.assign(
            best_minus_last=-per_fold.best_minus_last, **{name: 1 - per_fold[name] for name in scored}
        )
    assert per_fold.best_minus_last.tolist() == pytest.approx([0.3, 0, 0])
    assert per_fold.their_epoch.tolist() == [2, 2, 2]
    assert per_fold.others_choice.tolist() == pytest.approx([0.9, 0.55, 0.55])
    # Even rows choose epoch 2, where odd ones score 0.8; these choose epoch 3 (or 2), where even ones score 0.6 (or 1).
    assert per_fold.other_half.tolist() == pytest.approx([0.7, 0.7, 0.9])


@pytest.mark.parametrize(
    ("select", "says", "never"),
    [
        ("last", "own best epoch scores", "flattered"),
        ("best", "(--select best), so the score above is flattered", "several epochs"),
        ("members", "what --select members makes of several epochs", "flattered"),
    ],
)
def test_only_a_score_that_its_rows_chose_is_called_flattered(select, says, never, tiny, tmp_path):
    """Nets or weights averaged by a rule set beforehand were chosen by no row, and have no best epoch to speak of."""
    write_run(tmp_path / "runs" / "run", read_folds(tiny / "folds.csv"), 0, select=select)
    page = make(tiny / "train.csv", tiny / "folds.csv", tmp_path)
    assert says in page and never not in page


def test_the_same_runs_give_the_same_page(reported, tiny, tmp_path):
    """Byte for byte: no time, no random name."""
    shutil.copytree(reported / "runs", tmp_path / "runs")
    assert make(tiny / "train.csv", tiny / "folds.csv", tmp_path) == (reported / "report.html").read_text("utf-8")
    assert not (tmp_path / "report_tables").exists() and (tmp_path / "report_labels.csv").exists()


def test_a_task_names_sections_that_there_are():
    """A name that is no row of RUN_SECTIONS or AUDITS would show nothing without a word."""
    for task in TASKS.values():
        assert {"summary"} <= set(task.sections) <= {*RUN_SECTIONS, *AUDITS}


def test_names_are_text_and_never_markup():
    """A label that looks like html is shown as it is written, in cells and in attributes."""
    hostile = '<script>alert("1")</script>'
    text = table(pd.DataFrame({hostile: [hostile]})) + element("img", alt=hostile)
    assert "<script" not in text and Page(text).rows == [[hostile], [hostile]]


def test_a_sweep_says_its_law(synthetic, tiny, capsys):
    """The sentences of sweep.py fit, the figure's panels, and an optimum for every batch size, without any run."""
    sweep.main(["fit"])
    law = read_json(synthetic / LAW_FILE)
    text = make(tiny / "train.csv", tiny / "folds.csv", synthetic.parents[1], "--csv")
    assert all(html.escape(sentence, quote=False) in text for sentence in law["verdict"])
    assert text.count("<svg") == 4 and law["verdict"][0] in capsys.readouterr().out
    optima = pd.read_csv(synthetic.parents[1] / "report_tables" / f"{synthetic.name}_optima.csv")
    assert optima.best_lr.tolist() == pytest.approx([each["lr"] for each in law["optima"]])


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--runs", "nothing"], "nothing: there is no such run"),
        (["--data", "digits"], "digits: differs from the folds file"),
        (["--out", "report.pdf"], "report.pdf is not an html file"),
        (["--folds", "missing.csv"], "missing.csv: does not exist"),
        (["--metric", "accurracy"], "there is no metric accurracy"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(arguments, what, reported, tiny, tmp_path):
    """Unknown runs, other data, other folds: named, before any file is written."""
    places = [
        "--data",
        str(tiny / "train.csv"),
        "--folds",
        str(tiny / "folds.csv"),
        "--runs-dir",
        str(reported / "runs"),
    ]
    with pytest.raises(UserError, match=what):
        report.main([*places, "--out", str(tmp_path / "report.html"), *arguments])
    assert not list(tmp_path.iterdir())


def test_a_run_of_other_folds_is_left_out_or_refused(reported, tiny, tmp_path, capsys):
    """It cannot be compared: unasked it is left out with a warning, asked for it is refused."""
    shutil.copytree(reported / "runs", tmp_path / "runs")
    for path in (tmp_path / "runs" / "two").glob("fold*"):
        write_json(path / METRICS_FILE, read_json(path / METRICS_FILE) | {"folds_fingerprint": "0" * 64})
    make(tiny / "train.csv", tiny / "folds.csv", tmp_path)
    said = capsys.readouterr()
    assert "left out" in said.err and "different folds" in said.err and "again" in said.out
    with pytest.raises(UserError, match="different folds"):
        make(tiny / "train.csv", tiny / "folds.csv", tmp_path, "--runs", "one", "two")


# In a browser


@pytest.fixture(scope="module")
def browser():
    """A headless chromium."""
    pytest.importorskip("selenium", reason="selenium is not installed: pip install -e .[test]")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium with its chromedriver here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """The report of two runs on photos of 30 classes with long names, in folders."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(30):
        images = folder / "data" / f"a-class-whose-name-is-as-long-as-they-come-{number}"
        images.mkdir(parents=True)
        for photo in range(4):
            pixels = random.integers(256, size=(40 + 10 * photo, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"photo_{number}_{photo}.jpg")
    write_folds(folder / "folds.csv", make_folds(read_train_table(str(folder / "data")), k=2))
    for name, seed in (("a_run_with_a_long_name_of_its_own", 0), ("another_run_with_a_long_name", 1)):
        write_run(folder / "runs" / name, read_folds(folder / "folds.csv"), seed, wrong=0.3)
    make(folder / "data", folder / "folds.csv", folder)
    return folder


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("made", ["reported", "photos"])
def test_the_page_opens_without_fault(made, width, theme, browser, request):
    """No console error, nothing wider than the screen, every picture loaded, nothing fetched, every link leads on."""
    path = request.getfixturevalue(made) / "report.html"
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    page = "return document.documentElement."
    assert browser.execute_script(f"{page}scrollWidth") == browser.execute_script(f"{page}clientWidth") <= width
    outside = """
        const width = document.documentElement.clientWidth;
        const scrolls = element => element.closest('.scroll, .sheet, svg');
        return [...document.body.querySelectorAll('*')].filter(
            element => !scrolls(element) && element.getBoundingClientRect().right > width + 0.5
        ).map(element => element.outerHTML.slice(0, 200))"""
    assert browser.execute_script(outside) == []
    pictures = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(pictures) > 20 and min(pictures) > 0
    fetched = (
        "return performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !/^data:/.test(name))"
    )
    assert browser.execute_script(fetched) == []
    dead = "return [...document.querySelectorAll('nav a')].filter(link => !document.getElementById(link.hash.slice(1)))"
    assert browser.execute_script(dead) == []
    ink, paper = browser.execute_script(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    assert (brightness(ink) < brightness(paper)) == (theme == "light")


def brightness(colour: str) -> int:
    """The sum of red, green and blue of ``rgb(r, g, b)``."""
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
