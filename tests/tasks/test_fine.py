"""Worlds of fine classes: what validates and what is tested was never trained on; rows are what a tower sees."""

import pytest
import torch
import torch.nn.functional as F

from georeps.core import metrics
from georeps.nets import towers
from georeps.tasks import fine
from georeps.worlds import patterns


@pytest.fixture(scope="module")
def values() -> fine.World:
    return fine.of_values(size=32, n=3, n_test=2, seed=1)


def test_values_are_trained_on_validate_or_are_tested_and_seeds_share_the_tiles(values):
    other = fine.of_values(size=32, n=3, n_test=2, seed=2)
    for found in (values, other):
        assert found.train.classes + found.val.classes == sum(len(patterns.values(f)[::2]) for f in patterns.FOLDERS)
        assert found.test.classes == sum(len(patterns.values(f)[1::2]) for f in patterns.FOLDERS)
        assert found.train.labels.bincount().tolist() == [3] * found.train.classes
    assert torch.equal(values.test.x, other.test.x)
    pictures = [{x.numpy().tobytes() for part in (w.train, w.val) for x in part.x} for w in (values, other)]
    assert pictures[0] == pictures[1] and not torch.equal(values.val.x, other.val.x)


def test_places_keep_their_six_views_together():
    found = fine.of_places(size=16, places=9, test_places=4, tiles=6, seed=0)
    assert (found.train.classes, found.val.classes, found.test.classes) == (6, 3, 4)
    assert found.train.labels.bincount().tolist() == [6] * 6


def test_the_earths_classes_are_cover_in_a_climate_and_at_most_so_many_patches():
    found = fine.of_earth(size=8, n=8, n_test=4, least=6, extent_km=240.0, spacing_km=240.0)
    assert found.train.classes == found.test.classes >= 3
    assert int(found.train.labels.bincount().max()) <= 8 and int(found.test.labels.bincount().max()) <= 4
    assert torch.equal(found.test.x, fine.of_earth(size=8, n=8, n_test=4, least=6, extent_km=240.0, spacing_km=240.0, seed=5).test.x)


def test_rows_are_what_the_tower_gives_standardised_by_the_training_part(values):
    tower = towers.image("lite0")
    rows = fine.seen(values, fine.sight(values, tower))
    assert torch.equal(rows.test.labels, values.test.labels)
    torch.testing.assert_close(rows.train.x.mean(0), torch.zeros(rows.train.x.shape[1]), atol=1e-4, rtol=0)
    with torch.no_grad():
        said = tower.moments(values.test.x[:4].float() / 255)
    own, train = (torch.cat([x["mean"], x["deviation"]], 1) for x in (said, towers.stored(tower, values.train.x)))
    torch.testing.assert_close(rows.test.x[:4], (own - train.float().mean(0)) / train.float().std(0).clamp(min=1e-3), atol=0.05, rtol=0.02)


def test_judged_are_cosines_and_a_query_alone_in_its_class_counts_as_missed():
    x, labels = torch.randn(7, 3), torch.tensor([0, 0, 1, 1, 1, 2, 2])
    found = metrics.class_retrieval(F.normalize(x, dim=1), labels)
    said = fine.judge(lambda rows: 5 * rows, fine.Part(x, labels), ks=(1, 2))
    assert torch.equal(said["r1"], 100.0 * (found.rank < 1)) and torch.equal(said["map_at_r"], 100 * found.map_at_r)
    alone = fine.judge(lambda rows: rows, fine.Part(x, torch.tensor([0, 0, 1, 1, 1, 2, 3])), ks=(1,))
    assert alone["r1"][-1] == 0 and len(alone["map_at_r"]) == 5


def test_too_few_groups_to_validate_are_named():
    with pytest.raises(ValueError, match="group: expected at least 3 groups of training images, of which one validates, found 2"):
        fine._parted(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]), 0)
