"""The training loop: schedules in closed form, resumption bit by bit, even after SIGKILL."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from georeps.nets import train


class Regression(nn.Module):
    """A loss with dropout, so that a resumed run must also find its random numbers again."""

    def __init__(self, delay: float = 0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(64, 8, generator=generator), torch.randn(64, 1, generator=generator)
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
        self.delay = delay

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        time.sleep(self.delay)
        return (self.net(self.x[i]) - self.y[i]).square().mean()


RECIPE = train.Recipe(epochs=6, lr=1e-2, optimizer="adam", schedule="cosine", warmup=1.0, clip=1.0, ema=0.9, seed=3)
BATCHES = train.shuffled(64, 16, seed=3)


def weights(fitted: train.Fitted) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in fitted.module.parameters()])


def test_resume_equals_unbroken(tmp_path, monkeypatch):
    unbroken = train.fit(Regression(), BATCHES, RECIPE)

    class Stop(Exception):
        pass

    def stop_after_three(module, seen=[]):  # noqa: B006
        seen.append(1)
        if len(seen) == 4:
            raise Stop
        return {}

    with pytest.raises(Stop):
        train.fit(Regression(), BATCHES, RECIPE, out=tmp_path, evaluate=stop_after_three)
    resumed = train.fit(Regression(), BATCHES, RECIPE, out=tmp_path)
    assert torch.equal(weights(unbroken), weights(resumed))
    assert [row["loss"] for row in unbroken.log] == [row["loss"] for row in resumed.log]


CHILD = """
import sys; sys.path.insert(0, {tests!r})
import torch; from georeps.nets import train; from test_train import *
fitted = train.fit(Regression(delay={delay}), BATCHES, RECIPE, out={out!r})
torch.save(weights(fitted), {out!r} + "/weights.pt")
"""


def child(out: Path, delay: float) -> subprocess.Popen:
    code = CHILD.format(tests=str(Path(__file__).parent), delay=delay, out=str(out))
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=os.environ | {"TQDM_DISABLE": "1"})


def test_a_run_killed_with_sigkill_and_started_again_ends_bit_equal(tmp_path):
    killed = child(tmp_path, delay=0.1)
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.15)  # into the next epoch
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "weights.pt").exists()
    assert child(tmp_path, delay=0.0).wait(timeout=120) == 0
    assert torch.equal(torch.load(tmp_path / "weights.pt"), weights(train.fit(Regression(), BATCHES, RECIPE)))


def test_another_recipe_does_not_resume(tmp_path):
    train.fit(Regression(), BATCHES, train.Recipe(epochs=1, lr=1e-2), out=tmp_path)
    with pytest.raises(ValueError, match=r"another recipe \(different: lr\)"):
        train.fit(Regression(), BATCHES, train.Recipe(epochs=1, lr=1e-3), out=tmp_path)


def test_a_finished_run_is_not_run_again(tmp_path):
    first = train.fit(Regression(), BATCHES, RECIPE, out=tmp_path)

    def never(epoch):
        raise AssertionError("asked for batches")

    assert torch.equal(weights(first), weights(train.fit(Regression(), never, RECIPE, out=tmp_path)))


def test_the_caller_s_random_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train.fit(_seeded_regression(), BATCHES, train.Recipe(epochs=1, lr=1e-2))
    assert torch.equal(torch.rand(3), expected)


def _seeded_regression() -> Regression:
    with torch.random.fork_rng():
        return Regression()


def test_ema_is_the_running_average_of_the_weights():
    step = _seeded_regression()
    seen = []

    def batches(epoch):
        for i in BATCHES(epoch):
            seen.append(torch.cat([p.detach().flatten().clone() for p in step.parameters()]))
            yield i

    fitted = train.fit(step, lambda e: Watched(batches(e), 4), train.Recipe(epochs=2, lr=1e-2, ema=0.8))
    seen.append(torch.cat([p.detach().flatten() for p in step.parameters()]))
    average = seen[1]
    for w in seen[2:]:
        average = 0.8 * average + 0.2 * w
    assert torch.allclose(weights(fitted), average, atol=1e-6)


class Watched:
    """An iterator with a length, so that `fit` does not list it first."""

    def __init__(self, iterator, length):
        self.iterator, self.length = iterator, length

    def __iter__(self):
        return self.iterator

    def __len__(self):
        return self.length


def test_schedules_in_closed_form():
    cosine = train.Recipe(epochs=10, lr=1.0, schedule="cosine", warmup=2.0)
    assert [train.rate(cosine, e) for e in (0.0, 1.0, 2.0, 5.0, 10.0)] == pytest.approx([0, 0.5, 0.5 * (1 + math.cos(0.2 * math.pi)), 0.5, 0])
    step = train.Recipe(epochs=200, lr=0.03, optimizer="sgd", schedule="step", milestones=(120, 160))
    assert [train.rate(step, e) for e in (0.0, 119.9, 120.0, 160.0)] == pytest.approx([0.03, 0.03, 0.003, 0.0003])


def test_clipping_bounds_the_gradient():
    step = _seeded_regression()
    train.fit(step, BATCHES, train.Recipe(epochs=1, lr=1e-6, optimizer="sgd", clip=1e-3))
    norm = torch.cat([p.grad.flatten() for p in step.parameters()]).norm()
    assert norm <= 1e-3 * (1 + 1e-4)


def test_a_batch_that_must_share_tiles_is_an_error_that_says_so():
    tiles = torch.tensor([[0, 1], [1, 2], [2, 0], [3, 4]])
    assert len(train.shuffled(4, 2, seed=0, tiles=tiles)(0)) >= 1
    with pytest.raises(ValueError, match="batch: expected 3 of the 4 items to share no tile"):
        train.shuffled(4, 3, seed=0, tiles=tiles)(0)


def test_shuffled_visits_every_item_in_an_order_of_its_epoch():
    batches = train.shuffled(10, 5, seed=0)
    assert torch.cat(batches(0)).sort().values.tolist() == list(range(10))
    assert torch.equal(torch.cat(batches(1)), torch.cat(batches(1)))
    assert not torch.equal(torch.cat(batches(0)), torch.cat(batches(1)))
    assert len(train.shuffled(11, 5, seed=0)(0)) == 2
    with pytest.raises(ValueError, match="batch: expected 1..3"):
        train.shuffled(3, 4, seed=0)


def test_no_tile_belongs_to_two_items_of_a_batch():
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(60, (200, 4), generator=generator)
    batches = train.shuffled(200, 6, seed=1, tiles=tiles)
    for batch in batches(0):
        rows = [set(tiles[i].tolist()) for i in batch]
        assert len(set.union(*rows)) == sum(len(row) for row in rows) and len(batch) == 6
    everything = torch.cat(batches(0))
    assert len(everything.unique()) == len(everything) > 150
    assert not torch.equal(everything, torch.cat(batches(1)))


def test_a_loss_that_is_not_finite_names_the_epoch_and_keeps_the_checkpoint(tmp_path):
    class Breaks(Regression):
        def forward(self, i):
            return super().forward(i) * (math.nan if len(list(tmp_path.glob("checkpoint.pt"))) else 1.0)

    with pytest.raises(FloatingPointError, match="in epoch 2"):
        train.fit(Breaks(), BATCHES, RECIPE, out=tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt")["log"][-1]["epoch"] == 1


def test_no_batches_and_broken_parameters_raise():
    with pytest.raises(ValueError, match="batches: expected at least one batch in epoch 1"):
        train.fit(_seeded_regression(), lambda epoch: [], RECIPE)

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3))

        def forward(self, batch):
            return self.w.square().sum().sqrt()  # its gradient at 0 is NaN

    with pytest.raises(FloatingPointError, match="1 parameters are not finite after epoch 1, first w"):
        train.fit(Root(), lambda epoch: [0], train.Recipe(epochs=1, lr=0.1))


def test_metrics_of_any_float_type_survive_a_checkpoint(tmp_path):
    evaluate = lambda module: {"r1": np.float64(0.5)}  # noqa: E731
    train.fit(_seeded_regression(), BATCHES, RECIPE, out=tmp_path, evaluate=evaluate)
    assert train.fit(_seeded_regression(), BATCHES, RECIPE, out=tmp_path).log[-1]["r1"] == 0.5


@pytest.mark.parametrize("bad", [{"optimizer": "lion"}, {"schedule": "linear"}, {"amp": "fp8"}, {"epochs": 0}, {"lr": 0.0}])
def test_bad_recipes_raise(unchecked, bad):
    with pytest.raises(ValueError, match="recipe"):
        train.Recipe(**({"epochs": 1, "lr": 1.0} | bad))


def test_mixed_precision_trains_where_a_processor_has_units_for_it(monkeypatch):
    monkeypatch.setattr(train, "half_units", lambda amp: False)
    with pytest.raises(ValueError, match="recipe.amp: this processor has no units for bf16"):
        train.fit(_seeded_regression(), BATCHES, train.Recipe(epochs=1, lr=1e-2, amp="bf16"))
    monkeypatch.setattr(train, "half_units", lambda amp: True)
    fitted = train.fit(_seeded_regression(), BATCHES, train.Recipe(epochs=8, lr=1e-2, amp="bf16"))
    assert fitted.log[-1]["loss"] < fitted.log[0]["loss"]


def test_bytes_kept_are_those_of_what_the_backward_pass_needs():
    class Square(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(1000))

        def forward(self, x):
            return ((self.w * x) ** 2).sum()  # keeps x and its product with w

    assert train.kept_bytes(Square(), torch.ones(1000)) == 2 * 4000
