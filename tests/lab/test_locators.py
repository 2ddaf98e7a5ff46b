"""The Earth as a geolocation task: no ground is shared, features are frozen, models are stored, published data are read."""

import json
import math
import tarfile

import numpy as np
import pytest
import torch

from georeps.core import cache, sphere
from georeps.lab import locators
from georeps.nets import encoders, train
from georeps.papers import geolocation
from georeps.tasks import export, places
from georeps.worlds import earth

RECIPE = train.Recipe(epochs=1, lr=1e-3, seed=3)


@pytest.fixture(scope="module")
def encode():
    return locators.encoder("blocks", width=0.0625, epochs=1, n=40, batch=16)


def test_no_training_patch_or_window_meets_an_unseen_patch():
    unseen = torch.cat([earth.places(split="blocks", part=p, extent_km=120.0, n=300).latlon for p in ("val", "test")])
    patches = earth.places(split="blocks", part="train", extent_km=120.0, n=2000).latlon
    assert not earth.overlaps(patches, unseen, extent_km=120.0).any()


def test_no_window_of_the_trunk_meets_an_unseen_patch(monkeypatch):
    """Windows that carry their place in their pixels: those that are kept are taken out of what the world offers."""
    offered, kept = [], []
    original, cached = places.patches, cache.cached

    def marked(*arguments, **options):
        where, _ = original(*arguments, **options)
        offered.append(where.latlon)
        return where, torch.arange(len(where)).view(-1, 1, 1, 1).expand(-1, 6, 32, 32)

    monkeypatch.setattr(places, "patches", marked)
    monkeypatch.setattr(encoders.VGG16, "normalise_by", lambda self, images: kept.append(images[:, 0, 0, 0]))
    monkeypatch.setattr(cache, "cached", lambda name, key, build: {} if name == "trunk-places" else cached(name, key, build))
    with pytest.raises(RuntimeError):
        locators.encoder("blocks", width=0.0625, epochs=1)
    windows = offered[0][kept[0]]
    unseen = torch.cat([earth.places(split="blocks", part=p, extent_km=120.0, spacing_km=60.0).latlon for p in ("val", "test")])
    half = 180.0 / earth.KM_PER_DEGREE
    assert 2000 < len(windows) < len(offered[0])
    for lat, lon in windows[::20].tolist():
        across = ((unseen[:, 1] - lon + 180) % 360 - 180).abs() * torch.minimum(torch.deg2rad(unseen[:, 0]).cos(), torch.tensor(math.cos(math.radians(lat))))
        assert not (((unseen[:, 0] - lat).abs() < half) & (across < half * 0.98)).any()


def test_the_encoder_is_stored_frozen_and_does_not_touch_the_random_state(encode):
    state = torch.random.get_rng_state()
    again = locators.encoder("blocks", width=0.0625, epochs=1, n=40, batch=16)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(encode.state_dict().values(), again.state_dict().values(), strict=True))
    assert not any(p.requires_grad for p in encode.parameters()) and not encode.training


def test_features_are_of_each_patch_alone(encode):
    world = places.world(encode, "blocks", "test", n=20)
    assert world.features.shape == (20, 2 * (4 + 8 + 16)) and len(world) == 20
    few = world.rows(torch.tensor([3, 5]))
    assert torch.equal(few.x, world.x[[3, 5]]) and few.names["country"] == [world.names["country"][i] for i in (3, 5)]
    optical, relief = (earth.cut(earth.layer(n), world.latlon()[:2].float(), size=16, extent_km=120.0) for n in ("optical", "relief"))
    assert torch.allclose(encoders.describe(encode, torch.cat([optical, relief], 1)), world.features[:2], atol=0.05)


def test_crops_of_a_window_are_told_from_others():
    torch.manual_seed(0)
    windows = (torch.rand(16, 6, 1, 1) * 255).to(torch.uint8).expand(-1, -1, 32, 32).contiguous()  # a colour each
    encode = locators.Scales(encoders.VGG16(width=0.0625, blocks=3, channels=6))
    step = locators.Neighbours(encode, 2 * (4 + 8 + 16), windows, shift=4, temperature=0.1)
    optimizer = torch.optim.Adam(step.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = step(torch.arange(16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 < losses[0]


def test_a_locator_is_trained_once_and_seeded(encode, monkeypatch):
    world = places.world(encode, "blocks", "train", n=64)
    options = {"recipe": RECIPE, "batch": 32, "dim": 16, "depth": 1}
    first = locators.locator("mixture", world.features, world.x, **options)
    monkeypatch.setattr(train, "fit", lambda *a, **k: pytest.fail("trained again"))
    again = locators.locator("mixture", world.features, world.x, **options)
    assert torch.equal(first.sample(world.features[:3], 2, generator=torch.Generator().manual_seed(1)),
                       again.sample(world.features[:3], 2, generator=torch.Generator().manual_seed(1)))  # fmt: skip
    assert isinstance(first, geolocation.Locator) and not first.training


def test_osv5m_is_read_as_exported(tmp_path):
    latlon = torch.tensor([[48.0, 2.0], [-33.9, 151.0]], dtype=torch.float64)
    pixels = torch.randint(0, 255, (2, 3, 20, 20), dtype=torch.uint8)
    export.osv5m(tmp_path, "test", pixels, latlon, earth.admin_names(latlon))
    world = places.published(tmp_path, "test", lambda paths: torch.arange(len(paths))[:, None].float())
    assert torch.allclose(world.latlon().double(), latlon, atol=1e-4) and world.names["country"] == ["FR", "AU"]
    assert world.pixels.shape == (2, 3, 64, 64) and world.features[:, 0].tolist() == [0, 1]
    assert len(places.published(tmp_path, "test", lambda paths: torch.zeros(len(paths), 1), n=1)) == 1
    with pytest.raises(ValueError, match="encode: expected what reads images"):
        places.published(tmp_path, "test")
    trunk = locators.encoder("blocks", width=0.0625, epochs=1, n=40, batch=16, layers=("optical",))
    assert places.of_files(sorted((tmp_path / "images/test/00").glob("*.jpg")), trunk).shape == (2, 56)


def test_shards_of_embeddings_need_no_images(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    for i in range(2):
        (tmp_path / f"{i}.json").write_text(json.dumps({"latitude": 10.0 * i, "longitude": 20.0, "unique_country": "FR"}))
        np.save(tmp_path / f"{i}.street_clip.npy", np.full(4, i, np.float32))
    with tarfile.open(folder / "0.tar", "w") as shard:
        for i in range(2):
            for kind in ("json", "street_clip.npy"):
                shard.add(tmp_path / f"{i}.{kind}", f"{i}.{kind}")
    world = places.published(tmp_path, "train")
    assert world.pixels is None and world.features.shape == (2, 4) and world.names["country"] == ["FR", "FR"]
    assert torch.allclose(sphere.to_latlon(world.x)[1], torch.tensor([10.0, 20.0]), atol=1e-4)


def test_a_missing_table_and_a_place_off_the_earth_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"test\.csv: expected a table"):
        places.published(tmp_path, "test")
    export.osv5m(tmp_path, "test", torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([[95.0, 0.0]]), {})
    with pytest.raises(ValueError, match=r"test\.csv, line 2: expected a latitude in -90..90 degrees, found '95.0'"):
        places.published(tmp_path, "test")
