"""Losses against closed forms and loops that follow the equations letter by letter."""

import math

import pytest
import torch
import torch.nn.functional as F

from georeps.nets import losses


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


def triplet_loop(ground, satellite, gamma, squared, inside):
    """Eq. 3.3-3.4 as two loops."""
    total, count = 0.0, 0
    for view_a, view_b in ((ground, satellite), (satellite, ground)):
        for i in range(len(ground)):
            for j in range(len(ground)):
                if i != j:
                    positive, negative = (view_a[i] - view_b[i]).norm(), (view_a[i] - view_b[j]).norm()
                    if squared:
                        positive, negative = positive**2, negative**2
                    gap = float(positive - negative)
                    total += math.log(1 + math.exp(gamma * gap)) if inside else math.log(1 + gamma * math.exp(gap))
                    count += 1
    assert count == 2 * len(ground) * (len(ground) - 1)
    return total / count


@pytest.mark.parametrize("distance", ["l2", "squared"])
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_triplet_equals_the_double_loop(distance, place):
    ground, satellite = rows(5, 7, 0), rows(5, 7, 1)
    loss = losses.soft_margin_triplet(ground, satellite, 10.0, distance=distance, gamma_place=place)
    expected = triplet_loop(ground, satellite, 10.0, distance == "squared", place == "inside")
    assert float(loss) == pytest.approx(expected, abs=1e-9)


def test_triplet_of_a_collapsed_batch_is_log_of_one_plus_gamma():
    x = rows(1, 4, 0).expand(6, 4).clone().requires_grad_()
    loss = losses.soft_margin_triplet(x, x, 10.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(11), abs=1e-6)
    assert x.grad.isfinite().all()


def test_triplet_does_not_depend_on_the_order_of_the_batch():
    ground, satellite = rows(8, 5, 0), rows(8, 5, 1)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    a, b = losses.soft_margin_triplet(ground, satellite), losses.soft_margin_triplet(ground[order], satellite[order])
    assert float(a) == pytest.approx(float(b), abs=1e-12)


@pytest.mark.parametrize("place", ["outside", "inside"])
def test_under_autocast_a_batch_close_to_collapse_keeps_its_gradient(place):
    base = rows(1, 64, 0).float() + 0.01 * rows(32, 64, 1).float()
    gradients = []
    for enabled in (False, True):
        x = base.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = losses.soft_margin_triplet(x, x.flip(0), gamma_place=place)
        loss.backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0


def test_pairs_of_one_place_are_no_negatives():
    ground, satellite = rows(5, 7, 0), rows(5, 7, 1)
    near = torch.eye(5, dtype=torch.bool)
    near[0, 1] = near[1, 0] = True
    loss = losses.soft_margin_triplet(ground, satellite, same_place=near)
    terms = []
    for i, j in ((i, j) for i in range(5) for j in range(5) if not near[i, j]):
        for a, b in ((ground, satellite), (satellite, ground)):
            terms.append(math.log(1 + 10 * math.exp(float((a[i] - b[i]).norm() - (a[i] - b[j]).norm()))))
    assert len(terms) == 36 and float(loss) == pytest.approx(sum(terms) / 36, abs=1e-9)
    with pytest.raises(ValueError, match="expected at least two places"):
        losses.soft_margin_triplet(ground, satellite, same_place=torch.ones(5, 5, dtype=torch.bool))


def test_triplet_of_one_pair_raises():
    with pytest.raises(ValueError, match="at least 2 pairs"):
        losses.soft_margin_triplet(rows(1, 3, 0), rows(1, 3, 1))


def test_info_nce_is_the_log_loss_of_the_right_key():
    query, key, queue = rows(4, 6, 0), rows(4, 6, 1), rows(9, 6, 2)
    expected = 0.0
    for q, k in zip(query, key, strict=True):
        scores = torch.exp(torch.cat([(q @ k)[None], queue @ q]) / 0.2)
        expected += -math.log(scores[0] / scores.sum()) / 4
    assert float(losses.info_nce(3 * query, key, 2 * queue, 0.2)) == pytest.approx(expected, abs=1e-9)


def test_symmetric_info_nce_is_cross_entropy_in_both_directions():
    ground, satellite = rows(6, 5, 0), rows(6, 5, 1)
    logits = ground @ satellite.T / 0.07
    loss = losses.symmetric_info_nce(2 * ground, 3 * satellite, 0.07)
    by_hand = -(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean()) / 2
    assert float(loss) == pytest.approx(float(by_hand))
    smooth = losses.symmetric_info_nce(ground, satellite, 0.07, label_smoothing=0.1)
    spread = -(logits.log_softmax(1).mean() + logits.log_softmax(0).mean()) / 2
    assert float(smooth) == pytest.approx(float(0.9 * by_hand + 0.1 * spread))


def test_symmetric_info_nce_without_a_negative_is_without_that_row():
    """Of three pairs the last two are one place: the first row still sees both, they no longer see each other."""
    ground, satellite = rows(3, 4, 2), rows(3, 4, 3)
    same = torch.tensor([[True, False, False], [False, True, True], [False, True, True]])
    similarity = ground @ satellite.T / 0.1
    nats = [-similarity[i, keep].log_softmax(0)[keep.index(i)] for i, keep in ((0, [0, 1, 2]), (1, [0, 1]), (2, [0, 2]))]
    back = [-similarity[keep, i].log_softmax(0)[keep.index(i)] for i, keep in ((0, [0, 1, 2]), (1, [0, 1]), (2, [0, 2]))]
    expected = float((sum(nats) + sum(back)) / 6)
    assert float(losses.symmetric_info_nce(ground, satellite, same_place=same)) == pytest.approx(expected)


def test_uniformity_follows_eq_3_5_over_distinct_pairs():
    x = rows(6, 4, 0)
    pairs = [math.exp(-2 * float((x[i] - x[j]).norm() ** 2)) for i in range(6) for j in range(6) if i != j]
    assert float(losses.uniformity(5 * x)) == pytest.approx(math.log(sum(pairs) / 30), abs=1e-9)


def test_uniformity_of_equal_rows_is_zero_and_of_one_row_an_error():
    assert float(losses.uniformity(torch.ones(5, 3))) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="at least 2 rows"):
        losses.uniformity(torch.ones(1, 3))
