"""A stored training: done once, started by its recipe's seed alone, taken up again after a kill, done anew when what it depends on changes."""

import pytest
import torch
from torch import nn

from georeps.core import cache
from georeps.lab import trained
from georeps.nets import train

RECIPE = train.Recipe(epochs=3, lr=1e-2, seed=5)
DATA = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


class Step(nn.Module):
    """Regression on a half of the channels from the others, with dropout; the head starts at random."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, index):
        x = DATA[index]
        return (self.head(nn.functional.dropout(x[:, :2], 0.2)) - x[:, 2:]).square().mean()


def once(**changed):
    options = {"n": 12, "batch": 4, "recipe": RECIPE, "key": {"data": cache.digest(DATA)}, "code": "georeps.lab.trained"} | changed
    return trained.once("toy", Step, lambda step: step.head, **options)


def equal(a, b) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_weights_depend_on_the_recipe_s_seed_alone_and_draws_of_the_caller_go_on(folder, monkeypatch):
    found = []
    for seed in (1, 2):
        monkeypatch.setenv("GEOREPS_CACHE", str(folder / str(seed)))
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        for _ in range(2):  # trained, then found
            found.append(once())
            assert torch.equal(torch.random.get_rng_state(), before)
    assert all(equal(found[0], other) for other in found[1:])
    assert not equal(found[0], once(recipe=train.Recipe(epochs=3, lr=1e-2, seed=6)))


def test_a_killed_training_ends_as_an_unbroken_one(folder, monkeypatch):
    unbroken, original, saves = once(), train._save, []
    monkeypatch.setenv("GEOREPS_CACHE", str(folder / "other"))
    monkeypatch.setenv("GEOREPS_SCRATCH", str(folder / "scratch"))

    def killed(*arguments):
        original(*arguments)
        saves.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        once()
    monkeypatch.setattr(train, "_save", lambda *arguments: saves.append(1) or original(*arguments))
    assert equal(once(), unbroken) and len(saves) == RECIPE.epochs, "an epoch was trained twice"


def test_another_key_batch_or_code_is_another_training(monkeypatch):
    fits, original = [], train.fit
    monkeypatch.setattr(train, "fit", lambda *arguments, **options: fits.append(1) or original(*arguments, **options))
    for changed in ({}, {}, {"key": {"data": "another"}}, {"batch": 6}, {"code": "georeps.nets.train"}, {}):
        once(**changed)
    assert len(fits) == 4
