"""What profile gpu asks for, on a machine without one: the sizes exist, each training step runs once in bfloat16, and all that a forward pass
multiplies is on one device (`FakeTensorMode`: tensors that say cuda and hold nothing; checks that look at values are left out)."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from georeps.core import adaln, flow, sphere
from georeps.lab import records, starts
from georeps.nets import backbones, encoders, losses, pooling, prompts, train, variants
from georeps.papers import composed, crossview, dino, geolocation, inversion, metrix, moco, progeo
from georeps.tasks import drives, fine
from georeps.worlds import city, earth

asked = functools.partial(records.parameters_of, profile="gpu")


# --- the sizes that profile gpu asks for ---


@pytest.mark.parametrize("chapter", ["03_crossview", "04_pretraining", "05_distribution"])
def test_the_earth_and_the_city_hold_the_pairs_that_the_cross_view_chapters_test_on(chapter):
    p = asked(chapter)
    assert p["n_test"] <= len(earth.places(split="cross", part="test"))
    for split in ("same", "cross"):
        held = {part: len(city.places(split=split, part=part, tiles=p["tiles"])) for part in ("train", "test")}
        assert p["n_val"] < min(p["n_train"], held["train"]) and p["n_test"] <= held["test"], (split, held)


def test_the_worlds_of_chapter_01_hold_what_it_asks():
    p = asked("01_worlds")
    for split, extent in (("blocks", p["extents_km"][-1]), ("cross", p["extents_km"][-1])):
        for part in ("train", "test"):
            assert p["on_earth"][part] <= len(earth.places(split=split, part=part, extent_km=extent, spacing_km=p["on_earth"]["spacing_km"]))
    for part in ("train", "test"):
        assert p["in_city"][part] <= len(city.places(split="cross", part=part, tiles=p["in_city"]["tiles"]))


def test_each_world_of_metrix_has_the_classes_of_a_batch():
    p = asked("06_metrix")
    folders = [(f, v) for f in fine.patterns.FOLDERS for v in fine.patterns.values(f)[0::2]]
    assert p["batch"] // p["each"] <= len(folders) - len(folders) // 3
    where = {part: earth.places(split="blocks", part=part, extent_km=120.0, spacing_km=60.0) for part in ("train", "test")}
    named = {part: np.char.add(np.char.add(w.cover.astype(str), ", "), w.climate.astype(str)) for part, w in where.items()}
    names, count = np.unique(named["test"], return_counts=True)
    assert p["batch"] // p["each"] <= sum((named["train"] == n).sum() >= 20 for n in names[count >= 20])


def test_each_group_of_progeo_has_the_classes_of_a_batch():
    p = asked("10_prompts")
    where = [(n, drives.cameras(n, tiles=p["tiles"], step=p["step"], drive=d)) for n in drives.TRAIN_CITIES for d in range(p["n_drives"])]
    position = torch.from_numpy(np.concatenate([w.position + [n * city.APART, 0] for n, w in where])).double()
    heading = torch.from_numpy(np.concatenate([w.heading for _, w in where])).double()
    for seed in range(p["seeds"]):
        found = progeo.geographic(position, heading, [drives.ZONE] * len(position), **p["cells"], first=seed * p["cells"]["groups"])
        assert found.group.bincount().min() >= p["batch"]  # one image a class, of the row `one_each`


# --- one step in bfloat16 ---


def in_16_bits(step: nn.Module, index: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = step.train()(index)
    loss.backward()
    assert torch.isfinite(loss) and any(p.grad is not None for p in step.parameters())


MAPS, LABELS, EIGHT = torch.randn(8, 112, 7, 7, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3, torch.arange(8)
IMAGES = torch.randint(0, 255, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
POOLINGS = pooling.POOLINGS | {
    "gap_ln": variants.NormedGAP, "simpool_plain": functools.partial(pooling.SimPool, gamma=None), "ep": lambda d: pooling.EP(d, queries=math.gcd(d, 32)),
    **{f"variant {name}": functools.partial(variants.Variant, **options) for name, options in variants.DESIGN.items()},
}  # fmt: skip
TRUNKS = {
    "vit": lambda cls=False: backbones.vit(size=64, patch=16, dim=32, depth=2, heads=2, cls=cls), "resnet": lambda: backbones.resnet(width=8, stride=16),
    "convnext": lambda: backbones.convnext(width=8, depths=(1, 1, 1, 1), stride=16),
}  # fmt: skip


@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooling_is_trained_in_16_bits(name):
    model = backbones.Classifier(starts.Trunk(nn.Identity(), MAPS), POOLINGS[name](112), 3)
    in_16_bits(backbones.Recognition(model, MAPS, LABELS, flip=False, turn=False), EIGHT)


@pytest.mark.parametrize("name", TRUNKS)
def test_a_network_is_trained_in_16_bits_with_labels_and_without(name):
    trunk = TRUNKS[name]().normalise_by(IMAGES)
    in_16_bits(backbones.Recognition(backbones.Classifier(trunk, pooling.SimPool(trunk.out_dim), 3), IMAGES, LABELS), EIGHT)
    trunk = TRUNKS[name](*[True] * (name == "vit")).normalise_by(IMAGES)
    model = backbones.Classifier(trunk, None if name == "vit" else pooling.SimPool(trunk.out_dim), 3)
    in_16_bits(dino.Dino(model, model.pool.out_dim, dino.of_images(IMAGES, dino.Views())), EIGHT)


def test_moco_is_trained_in_16_bits():
    views = torch.rand(8, 3, 3, 32, 32).half()
    trunk = TRUNKS["resnet"]()
    in_16_bits(moco.MoCo(trunk, moco.of_stored(views), dim=8, queue=16), EIGHT)
    in_16_bits(moco.CrossViewMoCo(crossview.siamese([trunk, trunk], dim=8), lambda i: (views[i, 0].float(), views[i, 1].float()), dim=8, queue=16), EIGHT)


@pytest.mark.parametrize("loss", [functools.partial(losses.soft_margin_triplet, distance="l2", gamma_place="inside"), losses.symmetric_info_nce])
@pytest.mark.parametrize("head", ["siamese", "safa"])
def test_the_networks_of_the_thesis_are_trained_in_16_bits(head, loss):
    ground = IMAGES[:4, :, :32]
    trunks = [encoders.VGG16(width=0.125, blocks=3, last_pool=False).normalise_by(ground) for _ in range(2)]
    model = crossview.siamese(trunks, dim=16) if head == "siamese" else crossview.safa(trunks, [(8, 16)] * 2)
    in_16_bits(crossview.Matching(model, lambda i: (ground[i], ground[i]), loss=loss), torch.arange(4))


# --- a forward pass on a device that is not there ---


@pytest.fixture
def on_cuda(monkeypatch):
    """`made(build)` builds a module on the device; what looks at values looks away."""
    for module, check in ((sphere, "_reject_antipodes"), (flow, "check_places"), (geolocation, "_check_features")):
        monkeypatch.setattr(module, check, lambda *_: None)
    monkeypatch.setattr(geolocation, "_embedded", lambda x: torch.randn(len(x), 512, device=x.device))
    flow._ends.cache_clear()

    def made(build):
        with torch.device("cuda"):
            return build()

    with FakeTensorMode(allow_non_fake_inputs=True):
        yield made
    flow._ends.cache_clear()


def on_device(x: torch.Tensor) -> bool:
    return x.device.type == "cuda"


@pytest.mark.parametrize("kind", ["sphere", "space", "diffusion", "published"])
def test_flows_stay_on_the_device(on_cuda, kind):
    net, x, c = on_cuda(lambda: adaln.VelocityNet(8, dim=16, depth=1)), torch.randn(12, 3, device="cuda"), torch.randn(4, 8, device="cuda")
    assert on_device(flow.loss(net, x[:4], c, kind=kind, draws=2))
    for method in ("euler", "heun", "rk4") if kind == "sphere" else (kind,):
        assert on_device(flow.sample(net, 12, c, steps=2, method=method, device="cuda", generator=torch.Generator()))
    found = flow.log_prob(flow.guided(net, 1.0), x, c, steps=2) if kind == "sphere" else flow.log_prob_space(net, x, c, kind=kind, steps=2)
    assert on_device(found)


@pytest.mark.parametrize("kind", ["regression", "cells", "hybrid", "retrieval", "vmf", "mixture", "diffusion", "space", "plane", "sphere", "published"])
def test_locators_stay_on_the_device(on_cuda, monkeypatch, kind):
    f, x = torch.randn(300, 8, device="cuda"), torch.randn(300, 3, device="cuda")
    cells = on_cuda(lambda: geolocation.Cells(torch.empty(9, 2), torch.empty(9, 2), torch.empty(9, 3)))
    monkeypatch.setattr(geolocation, "quadtree", lambda *_, **__: cells)
    model = on_cuda(lambda: geolocation.Locator(kind, f, x, dim=16, depth=1, k=3))
    assert on_device(geolocation.Lesson(model, torch.randn(300, 8), torch.randn(300, 3))(torch.arange(4)))
    assert on_device(model.sample(f[:4], 5, evaluations=8, generator=torch.Generator()))
    if kind in ("regression", "cells", "hybrid", "retrieval"):
        assert on_device(model.answer(f[:4]))
    if kind in geolocation.ON_SPHERE:
        assert on_device(model.log_prob(x[:8], f[:4], steps=2))


def test_matching_stays_on_the_device(on_cuda):
    """Not MoCo and DINO: to copy a network of such tensors, for a slow one, brings torch down."""
    maps = torch.zeros(8, 3, 32, 32)  # on the CPU until a step asks for them
    trunk = on_cuda(TRUNKS["resnet"])
    model = on_cuda(lambda: crossview.siamese([trunk, trunk], dim=8))
    assert on_device(crossview.Matching(model, lambda i: (maps[i], maps[i]), loss=losses.symmetric_info_nce)(torch.arange(4)))


def test_composed_queries_pseudo_words_and_rows_of_the_cpu_are_sent_to_the_device(on_cuda, monkeypatch):
    gallery, images, texts = (torch.randn(n, 8, device="cuda") for n in (20, 6, 6))
    monkeypatch.setattr(composed.moments, "check_spread", lambda *_: None)
    assert on_device(composed.weicom_scores(images, texts, gallery, 0.5)(slice(0, 3)))
    assert all(on_device(composed.normalised(kind, images @ gallery.T)) for kind in composed.NORMALISATIONS)

    photo = on_cuda(lambda: prompts.Prompt(torch.randn(3, 8), torch.randn(2, 8), lambda x: x.mean(1), most=9))
    assert on_device(inversion.pseudo_words(images, photo, lr=0.1, steps=0))
    head = on_cuda(lambda: metrix.Head(16, 8, 8))
    with pytest.raises(RuntimeError, match="device"):  # the guard sees what it must see
        head.embed(torch.randn(3, 8))
    assert encoders.evaluate(head, torch.randn(5, 16)).device.type == "cpu"


def test_a_checkpoint_is_read_on_the_cpu_whatever_wrote_it(tmp_path, monkeypatch):
    """Adam's counts of steps, read on a GPU, would make it wait at every step; what a state goes into sends it on."""
    where, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: where.append(k["map_location"]) or load(*a, **k))

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.ones(3))

        def forward(self, index):
            return self.x.square().sum()

    for _ in range(2):
        train.fit(Square(), train.shuffled(4, 2, seed=0), train.Recipe(2, 0.1, "adamw"), out=tmp_path)
    assert where == ["cpu"]
