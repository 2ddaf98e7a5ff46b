"""The starts of Table 3.1: which images and which weights each term stands for, and that each is trained once."""

import pytest
import torch

from georeps.lab import starts
from georeps.nets import backbones, encoders, pooling, train
from georeps.papers import crossview
from georeps.tasks import pairs

RECIPE = train.Recipe(epochs=1, lr=1e-2)
HOW = starts.Contrast(RECIPE, batch=4, queue=8, dim=4, blur=(0.1, 0.3))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path))


def pictures(n: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def new_trunk(images) -> encoders.VGG16:
    torch.manual_seed(0)
    trunk = encoders.VGG16(width=0.0625, blocks=1)
    trunk.normalise_by(images)
    return trunk


def supervised():
    images = pictures(8, 5)
    return starts.classified(new_trunk(images), images, torch.arange(8) % 2, RECIPE, 4)


def table() -> starts.Starts:
    parts = [pairs.Pairs(pictures(6, s), {"plain": pictures(n, s + 10)}, torch.arange(6), None, None, torch.zeros(n, 2)) for s, n in ((1, 6), (2, 8))]
    return starts.Starts(new_trunk, images=starts.images_of(*parts, equal=True), supervised=supervised, contrast=HOW)


def equal(a, b) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def test_each_term_of_table_3_1_has_its_images_and_its_start():
    made = table()
    assert {k: len(v) for k, v in made.images.items()} == {"sat train": 6, "sat val": 6, "grd": 12, "sat": 12}
    assert made.weights("/") is None and equal(made.weights("supervised"), supervised())
    for term in ("sat", "sat*", "sat train*", "sat val*", "grd*"):
        images = made.images[term.removesuffix("*")]
        trunk = new_trunk(images)
        if term.endswith("*"):
            starts.load(trunk, supervised())
        assert equal(made.weights(term), starts.contrasted(trunk, images, HOW)), term
    assert not equal(made.weights("sat"), made.weights("sat*")) and not equal(made.weights("sat train*"), made.weights("sat val*"))


def test_a_setting_starts_both_branches_and_leaves_their_normalisation():
    made = table()
    model = crossview.siamese_vgg(width=0.0625, blocks=1, dim=4)
    model.ground.trunk.normalise_by(pictures(4, 9))
    mean = model.ground.trunk.mean.clone()
    made.load(model, 7)
    for branch, term in ((model.ground, "grd*"), (model.satellite, "sat*")):
        assert equal(made.weights(term), dict(branch.trunk.named_parameters()))
    assert torch.equal(model.ground.trunk.mean, mean)
    untouched = crossview.siamese_vgg(width=0.0625, blocks=1, dim=4)
    before = {k: v.clone() for k, v in untouched.state_dict().items()}
    made.load(untouched, 1)
    assert equal(before, untouched.state_dict())


def test_a_start_is_trained_once_and_another_recipe_anew(monkeypatch):
    first = table().weights("sat*")
    monkeypatch.setattr(train, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert equal(first, table().weights("sat*"))
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        table().weights("sat train*")


def test_classification_learns_what_separates_two_classes():
    images = torch.cat([torch.full((16, 3, 8, 8), 40), torch.full((16, 3, 8, 8), 200)]).to(torch.uint8)
    labels = torch.arange(32) // 16
    trunk = new_trunk(images)
    step = backbones.Recognition(backbones.Classifier(trunk, pooling.GAP(trunk.out_dim), 2), images, labels, turn=False, flip=False)
    train.fit(step, train.shuffled(32, 8, seed=0), train.Recipe(epochs=20, lr=1e-2))
    assert float(step(torch.arange(32)).detach()) < 0.2


def test_bad_terms_settings_and_weights_are_named(unchecked):
    made = table()
    with pytest.raises(ValueError, match="term: expected '/', 'supervised' or one of .* found 'sky'"):
        made.weights("sky")
    with pytest.raises(ValueError, match="setting: expected one of Table 3.1, 1..7, found 8"):
        made.load(crossview.siamese_vgg(width=0.0625, blocks=1, dim=4), 8)
    with pytest.raises(ValueError, match="weights: expected 2 parameters|weights: expected .* parameters"):
        starts.load(encoders.VGG16(width=0.125, blocks=1), supervised())
    with pytest.raises(ValueError, match="world: expected 'earth' or 'city', found 'moon'"):
        starts.labelled("moon", n=4, size=(8, 8), tiles=4, seed=0)
