"""Rows that learn nothing of a task, or next to nothing, and that a claim must beat before it is judged.

    describe          images as their colours, as their coarse pixels, as a tower sees them that was never trained, or trained on ImageNet alone
    ridge_ranks       two views of a place: a ridge regression from the one's description to the other's, Y ~ X (X'X + a)^-1 X'Y
"""  # fmt: skip

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from georeps.core import search
from georeps.nets import towers

FLOORS = {"histogram": "colour histogram", "thumbnail": "thumbnail", "untrained": "untrained tower", "frozen": "frozen tower"}
STRENGTHS = (1.0, 10.0, 100.0, 1e3, 1e4)  # of a ridge regression


def thumbnails(images: UInt8[Tensor, "n 3 h w"], sides: int | tuple[int, int]) -> Float[Tensor, "n d"]:
    """Images averaged down to so many pixels (height and width), between 0 and 1."""
    return F.adaptive_avg_pool2d(images.float() / 255, sides).flatten(1)


def histogram(images: UInt8[Tensor, "n 3 h w"], bins: int = 16) -> Float[Tensor, "n 3*{bins}"]:
    """Unit rows: the root of each channel's histogram, so that inner products are the histograms' Bhattacharyya coefficients."""
    index = (images.long() * bins // 256).flatten(2)
    counts = torch.zeros(len(images), 3, bins).scatter_add_(2, index, torch.ones(index.shape))
    return F.normalize(counts.flatten(1).sqrt(), dim=1)


def describe(
    floor: str, images: UInt8[Tensor, "n 3 h w"], *, like: UInt8[Tensor, "m 3 h w"] | None = None, grid: tuple[int, int] | None = None, seed: int = 0,
    device: str = "cpu",
) -> Float[Tensor, "n d"]:  # fmt: skip
    """One of FLOORS, each channel less its mean over `like` (training images; default: these) and by its deviation; histograms are compared as they are.

    A tower gives the means of its maps, or, with a `grid`, its maps of strides 8 and 16 averaged to so many rows and columns; a thumbnail has 4
    rows and as many columns (4 without). `seed` draws the untrained tower.
    """
    if floor not in FLOORS:
        raise ValueError(f"floor: expected one of {', '.join(FLOORS)}, found {floor!r}")

    def raw(x: Tensor) -> Tensor:
        if floor in ("histogram", "thumbnail"):
            return histogram(x) if floor == "histogram" else thumbnails(x, (4, grid[1] if grid else 4))
        tower = _tower(seed if floor == "untrained" else None)
        if grid is None:
            return towers.stored(tower, x, device=device)["mean"].float()
        maps = towers.stored(tower, x, "maps", strides=(8, 16), device=device).values()
        return torch.cat([F.adaptive_avg_pool2d(m.float(), grid).flatten(1) for m in maps], dim=1)

    own = raw(images)
    if floor == "histogram" and grid is None:
        return own
    known = own if like is None else raw(like)
    return (own - known.mean(0)) / known.std(0).clamp(min=1e-3)


@functools.lru_cache(2)
def _tower(seed: int | None) -> towers.Image:
    return towers.image("lite0", seed=seed)


def ridge_ranks(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], positive: Int64[Tensor, " q"] | None = None) -> Int64[Tensor, " q"]:
    """Ranks of test queries by the cosine of what a regression on the training pairs makes of them; each is (queries "n d", tiles "n e").

    A test query's tile is its own row or `positive`. The strength is the best of STRENGTHS by mean rank on the last fifth of the training pairs.
    """
    kept = max(1, len(train[0]) * 4 // 5)
    held = tuple(view[kept:] for view in train)
    fitted = tuple(view[:kept] for view in train)
    best = min(STRENGTHS, key=lambda a: float(_ranks(fitted, held, a, None).double().mean())) if len(held[0]) > 1 else STRENGTHS[0]
    return _ranks(train, test, best, positive)


def _ranks(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], strength: float, positive: Tensor | None) -> Int64[Tensor, " q"]:
    (x, y), (q, g) = train, test
    x0, y0 = x.mean(0), y.mean(0)
    x, y, q = (x - x0).double(), (y - y0).double(), (q - x0).double()
    wide = len(x) < x.shape[1]  # the smaller of the two systems: X'(XX' + a)^-1 = (X'X + a)^-1 X'
    inner = (x @ x.T if wide else x.T @ x) + strength * torch.eye(min(x.shape), dtype=torch.float64)
    solved = torch.cholesky_solve(y if wide else x.T @ y, torch.linalg.cholesky(inner))
    queries = (q @ x.T if wide else q) @ solved
    gallery = F.normalize(g - y0, dim=1)
    return search.rank_of(F.normalize(queries.float(), dim=1), gallery, torch.arange(len(q)) if positive is None else positive)


def linear_ranks(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], sides: int | tuple[int, int], positive: Int64[Tensor, " q"] | None = None
) -> Int64[Tensor, " q"]:
    """`ridge_ranks` between the thumbnails of images in uint8, of strength 1."""
    views = [tuple(thumbnails(view, sides) for view in part) for part in (train, test)]
    return _ranks(*views, 1.0, positive)
