"""Cross-view matching: two branches, one for each view, one embedding space.

Siamese-VGG (Zhu et al., VIGOR, 2021) and SAFA (Shi et al., 2019), as re-implemented in the thesis, 3.2 and 6.1; beyond it a
descriptor that keeps directions apart, and can be compared at every turn (after DSM, Shi et al., 2020).

    SAFA:     f = concat_k  sum_ij  M_k(i, j) y(i, j),    M_k = FC2_k(FC1_k(max_c y_c))
    columns:  f = concat_j  W [y(., j - 1), y(., j), y(., j + 1)],    score(q, g) = max_t  sum_j  q_j . g_{j + t}
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from georeps.core import panorama, search
from georeps.nets import encoders, losses, pooling, towers, train

polar, turn = panorama.polar, panorama.turn


class SpatialAware(nn.Module):
    """SAFA's aggregation: `heads` position maps computed from the grid weigh it, and their sums are concatenated.

    The grid size is fixed because the maps come from fully connected layers over positions. Paper (thesis, 6.1, and
    VIGOR's code): channels are reduced by their maximum. SAFA's own code takes the mean: `reduction="mean"`.
    No non-linearity stands between the two layers and no softmax after them, in either code.
    """

    def __init__(self, dim: int, grid: tuple[int, int], *, heads: int = 8, reduction: Literal["max", "mean"] = "max"):
        super().__init__()
        if reduction not in ("max", "mean"):
            raise ValueError(f"reduction: expected 'max' or 'mean', found {reduction!r}")
        cells = grid[0] * grid[1]
        hidden = max(1, cells // 2)
        self.grid, self.reduction = tuple(grid), reduction
        self.first = nn.ModuleList(nn.Linear(cells, hidden) for _ in range(heads))
        self.second = nn.ModuleList(nn.Linear(hidden, cells) for _ in range(heads))
        self.out_dim = dim * heads

    def forward(self, x: Float[Tensor, "b d h w"]) -> pooling.Pooled:
        if tuple(x.shape[-2:]) != self.grid:
            raise ValueError(f"x: expected a grid of {self.grid}, found {tuple(x.shape[-2:])}: the image size differs")
        reduced = x.amax(dim=1) if self.reduction == "max" else x.mean(dim=1)
        cells = reduced.flatten(1)
        maps = torch.stack([b(a(cells)) for a, b in zip(self.first, self.second, strict=True)], dim=1)
        vector = torch.einsum("bkn,bdn->bkd", maps, x.flatten(2)).flatten(1)
        return pooling.Pooled(vector, maps.mean(dim=1).view(-1, *self.grid))


class Columns(nn.Module):
    """What is seen in each of `columns` directions, kept apart: the `rows` above one another and both neighbours, mixed to `out` channels.

    The vector is "b out * columns", to be viewed as "b out columns" (`at_every_turn`). Directions wrap around.
    """

    def __init__(self, dim: int, *, rows: int = 4, columns: int = 16, out: int = 32):
        super().__init__()
        self.size, self.out_dim = (rows, columns), out * columns
        self.mix = nn.Conv1d(dim * rows, out, 3, padding=1, padding_mode="circular")

    def forward(self, x: Float[Tensor, "b d h w"]) -> pooling.Pooled:
        return pooling.Pooled(self.mix(F.adaptive_avg_pool2d(x, self.size).flatten(1, 2)).flatten(1), None)


def at_every_turn(query: Float[Tensor, "q d"], gallery: Float[Tensor, "g d"], columns: int) -> Float[Tensor, "q g {columns}"]:
    """Inner products of descriptors of `Columns`, the t-th as if the query had been turned to the right by t columns: sum_j q_j . g_{j + t}."""
    q, g = (torch.fft.rfft(x.view(len(x), -1, columns)) for x in (query, gallery))
    return torch.fft.irfft(torch.einsum("qcf,gcf->qgf", q.conj(), g), n=columns)


class OnMaps(nn.Module):
    """A trunk on what a frozen tower has seen (`seen`): "b c h w" -> standardised by channel, a 1 x 1 convolution, GELU: "b out_dim h w".

    With a `tail` (`towers.Image.split`) the input is the stem's map, which the tail, trained with the rest, continues; both are read, side by side.
    `like`: training maps whose statistics standardise.
    """

    def __init__(self, like: Float[Tensor, "n c h w"], *, out: int = 64, tail: nn.Module | None = None):
        super().__init__()
        self.tail, self.out_dim = tail, out
        with torch.no_grad():
            maps = self._maps(like)
        self.register_buffer("mean", maps.mean(dim=(0, 2, 3), keepdim=True))
        self.register_buffer("std", maps.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-3))
        self.mix = nn.Conv2d(maps.shape[1], out, 1)

    def _maps(self, x: Tensor) -> Tensor:
        return x if self.tail is None else torch.cat([x, F.interpolate(self.tail(x), size=x.shape[-2:])], dim=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return F.gelu(self.mix((self._maps(x) - self.mean) / self.std))


def seen(
    tower: towers.Image, images: UInt8[Tensor, "n 3 h w"], strides: Sequence[int] = (8, 16), *, around: int = 0, device: str = "cpu"
) -> Float[Tensor, "n c i j"]:  # fmt: skip
    """A frozen tower's maps of images at these strides, stored, repeated to the grid of the first of them, side by side.

    `around`: pixels (a multiple of the strides) of what goes on beyond either edge of a panorama that the tower sees too, so that no map knows where the
    edge was.
    """
    wide = torch.cat([images[..., -around:], images, images[..., :around]], dim=-1) if around else images
    found = towers.stored(tower, wide, "maps", strides=strides, device=device)
    first, *others = (found[str(s)][..., around // s : found[str(s)].shape[-1] - around // s].float() for s in strides)
    return torch.cat([first, *(F.interpolate(maps, size=first.shape[-2:]) for maps in others)], dim=1)


class TwoBranch(nn.Module):
    """One descriptor network a view; calling it describes a batch of pairs."""

    def __init__(self, ground: encoders.Descriptor, satellite: encoders.Descriptor):
        super().__init__()
        self.ground, self.satellite = ground, satellite

    def forward(self, ground: Float[Tensor, "b 3 h w"], satellite: Float[Tensor, "b 3 i j"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        return self.ground(ground), self.satellite(satellite)


def ranks(model: TwoBranch, queries: Tensor, gallery: Tensor, positive: Int64[Tensor, " q"] | None = None, *, turns: int | None = None) -> Int64[Tensor, " q"]:
    """Ranks, 0 = best, of the queries' tiles (their own rows, or `positive`) in the gallery; images or maps, as the branches take them.

    With `turns`, the columns of a descriptor of directions, each pair is compared at the turn that suits it best; a tie counts against the query.
    """
    q, g = encoders.describe(model.ground, queries), encoders.describe(model.satellite, gallery)
    positive = torch.arange(len(q)) if positive is None else positive
    if turns is None:
        return search.rank_of(q, g, positive)
    search.checked(q, g)
    scores = torch.cat([at_every_turn(part, g, turns).amax(dim=-1) for part in q.split(256)])
    return (scores >= scores.gather(1, positive[:, None])).sum(1) - 1


def same_place(position: Float[Tensor, "b 2"], metres: float = 25.0) -> Bool[Tensor, "b b"]:
    """Pairs of a batch taken less than `metres` apart (positions in metres): no negatives of each other (CVACT)."""
    return torch.cdist(position.double(), position.double()) < metres


class Matching(nn.Module):
    """The training step of a two-branch model: indices of pairs -> loss (`train.fit` calls it).

    `fetch(indices)` gives what the branches read of the pairs: images, uint8 "b 3 h w", or a tower's maps. `loss(ground, satellite)` is Eq. 3.3
    unless said. With `position` "n 2" in metres, pairs less than 25 m apart are no negatives of each other (`same_place`). `augment` makes floats in
    [0, 1] of the bytes of either view.
    """

    def __init__(
        self, model: TwoBranch, fetch: Callable[[Int64[Tensor, " b"]], tuple[Tensor, Tensor]], *,
        loss: Callable[..., Float[Tensor, ""]] = losses.soft_margin_triplet, position: Float[Tensor, "n 2"] | None = None,
        augment: Callable[[Tensor], Tensor] = encoders.scale,
    ):  # fmt: skip
        super().__init__()
        self.model, self.fetch, self.loss, self.position = model, fetch, loss, position
        self.augment = augment

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        device = next(self.model.parameters()).device
        ground, satellite = (self.augment(x.to(device, non_blocking=True)) for x in self.fetch(index))
        near = None if self.position is None else same_place(self.position[index]).to(device)
        return self.loss(*self.model(ground, satellite), same_place=near)


def siamese(trunks: Sequence[nn.Module], *, dim: int = 4096) -> TwoBranch:
    """Average pooling on two trunks, and one fully connected layer that both views share."""
    shared = nn.Linear(trunks[0].out_dim, dim)
    return TwoBranch(*(encoders.Descriptor(t, pooling.GAP(t.out_dim), shared) for t in trunks))


def safa(trunks: Sequence[nn.Module], grids: Sequence[tuple[int, int]], *, heads: int = 8, reduction: Literal["max", "mean"] = "max") -> TwoBranch:
    """SAFA's spatial-aware aggregation on two trunks whose maps are of these `grids`."""
    pools = (SpatialAware(t.out_dim, grid, heads=heads, reduction=reduction) for t, grid in zip(trunks, grids, strict=True))
    return TwoBranch(*map(encoders.Descriptor, trunks, pools))


def columns(trunks: Sequence[nn.Module], *, rows: int = 4, columns: int = 16, out: int = 32) -> TwoBranch:
    """A descriptor of directions (`Columns`) on two trunks whose maps have them as columns: panoramas, polar maps."""
    return TwoBranch(*(encoders.Descriptor(t, Columns(t.out_dim, rows=rows, columns=columns, out=out)) for t in trunks))


def siamese_vgg(*, width: float = 1.0, dim: int = 4096, blocks: int = 5, last_pool: bool = True, weights: str | None = None) -> TwoBranch:
    """Siamese-VGG: unshared VGG16 trunks, average pooling, one fully connected layer that both views share.

    The thesis prints an MLP 512-512-128 in 6.1 (the head of MoCo) but 4096 outputs and one shared layer in 4.2: the
    latter is VIGOR's model and is built here.
    """
    return siamese([encoders.VGG16(width=width, blocks=blocks, last_pool=last_pool, weights=weights) for _ in range(2)], dim=dim)


def safa_vgg(
    *, ground_size: tuple[int, int], satellite_size: tuple[int, int], width: float = 1.0, heads: int = 8, reduction: Literal["max", "mean"] = "max",
    blocks: int = 5, last_pool: bool = True, weights: str | None = None,
) -> TwoBranch:  # fmt: skip
    """SAFA: unshared VGG16 trunks and spatial-aware aggregation; sizes are (height, width) in pixels."""
    trunks = [encoders.VGG16(width=width, blocks=blocks, last_pool=last_pool, weights=weights) for _ in range(2)]
    grids = [(h // trunks[0].stride, w // trunks[0].stride) for h, w in (ground_size, satellite_size)]
    return safa(trunks, grids, heads=heads, reduction=reduction)


def hard_batches(
    neighbours: Callable[[int], Int64[Tensor, "n k"]], n: int, batch: int, *, seed: int, tiles: Int64[Tensor, "n t"] | None = None
) -> Callable[[int], list[Int64[Tensor, " b"]]]:  # fmt: skip
    """Batches of n pairs in which items stand beside neighbours of theirs, as hard negatives (Sample4Geo, 2023).

    `neighbours(epoch)` gives each item's nearest others: by position, of the same cell, say, or by the descriptors of that epoch. Items come in an order
    drawn from (seed, epoch), each followed by its unused neighbours; the last, which fill no batch, sit out. `tiles`: as in `train.shuffled`.
    """
    sets = [frozenset([i]) for i in range(n)] if tiles is None else [frozenset(row) for row in tiles.tolist()]

    def batches(epoch: int) -> list[Tensor]:
        order = train.shuffled(n, n, seed=seed)(epoch)[0].tolist()
        near, found = neighbours(epoch).tolist(), dict.fromkeys(())
        for i in order:
            if i not in found:
                found |= dict.fromkeys((i, *(j for j in near[i] if j not in found)))
        return train.distinct(list(found), sets, batch)

    return batches
