"""The search of settings."""

import pytest

from georeps.lab import records, searched


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_RESULTS", str(tmp_path / "results"))
    return lambda profile="laptop", seed=0: records.Run("03_crossview", profile=profile, seed=seed, device="cpu", parameters={"seeds": 4, "searching": 2})


GRID = {"lr": [0.001, 0.01, 0.1, 1.0], "gamma": [1.0, 10.0, 100.0]}


def peaked(calls):
    def train(lr, gamma):
        calls.append((lr, gamma))
        return f"{lr}, {gamma}", -abs(lr - 0.01) - abs(gamma - 100)

    return train


def test_the_best_is_found_axis_by_axis_and_every_score_recorded(run):
    calls, own = [], run()
    assert searched.best(own, "x.row", GRID, peaked(calls)) == "0.01, 100.0"
    assert len(calls) == len(set(calls)) == 6, "three of the last axis, then three more of the first"
    assert own.record.metrics["x.row.chosen.lr"] == 0.01 and own.record.metrics["x.row.search.lr.0p001"] < own.record.metrics["x.row.search.lr.0p01"]
    here = {m: {0: v} for m, v in own.record.metrics.items()}
    assert list(searched.curve(here, "x.row", "gamma", GRID["gamma"])) == GRID["gamma"]


def test_a_live_run_and_later_seeds_train_once_with_what_the_reference_chose(run, monkeypatch, tmp_path):
    for seed in (0, 1):
        reference = run(seed=seed)
        searched.best(reference, "x.row", GRID, peaked([]))
        reference.save()
    calls = []
    assert searched.best(run(seed=3), "x.row", GRID, peaked(calls)) == "0.01, 100.0" and len(calls) == 1
    monkeypatch.setenv("GEOREPS_LIVE", str(tmp_path / "live"))
    for live in (run(), run(profile="custom", seed=7)):
        calls = []
        assert not searched.whole(live) and searched.best(live, "x.row", GRID, peaked(calls)) == "0.01, 100.0" and len(calls) == 1
    for name, grid in (("x.other", GRID), ("x.row", GRID | {"lr": [0.1, 1.0]})):
        calls = []
        searched.best(run(), name, grid, peaked(calls))
        assert len(calls) > 3, "what no reference chose is searched, and what is no longer among the values"
    assert searched.whole(run(profile="smoke")) and searched.whole(run(profile="gpu"))
