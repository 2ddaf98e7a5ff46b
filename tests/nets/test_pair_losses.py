"""The generic loss (Eq. 2.7) against pytorch-metric-learning, against angles on a circle computed by hand, and against loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses as published, miners, reducers

from georeps.nets import losses

TABLE_2_1 = {
    "contrastive": losses.contrastive(), "lifted": losses.lifted_structure(), "binomial": losses.binomial_deviance(),
    "multi_similarity": losses.multi_similarity(), "proxy_anchor": losses.proxy_anchor(), "nca": losses.nca(), "proxy_nca": losses.proxy_nca(),
    "soft_triple": losses.soft_triple(), "epshn": losses.epshn(), "proxy_nca_pp": losses.proxy_nca_pp(), "margin": losses.margin_loss(),
}  # fmt: skip
COSINE = distances.CosineSimilarity()


def batch(n: int = 24, d: int = 8, classes: int = 6, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(n, d, generator=generator), dim=1).requires_grad_()
    return x, torch.arange(n) % classes, F.normalize(torch.randn(classes, d, generator=generator), dim=1)


def masks(labels, others=None):
    same = labels[:, None] == (labels if others is None else others)[None]
    return (same & ~torch.eye(len(labels), dtype=torch.bool), ~same) if others is None else (same, ~same)


def circle(*degrees: float) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def agrees(found, expected, x):
    """Value and gradient; the library normalises rows inside, so its gradient is that along the sphere."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    along = (g - (g * x).sum(1, keepdim=True) * x for g in (torch.autograd.grad(v, x, retain_graph=True)[0] for v in (found, expected)))
    torch.testing.assert_close(*along, rtol=1e-3, atol=1e-5)


def test_contrastive_is_the_library_s_up_to_the_constant_of_its_positive_margin():
    x, y, _ = batch()
    loss = published.ContrastiveLoss(pos_margin=1, neg_margin=0.3, distance=COSINE, reducer=reducers.SumReducer())
    positive, negative = masks(y)
    found = losses.contrastive(0.3)(x @ x.T, positive, negative).sum()
    agrees(found, loss(x, y) - positive.sum(), x)


@pytest.mark.parametrize("beta, gamma, margin", [(2.0, 50.0, 0.5), (18.0, 75.0, 0.77)])
def test_multi_similarity_is_the_library_s(beta, gamma, margin):
    x, y, _ = batch()
    agrees(
        losses.multi_similarity(beta, gamma, margin)(x @ x.T, *masks(y)).mean(), published.MultiSimilarityLoss(beta, gamma, margin, distance=COSINE)(x, y), x
    )


def test_lifted_structure_is_the_library_s_generalized_one():
    x, y, _ = batch()
    loss = published.GeneralizedLiftedStructureLoss(neg_margin=0.4, pos_margin=0, distance=COSINE)
    agrees(losses.lifted_structure(0.4)(x @ x.T, *masks(y)).mean(), loss(x, y), x)


def test_nca_over_all_pairs_is_the_library_s():
    x, y, _ = batch()
    agrees(losses.nca(3.0, shared=True)(x @ x.T, *masks(y)).mean(), published.NCALoss(softmax_scale=3, distance=COSINE)(x, y), x)


def test_proxy_nca_pp_is_the_library_s_proxy_nca():
    x, y, proxies = batch()
    loss = published.ProxyNCALoss(len(proxies), x.shape[1], softmax_scale=9, distance=COSINE)
    loss.proxies.data = proxies
    agrees(losses.proxy_nca_pp()(x @ proxies.T, *masks(y, torch.arange(len(proxies)))).mean(), loss(x, y), x)


def test_published_proxy_anchor_is_the_library_s():
    x, y, proxies = batch()
    y = y % 4  # classes 4 and 5 are not in the batch
    loss = published.ProxyAnchorLoss(len(proxies), x.shape[1], margin=0.1, alpha=32)
    loss.proxies.data = proxies
    positive, negative = masks(torch.arange(len(proxies)), y)
    form = losses.PairLoss(losses.Linear(), losses.Log1p(), losses.Log1p(), losses.Exp(-32.0, 0.1), losses.Exp(32.0, -0.1), anchor="proxy")
    nothing = torch.zeros_like(positive)
    found = form(proxies @ x.T, positive, nothing).sum() / 4 + form(proxies @ x.T, nothing, negative).mean()
    agrees(found, loss(x, y), x)


def test_soft_triple_is_the_library_s():
    x, y, _ = batch()
    loss = published.SoftTripleLoss(6, x.shape[1], centers_per_class=3, la=20, gamma=0.1, margin=0.01)
    centres = F.normalize(loss.fc, dim=0).T.reshape(6, 3, -1)
    similarity = losses.centre_similarity(torch.einsum("bd,ckd->bck", x, centres))
    agrees(losses.soft_triple()(similarity, *masks(y, torch.arange(6))).mean(), loss(x, y), x)


def test_margin_loss_is_the_library_s():
    x, y, _ = batch()
    loss = published.MarginLoss(margin=0.2, beta=1.2, triplets_per_anchor="all", reducer=reducers.SumReducer())
    positive, negative = masks(y)
    found = losses.margin_loss()(x @ x.T, 20.0 * positive, 3.0 * negative)  # the library sums over triplets: a pair is in so many
    torch.testing.assert_close(found.sum(), loss(x, y), rtol=1e-4, atol=1e-4)


