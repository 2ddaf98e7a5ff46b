"""The supervised start."""

import pytest
import torch

from georeps.lab import supervised
from georeps.nets import backbones, encoders, pooling, train

RECIPE = train.Recipe(epochs=1, lr=1e-2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path))


def new_trunk(images) -> encoders.VGG16:
    torch.manual_seed(0)
    return encoders.VGG16(width=0.0625, blocks=1).normalise_by(images)


def test_classification_learns_what_separates_two_classes():
    images = torch.cat([torch.full((16, 3, 8, 8), 40), torch.full((16, 3, 8, 8), 200)]).to(torch.uint8)
    labels = torch.arange(32) // 16
    trunk = new_trunk(images)
    step = backbones.Recognition(backbones.Classifier(trunk, pooling.GAP(trunk.out_dim), 2), images, labels, turn=False, flip=False)
    train.fit(step, train.shuffled(32, 8, seed=0), train.Recipe(epochs=20, lr=1e-2))
    assert float(step(torch.arange(32)).detach()) < 0.2


def test_bad_weights_and_worlds_are_named(unchecked):
    images = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    weights = supervised.classified(new_trunk(images), images, torch.arange(8) % 2, RECIPE, 4)
    supervised.load(new_trunk(images), weights)
    with pytest.raises(ValueError, match="weights: expected .* parameters"):
        supervised.load(encoders.VGG16(width=0.125, blocks=1), weights)
    with pytest.raises(ValueError, match="world: expected 'earth' or 'city', found 'moon'"):
        supervised.labelled("moon", n=4, size=(8, 8), tiles=4, seed=0)
