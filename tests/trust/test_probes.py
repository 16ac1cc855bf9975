"""Planted leaks and shifts are named, and nothing is found where nothing is."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_iris

from common.base.strict_csv import text_array
from common.data.dealing import make_folds
from common.data.features import plan_of
from common.data.kinds import FEATURES
from common.data.reading import read_train_table
from common.data.table import Table
from common.score.task import TASKS
from common.trust.dependence import told_by
from common.trust.judge import leak_findings, shift_findings
from common.trust.probes import probes_of
from common.trust.quoted_targets import quoted_targets
from common.trust.shifts import kolmogorov_smirnov, shifts


@pytest.mark.parametrize("planted", ["order", "number", "tail", "width"])
def test_a_planted_leak_is_named(tmp_path, planted):
    """What no picture holds and tells the label is an alarm that names it."""
    random = np.random.default_rng(3)
    labels = np.array(["a", "b"])[random.permutation(np.repeat([0, 1], 60))]
    labels = np.sort(labels) if planted == "order" else labels
    ids = [f"p{int(label == 'b') * 500 + at}" for at, label in zip(random.permutation(400), labels, strict=False)]
    ids = ids if planted == "number" else [f"p{at}" for at in random.permutation(9000)[:120]]
    known = np.where(labels == "b", 40, 0) + random.integers(0, 30, 120)
    facts = {"tail": {"after_the_end": known}, "width": {"width": 100 + known}}.get(planted, {})
    facts |= {"mean": random.normal(size=120)}
    table = Table("t", text_array(ids), labels.astype(object), [tmp_path], "image", "label", {}, "photos", facts=facts)
    (finding,) = leak_findings(table)
    words = {"order": "order of the rows", "number": "file name", "tail": "after the image's end", "width": "width"}
    assert finding.alarm and words[planted] in finding.text


def test_a_class_in_the_file_names_is_a_leak_where_the_test_has_it():
    """Photos called by their class are named where the test's are called so too, and only there."""
    labels = np.array(["a", "b"])[np.random.default_rng(3).permutation(np.repeat([0, 1], 60))]
    ids = text_array(f"photos/{label}x_{at}.jpg" for at, label in zip(range(5000, 5120), labels, strict=True))
    table = Table("t", ids, labels.astype(object), [], "image", "label", {}, "photos")
    test = replace(table, ids=text_array(f"photos/{'ab'[at % 2]}x_{at}.jpg" for at in range(30)))
    (finding,) = leak_findings(table, test)
    assert finding.alarm and "letters stand in the file name" in finding.text
    assert not leak_findings(table, replace(test, ids=text_array(f"test/{at}.jpg" for at in range(30))))
    assert not leak_findings(table)


def test_shuffled_labels_never_alarm():
    """Of 40 shuffles of the embedded digits' labels none is certain."""
    table = read_train_table("digits")
    random = np.random.default_rng(0)
    probes = probes_of(table)
    assert not any(told.is_certain for _ in range(40) for told in told_by(probes, random.permutation(table.labels)))


def test_few_rows_with_a_rare_class_never_alarm():
    """Of 50 shuffles of 30 labels, two of which are rare, no probe and no column is called a leak."""
    random = np.random.default_rng(1)
    columns = {f"c{at}": noise(30, at) for at in range(8)} | {"few": random.integers(0, 5, 30)}
    table = feature_table(columns, ["a"] * 28 + ["b"] * 2)
    shuffled = (replace(table, labels=random.permutation(table.labels)) for _ in range(50))
    assert not any(leak_findings(each) for each in shuffled)


def test_targets_that_stand_in_other_rows_are_told_from_whole_numbers_that_meet_by_chance():
    """A value that the next row has as a feature is named; counts that other columns hold as well are not."""
    random = np.random.default_rng(0)
    exact, counts = noise(200, 1), random.integers(0, 1000, 200)
    said = []
    for targets in (exact, counts):
        columns = {"before": np.roll(exact, 1), "other": random.integers(0, 1000, 200)}
        table = feature_table(columns, targets)
        said.append(quoted_targets(make_folds(table, task=TASKS["regression"]), table))
    assert "targets stand in before of rows" in said[0][0] and not said[1]


def test_another_camera_is_named_and_a_random_split_is_not():
    """Features that differ are named with both medians, the largest first; halves of one set do not differ."""
    random = np.random.default_rng(0)
    train = {"width": random.normal(300, 30, 300), "jpeg_table": np.full(300, 90.0), "row": np.arange(300.0)}
    test = {"width": random.normal(340, 30, 100), "jpeg_table": np.full(100, 200.0), "row": np.arange(100.0)}
    assert [shift.probe for shift in shifts(train, test)] == ["jpeg_table", "width"]
    [wider] = shifts({"width": np.full(200, 300.0)}, {"width": np.repeat([200.0, 300.0, 400.0], [60, 80, 60])})
    assert str(wider) == "width 300 px in both, but spread otherwise"
    halves = [{"width": train["width"][at::2]} for at in (0, 1)]
    assert not shifts(*halves)


