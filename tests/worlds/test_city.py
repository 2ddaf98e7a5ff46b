"""The procedural city: geometry of VIGOR, pictures of one world from two sides, exports that read back equal."""

import math

import numpy as np
import pytest
import torch

from georeps.papers import crossview
from georeps.readers import folders, images
from georeps.tasks import export
from georeps.worlds import city
from georeps.worlds.city import plan as plans, scene as scenes, street

TILES = 6


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEOREPS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def places():
    return city.places(cities=[1, 2], tiles=TILES)


def test_the_positive_is_the_nearest_of_the_four_tiles_that_hold_the_camera(places):
    for i in range(len(places)):
        away = (places.gallery_position - places.position[i]).abs().max(dim=1).values
        holds = set(torch.nonzero(away <= city.TILE / 2 + 1e-9).flatten().tolist())
        assert holds == {int(places.positive[i]), *places.semi[i].tolist()}
        assert int(places.positive[i]) == int(away.argmin()) and away.min() <= city.STEP / 2 + 1e-9


def test_tiles_overlap_by_half_and_offsets_are_vigor_s(places):
    own = places.gallery_position[places.gallery_position[:, 0] < 1.5 * city.APART]
    assert (own[1] - own[0]).tolist() == pytest.approx([city.TILE / 2, 0.0])
    expected = (places.gallery_position[places.positive] - places.position).flip(1) / 0.114
    assert (places.offset - expected).abs().max() < 0.01 and places.offset.abs().max() <= 160.01


def test_a_tile_has_at_most_two_cameras_one_of_each_part():
    train, test = (city.places(split="same", part=p, cities=[1, 2], tiles=12) for p in ("train", "test"))
    everyone = city.places(cities=[1, 2], tiles=12)
    assert len(train) + len(test) == len(everyone)
    assert all(len(p.positive.unique()) == len(p) for p in (train, test))
    shared = torch.isin(test.positive, train.positive).float().mean()
    assert 0.3 < shared < 0.6  # VIGOR: 46-49%


def test_swapped_exchanges_the_cities_of_the_cross_area_parts():
    parts = {(s, p): city.places(split=s, part=p, tiles=TILES) for s in ("cross", "swapped") for p in ("train", "test")}
    assert set(parts["swapped", "train"].city.tolist()) == set(city.TEST_CITIES)
    assert set(parts["swapped", "test"].city.tolist()) == set(city.TRAIN_CITIES)
    assert len(parts["swapped", "train"]) > len(parts["cross", "test"]), "all cameras train, half of them test"


def test_cross_area_parts_share_no_city_and_both_splits_test_on_the_same_cameras():
    parts = {(s, p): city.places(split=s, part=p, tiles=TILES) for s in ("same", "cross") for p in ("train", "test")}
    assert set(parts["cross", "train"].city.tolist()).isdisjoint(city.TEST_CITIES)
    assert set(city.TEST_CITIES) < set(parts["same", "train"].city.tolist())
    assert torch.equal(parts["same", "test"].position, parts["cross", "test"].position)
    seen = {(c, r) for c, r in zip(parts["same", "train"].city.tolist(), parts["same", "train"].row.tolist(), strict=True)}
    assert not seen & set(zip(parts["same", "test"].city.tolist(), parts["same", "test"].row.tolist(), strict=True))


def test_more_places_only_add_and_seeds_only_reorder():
    few, many = (city.places(tiles=TILES, n=n, seed=3) for n in (5, 12))
    assert torch.equal(few.position, many.position[:5])
    a, b = (city.places(tiles=TILES, seed=s) for s in (0, 1))
    assert sorted(a.position.tolist()) == sorted(b.position.tolist()) and not torch.equal(a.position, b.position)


def test_images_follow_their_places_whatever_the_selection(places):
    some = city.places(cities=[1, 2], tiles=TILES, n=4)
    whole, part = (city.ground(p, size=(8, 32)) for p in (places, some))
    assert torch.equal(whole[:4], part)
    assert torch.equal(city.satellite(places, size=8)[:4], city.satellite(some, size=8))


def test_a_tile_of_the_gallery_is_the_tile_centred_at_its_position(places):
    gallery = city.gallery(places, size=16)
    above = city._above(2, TILES)
    i = TILES**2 + 3
    centre = places.gallery_position[i : i + 1].numpy() - 2 * city.APART
    assert torch.equal(scenes.tiles(above, centre, size=16, extent=city.TILE)[0], gallery[i])


