"""ProGEO: classes against CosPlace's printed rule, prompts against the text tower, losses against pytorch-metric-learning and by hand."""

import math

import open_clip
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses as published

from georeps.nets import encoders, losses, prompts, towers
from georeps.papers import progeo

TEXT = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
TOKENIZE = open_clip.SimpleTokenizer(context_length=32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16}
    return open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=TEXT).eval()


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT).eval()


@pytest.fixture(scope="module")
def prompt(model):
    return prompts.of_open_clip(model, TOKENIZE, progeo.PROMPT)


def places(n: int = 4000, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    position = 60 * torch.rand(n, 2, generator=generator, dtype=torch.float64) + torch.tensor([549_970.0, 4_179_960.0], dtype=torch.float64)
    return position, 360 * torch.rand(n, generator=generator, dtype=torch.float64)


def cosplace(east: float, north: float, heading: float, m: int, alpha: int, n: int, k: int):
    """Class and group as the published method computes them (CosPlace, 3.2)."""
    corner = (int(east // m * m), int(north // m * m), int(heading // alpha * alpha))
    return corner, (corner[0] % (m * n) // m, corner[1] % (m * n) // m, corner[2] % (alpha * k) // alpha)


def test_classes_and_groups_are_cosplace_s():
    position, heading = places()
    found = progeo.geographic(position, heading, M=10.0, alpha=30.0, N=3, L=2, least=5, groups=18)
    truth = [cosplace(*p, h, 10, 30, 3, 2) for p, h in zip(position.tolist(), heading.tolist(), strict=True)]
    counts = {c: sum(t[0] == c for t in truth) for c in {t[0] for t in truth}}
    assert found.rows.tolist() == [i for i, t in enumerate(truth) if counts[t[0]] >= 5]
    number = {}
    for row, label in zip(found.rows.tolist(), found.labels.tolist(), strict=True):
        assert tuple(found.corner[label].tolist()) == truth[row][0]
        assert number.setdefault(truth[row][1], int(found.group[label])) == int(found.group[label])
    assert found.groups == 18 == len(set(number.values()))


def test_classes_of_a_group_are_no_neighbours():
    position, heading = places()
    found = progeo.geographic(position, heading, M=10.0, alpha=30.0, N=3, L=2, least=3, groups=4, first=7)
    for g in range(4):
        corner = found.corner[found.group == g]
        apart = (corner[:, None] - corner[None]).abs()
        turn = torch.minimum(apart[..., 2], 360 - apart[..., 2])
        near = (apart[..., 0] < 30) & (apart[..., 1] < 30) & (turn < 60)
        assert int(near.sum()) == len(corner)
    own = found.of_group(2)
    assert set(found.group[found.labels[own]].tolist()) == {2}


def test_a_zone_is_a_place_of_its_own():
    position, heading = places(400)
    twice, zones = position.repeat(2, 1), ["10S"] * 200 + ["10T"] * 200 + ["32U"] * 400
    found = progeo.geographic(twice, heading.repeat(2), zones, M=30.0, alpha=90.0, N=1, L=1, least=2, groups=1)
    ignored = progeo.geographic(twice, heading.repeat(2), None, M=30.0, alpha=90.0, N=1, L=1, least=2, groups=1)
    assert len(found.group) == 2 * len(ignored.group) and sorted(set(found.zone)) == ["10N", "32N"]
    for c in range(len(found.group)):
        assert len({zones[r][:2] for r in found.rows[found.labels == c].tolist()}) == 1


def test_groups_are_drawn_without_those_before():
    position, heading = places()
    options = {"M": 10.0, "alpha": 30.0, "N": 3, "L": 2, "least": 5, "groups": 6}
    drawn = [progeo.geographic(position, heading, first=6 * seed, **options) for seed in range(3)]
    assert sum(len(d.rows) for d in drawn) == len(set().union(*(d.rows.tolist() for d in drawn)))
    with pytest.raises(ValueError, match="alpha, L: expected alpha L to divide 360 degrees, found 40 and 2"):
        progeo.geographic(position, heading, M=10.0, alpha=40.0, N=3, L=2)


def test_views_without_headings_can_be_classes_by_position(unchecked):
    position, heading = places(500)
    heading[7] = math.nan
    with pytest.raises(ValueError, match="heading: expected degrees of every image or alpha=None, found none of image 7"):
        progeo.geographic(position, heading)
    found = progeo.geographic(position, heading, alpha=None, N=2, least=3, groups=4)
    assert found.corner[:, 2].isnan().all() and found.groups == 4
    with pytest.raises(ValueError, match=r"groups: expected at least 8 groups of classes of 400 or more images, found 0 \(the largest class has \d+\)"):
        progeo.geographic(position, heading, alpha=None, least=400)


def test_vectors_are_their_class_s_own_and_only_they_learn(prompt):
    torch.manual_seed(0)
    texts = progeo.Prompts(prompt, 4, tokens=3)
    assert [name for name, _ in texts.named_parameters()] == ["words"] and texts.words.shape == (4, 3, 64)
    torch.testing.assert_close(texts(torch.tensor([2, 0])), prompt(texts.words[[2, 0]]))
    texts(torch.tensor([1, 1])).sum().backward()
    assert texts.words.grad[1].abs().sum() > 0 and texts.words.grad[[0, 2, 3]].abs().sum() == 0
    assert abs(float(texts.words.detach().std()) - 0.02) < 0.005


def test_supervised_contrastive_is_pytorch_metric_learning_s_between_two_sets():
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(12, 6, generator=generator), dim=1) for _ in range(2))
    label = torch.arange(12) % 4
    expected = published.SupConLoss(temperature=1.0, distance=distances.CosineSimilarity())(image, label, ref_emb=text, ref_labels=label.clone())
    torch.testing.assert_close(losses.supervised_contrastive(image @ text.T, label[:, None] == label), expected)
    with pytest.raises(ValueError, match="positive: expected a positive in at least one of 2 rows"):
        losses.supervised_contrastive(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool))


def test_cosface_is_pytorch_metric_learning_s():
    torch.manual_seed(0)
    theirs = published.CosFaceLoss(num_classes=5, embedding_size=8, margin=0.4, scale=30)
    x, label = F.normalize(torch.randn(9, 8), dim=1), torch.arange(9) % 5
    logits = losses.cosface(x @ F.normalize(theirs.W, dim=0), label)
    torch.testing.assert_close(F.cross_entropy(logits, label), theirs(x, label))


def test_weighted_triplet_by_hand_and_without_itself():
    angle = torch.deg2rad(torch.tensor([0.0, 20.0, 50.0, 90.0, 200.0]))
    x, label = torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([0, 0, 0, 1, 1])
    total = 0.0
    for i in range(5):
        d = [2 * abs(math.sin(float(angle[i] - angle[j]) / 2)) for j in range(5)]
        near = [d[j] for j in range(5) if label[j] == label[i] and j != i]
        far = [d[j] for j in range(5) if label[j] != label[i]]
        mean = lambda v, sign: sum(math.exp(sign * a) * a for a in v) / sum(math.exp(sign * a) for a in v)  # noqa: E731
        total += math.log1p(math.exp(mean(near, 1) - mean(far, -1)))
    assert float(losses.weighted_triplet(x, label)) == pytest.approx(total / 5, abs=1e-5)


def test_a_batch_of_one_image_a_class_holds_no_triplet():
    """The published defect: such batches have no positives, and the term only pushes apart."""
    with pytest.raises(ValueError, match="label: expected two classes and an image with another of its own"):
        losses.weighted_triplet(torch.eye(4), torch.arange(4))


MOMENTS = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}