def test_the_distance_of_two_samples_is_scipys():
    """With ties and of unequal sizes; p is near that of the exact distribution."""
    from scipy.stats import ks_2samp

    random = np.random.default_rng(0)
    for shift in (0.0, 0.3, 1.0):
        one, two = random.normal(size=300).round(1), random.normal(shift, size=120).round(1)
        distance, p = kolmogorov_smirnov(one, two)
        expected = ks_2samp(one, two, method="asymp")
        assert distance == pytest.approx(expected.statistic)
        assert np.log(p) == pytest.approx(np.log(expected.pvalue), rel=0.1, abs=0.1)


def feature_table(columns: dict[str, np.ndarray], labels, ids=None) -> Table:
    """A train table of features; cells are texts as a csv has them."""
    cells = np.array([[str(cell) for cell in column] for column in columns.values()], dtype=object).T
    ids = ids if ids is not None else [f"{at}" for at in np.random.default_rng(5).permutation(len(labels))]
    plan, _ = plan_of("t", [*columns], cells)
    said = {"inputs": FEATURES.name, "feature_names": (*columns,), "plan": plan}
    return Table("t", text_array(ids), text_array(map(str, labels)), cells, "id", "label", {}, **said)


def noise(n: int, seed: int = 0) -> np.ndarray:
    """Numbers that tell nothing."""
    return np.random.default_rng(seed).normal(size=n).round(5)


@pytest.mark.parametrize("planted", ["the label", "its code", "nearly", "a set's label"])
def test_a_column_that_is_the_label_is_an_alarm(planted):
    """In the label's words, in another order of numbers, with noise, or as one label of a set; honest ones are none."""
    random = np.random.default_rng(1)
    codes = random.integers(0, 4, 240)
    labels = [f"k{code}" for code in codes]
    column = {
        "the label": labels,
        "its code": np.array([7, 2, 9, 4])[codes],
        "nearly": (codes + random.normal(0, 0.15, 240)).round(4),
        "a set's label": codes == 2,
    }[planted]
    task = TASKS["multilabel" if planted == "a set's label" else "multiclass"]
    table = feature_table({"a": noise(240), "told": column, "b": (codes + 2 * noise(240, 2)).round(4)}, labels)
    (finding,) = leak_findings(table, task=task)
    assert finding.alarm and "column told sorts the rows by label" in finding.text and "--drop told" in finding.text


def test_columns_that_tell_much_are_no_leak():
    """Iris: the width of the petals tells nine tenths of the species, which is what it is there for."""
    iris = load_iris()
    order = np.random.default_rng(0).permutation(150)
    columns = dict(zip(iris.feature_names, iris.data[order].T, strict=True))
    assert not leak_findings(feature_table(columns, iris.target[order]), task=TASKS["multiclass"])


def test_an_id_that_tells_is_an_alarm():
    """By its number or by its letters; a table without either is quiet."""
    codes = np.random.default_rng(1).integers(0, 2, 200)
    random, columns = np.random.default_rng(2).permutation(200), {"a": noise(200), "b": noise(200, 1)}
    for ids, words in (
        (random + 500 * codes, "number in the id"),
        ([f"{'ab'[code]}{at}" for code, at in zip(codes, random, strict=True)], "letters stand in the id"),
    ):
        (finding,) = leak_findings(feature_table(columns, codes, map(str, ids)), task=TASKS["multiclass"])
        assert finding.alarm and words in finding.text


def test_each_column_that_shifts_is_named():
    """Numbers with both medians, a text that became rarer, cells that went missing; what stays is not named."""
    random = np.random.default_rng(0)

    def columns(n: int, shift: float, share: float, missing: float, seed: int) -> dict[str, np.ndarray]:
        cells = noise(n, seed + 2).astype(object)
        cells[random.random(n) < missing] = ""
        return {"age": noise(n, seed) + shift, "same": noise(n, seed + 1), "gap": cells} | {
            "site": np.where(random.random(n) < share, "north", "south")
        }

    train = feature_table(columns(600, 0, 0.5, 0.05, 0), random.integers(0, 2, 600))
    test = feature_table(columns(300, 1.5, 0.9, 0.5, 10), random.integers(0, 2, 300))
    (finding,) = shift_findings(train, test, None)
    assert finding.text.startswith("train and test differ in column age ") and "AUC" in finding.text
    assert all(any(words in line for line in finding.details) for words in ("site is north", "gap is missing"))
    assert "column same" not in " ".join([finding.text, *finding.details])
