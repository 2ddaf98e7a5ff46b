"""Rows that learn nothing of a task, or next to nothing, and that a claim must beat before it is judged.

    thumbnails, histogram   images as their coarse pixels, as their colours
    linear_ranks            a ridge regression from the thumbnails of one view to those of the other: Y ~ X (X'X + 1)^-1 X'Y
"""  # fmt: skip

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from georeps.core import search


def thumbnails(images: UInt8[Tensor, "n 3 h w"], sides: int | tuple[int, int]) -> Float[Tensor, "n d"]:
    """Images averaged down to so many pixels (height and width), between 0 and 1."""
    return F.adaptive_avg_pool2d(images.float() / 255, sides).flatten(1)


def histogram(images: UInt8[Tensor, "n 3 h w"], bins: int = 16) -> Float[Tensor, "n 3*{bins}"]:
    """Unit rows: the root of each channel's histogram, so that inner products are the histograms' Bhattacharyya coefficients."""
    index = (images.long() * bins // 256).flatten(2)
    counts = torch.zeros(len(images), 3, bins).scatter_add_(2, index, torch.ones(index.shape))
    return F.normalize(counts.flatten(1).sqrt(), dim=1)


def linear_ranks(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], sides: int | tuple[int, int], positive: Int64[Tensor, " q"] | None = None
) -> Int64[Tensor, " q"]:
    """Ranks of the test queries after a regression on training pairs; each is (queries, tiles) in uint8, a test query's tile its own row or `positive`."""
    (x, y), (q, g) = ([thumbnails(view, sides) for view in views] for views in (train, test))
    centre_x, centre_y = x.mean(0), y.mean(0)
    x, y = (x - centre_x).double(), (y - centre_y).double()
    weights = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]).double(), x.T @ y).float()
    queries, gallery = F.normalize((q - centre_x) @ weights, dim=1), F.normalize(g - centre_y, dim=1)
    return search.rank_of(queries, gallery, torch.arange(len(q)) if positive is None else positive)