def encoder(model, depth: int = 2, dim: int = 16, **options) -> progeo.Encoder:
    torch.manual_seed(0)
    return progeo.of_clip(model.visual, depth=depth, dim=dim, **MOMENTS, **options)


def normalised(x):
    return (x - torch.tensor(MOMENTS["mean"]).view(3, 1, 1)) / torch.tensor(MOMENTS["std"]).view(3, 1, 1)


def test_a_convolutional_encoder_is_the_tower_up_to_its_last_map(model):
    ours = encoder(model).eval()
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        grid = model.visual.stem(normalised(x))
        for i in (1, 2, 3, 4):
            grid = getattr(model.visual, f"layer{i}")(grid)
        vector = ours.head.pool(F.normalize(grid, dim=1)).vector
        torch.testing.assert_close(ours(x), F.normalize(ours.head.project(vector), dim=1), rtol=1e-3, atol=1e-4)
        assert ours(torch.rand(2, 3, 40, 96)).shape == (2, 16)


@pytest.mark.parametrize("depth", [0, 2])
def test_an_encoder_of_a_tower_reads_both_signs_of_its_map(depth):
    tower = towers.image("lite0", seed=0)
    torch.manual_seed(0)
    ours = progeo.of_tower(tower, depth=depth, dim=8).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        grid = F.normalize(torch.cat([tower.maps(x, (16,))[16], -tower.maps(x, (16,))[16]], dim=1), dim=1)
        pooled = grid.clamp(min=0).pow(3).mean(dim=(2, 3)).pow(1 / 3)
        torch.testing.assert_close(ours(x), F.normalize(ours.head.project(pooled), dim=1), rtol=1e-2, atol=1e-3)


