"""Parts of worlds as two-branch models take them."""

import pytest
import torch

from georeps.papers import crossview
from georeps.tasks import export, pairs
from georeps.worlds import city

SHAPE = pairs.Shape((8, 32), (16, 16), (-45.0, 45.0), 32, ("plain", "polar"))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEOREPS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_a_pair_is_a_camera_and_its_own_tile_centred_or_on_the_grid():
    options = {"split": "cross", "part": "test", "n": 6, "tiles": 4}
    where = city.places(**options)
    centred, grid = (pairs.of_city(SHAPE, grid=g, **options) for g in (False, True))
    index = torch.tensor([4, 1])
    ground, tile = grid.pick("plain")(index)
    assert torch.equal(ground, centred.ground[index]) and torch.equal(tile, city.gallery(where, size=16)[where.positive[index]])
    assert torch.equal(centred.pick("plain")(index)[1], city.satellite(where, size=16)[index])
    assert torch.equal(grid.held(), torch.cat([where.positive[:, None], where.semi], dim=1)) and centred.held().shape == (6, 1)
    assert torch.equal(centred.label, where.city) and len(grid) == 6 and len(grid.where) == len(grid.tiles["plain"]) == 32


def test_polar_views_are_the_transform_of_larger_tiles():
    where = city.places(split="cross", part="test", n=3, tiles=4)
    made = pairs.of_city(SHAPE, split="cross", part="test", n=3, tiles=4).tiles["polar"]
    expected = crossview.polar(city.satellite(where, size=32).float(), 8, 32)
    assert made.shape == (3, 3, 8, 32) and (made.float() - expected).abs().max() <= 1


def test_an_official_tree_gives_the_pairs_that_were_written(tmp_path):
    export.vigor(tmp_path, tiles=4, ground=(32, 64), satellite=32)
    read = pairs.of_tree(SHAPE, tmp_path, layout="vigor", split="cross", part="test")
    written = city.places(split="cross", part="test", tiles=4)
    everyone = city.places(cities=city.TEST_CITIES, tiles=4)
    assert len(read) == len(everyone) > len(written) and read.semi.shape == (len(read), 3)
    ground, tile = read.pick("plain")(torch.arange(len(read)))
    own = city.ground(everyone, size=(8, 32), elevation=(-45.0, 45.0))
    order = torch.cdist(ground.flatten(1).float(), own.flatten(1).float()).argmin(dim=1)
    assert len(set(order.tolist())) == len(read), "each panorama is read once"
    shown = city.gallery(everyone, size=16)[everyone.positive[order]]
    assert (tile.float() - shown.float()).abs().mean() < 12


def test_unknown_views_and_layouts_are_named(tmp_path, unchecked):
    with pytest.raises(ValueError, match="views: expected 'plain', 'polar' or both"):
        pairs.Shape((8, 32), (16, 16), views=("round",))
    with pytest.raises(ValueError, match="layout: expected one of .* found 'cvusa2'"):
        pairs.of_tree(SHAPE, tmp_path, layout="cvusa2", split="same", part="test")
