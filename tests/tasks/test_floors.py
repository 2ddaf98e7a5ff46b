"""Rows that learn nothing."""

import torch

from georeps.tasks import floors


def pictures(n, seed=0):
    return torch.randint(256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_a_linear_map_finds_what_is_linear_and_nothing_else():
    x = floors.thumbnails(pictures(400), 4)
    turned = x.flip(1)  # the other view: pixels in reverse order
    train, test = (x[:300], turned[:300]), (x[300:], turned[300:])
    assert (floors.ridge_ranks(train, test) == 0).all()
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    assert (floors.ridge_ranks(train, (test[0], test[1][shuffled]), shuffled.argsort()) == 0).all()
    other = floors.thumbnails(pictures(400, 1), 4)
    assert (floors.ridge_ranks((x[:300], other[:300]), (x[300:], other[300:])) == 0).float().mean() < 0.1


def test_a_histogram_counts_colours_and_not_places():
    x = pictures(5)
    mixed = x.flatten(2)[:, :, torch.randperm(256)].view_as(x)
    assert torch.allclose(floors.histogram(x), floors.histogram(mixed)) and torch.allclose(floors.histogram(x).norm(dim=1), torch.ones(5))
    assert floors.thumbnails(x, 2).shape == (5, 12) and float(floors.thumbnails(x, 2).max()) <= 1
