"""Training objectives on batches of descriptors.

Soft-margin triplet (thesis, Eq. 3.3-3.4), InfoNCE (Eq. 3.1) and uniformity (Eq. 3.5-3.9).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


def soft_margin_triplet(
    ground: Float[Tensor, "b d"],
    satellite: Float[Tensor, "b d"],
    gamma: float = 10.0,
    *,
    distance: Literal["l2", "squared"] = "l2",
    gamma_place: Literal["outside", "inside"] = "outside",
    same_place: Bool[Tensor, "b b"] | None = None,
) -> Float[Tensor, ""]:
    """Mean soft-margin triplet loss over both directions; row i of one view matches row i of the other.

    Paper (thesis, Eq. 3.3): log(1 + gamma exp(d_pos - d_neg)) with L2 distances, summed over the 2 B (B - 1) triplets
    of Eq. 3.4. Here: their mean, so that the value does not grow with the batch. Published code (CVM-Net, SAFA, VIGOR)
    has gamma inside, log(1 + exp(gamma (d_pos - d_neg))), on squared distances: `gamma_place="inside"`,
    `distance="squared"`. Outside, gamma only shifts the margin by log(gamma); inside, it scales the slope. Pairs marked in
    `same_place` are no negatives of each other (CVACT's 25 m rule).

    Raises ValueError for a batch that holds no triplet: fewer than two pairs, or all of one place.
    """
    n = ground.shape[0]
    if n < 2:
        raise ValueError(f"ground: a triplet needs at least 2 pairs in the batch, found {n}")
    squared = (2 - 2 * _similarity(ground, satellite)).clamp(min=0)
    pairwise = squared if distance == "squared" else (squared + 1e-12).sqrt()
    positive = pairwise.diagonal()
    margin = torch.stack([positive[:, None] - pairwise, positive[None, :] - pairwise])
    loss = F.softplus(margin + math.log(gamma) if gamma_place == "outside" else gamma * margin)
    negative = ~torch.eye(n, dtype=torch.bool, device=loss.device)
    if same_place is not None:
        negative &= ~same_place
    if not bool(negative.any()):
        raise ValueError(f"same_place: expected at least two places in the batch, found {n} pairs of one")
    return loss[:, negative].mean()


def info_nce(
    query: Float[Tensor, "b d"],
    key: Float[Tensor, "b d"],
    queue: Float[Tensor, "m d"],
    temperature: float = 0.2,
) -> Float[Tensor, ""]:
    """InfoNCE of each query against its own key and the m negatives of the queue (Eq. 3.1); rows are normalised inside.

    The mean over the batch, in nats. The other keys of the batch are not negatives (MoCo's convention).
    """
    positive = F.cosine_similarity(_wide(query), _wide(key), dim=-1)[:, None]
    logits = torch.cat([positive, _similarity(query, queue)], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def symmetric_info_nce(
    ground: Float[Tensor, "b d"],
    satellite: Float[Tensor, "b d"],
    temperature: float | Float[Tensor, ""] = 0.1,
    *,
    label_smoothing: float = 0.0,
    same_place: Bool[Tensor, "b b"] | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE between the views, both directions averaged: row i of one view matches row i of the other (Sample4Geo, 2023).

    The other rows of the batch are the negatives, but for those marked in `same_place`. Sample4Geo learns the temperature, from
    1/14.3, and smooths labels by 0.1; the mean over the batch, in nats.
    """
    logits = _similarity(ground, satellite) / temperature
    if same_place is not None:
        other = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same_place & other, -1e4)
    target = torch.arange(len(logits), device=logits.device)
    both = (F.cross_entropy(x, target, label_smoothing=label_smoothing) for x in (logits, logits.T))
    return sum(both) / 2


class SymmetricInfoNCE(nn.Module):
    """`symmetric_info_nce` with a learnt temperature and smoothed labels, the recipe of current codebases (Sample4Geo)."""

    def __init__(self, temperature: float = 0.07, label_smoothing: float = 0.1):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.label_smoothing = label_smoothing

    def forward(
        self, ground: Float[Tensor, "b d"], satellite: Float[Tensor, "b d"], same_place: Bool[Tensor, "b b"] | None = None
    ) -> Float[Tensor, ""]:
        scale = self.log_scale.clamp(max=math.log(100)).exp()  # as CLIP bounds it
        return symmetric_info_nce(ground, satellite, 1 / scale, label_smoothing=self.label_smoothing, same_place=same_place)


def uniformity(x: Float[Tensor, "b d"], t: float = 2.0) -> Float[Tensor, ""]:
    """Log of the average Gaussian potential exp(-t |x_i - x_j|^2) over pairs i != j of normalised rows (Eq. 3.5).

    Eq. 3.6-3.9 print the sum where Eq. 3.5 has the mean: they differ by the constant log(n (n - 1)), not in gradient.
    """
    if x.shape[0] < 2:
        raise ValueError(f"x: uniformity needs at least 2 rows, found {x.shape[0]}")
    n = x.shape[0]
    exponent = 2 * t * (_similarity(x, x) - 1)
    exponent = exponent.masked_fill(torch.eye(n, dtype=torch.bool, device=x.device), -math.inf)
    return exponent.logsumexp(dim=(0, 1)) - math.log(n * (n - 1))


def _similarity(x: Float[Tensor, "b d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "b m"]:
    """Cosine similarities in float32 even under autocast: in bfloat16 a batch close to collapse has no gradient left."""
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(_wide(x), dim=-1) @ F.normalize(_wide(y), dim=-1).T


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
