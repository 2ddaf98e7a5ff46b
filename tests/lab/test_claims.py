"""The ledger: coverage and power of a margin by simulation, verdicts, the error rate over all claims, what a check may say."""

import json

import numpy as np
import pytest
from scipy import stats

from georeps.lab import claims, records


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_RESULTS", str(tmp_path))
    monkeypatch.setenv("GEOREPS_BOOK", str(tmp_path))  # no ledger yet: every outcome is stored
    return tmp_path


def write(metrics_by_seed, chapter="03_x", seeds=20, outcomes=None, floors=None):
    """Records of seeds: `outcomes` are metric -> "s q"."""
    for seed, metrics in metrics_by_seed.items():
        run = records.Run(chapter, profile="smoke", seed=seed, device="cpu", parameters={"seeds": seeds})
        for name, value in metrics.items():
            run[name] = float(value)
        for name, values in (outcomes or {}).items():
            run.outcomes(name, values[seed])
        for name, floor in (floors or {}).items():
            run.floor(name, **floor)
        run.save()


def ledger(tmp_path, *checks, rope=0.0, floor=None, **more):
    path = tmp_path / "claims.yml"
    path.write_text(
        json.dumps([{"id": f"c{i}", "source": "s", "sentence": "t", "check": c, "rope": rope, "floor": floor} | more for i, c in enumerate(checks)])
    )
    return path


def judged(path):
    """A ledger's lines."""
    return claims.evaluate(path, records.records("smoke"))


def draws(n, seeds, queries, of_seeds, of_queries, noise, generator):
    """Differences "n s q" without effect: crossed random effects of these standard deviations."""
    d = of_seeds * generator.normal(size=(n, seeds, 1)) + of_queries * generator.normal(size=(n, 1, queries))
    return d + noise * generator.normal(size=(n, seeds, queries))


