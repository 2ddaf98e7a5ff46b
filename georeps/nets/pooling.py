"""Feature map -> vector: the generalized pooling of the dissertation (chapter 3, Algorithm 1) and its instances.

    Q = phi_Q(U);  K = phi_K(X);  A = h(S(K, Q));  V = phi_V(X);  Z = f^-1(f(V) A);  X <- phi_X(X);  U <- phi_U(Z)

`generalized` is Algorithm 1; `Step()`, with nothing chosen, is the average. `POOLINGS`: names -> maps "b d h w" to `Pooled(vector, attention)`.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

EPS = 1e-6


@dataclass(frozen=True)
class Pooled:
    vector: Float[Tensor, "b e"]  # of a pooling with k > 1 vectors, one after the other
    attention: Float[Tensor, "b h w"] | None = None  # weights over the grid, where the pooling has them


def same(x: Tensor, *_) -> Tensor:
    """The identity mapping, id."""
    return x


def dot(key: Float[Tensor, "b n p"], query: Float[Tensor, "b n k"]) -> Float[Tensor, "b p k"]:
    """S = K^T Q."""
    return key.transpose(1, 2) @ query


def minus_squared(key: Float[Tensor, "b n p"], query: Float[Tensor, "b n k"]) -> Float[Tensor, "b p k"]:
    """-|k_i - q_j|^2."""
    return -torch.cdist(key.transpose(1, 2), query.transpose(1, 2)).square()


def none(key: Float[Tensor, "b n p"], query: Tensor | None) -> Float[Tensor, "b p 1"]:
    """No interaction: every location alike."""
    return key.new_zeros(len(key), key.shape[2], 1)


def softmax(s: Float[Tensor, "b p k"]) -> Float[Tensor, "b p k"]:
    """sigma_2: over the locations, each column for itself."""
    return s.softmax(dim=1)


average = torch.matmul  # f = id


def full(x: Tensor):
    """A context without autocast: powers and Cholesky factors need 32 bits."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def power(gamma: float | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """f = f_alpha with gamma = (1 - alpha) / 2 (Eq. 3.9): the weighted power mean of values that are not negative."""

    def weigh(v: Tensor, a: Tensor) -> Tensor:
        with full(v):
            return ((v.float().clamp(min=0) + EPS).pow(gamma) @ a.float()).clamp(min=EPS**2).pow(1 / gamma)

    return weigh


@dataclass(frozen=True)
class Step:
    """An iteration of Algorithm 1; the comments give its line."""

    query: Callable[[Tensor], Tensor] = same  # 5: phi_Q(U)
    key: Callable[[Tensor], Tensor] = same  # 6: phi_K(X)
    similarity: Callable[[Tensor, Tensor], Tensor] = none  # 7-9: s
    attention: Callable[[Tensor], Tensor] = softmax  # 10: h
    value: Callable[[Tensor, Tensor], Tensor] = same  # 11: phi_V(X); SE and CBAM read Q too
    weigh: Callable[[Tensor, Tensor], Tensor] = average  # 12: f^-1(f(V) A)
    features: Callable[[Tensor], Tensor] = same  # 13: phi_X(X)
    pooled: Callable[[Tensor, Tensor], Tensor] = same  # 14: phi_U(Z); recurrent and residual ones read U too


def generalized(x: Float[Tensor, "b d p"], u: Float[Tensor, "b e k"], steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
    """Algorithm 1: features X and the initial U -> pooled U "b d' k" and the attention A "b p k" of the last iteration."""
    for step in steps:
        q, k = step.query(u), step.key(x)
        a = step.attention(step.similarity(k, q))
        z = step.weigh(step.value(x, q), a)
        x, u = step.features(x), step.pooled(z, u)
    return u, a


_flat = partial(torch.flatten, start_dim=2)  # "b d h w" -> "b d p"
_mean = partial(torch.mean, dim=2, keepdim=True)  # "b d p" -> "b d 1"


def packed(u: Float[Tensor, "b d k"], a: Tensor | None, x: Float[Tensor, "b d h w"]) -> Pooled:
    """The k vectors in a row; of k maps (or heads) the mean, scaled to sum 1."""
    vector = u.transpose(1, 2).flatten(1)
    if a is None:
        return Pooled(vector)
    a = a.reshape(len(x), -1, *a.shape[1:]).mean(dim=(1, 3))
    return Pooled(vector, (a / a.sum(dim=1, keepdim=True).clamp(min=EPS)).view(len(x), *x.shape[2:]))


class Pooling(nn.Module):
    """What a classifier needs to know: the width of the vector, and of how many vectors it is made."""

    def __init__(self, dim: int, k: int = 1):
        super().__init__()
        self.out_dim, self.k = dim * k, k


class _Fixed(Pooling):
    """Group 1: one step whose attention is fixed."""

    def forward(self, x: Float[Tensor, "b d h w"]) -> Pooled:
        return packed(generalized(_flat(x), _flat(x)[:, :, :1], [Step(weigh=self.weigh)])[0], None, x)


class GAP(_Fixed):
    """Global average pooling (Eq. 3.10)."""

    def weigh(self, v: Tensor, a: Tensor) -> Tensor:
        return _mean(v)


class Max(_Fixed):
    """Maximum of each channel (Eq. 3.11): the limit of f_alpha."""

    def weigh(self, v: Tensor, a: Tensor) -> Tensor:
        return v.amax(dim=2, keepdim=True)


class GAPMax(_Fixed):
    """Sum of the average and the maximum."""

    def weigh(self, v: Tensor, a: Tensor) -> Tensor:
        return _mean(v) + v.amax(dim=2, keepdim=True)


class GeM(_Fixed):
    """Generalized mean with a learnable exponent (Eq. 3.13); negative values count as 0."""

    def __init__(self, dim: int, gamma: float = 3.0):
        super().__init__(dim)
        self.gamma = nn.Parameter(torch.tensor(gamma))

    def weigh(self, v: Tensor, a: Tensor) -> Tensor:
        return power(self.gamma.clamp(min=0.1))(v, a)


class LSE(_Fixed):
    """log-sum-exp with a learnable scale (Eq. 3.15)."""

    def __init__(self, dim: int, r: float = 10.0):
        super().__init__(dim)
        self.r = nn.Parameter(torch.tensor(r))

    def weigh(self, v: Tensor, a: Tensor) -> Tensor:
        r = self.r.clamp(min=1e-3)
        return (v.mul(r)[:, :, :, None] + a.log()[:, None]).logsumexp(dim=2) / r


class HOW(Pooling):
    """Locations weigh as their squared norm (Eq. 3.17-3.20; HOW's authors take the norm), values are local means, whitened by `fit`.

    The result has length 1. Until `fit` has seen local features the whitening is the identity.
    """

    def __init__(self, dim: int, out_dim: int | None = None):
        super().__init__(out_dim or dim)
        self.register_buffer("centre", torch.zeros(dim, 1))
        self.register_buffer("whiten", torch.eye(dim)[: self.out_dim])

    def forward(self, x: Float[Tensor, "b d h w"]) -> Pooled:
        step = Step(
            similarity=lambda k, q: k.square().sum(dim=1)[:, :, None], attention=same, pooled=lambda z, u: F.normalize(z, dim=1),
            value=lambda k, q: self.whiten @ (self._local(k, x) - self.centre),
        )  # fmt: skip
        return packed(*generalized(_flat(x), _mean(_flat(x)), [step]), x)

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "b d h w"]) -> None:
        """Centre and PCA whitening of the training set's local features."""
        local = self._local(_flat(x), x).transpose(1, 2).flatten(0, 1)
        self.centre.copy_(local.mean(dim=0)[:, None])
        _, scale, basis = torch.linalg.svd(local - self.centre.T, full_matrices=False)
        self.whiten.copy_((basis / scale[:, None].clamp(min=EPS) * math.sqrt(len(local)))[: len(self.whiten)])

    def _local(self, flat: Tensor, x: Tensor) -> Tensor:
        return _flat(F.avg_pool2d(flat.view_as(x), 3, stride=1, padding=1, count_include_pad=False))


class OTK(Pooling):
    """Optimal transport to k learnt references (Eq. 3.21-3.23): attention is the plan, values a Gaussian kernel's Nystroem features.

    Here: features and references have length 1, so that eps and the kernel's width mean the same for every trunk; and what Eq. 3.23 gives
    is multiplied by k sqrt(d), so that its entries are of order one, as other poolings' are.
    """

    def __init__(self, dim: int, k: int = 3, eps: float = 0.1, sigma: float = 0.6, iterations: int = 10):
        super().__init__(dim, k)
        self.references, self.anchors = nn.Parameter(torch.randn(dim, k)), nn.Parameter(torch.randn(dim, dim))
        self.eps, self.sigma, self.iterations = eps, sigma, iterations

    def forward(self, x: Float[Tensor, "b d h w"]) -> Pooled:
        unit = F.normalize(_flat(x), dim=1)
        references = F.normalize(self.references, dim=0).expand(len(x), -1, -1)
        plan = lambda s: sinkhorn(s / self.eps, self.iterations)  # noqa: E731
        step = Step(similarity=minus_squared, attention=plan, value=lambda k, q: self._kernel(k), pooled=lambda z, u: self.out_dim / x.shape[1] ** 0.5 * z)
        return packed(*generalized(unit, references, [step]), x)

    def _kernel(self, x: Float[Tensor, "b d p"]) -> Float[Tensor, "b d p"]:
        """psi with psi(x)^T psi(y) = K_xW K_WW^-1 K_Wy."""
        anchors = F.normalize(self.anchors, dim=0)
        kernel = lambda y: ((anchors.T @ y - 1) / self.sigma**2).exp()  # noqa: E731  of columns of length 1
        with full(x):
            root = torch.linalg.cholesky(kernel(anchors) + 1e-3 * torch.eye(anchors.shape[1], device=x.device))
            return torch.linalg.solve_triangular(root, kernel(x.float()), upper=False)


def sinkhorn(s: Float[Tensor, "b p k"], iterations: int) -> Float[Tensor, "b p k"]:
    """The plan with marginals 1/p and 1/k that e^s is scaled to, row and column by turns, in the log domain."""
    for _ in range(iterations):
        s = s - s.logsumexp(dim=2, keepdim=True) - math.log(s.shape[1])
        s = s - s.logsumexp(dim=1, keepdim=True) - math.log(s.shape[2])
    return s.exp()


class KMeans(Pooling):
    """k centroids of the locations (Eq. 3.24-3.28), from random ones in training and evenly spread ones in evaluation."""

    def __init__(self, dim: int, k: int = 3, iterations: int = 3):
        super().__init__(dim, k)
        self.iterations = iterations

    def forward(self, x: Float[Tensor, "b d h w"]) -> Pooled:
        return packed(*kmeans(_flat(x), self.k, self.iterations, random=self.training), x)


def kmeans(x: Float[Tensor, "b d p"], k: int, iterations: int, *, random: bool) -> tuple[Tensor, Tensor]:
    """Centroids "b d k" and normalised assignments "b p k"; an empty cluster keeps its centroid."""
    if k > (p := x.shape[2]):
        raise ValueError(f"k: expected at most {p} centroids (the locations), found {k}")
    at = torch.randperm(p, device=x.device)[:k] if random else torch.linspace(0, p - 1, k, device=x.device).round().long()

    def assign(s: Tensor) -> Tensor:  # eta_2(arg max_1)
        hard = F.one_hot(s.argmax(dim=2), s.shape[2]).to(s)
        return hard / hard.sum(dim=1, keepdim=True).clamp(min=1)

    keep = lambda z, u: torch.where(z.abs().sum(dim=1, keepdim=True) > 0, z, u)  # noqa: E731
    return generalized(x, x[:, :, at], [Step(similarity=minus_squared, attention=assign, pooled=keep)] * iterations)


def linear_map(d: int, out: int | None = None, bias: bool = False) -> nn.Conv1d:
    """A linear map of the columns."""
    return nn.Conv1d(d, out or d, 1, bias=bias)


class ColumnNorm(nn.LayerNorm):
    """LayerNorm of the columns of "b d n"."""

    def __init__(self, d: int):
        super().__init__(d, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Slot(Pooling):
    """Slot attention (Eq. 3.29-3.32; Locatello et al., 2020): k slots compete for the locations. In evaluation the slots' noise is fixed."""

    def __init__(self, dim: int, k: int = 3, iterations: int = 3):
        super().__init__(dim, k)
        self.iterations = iterations
        self.mean, self.log_std = nn.Parameter(torch.zeros(dim, 1)), nn.Parameter(torch.zeros(dim, 1))
        self.register_buffer("noise", torch.randn(dim, k))
        self.norm_u, self.norm_x, self.norm_g = ColumnNorm(dim), ColumnNorm(dim), ColumnNorm(dim)
        self.query, self.key, self.value = linear_map(dim), linear_map(dim), linear_map(dim)
        self.gru = nn.GRUCell(dim, dim)
        self.mlp = nn.Sequential(linear_map(dim, bias=True), nn.ReLU(), linear_map(dim, bias=True))

    def forward(self, x: Float[Tensor, "b d h w"]) -> Pooled:
        noise = torch.randn(len(x), *self.noise.shape, device=x.device) if self.training else self.noise.expand(len(x), -1, -1)

        def compete(s: Tensor) -> Tensor:  # softmax over the slots, then each slot's weights sum to 1
            a = (s / math.sqrt(x.shape[1])).softmax(dim=2) + 1e-8
            return a / a.sum(dim=1, keepdim=True)

        def update(z: Tensor, u: Tensor) -> Tensor:
            columns = lambda y: y.transpose(1, 2).flatten(0, 1)  # noqa: E731
            g = self.gru(columns(z), columns(u)).view(len(z), -1, z.shape[1]).transpose(1, 2)
            return g + self.mlp(self.norm_g(g))

        flat = self.norm_x(_flat(x))
        key, value = self.key(flat), self.value(flat)  # the features stay, so these do
        step = Step(lambda u: self.query(self.norm_u(u)), lambda x: key, dot, compete, lambda x, q: value, pooled=update)
        return packed(*generalized(flat, self.mean + self.log_std.exp() * noise, [step] * self.iterations), x)


class SE(Pooling):
    """Squeeze and excitation before the average (Eq. 3.33-3.36): channels are weighed by a gate of their averages."""

    def __init__(self, dim: int, reduction: int = 16):
        super().__init__(dim)
        hidden = max(8, dim // reduction)
        self.mlp = nn.Sequential(linear_map(dim, hidden, bias=True), nn.ReLU(), linear_map(hidden, dim, bias=True))

    def forward(self, x: Float[Tensor, "b d h w"]) -> Pooled:
        step = Step(query=lambda u: self.mlp(u).sigmoid(), value=lambda k, q: q * k)
        return packed(generalized(_flat(x), _mean(_flat(x)), [step])[0], None, x)


class CBAM(Pooling):
    """Channel gate, then a spatial gate of each location's mean and maximum over the channels (Eq. 3.37-3.43)."""

    def __init__(self, dim: int, reduction: int = 16):
        super().__init__(dim)
        hidden = max(8, dim // reduction)
        self.mlp = nn.Sequential(linear_map(dim, hidden), nn.ReLU(), linear_map(hidden, dim))
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Pooled:
        flat = _flat(x)

        def over_channels(k: Tensor, q: Tensor) -> Tensor:  # of V = diag(q) K: "b p 2"
            return torch.stack([(q * k).mean(dim=1), (q * k).amax(dim=1)], dim=2)

        def gate(s: Tensor) -> Tensor:
            return _flat(self.conv(s.transpose(1, 2).view(len(x), 2, *x.shape[2:])).sigmoid()).transpose(1, 2) / flat.shape[2]

        step = Step(lambda u: self.mlp(u).mean(dim=2, keepdim=True).sigmoid(), same, over_channels, gate, lambda k, q: q * k)
        return packed(*generalized(flat, torch.cat([_mean(flat), flat.amax(dim=2, keepdim=True)], dim=2), [step]), x)


class GE(Pooling):
    """Gather-excite before the average (Hu et al., 2018): a gate for each channel and neighbourhood; with extent 0, gathering globally, it is SE."""

    def __init__(self, dim: int, extent: int = 2, reduction: int = 16):
        super().__init__(dim)
        self.extent, hidden = extent, max(8, dim // reduction)
        self.mlp = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, dim, 1))

    def forward(self, x: Float[Tensor, "b d h w"]) -> Pooled:
        e = self.extent
        gathered = F.avg_pool2d(x, 2 * e - 1, e, e - 1, count_include_pad=False) if e else x.mean(dim=(2, 3), keepdim=True)
        return Pooled((x * F.interpolate(self.mlp(gathered).sigmoid(), size=x.shape[2:])).mean(dim=(2, 3)))


class ViT(Pooling):
    """A learnt CLS token and the map through one transformer block (Eq. 3.47-3.56), as the last layer of any trunk.

    The token attends to itself as well as to the map; the map's own attention cannot reach the output of a last block.
    """

    def __init__(self, dim: int, heads: int = 4):
        super().__init__(dim)
        if dim % heads:
            raise ValueError(f"heads: expected a divisor of dim {dim}, found {heads}")
        self.heads = heads
        self.token = nn.Parameter(0.02 * torch.randn(dim, 1))
        self.norm, self.norm_mlp, self.norm_out = ColumnNorm(dim), ColumnNorm(dim), ColumnNorm(dim)
        self.query, self.key, self.value = (linear_map(dim, bias=True) for _ in range(3))
        self.out = linear_map(dim, bias=True)
        self.mlp = nn.Sequential(linear_map(dim, 4 * dim, bias=True), nn.GELU(), linear_map(4 * dim, dim, bias=True))
        self.scale = self.scale_mlp = 1.0

    def forward(self, x: Float[Tensor, "b d h w"]) -> Pooled:
        u = self.token.expand(len(x), -1, -1)
        tokens = torch.cat([u, _flat(x)], dim=2)
        split = lambda y: y.reshape(-1, y.shape[1] // self.heads, y.shape[2])  # noqa: E731  g_m, heads as more images

        def block(z: Tensor, u: Tensor) -> Tensor:
            g = u + self.scale * self.out(z.reshape(len(x), -1, 1))
            return g + self.scale_mlp * self.mlp(self.norm_mlp(g))

        step = Step(
            lambda u: split(self.query(self.norm(u))), lambda k: split(self.key(self.norm(k))), dot,
            lambda s: softmax(s / math.sqrt(x.shape[1] // self.heads)), lambda k, q: split(self.value(self.norm(k))), pooled=block,
        )  # fmt: skip
        u, a = generalized(tokens, u, [step])
        return packed(self.norm_out(u), a[:, 1:], x)


class CaiT(ViT):
    """Class attention (Touvron et al., 2021): `ViT` whose two additions are weighed by learnt diagonals (Eq. 3.58, 3.59), small at first."""

    def __init__(self, dim: int, heads: int = 4, initial: float = 0.1):
        super().__init__(dim, heads)
        del self.scale, self.scale_mlp
        self.scale, self.scale_mlp = (nn.Parameter(torch.full((dim, 1), initial)) for _ in range(2))


class SimPool(Pooling):
    """Algorithm 2: attention of the map to its own average, then a power mean.

    a = softmax((W_K LN(X))^T W_Q GAP(X) / sqrt(d));  u = f^-1(f(LN(X) - min) a). `gamma` is the exponent of f (2 for convolutional
    networks, 1.25 for transformers), None the plain average of LN(X). The minimum is over all of an image (Eq. 3.69): published code takes
    it over the batch, so that an embedding depends on its batch-mates.
    """

    def __init__(self, dim: int, gamma: float | None = 2.0):
        super().__init__(dim)
        self.norm, self.query, self.key = ColumnNorm(dim), linear_map(dim), linear_map(dim)
        self.fixed = gamma

    @property
    def gamma(self) -> float | Tensor | None:
        return self.fixed

    def forward(self, x: Float[Tensor, "b d h w"]) -> Pooled:
        flat = _flat(x)
        normed = self.norm(flat)
        attend = lambda s: softmax(s / math.sqrt(x.shape[1]))  # noqa: E731
        if self.gamma is None:
            step = Step(self.query, self.key, dot, attend)
        else:
            step = Step(self.query, self.key, dot, attend, lambda k, q: k - k.amin(dim=(1, 2), keepdim=True), power(self.gamma))
        return packed(*generalized(normed, _mean(flat), [step]), x)


class EP(Pooling):
    """Efficient probing (Psomas et al., 2026): 32 learnt queries look at the raw map, each pools its own group of channels.

    No projection of queries or keys; values W_V X split into as many groups as there are queries.
    """

    def __init__(self, dim: int, queries: int = 32):
        super().__init__(dim)
        if dim % queries:
            raise ValueError(f"queries: expected a divisor of dim {dim}, found {queries}")
        self.queries, self.value = nn.Parameter(0.02 * torch.randn(dim, queries)), linear_map(dim)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Pooled:
        m = self.queries.shape[1]
        own = lambda v, a: (v.view(len(x), m, -1, v.shape[2]) * a.transpose(1, 2)[:, :, None]).sum(dim=3).flatten(1)[:, :, None]  # noqa: E731
        attend = lambda s: softmax(s / math.sqrt(x.shape[1]))  # noqa: E731
        step = Step(similarity=dot, attention=attend, value=lambda k, q: self.value(k), weigh=own)
        return packed(*generalized(_flat(x), self.queries.expand(len(x), -1, -1), [step]), x)


POOLINGS = {
    "gap": GAP, "max": Max, "gap_max": GAPMax, "gem": GeM, "lse": LSE, "how": HOW, "otk": OTK, "kmeans": KMeans, "slot": Slot, "se": SE,
    "cbam": CBAM, "ge": GE, "vit": ViT, "cait": CaiT, "simpool": SimPool, "ep": EP,
}  # fmt: skip
