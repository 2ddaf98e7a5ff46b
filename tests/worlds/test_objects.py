"""The worlds of chapters 06 and 07: objects with exact masks and boxes, batches of classes."""

import pytest
import torch

from georeps.tasks import fine
from georeps.worlds.patterns import objects


def world(n: int = 3, size: int = 32):
    placed = objects.draw((*objects.SEEN, *objects.UNSEEN), n, seed=1)
    return placed, objects.images(placed, size=size), objects.masks(placed, size=size), objects.boxes(placed, size=size)


def test_every_tile_shows_an_object_inside_its_boxes():
    placed, images, masks, boxes = world()
    assert images.shape == (45, 3, 32, 32) and objects.labels(placed).tolist() == [c for c in range(15) for _ in range(3)]
    for mask, own in zip(masks, boxes, strict=True):
        assert len(own) and bool(mask.any())
        inside = torch.zeros(32, 32, dtype=torch.bool)
        for left, top, right, bottom in own.tolist():
            inside[max(0, int(top) - 1) : int(bottom) + 2, max(0, int(left) - 1) : int(right) + 2] = True
        assert not bool((mask & ~inside).any())


def test_a_world_depends_on_its_seed_alone():
    again = objects.draw(objects.SEEN, 2, seed=5)
    assert again == objects.draw(objects.SEEN, 2, seed=5) != objects.draw(objects.SEEN, 2, seed=6)
    assert again == [p for p in objects.draw(objects.SEEN, 3, seed=5) if p in again]
    with pytest.raises(ValueError, match="folders: expected some of airplane, .* found forest"):
        objects.draw(["forest"], 1, seed=0)


def test_background_variants_keep_or_lose_the_foreground():
    placed, images, masks, boxes = world()
    labels = objects.labels(placed)
    found = objects.backgrounds(images, masks, boxes, labels, seed=3)
    front = masks[:, None].expand_as(images)
    for name in ("of", "ms", "mr", "mn"):
        assert bool((found[name][front] == images[front]).all()), name
    assert int(found["of"][~front].max()) == 0 and int(found["nf"][front].max()) == 0
    assert bool((found["nf"][~front] == images[~front]).all())
    inside = found["obb"].sum(dim=1) == 0
    assert bool((inside | ~masks).float().mean() > 0.99)  # boxes hold the objects, up to rounding
    outside = ~inside & (images.sum(dim=1) > 0)
    assert all(bool((o[:, keep] == x[:, keep]).all()) for o, x, keep in zip(found["obt"], images, outside, strict=True))
    assert not torch.equal(found["obt"], images)


def test_balanced_batches_hold_so_many_images_of_so_many_classes():
    labels = torch.arange(40) % 8
    batches = fine.balanced(labels, 12, 3, seed=0)
    assert len(batches(0)) == 3
    for index in batches(1):
        assert sorted(labels[index].bincount()[labels[index].unique()].tolist()) == [3] * 4 and len(index.unique()) == 12
    assert all(torch.equal(a, b) for a, b in zip(batches(2), batches(2), strict=True))
    few = fine.balanced(torch.tensor([0, 0, 1, 1]), 6, 3, seed=0)(0)[0]
    assert len(few) == 6  # a class with fewer images gives some twice
    with pytest.raises(ValueError, match="batch, each: expected batch to hold 3 images of at most 8 classes, found 30"):
        fine.balanced(labels, 30, 3, seed=0)
