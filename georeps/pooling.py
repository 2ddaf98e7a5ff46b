"""Feature map -> vector.

`POOLINGS` names every instance; each maps a "b d h w" map to `Pooled(vector, attention)`.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Pooled:
    vector: Float[Tensor, "b e"]
    attention: Float[Tensor, "b h w"] | None = None  # weights over the grid, where the pooling has them


class GAP(nn.Module):
    """Global average pooling."""

    def __init__(self, dim: int):
        super().__init__()
        self.out_dim = dim

    def forward(self, x: Float[Tensor, "b d h w"]) -> Pooled:
        return Pooled(x.mean(dim=(-2, -1)))


class GAPMax(nn.Module):
    """Sum of the average and the maximum."""

    def __init__(self, dim: int):
        super().__init__()
        self.out_dim = dim

    def forward(self, x: Float[Tensor, "b d h w"]) -> Pooled:
        return Pooled(x.mean(dim=(-2, -1)) + x.amax(dim=(-2, -1)))


POOLINGS = {"gap": GAP, "gap_max": GAPMax}
