"""Cross-view matching: two branches, one for each view, one embedding space.

Siamese-VGG (Zhu et al., VIGOR, 2021) and SAFA (Shi et al., 2019), as re-implemented in the thesis, 3.2 and 6.1.

    SAFA:  f = concat_k  sum_ij  M_k(i, j) y(i, j),    M_k = FC2_k(FC1_k(max_c y_c))
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from georeps.core import panorama
from georeps.nets import encoders, losses, pooling

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


class TwoBranch(nn.Module):
    """One descriptor network a view; calling it describes a batch of pairs."""

    def __init__(self, ground: encoders.Descriptor, satellite: encoders.Descriptor):
        super().__init__()
        self.ground, self.satellite = ground, satellite

    def forward(self, ground: Float[Tensor, "b 3 h w"], satellite: Float[Tensor, "b 3 i j"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        return self.ground(ground), self.satellite(satellite)


def same_place(position: Float[Tensor, "b 2"], metres: float = 25.0) -> Bool[Tensor, "b b"]:
    """Pairs of a batch taken less than `metres` apart (positions in metres): no negatives of each other (CVACT)."""
    return torch.cdist(position.double(), position.double()) < metres


class Matching(nn.Module):
    """The training step of a two-branch model: indices of pairs -> loss (`train.fit` calls it).

    `fetch(indices)` gives the pairs' images, uint8 "b 3 h w" each, from memory or from disk. `loss(ground, satellite)` is Eq. 3.3
    unless said. With `position` "n 2" in metres, pairs less than 25 m apart are no negatives of each other (`same_place`). With
    `rotated` every panorama is turned by a random angle: training without knowing north. `augment` makes floats in [0, 1] of the
    bytes of either view.
    """

    def __init__(
        self, model: TwoBranch, fetch: Callable[[Int64[Tensor, " b"]], tuple[Tensor, Tensor]], *,
        loss: Callable[..., Float[Tensor, ""]] = losses.soft_margin_triplet, position: Float[Tensor, "n 2"] | None = None, rotated: bool = False,
        augment: Callable[[Tensor], Tensor] = encoders.scale,
    ):  # fmt: skip
        super().__init__()
        self.model, self.fetch, self.loss, self.position = model, fetch, loss, position
        self.rotated, self.augment = rotated, augment

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        device = next(self.model.parameters()).device
        ground, satellite = (self.augment(x.to(device, non_blocking=True)) for x in self.fetch(index))
        if self.rotated:
            ground = turn(ground, torch.randint(ground.shape[-1], (len(ground),)))
        near = None if self.position is None else same_place(self.position[index]).to(device)
        return self.loss(*self.model(ground, satellite), same_place=near)


def siamese_vgg(*, width: float = 1.0, dim: int = 4096, blocks: int = 5, last_pool: bool = True, weights: str | None = None) -> TwoBranch:
    """Siamese-VGG: unshared VGG16 trunks, average pooling, one fully connected layer that both views share.

    The thesis prints an MLP 512-512-128 in 6.1 (the head of MoCo) but 4096 outputs and one shared layer in 4.2: the
    latter is VIGOR's model and is built here.
    """
    trunks = [encoders.VGG16(width=width, blocks=blocks, last_pool=last_pool, weights=weights) for _ in range(2)]
    shared = nn.Linear(trunks[0].out_dim, dim)
    return TwoBranch(*(encoders.Descriptor(t, pooling.GAP(t.out_dim), shared) for t in trunks))


def safa(
    *, ground_size: tuple[int, int], satellite_size: tuple[int, int], width: float = 1.0, heads: int = 8, reduction: Literal["max", "mean"] = "max",
    blocks: int = 5, last_pool: bool = True, weights: str | None = None,
) -> TwoBranch:  # fmt: skip
    """SAFA: unshared VGG16 trunks and spatial-aware aggregation; sizes are (height, width) in pixels."""

    def branch(size: tuple[int, int]) -> encoders.Descriptor:
        trunk = encoders.VGG16(width=width, blocks=blocks, last_pool=last_pool, weights=weights)
        grid = (size[0] // trunk.stride, size[1] // trunk.stride)
        return encoders.Descriptor(trunk, SpatialAware(trunk.out_dim, grid, heads=heads, reduction=reduction))

    return TwoBranch(branch(ground_size), branch(satellite_size))
