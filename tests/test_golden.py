"""The smoke runs that `make test` just made against the committed golden records: every metric, with a tolerance a metric.

tests/golden/<chapter>.json     metric -> [value, tolerance], or null for what a clock or a device says (TIMED): it must be there and finite

`make golden` renews them from book/results/smoke. With folders of records of other processors after it (RECORDS=) a tolerance is twice the
largest difference that any metric of its kind (the last part of its name) shows in its chapter, and at least a query more or less.
"""

import itertools
import json
import math
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOLDEN, RECORDS = ROOT / "tests" / "golden", ROOT / "book" / "results" / "smoke"
TIMED = re.compile(r"\.(ms|seconds\w*|time|\w*points_per_s|limit_ms|peak_mib|tflops|gb_s|ratio)$|^search\.speed\.|^speed\.cpu\.|cost\.(\w+\.)*(time|share)$")
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
    said = apart(metrics_of(RECORDS, chapter), json.loads((GOLDEN / f"{chapter}.json").read_text()))
    assert not said, "\n".join(said)


def test_every_chapter_has_a_golden_record():
    assert {p.stem for p in GOLDEN.glob("*.json")} == {p.stem for p in (ROOT / "book" / "chapters").glob("*.ipynb")}


def test_a_changed_missing_or_new_metric_is_named():
    golden = {"a.r1": [50.0, 2.0], "a.ms": None, "a.nll": [-1.0, 1e-4]}
    assert apart({"a.r1": 51.9, "a.ms": 3.0, "a.nll": -1.0}, golden) == []
    assert apart({"a.r1": 52.1, "a.ms": 9e9, "a.nll": -1.0}, golden) == ["a.r1: expected 50 within 2, found 52.1"]
    assert apart({"a.r1": 50.0, "a.ms": math.nan, "a.nll": math.nan}, golden) == ["a.ms: found nan", "a.nll: expected -1 within 0.0001, found nan"]
    said = apart({"a.r1": 50.0, "a.nll": -1.0, "b": 1.0}, golden)
    assert said == ["a.ms: expected a metric, found none", "b: found 1, not in the golden record (make golden)"]


def renew(others: list[Path]) -> None:
    GOLDEN.mkdir(exist_ok=True)
    for path in sorted(RECORDS.glob("*-s0.json")):
        chapter = path.stem.removesuffix("-s0")
        own, target = metrics_of(RECORDS, chapter), GOLDEN / f"{chapter}.json"
        before = json.loads(target.read_text()) if target.is_file() else {}
        spread, kinds = defaultdict(float), defaultdict(set)
        for metric, value in own.items():
            kind = metric.rpartition(".")[2]
            spread[kind] = max([spread[kind], *(abs(metrics_of(folder, chapter)[metric] - value) for folder in others)])
            kinds[kind].add(round(value, 6))
        step = {kind: min(b - a for a, b in itertools.pairwise(sorted(values))) for kind, values in kinds.items() if len(values) > 2}
        moved = any(abs(metrics_of(folder, chapter)[m] - own[m]) > EXACT * abs(own[m]) for folder in others for m in own if not TIMED.search(m))
        lines = []
        for metric, value in sorted(own.items()):
            kept = (before.get(metric) or [0, 0])[1] if not others else 0
            kind = metric.rpartition(".")[2]
            query = step.get(kind, 0) if step.get(kind, 0) > 0.5 else 0  # values that move in steps: one step, a query more or less
            tolerance = max(kept, 2 * spread[kind], 1.01 * query, (MOVED if moved else EXACT) * abs(value), 1e-9)
            lines.append(f"{json.dumps(metric)}: {'null' if TIMED.search(metric) else json.dumps([float(f'{value:.9g}'), float(f'{tolerance:.2g}')])}")
        target.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    renew([Path(folder) for folder in sys.argv[1:]])
