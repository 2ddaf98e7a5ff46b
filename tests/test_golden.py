"""The smoke runs that `make test` just made against the committed golden records: every metric, with a tolerance a metric.

tests/golden/<chapter>.json     metric -> [value, tolerance], or null for what a clock or a device says (TIMED): it must be there and finite

`make golden` renews them from book/results/smoke. Tolerances come from records of the same runs on other processors (RECORDS=), see
`tolerances`; a kind of metrics is the last part of their names. Without such records what stood stays.
"""

import itertools
import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from georeps.lab.records import TIMED

ROOT = Path(__file__).parents[1]
GOLDEN, RECORDS = ROOT / "tests" / "golden", ROOT / "book" / "results" / "smoke"
EXACT, MOVED = 1e-4, 0.05  # relative: sums in another order; in a chapter where another processor found anything else


def apart(found: dict[str, float], golden: dict[str, list | None]) -> list[str]:
    """What a record says otherwise than the golden one, a line a metric."""
    said = [f"{m}: expected a metric, found none" for m in golden if m not in found]
    said += [f"{m}: found {found[m]:g}, not in the golden record (make golden)" for m in found if m not in golden]
    for metric, expected in golden.items():
        value = found.get(metric)
        if value is None or (expected is None and math.isfinite(value)):
            continue
        if expected is None or not abs(value - expected[0]) <= expected[1]:
            said.append(f"{metric}: expected {expected[0]:g} within {expected[1]:g}, found {value:g}" if expected else f"{metric}: found {value}")
    return said


def metrics_of(folder: Path, chapter: str) -> dict[str, float]:
    return json.loads((folder / f"{chapter}-s0.json").read_text())["metrics"]


@pytest.mark.parametrize("chapter", [p.stem for p in sorted(GOLDEN.glob("*.json"))])
def test_a_smoke_run_records_what_the_golden_record_says(chapter, smoke_book):
    assert (RECORDS / f"{chapter}-s0.json").is_file(), f"the smoke run of {chapter} failed: make smoke says where"
    said = apart(metrics_of(RECORDS, chapter), json.loads((GOLDEN / f"{chapter}.json").read_text()))
    assert not said, "\n".join(said)


def test_every_chapter_has_a_golden_record():
    assert {p.stem for p in GOLDEN.glob("*.json")} == {p.stem for p in (ROOT / "book" / "chapters").glob("*.ipynb")}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda p: p.stem)
def test_a_golden_record_can_fail(path):
    """Of what is no clock's, at least four in ten must keep within half of their value."""
    expected = [entry for entry in json.loads(path.read_text()).values() if entry]
    assert sum(tolerance <= max(abs(value) / 2, 1e-3) for value, tolerance in expected) >= 0.4 * len(expected)


def test_tolerances_come_from_other_processors_and_stay_without_them():
    own, other = {"a.r1": 50.0, "b.r1": 40.0, "a.nll": 1.0, "a.ms": 3.0}, {"a.r1": 53.0, "b.r1": 40.0, "a.nll": 1.0, "a.ms": 9.0}
    found = tolerances(own, [other], {})
    assert found["a.r1"] == 9 and found["b.r1"] == 9 and found["a.nll"] == MOVED  # three times the usual; a chapter where something moved
    assert tolerances(own, [own], {})["a.nll"] == EXACT
    kept = {"a.r1": [50.0, 9.0], "b.r1": [40.0, 9.0], "a.nll": [1.0, 0.05], "a.ms": None}
    assert tolerances(own | {"c.r5": 2.0}, [], kept) == {"a.r1": 9.0, "b.r1": 9.0, "a.nll": 0.05, "a.ms": MOVED * 3, "c.r5": MOVED * 2}
    assert tolerances(own, [], {})["a.nll"] == MOVED


def test_a_changed_missing_or_new_metric_is_named():
    golden = {"a.r1": [50.0, 2.0], "a.ms": None, "a.nll": [-1.0, 1e-4]}
    assert apart({"a.r1": 51.9, "a.ms": 3.0, "a.nll": -1.0}, golden) == []
    assert apart({"a.r1": 52.1, "a.ms": 9e9, "a.nll": -1.0}, golden) == ["a.r1: expected 50 within 2, found 52.1"]
    assert apart({"a.r1": 50.0, "a.ms": math.nan, "a.nll": math.nan}, golden) == ["a.ms: found nan", "a.nll: expected -1 within 0.0001, found nan"]
    said = apart({"a.r1": 50.0, "a.nll": -1.0, "b": 1.0}, golden)
    assert said == ["a.ms: expected a metric, found none", "b: found 1, not in the golden record (make golden)"]


def tolerances(own: dict[str, float], others: list[dict[str, float]], before: dict[str, list | None]) -> dict[str, float]:
    """A tolerance a metric: twice its own difference or three times the usual one of its kind, whichever is more, and at least one query.

    Without others what stood stays, and a chapter without a golden record gets MOVED.
    """
    kinds, found = defaultdict(list), {}
    for metric in own:
        kinds[metric.rpartition(".")[2]].append(metric)
    apart_by = {m: max((abs(other[m] - v) for other in others), default=0.0) for m, v in own.items()}
    kept = {m: before[m][1] if before.get(m) else 0.0 for m in own}
    noise = apart_by if others else kept
    moved = not (before or others) or any(noise[m] > 2 * EXACT * abs(own[m]) + 1e-9 for m in own if not TIMED.search(m))
    for kind in kinds.values():
        values = sorted({round(own[m], 6) for m in kind})
        step = min((b - a for a, b in itertools.pairwise(values)), default=0.0) if len(values) > 2 else 0.0
        usual = 3 * statistics.median([apart_by[m] for m in kind if apart_by[m]] or [0.0])
        for m in kind:
            query = 1.01 * step if step > 0.5 else 0.0  # values that move in steps: one step, a query more or less
            found[m] = max(2 * apart_by[m], usual, query, (MOVED if moved else EXACT) * abs(own[m]), 1e-9, 0.0 if others else kept[m])
    return found


def renew(others: list[Path]) -> None:
    GOLDEN.mkdir(exist_ok=True)
    for path in sorted(RECORDS.glob("*-s0.json")):
        chapter = path.stem.removesuffix("-s0")
        own, target = metrics_of(RECORDS, chapter), GOLDEN / f"{chapter}.json"
        allowed = tolerances(own, [metrics_of(folder, chapter) for folder in others], json.loads(target.read_text()) if target.is_file() else {})
        lines = []
        for metric, value in sorted(own.items()):
            said = "null" if TIMED.search(metric) else json.dumps([float(f"{value:.9g}"), float(f"{allowed[metric]:.2g}")])
            lines.append(f"{json.dumps(metric)}: {said}")
        target.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    renew([Path(folder) for folder in sys.argv[1:]])
