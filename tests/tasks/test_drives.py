"""The city for place recognition: drives, their positions and the tree they are written to."""

import numpy as np
import pytest
import torch

from georeps.readers import images, vpr
from georeps.tasks import drives
from georeps.worlds import city

OPTIONS = {"tiles": 5, "size": 16, "step": 20.0, "drives": 2, "queries": 12, "conditions": ("day", "night")}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEOREPS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield drives.tree(**OPTIONS)


def test_two_drives_pass_the_same_streets_at_other_places():
    first, second = (drives.cameras(1, tiles=6, step=5.0, drive=d) for d in (0, 1))
    apart = np.linalg.norm(first.position[:, None] - second.position[None], axis=2)
    assert np.array_equal(first.position, drives.cameras(1, tiles=6, step=5.0, drive=0).position)
    assert apart.min() > 0 and np.quantile(apart.min(axis=1), 0.95) < 15  # the other lane of a wide street and half a step


def test_views_look_around_and_stand_on_streets():
    where = drives.cameras(2, tiles=6, step=5.0, drive=0)
    turns = where.heading.reshape(-1, 4)
    assert np.allclose(np.diff(turns, axis=1) % 360, 90) and (where.heading >= 0).all() and (where.heading < 360).all()
    streets = np.concatenate([line for line, _ in city.plan_of(2, 6).streets])
    wide = max(half for _, half in city.plan_of(2, 6).streets)
    assert np.linalg.norm(where.position[:, None] - streets[None], axis=2).min(axis=1).max() < wide
    with pytest.raises(ValueError, match="tiles, step, views: expected tiles >= 4"):
        drives.cameras(2, tiles=6, step=1.0, drive=0)


def test_the_tree_is_the_field_s_and_parts_share_no_city(root):
    learn, cities = vpr.training(root), {}
    cities["train"] = learn
    for part in ("val", "test"):
        assert vpr.query_sets(root, part) == ["queries_day", "queries_night"]
        found = vpr.part(root, part, queries="queries_night")
        assert len(found.queries) == 24 and not found.alone and set(found.queries.note) == {"night"}
        cities[part] = found.database
    numbers = {k: set((v.position[:, 0] // city.APART).long().tolist()) for k, v in cities.items()}
    assert numbers == {"train": {0, 1, 2, 3}, "val": {7, 8}, "test": {4, 5}}
    assert set(learn.note) == {"drive0", "drive1"} and set(learn.zone) == {drives.ZONE} and bool(learn.heading.isfinite().all())


def test_night_is_darker_and_pictures_are_of_the_asked_size(root):
    day, night = (images.load_all(vpr.part(root, queries=f"queries_{c}").queries.files, size=(16, 16)) for c in ("day", "night"))
    assert 20 < float(night.float().mean()) < 0.7 * float(day.float().mean()), "exposed longer, and still darker"
    assert images.load(vpr.training(root).files[0]).shape == (3, 16, 16)


def test_views_of_one_place_and_direction_look_alike(root):
    found = vpr.part(root, queries="queries_day")
    pixels = images.load_all(found.database.files, size=(16, 16)).float().flatten(1)
    asked = images.load_all(found.queries.files, size=(16, 16)).float().flatten(1)
    gap = torch.cdist(asked, pixels)
    turn = (found.queries.heading[:, None] - found.database.heading + 180) % 360 - 180
    near, other = [], []
    for i, own in enumerate(found.positives):
        same = own[turn[i, own].abs() < 30]
        near += gap[i, same].tolist()
        other += gap[i].tolist()
    assert len(near) > 10 and np.mean(near) < np.mean(other)


def test_settings_that_cannot_be_are_named(tmp_path):
    with pytest.raises(ValueError, match="conditions, drives: expected some of day, night, winter, construction"):
        drives.export(tmp_path, conditions=("fog",))
    with pytest.raises(ValueError, match=r"queries: expected 1..\d+ \(the views of a drive\), found 9999"):
        drives.export(tmp_path, **{**OPTIONS, "queries": 9999, "drives": 1})