WORLDS = {  # standard deviations of seeds, queries and noise, for 200 queries
    "seeds": (1, 0, 0), "queries": (0, 1, 0), "noise": (0, 0, 1), "seeds_and_noise": (0.1, 0, 1), "queries_and_noise": (0, 1, 1),
    "both": (0.07, 0.8, 0.5), "mostly_seeds": (0.1, 0.4, 1), "mostly_queries": (0.03, 1, 1),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_without_an_effect_an_interval_lies_beyond_zero_as_often_as_it_says(seeds, world):
    """2.5% on either side, whatever varies."""
    d = draws(2500, seeds, 200, *WORLDS[world], np.random.default_rng(seeds))
    margins = [claims.compare(x, 0.0) for x in d]
    beyond = np.mean([(m.low > 0) + (m.high < 0) for m in margins]) / 2
    assert 0.015 <= beyond <= 0.035
    assert np.mean([m.p < 0.05 for m in margins]) == pytest.approx(2 * beyond, abs=1e-3)


def test_five_points_are_found_with_ten_seeds_and_750_queries():
    """Recall of 50 against 55%: queries of their own difficulty, seeds that differ by two points."""
    generator, found = np.random.default_rng(0), []
    for _ in range(200):
        hard = generator.normal(size=(1, 750))
        a, b = (hard + shift + 0.05 * generator.normal(size=(10, 1)) + generator.normal(size=(10, 750)) > 0 for shift in (0.178, 0.0))
        found.append(claims.compare(100.0 * a, 100.0 * b).verdict)
    assert found.count("holds") > 0.85 * len(found) and "fails" not in found


def test_seeds_alone_give_student_s_interval_and_queries_alone_theirs():
    d = np.random.default_rng(0).normal(size=(5, 1)) * np.ones((5, 40))
    expected = stats.t.interval(0.95, 4, loc=d.mean(), scale=stats.sem(d[:, 0]))
    assert (claims.compare(d, 0.0).low, claims.compare(d, 0.0).high) == pytest.approx(expected)
    assert claims.compare(d, 0.0).p == pytest.approx(stats.ttest_1samp(d[:, 0], 0).pvalue)
    alone = claims.compare(d.T[:20] * 0 + np.random.default_rng(1).normal(size=(1, 5)), 0.0)
    assert alone.of_seeds == pytest.approx(0, abs=1e-20) and alone.queries == 5


def test_margins_are_paired_by_seed_and_query():
    """Queries differ by 30, the sides by 1: only a paired comparison sees it."""
    generator = np.random.default_rng(0)
    b = 30 * generator.normal(size=(1, 500)) + 30 * generator.normal(size=(4, 1))
    assert claims.compare(b + 1 + 0.1 * generator.normal(size=(4, 500)), b + np.zeros((4, 500))).verdict == "holds"


def test_a_row_against_itself_is_equal_and_so_is_what_lies_within_the_rope():
    a = np.random.default_rng(0).normal(size=(3, 50))
    assert claims.compare(a, a).verdict == "equal" and claims.compare(a, a).p == 1
    assert claims.compare(a, a - 1e-3, rope=0.01).verdict == "equal"
    assert claims.compare(a, a - 1e-3).verdict == "holds" and claims.compare(a[:2], a[:2]).verdict == "undecided"


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.ones((3, 4)), np.ones((2, 4)), "as many seeds and queries, or a number as b, found shapes (3, 4) and (2, 4)"),
        (np.ones((3, 4)), np.ones((3, 5)), "found shapes (3, 4) and (3, 5)"),
        (np.ones(4), 0.0, "found shapes (4,) and ()"),
        (np.full((3, 4), np.nan), np.ones((3, 4)), "expected finite outcomes, found 12 and 0 that are not"),
    ],
)
def test_missing_seeds_unequal_queries_and_nan_are_named(a, b, said, unchecked):
    with pytest.raises(ValueError) as error:
        claims.compare(a, b)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [([5, 6, 7.5], [1, 2, 3], "holds"), ([1, 2, 3.5], [5, 6, 7], "fails"), ([1, 5, 3], [2, 2, 4], "undecided"), ([5, 6], [1, 2], "undecided")],
)
def test_verdicts(results, tmp_path, a, b, verdict):
    write({s: {"x.a": x, "x.b": y} for s, (x, y) in enumerate(zip(a, b, strict=True))})
    row = judged(ledger(tmp_path, "x.a > x.b")).iloc[0]
    assert row.verdict == verdict and row.margin == pytest.approx(np.mean(a) - np.mean(b)) and row.n == len(a)


def test_the_ledger_samples_queries_where_outcomes_are_recorded(results, tmp_path):
    """Seeds that agree on one test set of 40 queries: certain for who counts seeds alone."""
    generator = np.random.default_rng(0)
    a = {s: np.r_[np.ones(21), np.zeros(19)] for s in range(5)}
    b = {s: np.r_[np.zeros(19), np.ones(20), [0]] for s in range(5)}
    write({s: {"y.a": a[s].mean() + 1e-6 * generator.normal(), "y.b": b[s].mean()} for s in range(5)}, outcomes={"x.a": a, "x.b": b})
    both, seeds = (judged(ledger(tmp_path, check)).iloc[0] for check in ("x.a > x.b", "y.a > y.b"))
    assert (both.verdict, both.queries, seeds.verdict, seeds.queries) == ("undecided", 40, "holds", 0)
    assert both.needed == np.inf


def test_sides_of_other_queries_are_each_their_own_sample(results, tmp_path):
    generator = np.random.default_rng(0)
    a, b = (dict.fromkeys(range(4), base) for base in (generator.normal(size=300), generator.normal(size=200)))
    write({s: {} for s in range(4)}, outcomes={"x.a": a, "x.b": b})
    row = judged(ledger(tmp_path, "x.a > 2 * x.b - 1")).iloc[0]
    error = np.sqrt(a[0].var(ddof=1) / 300 + 4 * b[0].var(ddof=1) / 200)
    assert (row.high - row.low) / 2 == pytest.approx(1.96 * error, rel=0.01)


