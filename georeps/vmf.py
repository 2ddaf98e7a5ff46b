"""The von Mises-Fisher distribution; on the circle so far: the density estimate of Figures 4.3 and 4.4 of the thesis."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def circle_kde(angles: Float[Tensor, "n"], at: Float[Tensor, "m"], kappa: float) -> Float[Tensor, "m"]:
    """Density (per radian) at the angles `at` of a sample of angles, by von Mises kernels of concentration `kappa`.

    Wang & Isola (2020) draw it of l2-normalised features in the plane. About 1 / sqrt(kappa) radians is the bandwidth; it is never
    chosen for you. Raises ValueError for an empty sample or a negative kappa.
    """
    if len(angles) == 0 or kappa < 0:
        raise ValueError(f"angles, kappa: expected a sample and kappa >= 0, found {len(angles)} angles and {kappa}")
    exponent = kappa * ((at[:, None] - angles[None, :]).cos() - 1)
    scale = torch.special.i0e(torch.tensor(float(kappa), dtype=angles.dtype)).item()
    return exponent.exp().mean(dim=1) / (2 * math.pi * scale)
