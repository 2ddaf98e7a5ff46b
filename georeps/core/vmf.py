"""The von Mises-Fisher distribution on S2, and on the circle: density, samples, mixtures, and the heads that predict them.

    log p(x) = kappa (mean . x - 1) + log kappa - log 2 pi - log(1 - exp(-2 kappa))        nats by area; kappa -> 0: -log 4 pi
"""  # fmt: skip

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def log_prob(x: Float[Tensor, "*b 3"], mean: Float[Tensor, "*b 3"], kappa: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Log-density in nats by area of unit vectors x; finite for any kappa >= 0, however large (none is exponentiated)."""
    # log(kappa / (1 - exp(-2 kappa))) -> log(1/2) as kappa -> 0
    safe = kappa.clamp(min=1e-6)
    scale = torch.where(kappa < 1e-6, -math.log(2) + kappa, safe.log() - torch.log(-torch.expm1(-2 * safe)))
    return kappa * ((mean * x).sum(-1) - 1) + scale - math.log(2 * math.pi)


def sample(mean: Float[Tensor, "b 3"], kappa: Float[Tensor, " b"], *, generator: torch.Generator | None = None) -> Float[Tensor, "b 3"]:
    """One point each, exact: on S2 the cosine to the mean has a closed inverse, 1 + log(u + (1 - u) exp(-2 kappa)) / kappa."""
    u = torch.rand(len(mean), generator=generator, device=mean.device, dtype=mean.dtype)
    safe = kappa.clamp(min=1e-4)
    cosine = 1 + torch.log(u + (1 - u) * (-2 * safe).exp()) / safe
    cosine = torch.where(kappa < 1e-4, 2 * u - 1, cosine).clamp(-1, 1)
    aside = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    aside = F.normalize(aside - (aside * mean).sum(-1, keepdim=True) * mean, dim=-1)
    return cosine[:, None] * mean + (1 - cosine**2).sqrt()[:, None] * aside


def mixture_log_prob(
    x: Float[Tensor, "*b 3"], weight: Float[Tensor, "*b k"], mean: Float[Tensor, "*b k 3"], kappa: Float[Tensor, "*b k"]
) -> Float[Tensor, "*b"]:
    """Log-density of a mixture, `weight` being the logarithms of its weights: summed as logarithms, where published code underflows."""
    return torch.logsumexp(weight + log_prob(x[..., None, :].expand_as(mean), mean, kappa), dim=-1)


class Head(nn.Module):
    """Features "b d" -> a mixture of k von Mises-Fisher densities (weights' logarithms, means, kappas); k = 1 is one density.

    Paper: kappa = softplus(.). Here: exp(.), levelling off at e^12 (1 / sqrt(kappa) = 16 km), because a softplus must climb to thousands in
    steps of a learning rate.
    """

    def __init__(self, dim: int, k: int = 1):
        super().__init__()
        self.k = k
        self.out = nn.Linear(dim, 5 * k)

    def forward(self, features: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k 3"], Float[Tensor, "b k"]]:
        weight, kappa, mean = self.out(features).split([self.k, self.k, 3 * self.k], dim=-1)
        return weight.log_softmax(-1), F.normalize(mean.unflatten(-1, (self.k, 3)), dim=-1), (12 - F.softplus(12 - kappa)).exp()


def circle_kde(angles: Float[Tensor, " n"], at: Float[Tensor, " m"], kappa: float) -> Float[Tensor, " m"]:
    """Density (per radian) at the angles `at` of a sample of angles, by von Mises kernels of concentration `kappa`.

    Wang & Isola (2020) draw it of l2-normalised features in the plane. About 1 / sqrt(kappa) radians is the bandwidth; it is never
    chosen for you. Raises ValueError for an empty sample or a negative kappa.
    """
    if len(angles) == 0 or kappa < 0:
        raise ValueError(f"angles, kappa: expected a sample and kappa >= 0, found {len(angles)} angles and {kappa}")
    exponent = kappa * ((at[:, None] - angles[None, :]).cos() - 1)
    scale = torch.special.i0e(torch.tensor(float(kappa), dtype=angles.dtype)).item()
    return exponent.exp().mean(dim=1) / (2 * math.pi * scale)