def test_heading_turns_the_columns():
    north = city.ground(city.places(cities=[1], tiles=TILES, n=6), size=(8, 32), heading=0.0)
    east = city.ground(city.places(cities=[1], tiles=TILES, n=6), size=(8, 32), heading=90.0)
    difference = (north.roll(-8, dims=-1).int() - east.int()).abs().float()[:, :, 4:]  # not the sky, whose clouds turn with the camera
    assert difference.mean() < 2


def test_a_field_of_view_is_the_middle_of_the_panorama():
    where = city.places(cities=[1], tiles=TILES, n=6)
    whole = city.ground(where, size=(8, 64), elevation=(-45.0, 0.0))
    middle = city.ground(where, size=(8, 16), elevation=(-45.0, 0.0), fov=90.0)
    assert (whole[..., 24:40].int() - middle.int()).abs().float().mean() < 3


def test_what_stands_east_is_seen_in_the_east():
    """A tower in an empty world: at three quarters of the width, as high as its angle, and lit windows at night."""
    plan = plans.draw(0, 200.0)
    lot = plan.buildings.iloc[:1].assign(x=130.0, y=100.0, half_a=10.0, half_b=10.0, cos=1.0, sin=0.0, height=30.0, garden=0.0)
    bare = plans.Plan(200.0, plan.style, [], [], None, lot, lot, np.ones(1), plan.trees[:0], plan.points[:0])
    view = scenes.scene(bare, scenes.Moment())
    picture = street.panoramas(view, np.array([[100.0, 100.0]]), size=(180, 360))[0].float()
    bare = plans.Plan(200.0, plan.style, [], [], None, lot[:0], lot[:0], np.ones(0), plan.trees[:0], plan.points[:0])
    empty = street.panoramas(scenes.scene(bare, scenes.Moment()),
                             np.array([[100.0, 100.0]]), size=(180, 360))[0].float()  # fmt: skip
    seen = ((picture - empty).abs().sum(0) > 12)[:90]
    columns, rows = torch.nonzero(seen.any(0)).flatten(), torch.nonzero(seen[:, 270]).flatten()
    half = math.degrees(math.atan2(10, 20))
    assert columns.min() == pytest.approx(270 - half, abs=2) and columns.max() == pytest.approx(270 + half, abs=2)
    assert 90 - rows.min() == pytest.approx(math.degrees(math.atan2(27.5, 20)), abs=2)


def test_the_polar_transform_of_a_centred_tile_resembles_its_panorama_more_than_others():
    """Ground below the horizon, brightness only: the right tile is on average nearer than a wrong one."""
    where = city.places(cities=[1, 2, 3], tiles=8)
    ground = city.ground(where, size=(16, 64), elevation=(-45.0, 0.0)).float().mean(1)[:, 4:]
    polar = crossview.polar(city.satellite(where, size=64).float(), 16, 64).mean(1)[:, 4:]
    x, y = (z.flatten(1) - z.flatten(1).mean(1, keepdim=True) for z in (ground, polar))
    similarity = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T
    others = similarity[~torch.eye(len(where), dtype=torch.bool)]
    assert similarity.diagonal().mean() > others.mean() + 0.05
    north = torch.nn.functional.normalize(x.view(len(x), -1, 64).roll(32, -1).flatten(1), dim=1) * torch.nn.functional.normalize(y, dim=1)
    assert similarity.diagonal().mean() > north.sum(1).mean() + 0.05, "the columns of both run the same way"


def test_offset_moves_the_centre_and_is_bounded():
    where = city.places(cities=[1], tiles=TILES, n=5)
    assert torch.equal(city.satellite(where, size=16), city.satellite(where, size=16, offset=0.0))
    assert not torch.equal(city.satellite(where, size=16), city.satellite(where, size=16, offset=8.0))
    with pytest.raises(ValueError, match="offset: expected 0..36.48 metres"):
        city.satellite(where, size=16, offset=50.0)


@pytest.mark.parametrize(
    "change", [{"season": "autumn"}, {"season": "winter"}, {"daylight": "dusk"}, {"daylight": "night"}, {"construction": 0.5}, {"traffic": 7}]
)
def test_a_moment_changes_the_street_and_not_the_satellite(change):
    where = city.places(cities=[1], tiles=TILES, n=5)
    usual, other = (city.ground(where, size=(16, 64), moment=m).float() for m in (city.Moment(), city.Moment(**change)))
    assert (usual - other).abs().mean() > 0.2
    if change.get("daylight") == "night":
        assert other.mean() < 0.4 * usual.mean()