def test_a_claim_without_signal_has_no_verdict(results, tmp_path):
    generator = np.random.default_rng(0)
    seeds = {s: {"x.a": 5 + generator.normal(), "x.b": generator.normal(), "x.histogram": 5 + generator.normal()} for s in range(6)}
    said = {}
    for name, floor in {"low": {"chance": 1.0}, "high": {"chance": 4.9}, "row": {"chance": 1.0, "rows": ["x.histogram"]}}.items():
        write(seeds, floors={"x.a": floor})
        said[name] = judged(ledger(tmp_path, "x.a > x.b", floor="x.a")).iloc[0]
    assert [said[n].verdict for n in said] == ["holds", "no signal", "no signal"]
    line = claims.floors(records.records("smoke")).loc["x.a"]
    assert line.chance == 1 and line["learns nothing"].startswith("x.histogram 4.") and line.iloc[-1].startswith("x.a does not beat x.histogram")
    assert said["row"].why == "x.a does not beat x.histogram by two standard errors" and "chance (4.9)" in said["high"].why
    assert judged(ledger(tmp_path, "x.a > x.b", floor="x.b")).iloc[0].why == "no floor of x.b was recorded"


def test_verdicts_survive_the_whole_ledger_or_are_undecided(results, tmp_path):
    """One claim at p = 0.03 among forty without an effect is what chance shows."""
    generator = np.random.default_rng(3)
    lone = generator.normal(size=12)
    lone = (lone - lone.mean()) / lone.std(ddof=1) + 2.47 / np.sqrt(12)  # t = 2.47, p = 0.031
    null = generator.normal(size=(12, 40))
    null = (null - null.mean(0)) + 0.02 * null.std(0, ddof=1)
    write({s: {"x.a": lone[s]} | {f"x.n{i}": null[s, i] for i in range(40)} for s in range(12)})
    alone = judged(ledger(tmp_path, "x.a > 0")).iloc[0]
    among = judged(ledger(tmp_path, "x.a > 0", *(f"x.n{i} > 0" for i in range(40))))
    assert alone.verdict == "holds" and alone.p == pytest.approx(0.031, abs=0.001)
    assert set(among.verdict) == {"undecided"} and among.why[0] == "not beyond what a ledger of this size shows by chance"
    assert 12 < among.needed[0] < 60


def test_a_chain_holds_where_all_links_do_and_fails_where_one_is_reversed(results, tmp_path):
    """Two links without an effect fail one time in twenty, not in two."""
    generator = np.random.default_rng(0)
    noise = lambda: 0.1 * generator.normal()
    write({s: {"x.a": 9 + noise(), "x.b": 4 + noise(), "x.c": 1 + noise(), "x.d": 1 + noise()} for s in range(5)})
    said = judged(ledger(tmp_path, "x.a > x.b > x.c", "x.a > x.c > x.b", "x.a > x.c > x.d")).set_index("id")
    assert said.verdict.tolist() == ["holds", "fails", "undecided"] and said.margin["c0"] == pytest.approx(3, abs=0.2)
    fails = 0
    for _ in range(300):
        links = [claims._margin(generator.normal(size=5), [], 0.0, 0.95) for _ in range(2)]
        fails += claims._verdict(links) == "fails"
    assert fails < 30


def test_the_seeds_that_would_decide_are_those_of_a_power_of_80_percent():
    margin = claims._margin(np.random.default_rng(0).normal(0.0, 1.0, size=8), [], 0.0, 0.95)
    n = np.arange(2, 500)
    power = stats.nct.sf(stats.t.isf(0.025, n - 1), n - 1, abs(margin.mean) / np.sqrt(margin.of_seeds) * np.sqrt(n))
    assert abs(claims._needed(margin, 0.05) - n[power > 0.8].min()) <= 1


