"""Mixing sets against loops over Eq. 2.8-2.13, the step against its parts, positivity against its closed form."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from georeps.lab import records
from georeps.nets import encoders, losses, pooling, train
from georeps.papers import metrix

LABELS = torch.arange(12) % 4
IMAGES = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def step(loss=None, *, gap=False, **options) -> metrix.Metrix:
    torch.manual_seed(1)
    trunk = encoders.VGG16(width=0.0625, blocks=2)
    pool = pooling.GAP(trunk.out_dim) if gap else pooling.POOLINGS["gap_max"](trunk.out_dim)
    model = encoders.Descriptor(trunk, pool, nn.Linear(trunk.out_dim, 6))
    return metrix.Metrix(model, loss or losses.contrastive(), LABELS, lambda i: IMAGES[i], augment=encoders.scale, dim=6, **options)


def sets(a: int) -> tuple[list[int], list[int]]:
    return [i for i in range(12) if LABELS[i] == LABELS[a] and i != a], [i for i in range(12) if LABELS[i] != LABELS[a]]


@pytest.mark.parametrize("pairs", metrix.PAIRS)
def test_mixing_pairs_are_those_of_the_definition(pairs):
    same = LABELS[:, None] == LABELS
    chosen = metrix.mixing(pairs, same & ~torch.eye(12, dtype=torch.bool), ~same, torch.arange(12))
    for a in range(12):
        positives, negatives = sets(a)
        expected = {
            "pos-neg": {(p, n) for p in positives for n in negatives}, "anc-neg": {(a, n) for n in negatives},
            "pos-pos": {(p, q) for p in positives for q in positives if p < q}, "neg-neg": {(p, q) for p in negatives for q in negatives if p < q},
        }[pairs]  # fmt: skip
        own = chosen.member[a]
        assert set(zip(chosen.first[own].tolist(), chosen.second[own].tolist(), strict=True)) == expected
    positive, negative = chosen.weights(torch.full((len(chosen.first),), 0.3))
    y = {"pos-neg": 0.3, "anc-neg": 0.3, "pos-pos": 1.0, "neg-neg": 0.0}[pairs]
    torch.testing.assert_close(positive, chosen.member * y)
    torch.testing.assert_close(negative, chosen.member * (1 - y))


def test_contrastive_pos_neg_mixing_is_equation_2_12():
    module = step()
    e = F.normalize(torch.randn(12, 6, generator=torch.Generator().manual_seed(2)), dim=1)
    mixup = metrix.Mixup("embedding")
    v, lam, chosen = module.mixed(mixup, "pos-neg", IMAGES, IMAGES, e, LABELS)
    found = losses.contrastive(0.5)(e @ v.T, *chosen.weights(lam))
    by_pair = {pair: (v[i], lam[i]) for i, pair in enumerate(zip(chosen.first.tolist(), chosen.second.tolist(), strict=True))}
    for a in range(12):
        positives, negatives = sets(a)
        expected = 0.0
        for p in positives:
            for n in negatives:
                x, share = by_pair[p, n]
                torch.testing.assert_close(x, share * e[p] + (1 - share) * e[n])
                expected += -share * (e[a] @ x) + (1 - share) * max(e[a] @ x - 0.5, 0)
        torch.testing.assert_close(found[a], torch.as_tensor(expected))


def test_the_k_hardest_negatives_are_the_most_similar():
    s = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    assert metrix.hardest(s, torch.tensor([[True, False, True, True]]), 2).tolist() == [[False, False, True, True]]
    assert metrix.hardest(s, torch.tensor([[True, False, False, False]]), 3).tolist() == [[True, False, False, False]]


def test_input_mixup_uses_at_most_k_negatives_of_an_anchor_and_the_drawn_positives():
    module, batch = step(), torch.arange(12)
    images = encoders.scale(IMAGES)
    grid = module.model.trunk(images)
    e = module.model.embed(grid)
    v, lam, chosen = module.mixed(metrix.Mixup("input", hardest=3, positives=1), "pos-neg", images, grid, e, LABELS[batch])
    assert chosen.member.sum(dim=1).tolist() == [3] * 12
    one = metrix.mix(images[chosen.first[:1]], images[chosen.second[:1]], lam[:1])
    torch.testing.assert_close(v[:1], module.model(one))


def test_mixing_features_equals_mixing_embeddings_where_what_follows_is_linear():
    """With average pooling feature mixup differs from embedding mixup by the normalisation alone."""
    for gap, equal in ((True, True), (False, False)):
        module = step(gap=gap)
        grid = module.model.trunk(encoders.scale(IMAGES))
        raw = module.model.projection(module.model.pool(grid).vector)
        lam = torch.full((6,), 0.4)
        mixed = module.model.embed(metrix.mix(grid[:6], grid[6:], lam))
        assert torch.allclose(mixed, F.normalize(metrix.mix(raw[:6], raw[6:], lam), dim=1), atol=1e-5) == equal


@pytest.mark.parametrize("kind", ["input", "feature", "embedding"])
@pytest.mark.parametrize(
    "name, loss",
    [("contrastive", losses.contrastive()), ("multi", losses.multi_similarity()), ("anchor", losses.proxy_anchor()), ("nca_pp", losses.proxy_nca_pp())],
)
def test_every_loss_takes_every_mixup_and_reaches_every_parameter(name, loss, kind):
    pairs = ("pos-neg",) if name == "anchor" and kind != "embedding" else ("pos-neg", "anc-neg")
    module = step(loss, mixups=(metrix.Mixup(kind, pairs, hardest=3),))
    clean = float(module.eval()(torch.arange(12)).detach())
    found = module.train()(torch.arange(12))
    assert math.isfinite(float(found.detach())) and float(found.detach()) != pytest.approx(clean)
    found.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


@pytest.mark.parametrize("mixup", [metrix.I_MIX, metrix.MOCHI_NEG_NEG, metrix.MOCHI_ANC_NEG])
def test_the_methods_compared_with_run(mixup):
    found = step(mixups=(mixup,))(torch.arange(12))
    assert bool(found.detach().isfinite())


def test_mochi_counts_every_mixed_example_as_negative():
    module = step(mixups=(metrix.Mixup("embedding", ("anc-neg",), label="negative", strength=1.0),))
    torch.manual_seed(5)
    found = module(torch.arange(12)) - module.eval()(torch.arange(12))
    assert float(found.detach()) >= 0  # contrastive: [s - m]_+ alone, no -s


def test_the_features_are_computed_once_a_step():
    for kind, passes in (("embedding", 1), ("feature", 1), ("input", 2)):
        module = step(mixups=(metrix.Mixup(kind, hardest=2),))
        calls = []
        module.model.trunk.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        module(torch.arange(12))
        assert len(calls) == passes, kind


def test_proxy_synthesis_is_proxy_anchor_with_mixed_classes_added():
    module = step(losses.proxy_anchor(), synthesis=True)
    torch.manual_seed(3)
    found = module(torch.arange(12))
    torch.manual_seed(3)
    e, proxies = module.model(encoders.scale(IMAGES)), module.unit_proxies()
    second = torch.randperm(12)
    keep = LABELS != LABELS[second]
    first, second = torch.arange(12)[keep], second[keep]
    lam = torch.distributions.Beta(2.0, 2.0).sample((len(first),))
    more = F.normalize(metrix.mix(e[first], e[second], lam), dim=1)
    classes = F.normalize(metrix.mix(proxies[LABELS[first]], proxies[LABELS[second]], lam), dim=1)
    label = torch.cat([LABELS, 4 + torch.arange(len(first))])
    same = torch.arange(4 + len(first))[:, None] == label
    torch.testing.assert_close(found, losses.proxy_anchor()(torch.cat([proxies, classes]) @ torch.cat([e, more]).T, same, ~same).mean())


def test_a_proxy_mixes_with_negatives_as_an_embedding_only():
    loss = losses.proxy_anchor()
    with pytest.raises(ValueError, match="a proxy is mixed only as an embedding"):
        step(loss, mixups=(metrix.Mixup("feature"),))
    module = step(loss)
    e = module.model(encoders.scale(IMAGES))
    v, lam, chosen = module.mixed(metrix.Mixup("embedding"), "anc-neg", IMAGES, IMAGES, e, LABELS)
    assert chosen.member.sum() == len(v) == 4 * 9  # each proxy with each example of another class
    torch.testing.assert_close(v[0], lam[0] * module.unit_proxies()[0] + (1 - lam[0]) * e[chosen.second[0]])


def test_training_with_metrix_lowers_the_error_and_resumes(tmp_path):
    module = step(mixups=(metrix.Mixup("feature"),))
    recipe = train.Recipe(epochs=4, lr=3e-3)
    log = train.fit(module, train.shuffled(12, 12, seed=0), recipe, out=tmp_path).log
    assert log[-1]["loss"] < log[0]["loss"]


def test_one_mixed_example_acts_as_a_positive_up_to_the_bound():
    """Eq. 2.22 is exact for one mixed example, for any beta, gamma, m and lambda."""
    s = torch.linspace(-1, 1, 401, dtype=torch.float64)[:, None]
    for beta, gamma, margin in ((18.0, 75.0, 0.77), (2.0, 50.0, 0.5), (1.0, 1.0, 0.0)):
        loss = losses.multi_similarity(beta, gamma, margin)
        for lam in (0.1, 0.5, 0.8):
            found = metrix.acts_as_positive(loss, s, torch.full_like(s, lam), torch.full_like(s, 1 - lam))
            bound = metrix.positivity_bound(lam, beta, gamma, margin)
            clear = (s - bound).abs() > 1e-6
            assert bool((found == (s <= bound))[clear].all())


@pytest.mark.parametrize(
    "options, message",
    [({"kind": "label"}, "kind: expected one of input, feature, embedding, found 'label'"), ({"pairs": ("pos",)}, "pairs: expected one of pos-neg"),
     ({"alpha": 0.0}, "alpha > 0"), ({"hardest": 0}, "hardest")],
)  # fmt: skip
def test_bad_settings_are_named(options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        metrix.Mixup(**options)
    with pytest.raises(ValueError, match="0 < lambda < 1"):
        metrix.positivity_bound(1.0)


def test_every_row_of_the_papers_tables_has_its_mixups():
    path = records.book_folder() / "reference" / "metric_learning.csv"
    names = {m.split(".")[3] for m in records.reference(path).metric if m.startswith("metrix.classes")}
    assert {"clean", "input_k1", "feature_few", "embedding_pos_pos", "input_feature_embedding", "mochi_neg_neg"} <= names
    for name in names:
        assert metrix.row(name) or name in ("clean", "proxy_synthesis")
    assert metrix.row("input")[0].hardest == 3 and metrix.row("input_feature")[0].hardest == 1 and metrix.row("input_embedding")[0].hardest == 3
    assert metrix.row("feature", proxy_anchor=True)[0].pairs == ("pos-neg",)
    with pytest.raises(ValueError, match="name: expected a row such as .* found 'label'"):
        metrix.row("label")


def flat(x: torch.Tensor) -> torch.Tensor:
    return encoders.scale(x).flatten(1)


def headed(loss=None, **options) -> metrix.Metrix:
    torch.manual_seed(1)
    rows, many = flat(IMAGES), {"hardest": 3, "negative": 1, "positive": 1}
    made = {p: metrix.bank(IMAGES, LABELS, flat, partners=p, k=n, seed=3) for p, n in many.items()}
    head = metrix.Head(rows.shape[1], 6, 16)
    return metrix.Metrix(head, loss or losses.contrastive(), LABELS, lambda i: rows[i], augment=lambda x: x, dim=6, banks=made, **options)


@pytest.mark.parametrize("partners", ["hardest", "negative", "positive"])
def test_a_bank_holds_what_is_seen_of_each_image_mixed_with_its_partners(partners):
    found = metrix.bank(IMAGES, LABELS, flat, partners=partners, k=2, seed=1)
    rows = F.normalize(flat(IMAGES), dim=1)
    for i in range(12):
        positives, negatives = sets(i)
        own = found.partner[i].tolist()
        assert len(set(own)) == 2 and set(own) <= set(positives if partners == "positive" else negatives)
        if partners == "hardest":
            assert own == sorted(negatives, key=lambda j: -float(rows[i] @ rows[j]))[:2]
        for j, lam, seen in zip(own, found.lam[i], found.seen[i], strict=True):
            pixels = (lam * IMAGES[i].float() + (1 - lam) * IMAGES[j].float()).round() / 255
            torch.testing.assert_close(seen, pixels.flatten())
    assert bool(((found.lam > 0) & (found.lam < 1)).all()) and found.lam.unique().numel() == 24


@pytest.mark.parametrize("pairs", ["pos-neg", "anc-neg", "pos-pos"])
def test_stored_inputs_belong_to_the_anchors_of_the_definition(pairs):
    """An image mixed with a negative is v of each other anchor of its class (pos-neg), of itself (anc-neg); of two positives, of the others."""
    module, batch = headed(), torch.arange(12)
    v, lam, chosen = module.stored(metrix.Mixup("input", hardest=2), pairs, batch, LABELS)
    bank = module.banks["positive" if pairs == "pos-pos" else "hardest"]
    assert len(v) == len(lam) == 12 * min(2, bank.lam.shape[1])
    for n, (i, j) in enumerate(zip(chosen.first.tolist(), chosen.second.tolist(), strict=True)):
        slot = bank.partner[i].tolist().index(j)
        torch.testing.assert_close(v[n], module.model(bank.seen[i, slot][None])[0])
        assert lam[n] == bank.lam[i, slot]
        expected = [i] if pairs == "anc-neg" else sets(i)[0]
        assert chosen.member[:, n].nonzero()[:, 0].tolist() == expected
    assert chosen.labels == ((1.0, 1.0) if pairs == "pos-pos" else (1.0, 0.0))


@pytest.mark.parametrize(
    "loss", [losses.contrastive(), losses.multi_similarity(), losses.proxy_anchor(), losses.proxy_nca_pp()], ids=["contrastive", "multi", "anchor", "nca_pp"]
)  # fmt: skip
def test_a_head_takes_every_mixup_and_reaches_every_parameter(loss):
    for name in ("input", "feature", "embedding", "i_mix") if loss.anchor == "example" else ("input", "feature", "embedding"):
        module = headed(loss, mixups=metrix.row(name, proxy_anchor=loss.anchor == "proxy"))
        clean = float(module.eval()(torch.arange(12)).detach())
        found = module.train()(torch.arange(12))
        assert math.isfinite(float(found.detach())) and float(found.detach()) != pytest.approx(clean), name
        found.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters()), name


def test_mixed_rows_are_mixed_features_of_a_head():
    head, lam = metrix.Head(5, 3, 7), torch.tensor([0.3, 0.9])
    x, y = torch.randn(2, 2, 5)
    torch.testing.assert_close(head.embed(metrix.mix(head.trunk(x), head.trunk(y), lam)), head(metrix.mix(x, y, lam)))


@pytest.mark.parametrize("made", [step, headed], ids=["network", "head"])
def test_every_row_of_the_tables_mixes_something(made):
    path = records.book_folder() / "reference" / "metric_learning.csv"
    names = {m.split(".")[3] for m in records.reference(path).metric if m.startswith(("metrix.classes", "metrix.narrow"))}
    for name in names - {"clean", "proxy_synthesis", "i_mix"}:
        for mixup in metrix.row(name, few=2, more=4):
            module = made(mixups=(mixup,))
            x = module.augment(module.fetch(torch.arange(12)))
            grid = module.model.trunk(x)
            for pairs in mixup.pairs:
                args = (torch.arange(12), LABELS) if mixup.kind == "input" and module.banks else (x, grid, module.model.embed(grid), LABELS)
                v, _, chosen = (module.stored if len(args) == 2 else module.mixed)(mixup, pairs, *args)
                assert len(v) and bool(chosen.member.any(1).all()), (name, pairs)
                assert not torch.equal(chosen.first, chosen.second), (name, pairs)


def test_a_bank_that_cannot_be_made_or_is_not_there_is_named():
    with pytest.raises(ValueError, match="k: expected at most 2, the partners \\(positive\\) that every image has, found 3"):
        metrix.bank(IMAGES, LABELS, flat, partners="positive", k=3)
    module = headed()
    with pytest.raises(ValueError, match="hardest: expected at most the 3 partners of each image in the bank, found 4"):
        module.stored(metrix.Mixup("input", hardest=4), "pos-neg", torch.arange(12), LABELS)
    del module.banks["positive"]
    with pytest.raises(ValueError, match="banks: expected one of partners 'positive', found hardest, negative"):
        module.stored(metrix.Mixup("input"), "pos-pos", torch.arange(12), LABELS)


@pytest.mark.parametrize("loss", [losses.multi_similarity(), losses.proxy_anchor(), losses.proxy_nca_pp()], ids=["multi", "anchor", "nca_pp"])
def test_similarities_are_never_computed_in_16_bits(loss):
    seen = []
    module = headed(lambda *args: seen.append(args[0]) or loss(*args), mixups=metrix.row("feature", proxy_anchor=loss.anchor == "proxy"))
    module.anchor, module.other = loss.anchor, loss.other
    if "proxy" in (loss.anchor, loss.other):
        module.proxies = torch.nn.Parameter(torch.nn.functional.normalize(torch.randn(int(LABELS.max()) + 1, 6), dim=1))
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.arange(12))
    assert len(seen) == 2 and all(s.dtype == torch.float32 for s in seen)
    assert any(not torch.equal(s, s.bfloat16().float()) for s in seen)
