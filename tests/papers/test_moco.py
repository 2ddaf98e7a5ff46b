"""MoCo against a plain list, closed forms and cross-entropy; a run that is resumed equals an unbroken one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from georeps.nets import encoders, train
from georeps.papers import crossview, moco


def pictures(n: int, h: int = 16, w: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, h, w), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def small(images, **options) -> moco.MoCo:
    torch.manual_seed(0)
    trunk = encoders.VGG16(width=0.0625, blocks=2)
    options = {"dim": 8, "queue": 10, "momentum": 0.9} | options
    return moco.MoCo(trunk, moco.of_images(images, moco.Augmentation(blur=(0.1, 0.5))), **options)


@pytest.mark.parametrize("size", [1, 5, 7, 16])
def test_the_queue_is_a_list_of_the_last_keys(size):
    torch.manual_seed(0)
    queue = moco.Queue(size, 3)
    plain = list(queue.keys.clone())
    for step in range(40):
        keys = torch.randn(1 + step * 5 % 9, 3)
        queue.push(keys)
        plain = (plain + list(F.normalize(keys, dim=1)))[-size:]
        oldest_first = queue.keys.roll(-int(queue.pointer), dims=0)
        assert torch.equal(oldest_first, torch.stack(plain))


def test_the_slow_copy_is_the_closed_form_of_its_past_and_keeps_its_own_buffers():
    torch.manual_seed(0)
    fast = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    slow = moco.slow_copy(fast)
    start, momentum, past = copy.deepcopy(fast.state_dict()), 0.7, []
    for step in range(6):
        for p in fast.parameters():
            p.data.add_(torch.randn_like(p))
        fast[1].running_mean.fill_(step + 1.0)
        past.append(fast[0].weight.detach().clone())
        moco.follow(slow, fast, momentum)
    expected = momentum**6 * start["0.weight"] + sum((1 - momentum) * momentum ** (5 - i) * w for i, w in enumerate(past))
    assert torch.allclose(slow[0].weight, expected, atol=1e-6)
    assert torch.equal(slow[1].running_mean, torch.zeros(4)) and not any(p.requires_grad for p in slow.parameters())


def test_the_loss_is_cross_entropy_over_one_key_and_the_queue_before_it_takes_the_keys():
    images = pictures(6)
    step = small(images, temperature=0.3)
    step.views = moco.of_images(images, encoders.scale)
    before = step.queue.keys.clone()
    x = images.float() / 255
    with torch.no_grad():
        q, k = (F.normalize(e(x), dim=1) for e in (step.query, step.key))
        loss = step(torch.arange(6))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ before.T], dim=1) / 0.3
    assert float(loss) == pytest.approx(float(F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))), abs=1e-5)
    assert torch.allclose(step.queue.keys[:6], k, atol=1e-6) and torch.equal(step.queue.keys[6:], before[6:])


def test_only_the_query_encoder_has_gradients_and_evaluation_changes_nothing():
    step = small(pictures(6))
    step(torch.arange(6)).backward()
    assert all(p.grad is not None for p in step.query.parameters()) and all(p.grad is None for p in step.key.parameters())
    state = copy.deepcopy(step.state_dict())
    step.eval()(torch.arange(6))
    assert all(torch.equal(v, state[k]) for k, v in step.state_dict().items())


def test_the_key_encoder_follows_after_each_step_of_the_optimiser():
    """Algorithm 1 updates it after the step, here it is before the next keys: the keys of step t see theta_t either way."""
    step = small(pictures(8), momentum=0.5)
    start = step.query.head[0].weight.detach().clone()
    optimizer = torch.optim.SGD([p for p in step.parameters() if p.requires_grad], 0.1)
    step(torch.arange(8)).backward()
    optimizer.step()
    after = step.query.head[0].weight.detach().clone()
    assert torch.equal(step.key.head[0].weight, start) and not torch.equal(after, start)
    step(torch.arange(8))
    assert torch.allclose(step.key.head[0].weight, (start + after) / 2)


def test_a_resumed_run_equals_an_unbroken_one_queue_included(tmp_path):
    images = pictures(11)
    fit = lambda step, epochs, out: train.fit(  # noqa: E731
        step, lambda e: train.shuffled(11, 3, seed=0)(e) if e < epochs else (_ for _ in ()).throw(KeyboardInterrupt),
        train.Recipe(epochs=4, lr=0.05, optimizer="sgd", schedule="step", milestones=(2,)), out=out)  # fmt: skip
    whole, broken = small(images), small(images)
    fit(whole, 4, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(broken, 2, tmp_path / "broken")
    resumed = small(images)
    fit(resumed, 4, tmp_path / "broken")
    state = resumed.state_dict()
    assert {"queue.keys", "queue.pointer"} <= set(state)
    assert all(torch.equal(v, state[k]) for k, v in whole.state_dict().items())


def test_augmentation_keeps_shape_and_range_and_draws_anew():
    torch.manual_seed(0)
    images = pictures(5, 12, 40)
    for crop in (0.2, None):
        augment = moco.Augmentation(crop=crop)
        first, second = augment(images), augment(images)
        assert first.shape == images.shape and first.min() >= 0 and first.max() <= 1
        assert not torch.equal(first, second)


def test_images_of_a_group_share_their_draws_and_others_do_not():
    torch.manual_seed(0)
    same = pictures(1).expand(8, -1, -1, -1)
    out = moco.Augmentation(group=4)(same)
    assert all(torch.equal(out[0], x) for x in out[:4]) and all(torch.equal(out[4], x) for x in out[4:])
    assert not torch.equal(out[0], out[4])


@pytest.mark.parametrize("flip", [True, False])
def test_without_cropping_what_is_where_stays_there_but_for_the_flip(flip):
    torch.manual_seed(0)
    images = torch.zeros(40, 3, 12, 12, dtype=torch.uint8)
    images[:, :, 2:5, 2:5] = 200
    rows, columns = (moco.Augmentation(crop=None, flip=flip, blur=(0.1, 0.2))(images).mean(dim=1).amax(dim=d) for d in (2, 1))
    assert set(rows.argmax(dim=1).tolist()) <= {2, 3, 4} and bool((columns.argmax(dim=1) > 4).any()) == flip


def test_the_unified_variant_pairs_each_view_with_the_slow_copy_of_the_other():
    torch.manual_seed(0)
    model = crossview.siamese_vgg(width=0.0625, blocks=2, dim=6)
    ground, satellite = pictures(5, seed=1), pictures(5, seed=2)
    step = moco.CrossViewMoCo(model, lambda i: (ground[i], satellite[i]), dim=6, queue=7, momentum=0.5, temperature=0.2)
    negatives = {"ground": step.ground_keys.keys.clone(), "satellite": step.satellite_keys.keys.clone()}
    with torch.no_grad():
        g, s = model(ground.float() / 255, satellite.float() / 255)
        loss = step(torch.arange(5))
    both = []
    for query, key, queue in ((g, s, negatives["satellite"]), (s, g, negatives["ground"])):
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / 0.2
        both.append(F.cross_entropy(logits, torch.zeros(5, dtype=torch.long)))
    assert float(loss) == pytest.approx(float(sum(both) / 2), abs=1e-5)
    assert torch.allclose(step.satellite_keys.keys[:5], s, atol=1e-6) and torch.allclose(step.ground_keys.keys[:5], g, atol=1e-6)


def test_bad_arguments_are_named(unchecked):
    with pytest.raises(ValueError, match="size: expected a queue of at least 1 key, found 0"):
        moco.Queue(0, 3)
    with pytest.raises(ValueError, match="momentum: expected 0 <= m < 1, found 1.0"):
        small(pictures(2), momentum=1.0)
    with pytest.raises(ValueError, match="group, blur"):
        moco.Augmentation(group=0)
