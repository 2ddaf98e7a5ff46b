"""Training objectives on batches of descriptors.

Soft-margin triplet (thesis, Eq. 3.3-3.4), InfoNCE (Eq. 3.1) and uniformity (Eq. 3.5-3.9). The losses of metric learning that add over
positives and negatives (dissertation, Table 2.1) are one form:

    l(a) = tau( sigma+( sum_x y rho+(s(a, x)) ) + sigma-( sum_x (1 - y) rho-(s(a, x)) ) )        (Eq. 2.7; y may be mixed)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from georeps.core.kernels import pairs


def soft_margin_triplet(
    ground: Float[Tensor, "b d"], satellite: Float[Tensor, "b d"], gamma: float = 10.0, *, distance: Literal["l2", "squared"] = "l2",
    gamma_place: Literal["outside", "inside"] = "outside", same_place: Bool[Tensor, "b b"] | None = None,
) -> Float[Tensor, ""]:  # fmt: skip
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


def info_nce(query: Float[Tensor, "b d"], key: Float[Tensor, "b d"], queue: Float[Tensor, "m d"], temperature: float = 0.2) -> Float[Tensor, ""]:
    """InfoNCE of each query against its own key and the m negatives of the queue (Eq. 3.1); rows are normalised inside.

    The mean over the batch, in nats. The other keys of the batch are not negatives (MoCo's convention).
    """
    positive = F.cosine_similarity(_wide(query), _wide(key), dim=-1)[:, None]
    logits = torch.cat([positive, _similarity(query, queue)], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def symmetric_info_nce(
    ground: Float[Tensor, "b d"], satellite: Float[Tensor, "b d"], temperature: float | Float[Tensor, ""] = 0.1, *, label_smoothing: float = 0.0,
    same_place: Bool[Tensor, "b b"] | None = None,
) -> Float[Tensor, ""]:  # fmt: skip
    """InfoNCE between the views, both directions averaged: row i of one view matches row i of the other (Sample4Geo, 2023).

    The other rows of the batch are the negatives, but for those marked in `same_place`. Sample4Geo learns the temperature, from
    1/14.3, and smooths labels by 0.1; the mean over the batch, in nats.
    """
    return matched(_similarity(ground, satellite), temperature, label_smoothing=label_smoothing, same_place=same_place)


def matched(
    similarity: Float[Tensor, "b b"], temperature: float | Float[Tensor, ""] = 0.1, *, label_smoothing: float = 0.0,
    same_place: Bool[Tensor, "b b"] | None = None,
) -> Float[Tensor, ""]:  # fmt: skip
    """`symmetric_info_nce` of similarities, whatever they were measured by: row i matches column i."""
    logits = similarity / temperature
    if same_place is not None:
        other = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same_place & other, -1e4)
    target = torch.arange(len(logits), device=logits.device)
    both = (F.cross_entropy(x, target, label_smoothing=label_smoothing) for x in (logits, logits.T))
    return sum(both) / 2


def uniformity(x: Float[Tensor, "b d"], t: float = 2.0) -> Float[Tensor, ""]:
    """Log of the average Gaussian potential exp(-t |x_i - x_j|^2) over pairs i != j of normalised rows (Eq. 3.5).

    Eq. 3.6-3.9 print the sum where Eq. 3.5 has the mean: they differ by the constant log(n (n - 1)), not in gradient. Memory is that of
    the rows: where the matrix of pairs would take more than `pairs.BAND` bytes (n above 2,048), value and gradient are summed tile by tile.
    """
    if x.shape[0] < 2:
        raise ValueError(f"x: uniformity needs at least 2 rows, found {x.shape[0]}")
    n = x.shape[0]
    if 8 * n * n > pairs.BAND:  # the matrix of pairs would not fit: its tiles are formed, used, and formed again for the gradient
        rows = F.normalize(_wide(x), dim=1).to(x.dtype)
        return pairs.log_sum(rows, 2 * t)[0] - math.log(n * (n - 1))
    exponent = 2 * t * (_similarity(x, x) - 1)
    exponent = exponent.masked_fill(torch.eye(n, dtype=torch.bool, device=x.device), -math.inf)
    return exponent.logsumexp(dim=(0, 1)) - math.log(n * (n - 1))


@dataclass(frozen=True)
class Linear:
    """scale x."""

    scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * x


@dataclass(frozen=True)
class Hinge:
    """[x - margin]_+."""

    margin: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.margin).relu()


@dataclass(frozen=True)
class Exp:
    """exp(scale (x - margin)); `log` is its exponent."""

    scale: float = 1.0
    margin: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.log(x).exp()

    def log(self, x: Tensor) -> Tensor:
        return self.scale * (x - self.margin)


@dataclass(frozen=True)
class Log:
    """scale log(x); `of_log` takes log(x)."""

    scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.of_log(x.log())

    def of_log(self, x: Tensor) -> Tensor:
        return self.scale * x


@dataclass(frozen=True)
class Log1p:
    """scale log(1 + x); `of_log` takes log(x)."""

    scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * x.log1p()

    def of_log(self, x: Tensor) -> Tensor:
        return self.scale * F.softplus(x)


Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PairLoss:
    """A row of Table 2.1: five functions of similarities; any callables. Weights of 0 and 1 give Eq. 2.3, mixed labels Eq. 2.9.

    Where rho is `Exp` and sigma `Log` or `Log1p` the sum is taken in the log domain: beta = 75 and similarities of any size
    overflow nothing. An anchor without positives (or negatives) adds nothing for them. `shared` adds the positives' sum to the
    negatives': the "e^x+" of SoftTriple and EPSHN, and ProxyNCA++, whose probability runs over all proxies. `anchor` and
    `other` say whether these are examples or learnable proxies.
    """

    tau: Function
    sigma_pos: Function
    sigma_neg: Function
    rho_pos: Function
    rho_neg: Function
    shared: bool = False
    anchor: Literal["example", "proxy"] = "example"
    other: Literal["example", "proxy"] = "example"

    def __call__(
        self, similarity: Float[Tensor, "q g"], positive: Bool[Tensor, "q g"] | Float[Tensor, "q g"],
        negative: Bool[Tensor, "q g"] | Float[Tensor, "q g"],
    ) -> Float[Tensor, " q"]:  # fmt: skip
        """The loss of each anchor; `positive` holds y and `negative` 1 - y of the columns that belong to it, else 0."""
        if similarity.shape != positive.shape or similarity.shape != negative.shape:
            shapes = f"{tuple(positive.shape)} and {tuple(negative.shape)}"
            raise ValueError(f"positive, negative: expected the similarities' shape {tuple(similarity.shape)}, found {shapes}")
        similarity = _wide(similarity)
        positive, negative = positive.to(similarity), negative.to(similarity)
        if bool((positive < 0).any()) or bool((negative < 0).any()):
            raise ValueError("positive, negative: expected weights >= 0, found negative ones")
        own = [(self.rho_pos, positive)]
        return self.tau(_side(self.sigma_pos, similarity, own) + _side(self.sigma_neg, similarity, [(self.rho_neg, negative), *own * self.shared]))


def _side(sigma: Function, similarity: Tensor, terms: list[tuple[Function, Tensor]]) -> Tensor:
    """sigma of a weighted sum over each row, of one or two functions; 0 where no weight is positive."""
    there = sum(weight for _, weight in terms).gt(0).any(dim=1)
    if hasattr(sigma, "of_log") and all(hasattr(rho, "log") for rho, _ in terms):
        exponents = [torch.where(w > 0, rho.log(similarity) + w.clamp(min=1e-30).log(), -math.inf) for rho, w in terms]
        total = torch.cat(exponents, dim=1)
        found = sigma.of_log(torch.where(there[:, None], total, 0.0).logsumexp(dim=1))
    else:
        total = sum((weight * rho(similarity)).sum(dim=1) for rho, weight in terms)
        found = sigma(torch.where(there, total, 1.0))  # log of an empty sum has no gradient either
    return torch.where(there, found, 0.0)


def contrastive(margin: float = 0.5) -> PairLoss:
    """Sum of -s over positives and of [s - margin]_+ over negatives (Eq. 2.1)."""
    return PairLoss(Linear(), Linear(), Linear(), Linear(-1.0), Hinge(margin))


def lifted_structure(margin: float = 0.5) -> PairLoss:
    """[log of the sum of e^-s + log of the sum of e^(s - m)]_+ (Oh Song et al., 2016, in Hermans et al.'s form)."""
    return PairLoss(Hinge(), Log(), Log(), Exp(-1.0), Exp(1.0, margin))


def binomial_deviance(beta: float = 2.0, gamma: float = 40.0, margin: float = 0.5) -> PairLoss:
    """`multi_similarity` without the factors 1 / beta and 1 / gamma (Yi et al., 2014, with the sum inside the logarithm, as Table 2.1 has it)."""
    return PairLoss(Linear(), Log1p(), Log1p(), Exp(-beta, margin), Exp(gamma, margin))


def multi_similarity(beta: float = 18.0, gamma: float = 75.0, margin: float = 0.77) -> PairLoss:
    """Eq. 2.2 (Wang et al., 2019), with the dissertation's values; no mining."""
    return PairLoss(Linear(), Log1p(1 / beta), Log1p(1 / gamma), Exp(-beta, margin), Exp(gamma, margin))


def proxy_anchor(beta: float = 32.0, gamma: float = 32.0, margin: float = 0.1) -> PairLoss:
    """`multi_similarity` with a proxy of each class as anchor (Kim et al., 2020).

    Published code has s + m for negatives and divides by neither beta nor gamma; it averages positive terms over the classes in the batch and
    negative terms over all.
    """
    return PairLoss(Linear(), Log1p(1 / beta), Log1p(1 / gamma), Exp(-beta, margin), Exp(gamma, margin), anchor="proxy")


def nca(scale: float = 1.0, *, shared: bool = False) -> PairLoss:
    """-log of the sum of e^s over positives + log of the sum over negatives; `shared` as its authors have it (Goldberger et al., 2004)."""
    return PairLoss(Linear(), Log(-1.0), Log(), Exp(scale), Exp(scale), shared=shared)


def proxy_nca(scale: float = 1.0) -> PairLoss:
    """`nca` with proxies as positives and negatives (Movshovitz-Attias et al., 2017); `scale` sharpens it, 1 as printed."""
    return PairLoss(Linear(), Log(-1.0), Log(), Exp(scale), Exp(scale), other="proxy")


def proxy_nca_pp(temperature: float = 1 / 9) -> PairLoss:
    """ProxyNCA with a temperature, and the probability over all proxies (Teh et al., 2020)."""
    return PairLoss(Linear(), Log(-1.0), Log(), Exp(1 / temperature), Exp(1 / temperature), shared=True, other="proxy")


def soft_triple(beta: float = 20.0, margin: float = 0.01) -> PairLoss:
    """Softmax over classes, the own with a margin, on `centre_similarity` (Qian et al., 2019)."""
    return PairLoss(Linear(), Log(-1.0), Log(), Exp(beta, margin), Exp(beta), shared=True, other="proxy")


def centre_similarity(similarity: Float[Tensor, "q c k"], gamma: float = 0.1) -> Float[Tensor, "q c"]:
    """SoftTriple's similarity to a class of k centres: their mean, each weighted by the softmax of its similarity / gamma."""
    return ((similarity / gamma).softmax(dim=-1) * similarity).sum(dim=-1)


def epshn(scale: float = 1.0) -> PairLoss:
    """`nca` on the pairs that `easy_positive` keeps, each against its positive (Xuan et al., 2020)."""
    return PairLoss(Linear(), Log(-1.0), Log(), Exp(scale), Exp(scale), shared=True)


def easy_positive(
    similarity: Float[Tensor, "q g"], positive: Bool[Tensor, "q g"], negative: Bool[Tensor, "q g"]
) -> tuple[Bool[Tensor, "q g"], Bool[Tensor, "q g"]]:
    """EPSHN's pairs: of an anchor's positives the most similar, of its negatives the most similar of those less similar than that.

    An anchor without such a pair keeps none.
    """
    with torch.no_grad():
        best = similarity.masked_fill(~positive, -math.inf).amax(dim=1, keepdim=True)
        semi = negative & (similarity < best)
        hardest = similarity.masked_fill(~semi, -math.inf).amax(dim=1, keepdim=True)
        there = positive.any(dim=1, keepdim=True) & semi.any(dim=1, keepdim=True)
        return positive & (similarity == best) & there, semi & (similarity == hardest) & there


def margin_loss(margin: float = 0.2, boundary: float = 1.2) -> PairLoss:
    """[d - b + m]_+ over positives and [b - d + m]_+ over negatives, d the distance of unit rows (Wu et al., 2017; b fixed, all pairs)."""
    distance = lambda s: (2 - 2 * s).clamp(min=1e-12).sqrt()  # noqa: E731
    pull = lambda s: (distance(s) - boundary + margin).relu()  # noqa: E731
    push = lambda s: (boundary + margin - distance(s)).relu()  # noqa: E731
    return PairLoss(Linear(), Linear(), Linear(), pull, push)


def semi_hard_triplet(similarity: Float[Tensor, "q g"], positive: Bool[Tensor, "q g"], negative: Bool[Tensor, "q g"], margin: float = 0.2) -> Float[Tensor, ""]:
    """FaceNet's triplet loss (Schroff et al., 2015): mean of [m - d_n + d_p]_+ over d_p < d_n < d_p + m, squared distances of unit rows.

    It does not fit `PairLoss`: the sum is over triplets. 0 where no triplet is semi-hard.
    """
    gap = 2 * (similarity[:, :, None] - similarity[:, None, :])  # d_n - d_p of anchor, positive, negative
    chosen = positive[:, :, None] & negative[:, None, :] & (gap > 0) & (gap < margin)
    return torch.where(chosen, margin - gap, 0.0).sum() / chosen.sum().clamp(min=1)


def cosface(cosine: Float[Tensor, "b c"], target: Int64[Tensor, " b"], *, margin: float = 0.4, scale: float = 30.0) -> Float[Tensor, "b c"]:
    """Logits of CosFace (Wang et al., 2018): the cosine with the own class less a margin, times a scale; their cross-entropy is the loss.

    Defaults are CosPlace's, which ProGEO keeps.
    """
    own = F.one_hot(target, cosine.shape[1]).to(cosine)
    return scale * (cosine - margin * own)


def supervised_contrastive(logits: Float[Tensor, "q g"], positive: Bool[Tensor, "q g"]) -> Float[Tensor, ""]:
    """-log softmax over each row, averaged over its positives, then over the rows that have any (Khosla et al., 2020, the sum outside the log).

    Between images and the texts of their classes it is ProGEO's first stage, after CLIP-ReID. Raises ValueError where no row has a positive.
    """
    there = positive.any(dim=1)
    if not bool(there.any()):
        raise ValueError(f"positive: expected a positive in at least one of {len(logits)} rows, found none")
    log_share = torch.where(positive, _wide(logits).log_softmax(dim=1), 0.0)
    return -(log_share.sum(dim=1) / positive.sum(dim=1).clamp(min=1))[there].mean()


def weighted_triplet(x: Float[Tensor, "b d"], label: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
    """log(1 + exp(d_p - d_n)), where d_p is the mean distance to the positives, farther ones weighing more (softmax of the distances),
    and d_n that to the negatives, nearer ones weighing more (Ye et al., 2021). Rows are l2-normalised first; the mean over the anchors.

    An anchor is no positive of itself: ProGEO's code counts it as one, and its batches hold no other. Raises ValueError where no anchor has a positive
    and a negative.
    """
    distance = (2 - 2 * _similarity(x, x)).clamp(min=1e-12).sqrt()
    same = label[:, None] == label
    positive = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    there = positive.any(dim=1) & (~same).any(dim=1)
    if not bool(there.any()):
        raise ValueError(f"label: expected two classes and an image with another of its own, found {label.tolist()}")
    near = distance.masked_fill(~positive, -math.inf)[there].softmax(dim=1)
    far = (-distance).masked_fill(same, -math.inf)[there].softmax(dim=1)
    return F.softplus(((near - far) * distance[there]).sum(dim=1)).mean()


def _similarity(x: Float[Tensor, "b d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "b m"]:
    """Cosine similarities in float32 even under autocast: in bfloat16 a batch close to collapse has no gradient left."""
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(_wide(x), dim=-1) @ F.normalize(_wide(y), dim=-1).T


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
