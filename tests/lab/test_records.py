"""Records, tables and the claims ledger."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from georeps.lab import records


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_RESULTS", str(tmp_path))
    return tmp_path


def write(metrics_by_seed, chapter="03_x", profile="smoke", seeds=9, epochs=1):
    for seed, metrics in metrics_by_seed.items():
        run = records.Run(chapter, profile=profile, seed=seed, device="cpu", parameters={"epochs": epochs, "seeds": seeds})
        for name, value in metrics.items():
            run[name] = float(value)
        run.save()


def test_a_record_round_trips_with_versions_and_device(results):
    write({0: {"a.b": 1.5}})
    (record,) = records.records("smoke")
    assert (record.chapter, record.seed, record.metrics, record.parameters["epochs"]) == ("03_x", 0, {"a.b": 1.5}, 1)
    assert "torch" in record.versions and record.device.startswith("cpu")
    assert not list(results.rglob("*.part"))


def test_bad_metrics_and_records_are_named(results):
    run = records.Run("03_x", profile="smoke", seed=0, device="cpu", parameters={})
    with pytest.raises(ValueError, match="a.b: expected a finite value, found nan"):
        run["a.b"] = math.nan
    run["a.b"] = 1.0
    with pytest.raises(ValueError, match="recorded twice"):
        run["a.b"] = 2.0
    run.save()
    (results / "smoke" / "broken.json").write_text('{"chapter": "x"')
    with pytest.raises(ValueError, match=r"broken.json: expected a results record"):
        records.records("smoke")


def test_one_metric_of_two_chapters_is_refused(results):
    write({0: {"a.b": 1.0}})
    write({0: {"a.b": 2.0}}, chapter="04_y")
    with pytest.raises(ValueError, match="a.b: recorded by two chapters for seed 0"):
        records.values(records.records("smoke"))


def test_a_profile_s_records_are_its_own_seeds_and_the_run_under_way(results):
    write({s: {"a": float(s)} for s in range(4)}, seeds=2)
    assert [r.seed for r in records.records("smoke")] == [0, 1]
    run = records.Run("03_x", profile="smoke", seed=3, device="cpu", parameters={"epochs": 1, "seeds": 2})
    assert [r.seed for r in records.records("smoke", own=run)] == [0, 1, 3]


def test_records_of_different_parameters_are_not_pooled(results):
    write({0: {"a": 1.0}}, seeds=2)
    write({1: {"a": 2.0}}, seeds=2, epochs=60)
    with pytest.raises(ValueError, match="03_x, seed 1: expected the parameters of the other seeds, found other epochs"):
        records.values(records.records("smoke"))


def test_a_run_under_way_names_and_leaves_out_the_records_of_an_earlier_one(results):
    write({1: {"a": 2.0}}, seeds=3)
    write({2: {"a": 3.0}}, seeds=3, epochs=60)
    run = records.Run("03_x", profile="smoke", seed=0, device="cpu", parameters={"epochs": 1, "seeds": 3})
    with pytest.warns(UserWarning, match=r"03_x: left out seeds \[2\] of an earlier run"):
        assert [r.seed for r in records.records("smoke", own=run)] == [0, 1]


def test_interval_is_student_s():
    sample = [1.0, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(sample), scale=stats.sem(sample))
    mean, half, n = records.interval(sample)
    assert (mean - half, mean + half, n) == (pytest.approx(low), pytest.approx(high), 3)
    assert math.isnan(records.interval([1.0])[1]) and records.format_interval([1.0]) == "1.0 (n=1)"


def test_compare_shows_paper_here_and_where_and_says_not_run(results, tmp_path):
    write({s: {"m.r1": 10.0 + s} for s in range(3)})
    path = tmp_path / "paper.csv"
    path.write_text('source,table,row,column,value,metric\np,1,"a, b",R@1,53.2,m.r1\np,1,c,R@1,9,m.other\n')
    table = records.compare(records.reference(path), records.records("smoke"))
    assert table.paper.tolist() == [53.2, 9.0]
    assert table.here.tolist() == ["11.0\u00a0±\u00a02.5 (n=3)", "not run"]
    assert table["where"].tolist()[0].startswith("smoke, cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", "line 1: expected the columns"),
        ("source,table,row,column,value,metric\np,1,r,c,x,m\n", "line 2: expected a number as value, found 'x'"),
        ("source,table,row,column,value,metric\np,1,r,c,1,m\np,1,r\n", "line 3: expected 6 cells, found 3"),
    ],
)
def test_malformed_reference_files_name_file_and_line(tmp_path, text, message):
    path = tmp_path / "paper.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"paper.csv, {message}"):
        records.reference(path)


def test_the_thesis_s_tables_are_whole():
    paper = records.reference(records.book_folder() / "reference" / "thesis.csv")
    counts = paper.groupby("table").size().to_dict()
    assert counts == {"4.2": 18, "4.3": 12, "4.4": 21, "4.5": 15, "4.6": 12, "4.7": 15, "4.8": 9}
    assert paper[(paper.table == "4.4") & paper.row.str.startswith("exp 17:")].value.tolist() == [7.35, 18.25, 76.91]
    assert paper.value.between(0, 100).all()


def test_a_table_is_spread_as_the_paper_prints_it_and_no_number_is_lost(unchecked):
    rows = [("5.2", "Text", "color", 13.5, "14.2\u00a0±\u00a03.6 (n=3)", "laptop")]
    rows += [("5.2", "Text", "shape", 6.2, "not run", ""), ("5.3", "0.1", "color", 55.3, "1.0 (n=1)", "laptop")]
    compared = pd.DataFrame(rows, columns=["table", "row", "column", "paper", "here", "where"])
    found = records.spread(compared)
    assert list(found) == ["5.2", "5.3"] and list(found["5.2"].columns) == ["color", "shape"]
    assert found["5.2"].loc["Text"].tolist() == ["13.5 | 14.2\u00a0±\u00a03.6", "6.2 | -"]
    with pytest.raises(ValueError, match="found two for 5.2, Text, color"):
        records.spread(pd.concat([compared, compared[:1]]))


def test_a_notebook_s_annotated_names_are_its_run_s_parameters(results):
    names: dict = {}
    exec('profile: str = "smoke"\nseed: int = 3\ndevice: str = "auto"\ndata_root: str = ""\nepochs: int = 1', names)
    exec("epochs = 2\nother = 5", names)  # as papermill injects, and as a chapter goes on
    run = records.Run.of("03_x", names, device="cpu")
    assert run.record.parameters == {"data_root": "", "epochs": 2}
    assert (run.record.profile, run.record.seed, run.device) == ("smoke", 3, "cpu")
    run["a.b"] = 1.0
    assert [r.metrics for r in run.runs()] == [{"a.b": 1.0}]


def test_a_table_has_an_interval_a_cell_and_a_dash_where_nothing_was_recorded(results):
    write({0: {"a.safa.r1": 1.0, "a.safa.r5": 2.0}, 1: {"a.safa.r1": 3.0, "a.safa.r5": 2.0}})
    here = records.values(records.records("smoke"))
    table = records.table(here, {("SAFA", "cross"): "a.safa", ("Siamese", "cross"): "a.siamese"}, {"R@1": "r1", "R@5": "r5"})
    assert list(table.columns) == ["R@1", "R@5"] and table.loc[("Siamese", "cross")].tolist() == ["-", "-"]
    assert table.loc[("SAFA", "cross"), "R@1"] == records.format_interval([1.0, 3.0])
    assert records.table(here, {"SAFA": "a.safa"}, ("r1",), 2).loc["SAFA", "r1"].startswith("2.00")


def test_outcomes_are_stored_beside_the_record_and_their_mean_is_the_metric(results):
    """Of the metrics that the ledger names: `crossview.safa_polar.cross.r1` is one."""
    run = records.Run("03_x", profile="smoke", seed=0, device="cpu", parameters={})
    hits = torch.tensor([True, False, False, True])
    assert run.outcomes("crossview.safa_polar.cross.r1", 100.0 * hits) == 50 and run.outcomes("nobody.asks", [0.25, -0.5]) == -0.125
    (record,) = [records.read_record(run.save())]
    assert record.metrics == {"crossview.safa_polar.cross.r1": 50, "nobody.asks": -0.125}
    assert list(record.outcomes) == ["crossview.safa_polar.cross.r1"] and record.outcomes["crossview.safa_polar.cross.r1"].tolist() == [100, 0, 0, 100]
    assert record.outcomes["crossview.safa_polar.cross.r1"].dtype == np.uint8


@pytest.mark.parametrize("values", [[1.0, math.nan], [], [[1.0]]])
def test_outcomes_that_are_no_finite_row_are_named(results, values, unchecked):
    run = records.Run("03_x", profile="smoke", seed=0, device="cpu", parameters={})
    with pytest.raises(ValueError, match="a.b: expected finite outcomes a query, found shape"):
        run.outcomes("a.b", values)


def test_recalls_record_outcomes_and_chance(results):
    run = records.Run("03_x", profile="smoke", seed=0, device="cpu", parameters={})
    ranks = torch.tensor([0, 3, 7, 400])
    run.recalls("x.floor", ranks, gallery=500)
    run.recalls("x.model", ranks, gallery=500, ks=(1, 5), percents=(1, 5), rows=["x.floor"])
    assert run.record.metrics["x.model.r5"] == run.record.metrics["x.model.r1pct"] == 50 and run.record.metrics["x.model.r5pct"] == 75
    assert run.record.floors["x.model.r1pct"] == {"chance": 1.0, "rows": ["x.floor.r1pct"]}
    with pytest.raises(ValueError, match="floor: expected recorded metrics, found x.floor.r5pct"):
        run.save()


def test_a_receipt_says_bit_equal_inside_timed_different_and_new(results):
    values_ = {s: {"a": float(s), "b": 5 + 0.1 * s, "c": 1.0, "d.ms": 3.0 + s} for s in range(3)}
    write(values_)
    reference = records.records("smoke")
    run = records.Run("03_x", profile="smoke", seed=0, device="cpu", parameters={})
    for name, value in {"a": 0.0, "b": 5.3, "c": 1.1, "d.ms": 90.0, "e": 1.0}.items():
        run[name] = value
    graded = records.grade(run.record, reference).set_index("metric").grade
    assert graded.to_dict() == {"a": "bit-equal", "b": "inside", "c": "different", "d.ms": "timed", "e": "new"}


def test_the_interval_of_a_receipt_holds_one_more_seed_as_often_as_it_says(results):
    generator, inside = np.random.default_rng(0), 0
    for _ in range(300):
        mean, half, n = records.interval(generator.normal(size=5))
        inside += abs(generator.normal() - mean) <= half * math.sqrt(n + 1)
    assert 0.91 < inside / 300 < 0.98


@pytest.fixture
def small_book(tmp_path, monkeypatch):
    """A book of one chapter that imports one module of the package."""
    for folder in ("chapters", "params", "results/laptop"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("GEOREPS_BOOK", str(tmp_path))
    monkeypatch.delenv("GEOREPS_RESULTS", raising=False)

    def write_chapter(code, epochs=1):
        cells = [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": "seed: int = 0\nepochs: int = 1\nseeds: int = 1"}]
        cells.append({"cell_type": "code", "metadata": {}, "source": ["from georeps.core import vmf\n", code]})
        (tmp_path / "chapters" / "03_x.ipynb").write_text(json.dumps({"cells": cells}))
        (tmp_path / "params" / "03_x.yml").write_text(f"laptop: {{epochs: {epochs}}}\n")

    write_chapter("x = 1")
    return write_chapter


def test_a_reference_is_stale_once_code_or_parameters_are_others_and_not_for_comments(small_book):
    run = records.Run("03_x", profile="laptop", seed=0, device="cpu", parameters=records.parameters_of("03_x", "laptop"))
    run.save()
    assert records.stale() == [] and "georeps.core.vmf" in run.record.modules
    small_book("x = 1  # a comment")
    assert records.stale() == []
    small_book("x = 2")
    assert records.stale() == ["03_x"]
    small_book("x = 1", epochs=2)
    assert records.stale() == ["03_x"]


def test_a_run_of_the_book_stays_beside_a_reference_of_its_code_and_alone_without(small_book, monkeypatch, tmp_path):
    parameters = records.parameters_of("03_x", "laptop") | {"seeds": 2}
    for seed in range(2):
        run = records.Run("03_x", profile="laptop", seed=seed, device="cpu", parameters=parameters)
        run["a"] = float(seed)
        run.save()
    monkeypatch.setenv("GEOREPS_LIVE", str(tmp_path / "runs"))
    own = records.Run("03_x", profile="laptop", seed=0, device="cpu", parameters=parameters)
    own["a"] = 7.0
    assert [r.metrics["a"] for r in own.runs()] == [0, 1]
    assert own.save().parent == tmp_path / "runs" and [r.metrics["a"] for r in records.records("laptop")] == [0, 1]
    small_book("x = 3")
    other = records.Run("03_x", profile="laptop", seed=0, device="cpu", parameters=parameters)
    other["a"] = 8.0
    assert [r.metrics["a"] for r in own.runs()] == [0, 1] and [r.metrics["a"] for r in other.runs()] == [8]
    (tmp_path / "results" / "laptop" / "03_x-s0.json").unlink()
    (tmp_path / "results" / "laptop" / "03_x-s1.json").unlink()
    assert [r.metrics["a"] for r in records.records("laptop")] == [7] and records.records("laptop", live=False) == []
    assert [r.metrics["a"] for r in other.runs()] == [8], "a run always shows itself"