def test_a_vit_encoder_is_the_tower_with_its_cls_token(vit):
    ours = encoder(vit, depth=3).eval()
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), F.normalize(vit.visual(normalised(x)), dim=1), rtol=1e-4, atol=1e-5)
        assert encoder(vit, depth=3, size=64)(torch.rand(2, 3, 64, 64)).shape == (2, 16)
    same = encoder(vit, depth=4, size=32)
    torch.testing.assert_close(same.tail[0].position, vit.visual.positional_embedding)
    with pytest.raises(ValueError, match="dim: expected the tower's own 16, found 8"):
        encoder(vit, depth=3, dim=8)
    with pytest.raises(ValueError, match=r"depth: expected 0..4 stages of the tower, found 5"):
        encoder(vit, depth=5)


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_a_stem_does_not_move_and_all_else_learns(model, depth):
    ours = encoder(model, depth)
    before = {k: v.clone() for k, v in ours.stem.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], 0.1)
    ours(torch.rand(4, 3, 64, 64))[:, 0].sum().backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in ours.stem.state_dict().items())
    assert all(p.grad is not None for p in [*ours.tail.parameters(), *ours.head.parameters()])
    assert len(ours.tail) == depth


def test_training_does_not_touch_the_clip_it_started_from(model):
    ours = encoder(model, 5)
    with torch.no_grad():
        for p in ours.parameters():
            p.zero_()
    assert float(model.visual.layer4[0].conv1.weight.abs().sum()) > 0


