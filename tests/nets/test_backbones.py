"""timm's networks with a pooling: shapes, CLS attention against timm's own, the papers' parameter counts; DINO's loss letter by letter."""

import pytest
import torch
import torch.nn.functional as F

from georeps.lab import records
from georeps.nets import backbones, encoders, pooling, train
from georeps.papers import dino

IMAGES = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def small(name: str, cls: bool = False) -> backbones.Trunk:
    torch.manual_seed(0)
    if name == "vit":
        return backbones.vit(size=32, patch=8, dim=32, depth=2, heads=4, cls=cls)
    return backbones.resnet(width=4, stride=8) if name == "resnet" else backbones.convnext(width=4, depths=(1, 1, 1, 1), stride=8)


@pytest.mark.parametrize("name", ["resnet", "convnext", "vit"])
def test_trunks_give_a_grid_that_any_pooling_takes(name):
    trunk = small(name).eval()
    assert trunk(IMAGES.float() / 255).shape == (6, 32, 4, 4) and trunk.out_dim == 32
    for pool in ("gap", "slot", "simpool"):
        model = backbones.Classifier(trunk, pooling.POOLINGS[pool](32), 5)
        assert encoders.evaluate(model, IMAGES, batch=4).shape == (6, 5)
        maps = encoders.evaluate(model, IMAGES, "attention")
        assert maps is None if pool == "gap" else maps.shape == (6, 4, 4)


def test_of_k_vectors_the_largest_logit_counts():
    model = backbones.Classifier(small("resnet").eval(), pooling.Slot(32, k=3), 5).eval()
    vectors = model.vector(IMAGES.float() / 255).view(6, 3, 32)
    torch.testing.assert_close(model(IMAGES.float() / 255), torch.stack([model.head(vectors[:, i]) for i in range(3)]).amax(dim=0))


def test_cls_attention_is_that_of_timm_s_block():
    trunk = small("vit", cls=True).eval()
    x = IMAGES.float() / 255
    found = trunk.blocks(x)
    block, seen = trunk.model.blocks[1], []
    block.attn.fused_attn = False
    block.attn.attn_drop.register_forward_hook(lambda _, __, a: seen.append(a))
    trunk(x)
    a = seen[0][:, :, 0, 1:].mean(dim=1)
    torch.testing.assert_close(found.attention[1].flatten(1), a / a.sum(dim=1, keepdim=True))
    assert found.keys.shape == (6, 32, 4, 4)
    torch.testing.assert_close(backbones.Classifier(trunk, None, 3).attention(x), found.attention[-1])


def test_a_network_without_cls_has_no_cls():
    with pytest.raises(ValueError, match="cls: expected a transformer with a CLS token"):
        small("resnet").cls(IMAGES.float() / 255)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "convnext", "vit"])
def test_parameters_are_those_the_paper_prints(name):
    """Table 3.10, but for CaiT on ResNet-18, where it prints those of two layers."""
    paper = records.reference(records.book_folder() / "reference" / "pooling.csv").set_index("metric").value
    for method in ("baseline", "slot", "ge", "simpool", "cait"):
        cls = name == "vit" and method == "baseline"

        def full_size(method=method, cls=cls):
            trunk = backbones.published(name, cls=cls)
            pool = None if cls else {**pooling.POOLINGS, "baseline": pooling.GAP}[method](trunk.out_dim)
            return backbones.Classifier(trunk, pool, 1000)

        params, gflops = backbones.cost(full_size)
        if (name, method) != ("resnet18", "cait"):
            assert params == pytest.approx(paper[f"pooling.cost.{name}.{method}.params"], abs=0.12), method
        if name != "vit":  # whose attention's products the paper leaves out
            assert gflops == pytest.approx(paper[f"pooling.cost.{name}.{method}.gflops"], rel=0.02), method


def test_published_weights_are_checked(tmp_path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="w.pt lacks .* tensors of timm's resnet18"):
        backbones.published("resnet18", weights=tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError, match="expected a state dict of timm's resnet18, found no file"):
        backbones.published("resnet18", weights=tmp_path / "none.pt")


def test_recognition_learns(tmp_path):
    model = backbones.Classifier(small("resnet"), pooling.SimPool(32), 2)
    step = backbones.Recognition(model, IMAGES, torch.tensor([0, 1] * 3))
    log = train.fit(step, train.shuffled(6, 6, seed=0), train.Recipe(epochs=15, lr=3e-3), out=tmp_path).log
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]


def test_dino_s_loss_is_the_cross_entropy_of_other_views():
    model = backbones.Classifier(small("vit", cls=True), None, 2)
    seen = [IMAGES.float() / 255 + i / 10 for i in range(3)]
    step = dino.Dino(model, 32, dino.of_stored(torch.stack(seen, dim=1)), out=16).eval()
    found = step(torch.arange(6))
    expected = []
    for t in (0, 1):
        target = ((step.teacher(seen[t]) - step.centre) / 0.04).softmax(dim=1)
        for s in (0, 1, 2):
            if s != t:
                expected.append(-(target * F.log_softmax(step.student(seen[s]) / 0.1, dim=1)).sum(dim=1).mean())
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_dino_moves_its_teacher_and_centre_in_training_only():
    model = backbones.Classifier(small("vit", cls=True), None, 2)
    views = dino.of_images(IMAGES, dino.Views())
    step = dino.Dino(model, 32, views, out=16)
    before = [p.clone() for p in step.teacher.parameters()]
    step.eval()(torch.arange(6))
    assert float(step.centre.abs().sum()) == 0
    train.fit(step, train.shuffled(6, 6, seed=0), train.Recipe(epochs=2, lr=1e-2))
    assert float(step.centre.abs().sum()) > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, step.teacher.parameters(), strict=True))
    assert not any(p.requires_grad for p in step.teacher.parameters())
    with pytest.raises(ValueError, match="momentum: expected a number between 0 and 1, found 1.0"):
        dino.Dino(model, 32, views, momentum=1.0)
    with pytest.raises(ValueError, match="large: expected a share between 0.05 and 1, found 1.0"):
        dino.Views(large=1.0)


def test_stored_views_are_what_the_stem_gives_of_one_draw(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path))
    stem = torch.nn.Conv2d(3, 4, 2, stride=2)
    state = torch.get_rng_state()
    found = dino.stored(stem, IMAGES, dino.Views(small=1))
    assert found.shape == (6, 3, 4, *(side // 2 for side in IMAGES.shape[-2:])) and found.dtype == torch.float16
    assert torch.equal(found, dino.stored(stem, IMAGES, dino.Views(small=1))) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(found[:, 0], found[:, 1])
    assert [v.shape for v in dino.of_stored(found)(torch.tensor([2, 0]))] == [(2, *found.shape[2:])] * 3


def test_a_transformer_on_maps_takes_their_channels_and_statistics():
    maps = 3 * torch.randn(20, 5, 4, 4) + 1
    trunk = backbones.vit(size=4, patch=1, dim=16, heads=2, depth=1, cls=True, channels=5).normalise_by(maps)
    torch.testing.assert_close(trunk.mean.flatten(), maps.mean((0, 2, 3)))
    assert trunk(maps).shape == (20, 16, 4, 4) and trunk.blocks(maps).attention.shape == (1, 20, 4, 4)
