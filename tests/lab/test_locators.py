"""The Earth as a geolocation task: no ground is shared, features are frozen, models are stored, published data are read."""

import json
import tarfile

import numpy as np
import pytest
import torch

from georeps.core import sphere
from georeps.lab import locators
from georeps.nets import train
from georeps.papers import geolocation
from georeps.tasks import export, places
from georeps.worlds import earth

RECIPE = train.Recipe(epochs=1, lr=1e-3, seed=3)


def test_no_training_patch_meets_an_unseen_patch():
    unseen = torch.cat([earth.places(split="blocks", part=p, extent_km=120.0, n=300).latlon for p in ("val", "test")])
    patches = earth.places(split="blocks", part="train", extent_km=120.0, n=2000).latlon
    assert not earth.overlaps(patches, unseen, extent_km=120.0).any()


def test_features_are_of_each_patch_alone_on_axes_of_training_places():
    world = places.world("blocks", "test", n=20, basis=30)
    assert world.features.shape == (20, 29) and world.pixels.shape == (20, 3, 64, 64)
    few = world.rows(torch.tensor([3, 5]))
    assert torch.equal(few.x, world.x[[3, 5]]) and few.names["country"] == [world.names["country"][i] for i in (3, 5)]
    assert torch.allclose(places.world("blocks", "test", n=5, basis=30).features, world.features[:5], atol=1e-4)
    learn = places.world("blocks", "train", n=40, basis=400)
    shares = learn.features.var(0)
    assert learn.features.shape[1] == places.DIM and (shares[0] > shares[20:]).all() and torch.isfinite(learn.features).all()


def test_a_locator_is_trained_once_and_seeded(monkeypatch):
    world = places.world("blocks", "train", n=64, basis=20)
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
    assert places.of_files(sorted((tmp_path / "images/test/00").glob("*.jpg"))).shape == (2, 2 * 496)


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


def test_patches_of_the_sea_are_seen_on_the_axes_of_the_land():
    found = places.sea(12, basis=30)
    assert found.shape == (12, 29) and torch.isfinite(found).all()
    with pytest.raises(ValueError, match=r"n: expected 1..\d+ \(patches of the lattice without land\), found 0"):
        places.sea(0, basis=30)
    land = places.world("blocks", "test", n=12, basis=30).features
    assert float(found.std(0).norm()) < 0.5 * float(land.std(0).norm())  # hardly anything is there to tell them apart