def test_stored_maps_give_the_loss_of_their_images(model):
    position, heading = places(600)
    classes = progeo.geographic(position, heading, M=30.0, alpha=90.0, N=1, L=1, least=4, groups=1)
    pixels = torch.randint(0, 256, (len(classes.rows), 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = encoder(model)
    stored = encoders.evaluate(ours.stem, pixels)
    index = torch.arange(24)
    found = []
    for inputs in (pixels, stored):
        torch.manual_seed(1)
        found.append(progeo.Guided(ours, classes, lambda i, x=inputs: x[i], dim=16)(index))
    torch.testing.assert_close(*found)


def test_stage_two_adds_smoothed_text_and_triplet_terms(model):
    position, heading = places(600)
    classes = progeo.geographic(position, heading, M=30.0, alpha=90.0, N=2, L=1, least=4, groups=2)
    features = F.normalize(torch.randn(len(classes.rows), 16, generator=torch.Generator().manual_seed(0)), dim=1)
    text = torch.randn(len(classes.group), 16, generator=torch.Generator().manual_seed(1))
    ours = encoder(model)
    ours.trained = lambda x: x
    index = classes.of_group(1)[:12]
    make = lambda **o: progeo.Guided(ours, classes, lambda i: features[i], dim=16, **o)  # noqa: E731
    torch.manual_seed(2)
    plain = make()
    torch.manual_seed(2)
    both = make(text=text, scale=5.0, triplet=2.0)
    own = (classes.group == 1).nonzero()[:, 0]
    target = torch.tensor([own.tolist().index(c) for c in classes.labels[index].tolist()])
    extra = F.cross_entropy(5 * features[index] @ F.normalize(text[own], dim=1).T, target, label_smoothing=0.1)
    extra = extra + 2 * losses.weighted_triplet(features[index], classes.labels[index])
    torch.testing.assert_close(both(index) - plain(index), extra)
    with pytest.raises(ValueError, match=r"index: expected images of one group, found groups \[0, 1\]"):
        plain(torch.cat([classes.of_group(0)[:2], index]))


def test_texts_of_another_width_are_refused(model):
    position, heading = places(300)
    classes = progeo.geographic(position, heading, M=30.0, alpha=90.0, N=1, L=1, least=4, groups=1)
    with pytest.raises(ValueError, match="dim: expected the texts' 8, found 16"):
        progeo.Guided(encoder(model), classes, lambda i: i, dim=16, text=torch.zeros(len(classes.group), 8))


def test_imprinted_classifiers_know_their_classes(model):
    position, heading = places(300)
    classes = progeo.geographic(position, heading, M=30.0, alpha=90.0, N=1, L=1, least=4, groups=1)
    centre = F.normalize(torch.randn(len(classes.group), 16, generator=torch.Generator().manual_seed(0)), dim=1)
    features = F.normalize(centre[classes.labels] + 0.01, dim=1)
    ours = encoder(model)
    ours.trained = lambda x: x
    step = progeo.Guided(ours, classes, lambda i: features[i], dim=16)
    step.imprint(batch=64)
    assert torch.equal((features @ step.classifiers[0].T).argmax(dim=1), classes.labels)


def test_a_whitened_head_gives_uncorrelated_features_near_their_target(model):
    pixels = torch.randint(0, 256, (600, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = encoder(model)
    frozen = encoders.evaluate(ours.stem, pixels)
    with torch.no_grad():
        target = model.visual(normalised(pixels.float() / 255))[:, :16]
        ours.whiten(frozen, target)
        x = ours.head(ours.tail(frozen))
        covariance = x.T @ x / len(x)
        toward = (F.normalize(x, dim=1) * F.normalize(target - target.mean(0), dim=1)).sum(1).mean()
    torch.testing.assert_close(covariance, torch.eye(16), atol=2e-2, rtol=0)
    assert float(x.mean(0).abs().max()) < 1e-2 and float(toward) > 0.2
    with pytest.raises(ValueError, match="x: expected more than 512 images to whiten as many channels, found 8"):
        ours.whiten(frozen[:8], target[:8])


def test_stage_one_learns_texts_that_tell_its_images_apart(prompt):
    torch.manual_seed(0)
    texts = progeo.Prompts(prompt, 3)
    features, labels = F.normalize(torch.randn(3, 32), dim=1).repeat_interleave(4, 0), torch.arange(3).repeat_interleave(4)
    step = progeo.PromptLearning(texts, features, labels, scale=10.0)
    optimizer = torch.optim.Adam(step.parameters(), 0.05)
    first = float(step(torch.arange(12)))
    for _ in range(30):
        optimizer.zero_grad()
        step(torch.arange(12)).backward()
        optimizer.step()
    assert float(step(torch.arange(12))) < first - 1
    assert progeo.own_is_nearest(features, labels, texts(torch.arange(3)), torch.zeros(3, dtype=torch.int64)).all()


def test_nearest_is_asked_within_a_group_only():
    features, group = torch.eye(4)[[0, 1, 3]], torch.tensor([0, 0, 1, 1])
    of_class = torch.eye(4)[[1, 0, 3, 2]]
    assert progeo.own_is_nearest(features, torch.tensor([0, 0, 3]), of_class, group).tolist() == [False, True, False]
    assert progeo.own_is_nearest(torch.eye(4)[[3]], torch.tensor([0]), of_class + 0.1 * torch.eye(4)[0], group).tolist() == [True]


def test_published_similarity_is_the_inner_product():
    x, t = torch.randn(3, 4), torch.randn(5, 4)
    assert torch.equal(progeo.logits(x, t, None), x @ t.T)
    torch.testing.assert_close(progeo.logits(x, t, 2.0), 2 * F.cosine_similarity(x[:, None], t[None], dim=2))


def test_augmentation_keeps_size_and_range_and_mirrors_nothing():
    torch.manual_seed(0)
    x = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    x[..., :8] = 255  # the left half is bright
    y = progeo.Augmentation(jitter=0.0, hue=0.0, crop=0.8)(x)
    assert y.shape == x.shape and float(y.min()) >= 0 and float(y.max()) <= 1
    assert bool((y[..., 0].mean(dim=(1, 2)) > 0.9).all())
