"""Cases of the speed chapter: all methods do the same work, and what is recorded is what the tables show."""

import math

import pytest
import torch

from georeps.lab import records, speed

CASES = {
    "topk": (speed.topk, (9, 500, 16, 5)),
    "rank": (speed.rank, (9, 500, 16)),
    "uniformity": (speed.uniformity, (60, 8)),
    "weicom": (speed.weicom, (7, 200, 16)),
    "sampling": (speed.sampling, (20, 16, 1, 3)),
}


def answers(name):
    build, sizes = CASES[name]
    return {method: call() for method, call in build(*sizes).methods.items() if method != "product"}


def test_methods_find_the_same_neighbours():
    found = answers("topk")
    index = found["ours"].index
    assert torch.equal(found["torch"][1], index)
    assert torch.equal(torch.from_numpy(found["numpy"]), index)
    assert torch.equal(torch.from_numpy(found["faiss"][1]), index)


def test_methods_count_the_same_ranks_and_sum_the_same_gradients():
    ranks = answers("rank")
    assert torch.equal(ranks["ours"], ranks["torch"]) and torch.equal(ranks["ours"], torch.from_numpy(ranks["numpy"]))
    weicom = answers("weicom")
    assert torch.equal(weicom["ours"], torch.cat(weicom["torch"]))
    gradients = answers("uniformity")  # rows of length 1: of distances or of similarities, they differ along the row alone
    x = speed.unit(60, 8, 0, "cpu")
    off = gradients["ours"] - gradients["torch"]
    assert torch.allclose(off - (off * x).sum(1, keepdim=True) * x, torch.zeros_like(x), atol=1e-6)


def test_what_is_recorded_is_what_the_table_shows_and_the_rest_is_not_measured_yet():
    run = records.Run("13_speed", profile="custom", seed=0, device="cpu", parameters={})
    saved = []
    cases = {"topk": CASES["topk"], "rank": CASES["rank"]}
    speed.measure(run, "cpu", cases, repeats=1, after=lambda: saved.append(len(run.record.metrics)))
    assert len(saved) == 2 and saved[0] < saved[1]
    shown = speed.table(run.record.metrics, "cpu", cases)
    assert list(shown.columns) == ["sizes", "ours", "torch", "faiss", "numpy", "product", "limit"]
    assert float(shown.ours.iloc[0].replace(",", "")) == pytest.approx(run.record.metrics["speed.cpu.topk.ours.ms"], rel=0.01)
    empty = speed.table({}, "gpu", speed.GPU)
    assert (empty.ours == "not measured yet").all() and list(empty.columns) == ["sizes", "ours"]
    assert empty.sizes["topk"] == "10k x 1M x 512 x 100" and empty.sizes["rank"] == "53,694 x 46,563 x 4,096"


def refuse():
    raise TypeError("no such argument")


def test_a_method_that_runs_out_of_memory_is_said_and_not_asked_again():
    calls = []

    def greedy():
        calls.append(1)
        raise torch.OutOfMemoryError("too much")

    found = speed.race(speed.Case(1, 1, {"greedy": greedy, "modest": lambda: None}), repeats=3)
    assert found["greedy"].why == "out of memory" and math.isnan(found["greedy"].ms) and len(calls) == 1
    with pytest.warns(UserWarning, match="peer: TypeError: no such argument"):
        assert speed.race(speed.Case(1, 1, {"peer": lambda: refuse(), "ours": lambda: None}), repeats=2)["peer"].why == "failed"
    with pytest.raises(TypeError):
        speed.race(speed.Case(1, 1, {"ours": refuse}), repeats=2)
    metrics = {"speed.gpu.topk.limit_ms": 1.0, "speed.gpu.topk.torch.out_of_memory": 1.0, "speed.gpu.topk.ours.ms": 2.0}
    row = speed.table(metrics, "gpu", {"topk": speed.GPU["topk"]}, "share").iloc[0]
    assert row.ours == "50" and row.torch == "out of memory"


def test_a_case_that_the_record_of_this_code_holds_is_not_timed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_RESULTS", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(records, "device_name", lambda device: "a GPU")
    timed = []

    def measure(run, where, cases, *, repeats, after):
        for name in cases:
            timed.append(name)
            run[f"speed.gpu.{name}.ours.ms"] = 1.0
            after()

    monkeypatch.setattr(speed, "measure", measure)
    speed.main(["rank", "topk"])
    speed.main([])
    assert timed == ["rank", "topk", *(name for name in speed.GPU if name not in ("rank", "topk"))]
    with pytest.raises(SystemExit, match="case: expected some of topk, .*, found nothing"):
        speed.main(["nothing"])