def test_easy_positives_and_semi_hard_negatives_are_the_library_s_miner_s():
    x, y, _ = batch(seed=3)
    anchors, positives, _, negatives = miners.BatchEasyHardMiner(pos_strategy="easy", neg_strategy="semihard", distance=COSINE)(x.detach(), y)
    positive, negative = losses.easy_positive(x @ x.T, *masks(y))
    assert set(zip(*positive.nonzero().T.tolist(), strict=True)) == set(zip(anchors.tolist(), positives.tolist(), strict=True))
    assert set(zip(*negative.nonzero().T.tolist(), strict=True)) == set(zip(anchors.tolist(), negatives.tolist(), strict=True))


def test_semi_hard_triplets_are_the_library_s():
    x, y, _ = batch(seed=1)
    distance = distances.LpDistance(power=2)
    triplets = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard", distance=distance)(x, y)
    assert len(triplets[0])
    loss = published.TripletMarginLoss(margin=0.2, distance=distance, reducer=reducers.MeanReducer())(x, y, triplets)
    agrees(losses.semi_hard_triplet(x @ x.T, *masks(y)), loss, x)


def test_every_row_of_the_table_on_a_circle():
    """One anchor at 0 degrees, positives at 60 (s = 1/2) and 90 (0), a negative at 60 on the other side."""
    anchor, others = circle(0), circle(60, 90, -60)
    positive, negative = torch.tensor([[True, True, False]]), torch.tensor([[False, False, True]])
    e, log = math.exp, math.log
    expected = {
        "contrastive": -0.5 + 0.0,  # the negative lies on the margin 0.5
        "lifted": log(e(-0.5) + 1) + log(e(0.0)),
        "binomial": log(1 + e(0) + e(1)) + log(2),
        "multi_similarity": log(1 + e(18 * 0.27) + e(18 * 0.77)) / 18 + log(1 + e(-75 * 0.27)) / 75,
        "proxy_anchor": log(1 + e(-32 * 0.4) + e(32 * 0.1)) / 32 + log(1 + e(32 * 0.4)) / 32,
        "nca": -log(e(0.5) + 1) + 0.5, "proxy_nca": -log(e(0.5) + 1) + 0.5,
        "soft_triple": -log(e(20 * 0.49) + e(-20 * 0.01)) + log(e(20 * 0.49) + e(-20 * 0.01) + e(10)),
        "epshn": -log(e(0.5) + 1) + log(2 * e(0.5) + 1), "proxy_nca_pp": -log(e(4.5) + 1) + log(2 * e(4.5) + 1),
        "margin": (1 - 1) + (math.sqrt(2) - 1.0) + (1.4 - 1.0),
    }  # fmt: skip
    for name, loss in TABLE_2_1.items():
        found = loss(anchor @ others.T, positive, negative)
        assert float(found) == pytest.approx(expected[name], abs=1e-9), name


@pytest.mark.parametrize("name", TABLE_2_1)
def test_soft_weights_follow_the_equation_letter_by_letter(name):
    loss = TABLE_2_1[name]
    s = torch.rand(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    y = torch.rand(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for a in range(5):
        plus = sum(y[a, i] * loss.rho_pos(s[a, i]) for i in range(7))
        minus = sum((1 - y[a, i]) * loss.rho_neg(s[a, i]) for i in range(7)) + (plus if loss.shared else 0)
        expected = loss.tau(loss.sigma_pos(plus) + loss.sigma_neg(minus))
        torch.testing.assert_close(loss(s, y, 1 - y)[a], expected)


@pytest.mark.parametrize("name", TABLE_2_1)
def test_extreme_similarities_and_anchors_without_pairs_stay_finite_with_their_gradient(name):
    loss = TABLE_2_1[name]
    s = torch.tensor([[1.0, -1.0, 1.0, -1.0], [40.0, -40.0, 40.0, -40.0], [0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    positive = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    negative = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]).bool()
    for p, n in ((positive, negative), (positive, negative & False), (positive & False, negative)):
        found = loss(s, p, n)
        (gradient,) = torch.autograd.grad(found.sum(), s)
        assert bool(found.isfinite().all()) and bool(gradient.isfinite().all())
        assert float(found[2].detach()) == 0 and float(gradient[2].abs().max()) == 0


def test_a_negative_weight_or_another_shape_is_named():
    loss, s = losses.contrastive(), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="weights >= 0"):
        loss(s, torch.full((2, 3), -1.0), torch.ones(2, 3))


def test_widths_that_differ_are_named(unchecked):
    with pytest.raises(ValueError, match=r"positive, negative: expected the similarities' shape \(2, 3\), found \(2, 2\) and \(2, 3\)"):
        losses.contrastive()(torch.zeros(2, 3), torch.zeros(2, 2), torch.zeros(2, 3))


def test_losses_on_one_circle_fall_as_a_positive_comes_nearer_and_a_negative_goes():
    for name, loss in TABLE_2_1.items():
        both = torch.tensor([[True, False]]), torch.tensor([[False, True]])
        at = [float(loss(circle(0) @ circle(*places).T, *both)) for places in ((80, 40), (40, 40), (40, 80))]
        assert at[0] >= at[1] >= at[2] and at[0] > at[2], name
