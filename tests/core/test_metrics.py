"""Metrics against scikit-learn, hand-made rankings and closed forms."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from georeps.core import metrics, sphere
from georeps.nets import losses


def test_recall_counts_ranks_below_k():
    ranks = torch.tensor([0, 1, 4, 5, 99])
    assert [metrics.recall_at(ranks, k) for k in (1, 5, 6, 100)] == [0.2, 0.6, 0.8, 1.0]


def test_recall_of_no_queries_or_k_zero_raises():
    with pytest.raises(ValueError, match="ranks"):
        metrics.recall_at(torch.zeros(0, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="k: expected"):
        metrics.recall_at(torch.zeros(1, dtype=torch.int64), 0)


@pytest.mark.parametrize(("size", "floor"), [(8884, 88), (46563, 465), (90618, 906), (100, 1), (50, 1)])
def test_recall_at_percent_conventions(size, floor):
    ranks = torch.arange(size)
    assert metrics.recall_at_percent(ranks, size) == floor / size
    plus_one = floor + 1 if size >= 100 else 1
    assert metrics.recall_at_percent(ranks, size, convention="floor+1") == plus_one / size


def test_unknown_convention_raises(unchecked):
    with pytest.raises(ValueError, match="convention"):
        metrics.recall_at_percent(torch.arange(10), 10, convention="round")


@pytest.mark.parametrize("definition", ["covers", "published"])
def test_hit_rate_follows_its_definition_row_by_row(definition):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(300, 3, generator=generator), torch.randn(12, 3, generator=generator)
    gallery[7] = gallery[2]
    tiles = torch.stack([torch.randperm(12, generator=generator)[:4] for _ in range(300)])
    hits = 0
    for scores, row in zip((queries.double() @ gallery.double().T).float(), tiles, strict=True):
        others = [float(scores[j]) for j in range(12) if j not in row.tolist()]
        best = float(scores[row].max()) if definition == "covers" else float(scores[row[0]])
        hits += max(others) < best
    assert metrics.hit_rate(queries, gallery, tiles[:, 0], tiles[:, 1:], definition=definition) == pytest.approx(hits / 300)
    assert 0 < hits < 300


def test_metres_of_a_plane_and_of_the_sphere(unchecked):
    found, true = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert metrics.metres(found, true, unit="metres").tolist() == [5.0, 0.0]
    one_degree_north = metrics.metres(torch.tensor([[52.0, 5.0]]), torch.tensor([[51.0, 5.0]]), unit="degrees")
    assert float(one_degree_north) == pytest.approx(111_195, rel=1e-4)
    near = torch.tensor([[51.0, 5.0]], dtype=torch.float64)
    assert float(metrics.metres(near + 1e-5, near, unit="degrees")) == pytest.approx(1.314, rel=1e-2)  # a metre does not drown in rounding
    with pytest.raises(ValueError, match="unit: expected 'metres' or 'degrees', found 'miles'"):
        metrics.metres(found, true, unit="miles")


def test_average_precision_equals_scikit_learn_without_ties():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20, 300, generator=generator)
    relevant = torch.rand(20, 300, generator=generator) < 0.1
    expected = [average_precision_score(r.numpy(), s.numpy()) for s, r in zip(scores, relevant, strict=True)]
    assert np.allclose(metrics.average_precision(scores, relevant), expected, atol=1e-6)


def test_trapezoid_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    relevant = torch.tensor([[True, False, True, False]])
    # revisited Oxford: mean over hits of (precision before + precision at) / 2; before the first rank it is 1
    assert float(metrics.average_precision(scores, relevant, form="trapezoid")) == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    missed_first = torch.tensor([[False, True, False, False]])
    assert float(metrics.average_precision(scores, missed_first, form="trapezoid")) == pytest.approx((0 + 1 / 2) / 2)


def test_average_precision_puts_ties_after_irrelevant_rows_and_names_bad_input():
    tied = metrics.average_precision(torch.zeros(1, 4), torch.tensor([[True, False, False, False]]))
    assert float(tied) == pytest.approx(1 / 4)
    nothing = metrics.average_precision(torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bool))
    assert nothing.isnan().all()
    with pytest.raises(ValueError, match="scores: expected finite"):
        metrics.average_precision(torch.tensor([[math.nan]]), torch.tensor([[True]]))


def test_geoscore_at_known_distances():
    assert torch.allclose(metrics.geoscore(torch.tensor([0.0, 1492.7])), torch.tensor([5000.0, 5000 / math.e]))


def test_uniformity_metric_equals_the_loss_and_needs_no_matrix():
    x = torch.randn(2500, 16, generator=torch.Generator().manual_seed(0))
    assert metrics.uniformity(x) == pytest.approx(float(losses.uniformity(x.double())), abs=1e-9)


def test_uniformity_of_far_points_does_not_cancel_and_bad_rows_are_named():
    assert metrics.uniformity(torch.eye(8), t=20.0) == pytest.approx(-40)
    with pytest.raises(ValueError, match="x: expected finite values, found 1"):
        metrics.uniformity(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="y: expected finite values"):
        metrics.alignment(torch.eye(2), torch.eye(2) * math.inf)


def test_average_precision_of_no_queries_is_empty():
    assert metrics.average_precision(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool)).shape == (0,)


def test_alignment_of_opposite_points_is_the_squared_diameter():
    x = torch.eye(3)
    assert metrics.alignment(x, x) == 0
    assert metrics.alignment(x, -2 * x) == pytest.approx(4)


def test_utilization_is_the_mean_squared_distance_to_the_closest_training_row():
    test, train = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.randn(70, 8, generator=torch.Generator().manual_seed(1))
    unit_test, unit_train = (x / x.norm(dim=1, keepdim=True) for x in (test, train))
    expected = torch.cdist(unit_test, unit_train).square().min(dim=1).values.mean()
    assert metrics.utilization(test, train) == pytest.approx(float(expected), abs=1e-5)


def test_prdc_of_the_same_points_is_perfect_and_of_far_ones_nothing():
    real = sphere.uniform(60, generator=torch.Generator().manual_seed(0))
    same = metrics.prdc(real, real.clone())
    assert same.precision == same.recall == same.coverage == 1
    pole = torch.nn.functional.normalize(torch.tensor([0.0, 0, 1]) + 1e-3 * torch.randn(60, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    far = metrics.prdc(pole, -pole)
    assert far == (0, 0, 0, 0)
    collapsed = metrics.prdc(real, real[:1] + 1e-4 * torch.randn(60, 3, generator=torch.Generator().manual_seed(2)))
    assert collapsed.precision == 1 and collapsed.coverage < 0.2 and collapsed.density > 0.3


def test_prdc_by_hand_on_the_equator(unchecked):
    real, fake = (sphere.from_latlon(torch.tensor([[0.0, d] for d in degrees])) for degrees in ((0, 1, 10, 11), (0.5, 30, 31, 32)))
    found = metrics.prdc(real, fake, k=1)  # balls of 1 degree around the real points; 29.5, 1, 1 and 1 around the fake ones
    assert found.precision == 0.25 and found.density == 0.5 and found.coverage == 0.5 and found.recall == 1
    with pytest.raises(ValueError, match="expected more than k = 3"):
        metrics.prdc(real[:3], fake)


def test_class_retrieval_is_the_library_s_map_at_r_and_precision_at_1():
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 7
    x = torch.nn.functional.normalize(torch.randn(7, 8, generator=generator)[labels] + torch.randn(60, 8, generator=generator), dim=1)
    expected = AccuracyCalculator(include=("precision_at_1", "mean_average_precision_at_r"), k="max_bin_count", device=torch.device("cpu")).get_accuracy(
        x, labels
    )
    found = metrics.class_retrieval(x, labels, chunk=17)
    assert metrics.recall_at(found.rank, 1) == pytest.approx(expected["precision_at_1"])
    assert float(found.map_at_r.mean()) == pytest.approx(expected["mean_average_precision_at_r"])


def test_class_retrieval_in_a_gallery_counts_who_has_no_match_and_ties_against_the_query():
    gallery, classes = torch.eye(3), torch.tensor([0, 1, 1])
    found = metrics.class_retrieval(torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 0, 1, 5]), gallery, classes)
    assert found.rank.tolist() == [0, 2, 0, metrics.UNMATCHED]  # the second finds its class tied with a wrong one at 0, after another at 1; the last has none
    assert found.map_at_r[:3].tolist() == [1.0, 0.0, 0.5] and bool(found.map_at_r[3].isnan())


def test_place_ranks_count_wrong_rows_ahead_of_the_best_positive():
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(30, 5, generator=generator), torch.randn(40, 5, generator=generator)
    positives = [torch.randperm(40, generator=generator)[: i % 4] for i in range(30)]
    found = metrics.place_ranks(queries, gallery, positives)
    for i, own in enumerate(positives):
        scores = gallery @ queries[i]
        wrong = torch.ones(40, dtype=torch.bool).index_fill_(0, own, False)
        expected = int((wrong & (scores >= scores[own].max())).sum()) if len(own) else metrics.UNMATCHED
        assert int(found[i]) == expected


def test_a_collapsed_model_finds_no_place():
    """All descriptors equal: a wrong row ties with every positive; equal positives do not count against each other."""
    ranks = metrics.place_ranks(torch.ones(3, 4), torch.ones(10, 4), [torch.tensor([0]), torch.tensor([2, 5]), torch.arange(10)])
    assert ranks.tolist() == [9, 8, 0]
    with pytest.raises(ValueError, match="positives: expected those of 3 queries, found 1"):
        metrics.place_ranks(torch.ones(3, 4), torch.ones(10, 4), [torch.tensor([0])])