def test_checks_know_arithmetic_bounds_and_chains(results, tmp_path):
    write({s: {"x.a": 9.0, "x.b": 4.0, "x.c": 1.0} for s in range(3)})
    margins = {
        "x.a - 2 * x.b > 0.5": 0.5, "x.a > x.b > x.c": 3.0, "x.a / 3 < 5": 2.0, "-x.c > -x.b": 3.0, "x.a * x.b > 30": 6.0, "(x.a + x.b) / 2 > x.c": 5.5,
    }  # fmt: skip
    assert judged(ledger(tmp_path, *margins)).margin.tolist() == pytest.approx(list(margins.values()))


@pytest.mark.parametrize("check", ["x.a", "x.a == x.b", "open('f') > 1", "x.a ** 2 > 1", "x.a >"])
def test_a_check_that_is_no_comparison_is_named(tmp_path, check):
    with pytest.raises(ValueError, match="claims.yml, claim c0"):
        claims.evaluate(ledger(tmp_path, check), [])


@pytest.mark.parametrize(("more", "said"), [({"rope": -1}, "a rope of 0"), ({"chosen_on": "test"}, "chosen_on: valid"), ({"data": "d"}, "the keys")])
def test_keys_of_a_claim_are_checked(tmp_path, more, said):
    with pytest.raises(ValueError, match=said):
        claims.evaluate(ledger(tmp_path, "x.a > 1", **more), [])


def test_a_missing_metric_is_not_tested_and_ids_are_unique(results, tmp_path):
    write({0: {"x.a": 1.0}})
    row = judged(ledger(tmp_path, "x.a > x.b")).iloc[0]
    assert (row.verdict, row.why) == ("not tested", "1 metrics were not recorded, as x.b")
    path = ledger(tmp_path, "x.a > x.b")
    path.write_text(json.dumps(json.loads(path.read_text()) * 2))
    with pytest.raises(ValueError, match="unique ids"):
        judged(path)


def test_the_sides_of_a_check_are_what_its_seeds_measured(results):
    write({0: {"a.b": 1.0, "c": 5.0}, 1: {"a.b": 2.0, "c": 6.0}, 2: {"a.b": 3.0}})
    found = records.records("smoke")
    assert claims.sides("2 * a.b - 1 > c", found) == {"2 * a.b - 1": [1.0, 3.0], "c": [5.0, 6.0]}
    assert claims.sides("0 > a.b", found) == {"0": [0.0, 0.0, 0.0], "a.b": [1.0, 2.0, 3.0]}
    assert claims.sides("a.b > missing", found) == {"a.b": [], "missing": []}


def test_queries_count_where_seeds_have_other_numbers_of_them(results, tmp_path):
    """Test sets that share their queries but for a few: seeds that agree are no certainty."""
    generator = np.random.default_rng(1)
    shared = generator.normal(0.05, 1, size=120)
    outcomes = {s: shared[: 120 - s] + 0.01 * generator.normal(size=120 - s) for s in range(5)}
    write({s: {} for s in range(5)}, outcomes={"x.a": outcomes})
    row = judged(ledger(tmp_path, "x.a > 0")).iloc[0]
    assert row.queries == 116 and (row.high - row.low) / 2 == pytest.approx(1.98 * shared.std(ddof=1) / np.sqrt(118), rel=0.05)


def test_a_chain_shows_the_link_that_is_undecided_and_is_judged_on_the_seeds_of_all(results, tmp_path):
    a = np.array([-3.0, 9, 1, 8, -1, 4])
    write({s: {"x.a": 1 + a[s], "x.b": 1.0, "x.c": 0.5 + 1e-3 * a[s]} for s in range(6)})
    write({0: {"y.d": 0.0}}, chapter="04_y")
    row, mixed = (judged(ledger(tmp_path, check)).iloc[0] for check in ("x.a > x.b > x.c", "x.a > x.b > y.d"))
    assert row.verdict == "undecided" and row.margin == pytest.approx(a.mean()) and row.needed > 6
    assert mixed.verdict == "undecided" and mixed.n == 1
