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
    """Unit rows: the roots of the three channels' histograms, so that an inner product is the mean of their Bhattacharyya coefficients."""
    index = (images // (256 // bins)).flatten(2).long()
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

    A test query's tile is its own row or `positive`. The strength is the best of STRENGTHS by mean rank on the last fifth of the training pairs
    (of five pairs or fewer: the first). Both sides are less the mean of their training rows, tiles then of unit length. Solved by inner products alone,
    Y'(XX' + a)^-1 Xq: descriptions are wide and places few. Raises ValueError for a description that is not finite.
    """
    for name, x in zip(("train queries", "train tiles", "test queries", "test tiles"), (*train, *test)):
        search.finite_norms(name, x)
    (x, q), (y, g) = ((own - own.mean(0), asked - own.mean(0)) for own, asked in zip(train, test))
    g, kept = F.normalize(g, dim=1), max(1, len(x) * 4 // 5)
    inner, asked, found = (x @ x.T).double(), (q @ x.T).double(), (y @ g.T).double()
    held = (y[:kept] @ F.normalize(y[kept:], dim=1).T).double()

    def chosen(strength: float) -> float:
        ranks = _ranks(inner[:kept, :kept], inner[kept:, :kept], held, strength, torch.arange(len(x) - kept))
        return float(ranks.double().mean())

    best = min(STRENGTHS, key=chosen) if len(x) > kept + 1 else STRENGTHS[0]
    return _ranks(inner, asked, found, best, torch.arange(len(q)) if positive is None else positive)


def _ranks(inner: Tensor, asked: Tensor, found: Tensor, strength: float, positive: Tensor) -> Int64[Tensor, " q"]:
    """Inner products of training queries "n n", of queries with these "q n", and of the training tiles with the gallery "n g" -> ranks."""
    solved = torch.cholesky_solve(asked.T, torch.linalg.cholesky(inner + strength * torch.eye(len(inner), dtype=inner.dtype)))
    scores = solved.T @ found
    return (scores >= scores.gather(1, positive[:, None])).sum(1) - 1