def test_every_construction_share_keeps_the_lots_of_the_smaller_ones():
    plan = plans.draw(1, 300.0)
    heights = [np.where(plan.turn >= share, plan.buildings.height, plan.rebuilt.height) for share in (0.0, 0.2, 0.4)]
    first, second = (heights[i] != heights[0] for i in (1, 2))
    assert 0 < first.sum() < second.sum() and not (first & ~second).any()


def test_cities_differ_in_pattern_palette_and_density():
    styles = [plans.style(c) for c in range(7)]
    assert [s.pattern for s in styles[:3]] == ["grid", "radial", "organic"]
    assert len({s.density for s in styles}) == 7 and len({s.walls.tobytes() for s in styles}) == 7
    assert np.array_equal(plans.draw(3, 300.0).buildings, plans.draw(3, 300.0).buildings)


def test_bad_options_raise(unchecked):
    where = city.places(cities=[1], tiles=TILES, n=2)
    for call, message in (
        (lambda: city.places(split="other"), "split: expected one of"),
        (lambda: city.places(tiles=2), "tiles: expected at least 4"),
        (lambda: city.places(tiles=TILES, n=10**6), "n: expected 1.."),
        (lambda: city.ground(where, size=(2, 2)), "size: expected at least 4"),
        (lambda: city.ground(where, size=(8, 32), fov=400.0), "fov, elevation: expected"),
        (lambda: scenes.tiles(city._above(1, TILES), np.zeros((1, 2)), size=8, extent=70.0), "expected tiles of 70 m inside"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_an_exported_vigor_reads_back_equal(tmp_path):
    export.vigor(tmp_path, tiles=TILES, ground=(32, 64), satellite=32)
    for split, cities in (("cross", (4, 5)), ("swapped", (0, 1)), ("same", (0, 1, 4, 5))):
        made = city.places(split="cross" if split != "same" else "same", cities=cities, tiles=TILES, part="train" if split != "same" else "test")
        read = folders.vigor(tmp_path, split=split, part="test", tolerance=1.0)
        order = (made.city * 1000 + made.row).argsort()  # the files list cities in their order, cameras by number
        assert torch.equal(read.positive, made.positive[order]) and torch.equal(read.semi, made.semi[order])
        assert (read.offset - made.offset[order]).abs().max() < 1e-3
        assert torch.equal(images.load_all(read.gallery, size=(32, 32)), city.gallery(made, size=32))
        ground = images.load_all(read.queries, size=(32, 64)).float()
        assert (ground - city.ground(made, size=(32, 64))[order].float()).abs().mean() < 4  # JPEG
        east = torch.deg2rad(read.query_position[:, 1] - read.query_position[0, 1]) * 6371000 * torch.deg2rad(read.query_position[:, 0]).cos()
        same = made.city[order] == made.city[order][0]
        assert (east - (made.position[order][:, 0] - made.position[order][0, 0]))[same].abs().max() < 0.5


def test_an_exported_cvact_reads_back_equal(tmp_path):
    export.cvact(tmp_path, tiles=4, ground=(32, 64), satellite=32)
    for part, cities in (("train", (0, 1, 2, 3)), ("val", (4, 5)), ("test", (6,))):
        made = [city.places(cities=[c], tiles=4) for c in cities]
        read = folders.cvact(tmp_path, part)
        assert torch.allclose(read.query_position, torch.cat([m.position for m in made]))
        tiles = torch.cat([city.satellite(m, size=32) for m in made]).float()
        assert (images.load_all(read.gallery, size=(32, 32)).float() - tiles).abs().mean() < 6
        middle = torch.cat([city.ground(m, size=(32, 64))[:, :, 8:24] for m in made]).float()
        assert (images.load_all(read.queries, size=(16, 64), rows=(0.25, 0.75)).float() - middle).abs().mean() < 4


def test_exposures_of_two_moments_tell_nothing_of_each_other():
    where = city.places(split="cross", part="test", tiles=10)
    seen = [city.ground(where, size=(16, 32), moment=city.Moment(traffic=t)).double().mean(dim=(1, 2, 3)).log() for t in (0, 1)]
    assert 0.08 < float((seen[0] - seen[1]).std()) < 0.3  # a camera's exposure varies by 0.1, one picture from the next
