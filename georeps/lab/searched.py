"""The same search for a method and its baselines: settings of a recipe judged on validation data, and what a live run takes from the reference.

    model = searched.best(run, "crossview.safa.cross", {"lr": [3e-3, 1e-2, 3e-2], "gamma": [5, 10, 20]}, train)      train(lr=, gamma=) -> (model, score)
"""  # fmt: skip

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from georeps.lab import records

T = TypeVar("T")


def whole(run: records.Run) -> bool:
    """Whether a run makes every row: all do but the book's own of profile laptop, and those with parameters of one's own on the embedded worlds."""
    live = "GEOREPS_LIVE" in os.environ and run.record.profile in ("laptop", "custom")
    return not live or bool(run.record.parameters.get("data_root"))


def best(run: records.Run, name: str, grid: Mapping[str, Sequence[float]], train: Callable[..., tuple[T, float]]) -> T:
    """Of the models that `train(**setting)` gives with a score on validation data, the one of the highest; the first of equals.

    Searched axis by axis, the last one first, each at what was chosen on those after it and at the middle of those before it. Scores are recorded as
    <name>.search.<axis>.<value>, what was chosen as <name>.chosen.<axis>. Where a chapter says `searching: n`, seeds from n on train once, with what
    seed modulo n chose in the reference, and so does a run that is not `whole`, with what its seed chose; without such a choice each searches.
    """
    known = _chosen(run, name, grid)
    if known:
        model, _ = train(**known)
    else:
        known, tried = {axis: values[len(values) // 2] for axis, values in grid.items()}, {}
        for axis in reversed(grid):
            for value in grid[axis]:
                setting = tuple((known | {axis: value}).items())
                tried[setting] = tried.get(setting) or train(**dict(setting))
                run[metric(name, axis, value)] = tried[setting][1]
            known[axis] = max(grid[axis], key=lambda value: tried[tuple((known | {axis: value}).items())][1])
        model, _ = tried[tuple(known.items())]
    for axis, value in known.items():
        run[f"{name}.chosen.{axis}"] = value
    return model


def metric(name: str, axis: str, value: float) -> str:
    """Where the validation score of a value of an axis is recorded."""
    return f"{name}.search.{axis}.{f'{value:g}'.replace('.', 'p').replace('-', 'm')}"


def curve(here: Mapping[str, Mapping[int, float]], name: str, axis: str, values: Sequence[float]) -> dict[float, list[float]]:
    """value -> the validation scores over seeds, of what `records.values` gives; without values that no run tried."""
    found = {value: list(here.get(metric(name, axis, value), {}).values()) for value in values}
    return {value: scores for value, scores in found.items() if scores}


def _chosen(run: records.Run, name: str, grid: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """What the reference chose for this run; {} where it has to search itself."""
    own, searching = run.record, run.record.parameters.get("searching", run.record.seed + 1)
    if whole(run) and own.seed < searching or own.parameters.get("data_root"):
        return {}
    profile = "laptop" if own.profile == "custom" else own.profile
    found = {record.seed: record.metrics for record in records.records(profile, chapter=own.chapter, live=False)}
    metrics = found.get(own.seed % searching, {})
    chosen = {axis: metrics.get(f"{name}.chosen.{axis}") for axis in grid}
    return chosen if all(chosen[axis] in grid[axis] for axis in grid) else {}
