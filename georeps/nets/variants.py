"""SimPool with any of its choices changed: the ablation of the dissertation's Table 3.12. `Variant(dim)` is SimPool.

    u = f^-1(f(phi_V(X)) h(S(phi_K(X), phi_Q(u0))))
"""  # fmt: skip

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from georeps.nets import pooling

DESIGN = {  # Table 3.12, left: option -> what differs from SimPool
    "simpool": {}, "multihead": {"heads": 4}, "across": {"across": True}, "layers3": {"layers": 3}, "layers5": {"layers": 5},
    "iterations3": {"iterations": 3}, "iterations5": {"iterations": 5}, "init_learned": {"initial": "learned"},
    "init_norm": {"initial": "norm"}, "euclidean": {"similarity": "euclidean"}, "cosine": {"similarity": "cosine"},
    "kmax2": {"k": 2}, "kmax5": {"k": 5}, "kconcat2": {"k": 2, "concat": True}, "kconcat5": {"k": 5, "concat": True}, "shared": {"shared": True},
}  # fmt: skip
LAYERS = [  # Table 3.12, right: what has a linear layer, what a LayerNorm; without gamma
    ("qkv", "qkv"), ("qk", "qkv"), ("q", "qkv"), ("k", "qkv"), ("none", "qkv"), ("qk", "qk"), ("qk", "q"), ("none", "kv"), ("qk", "kv"),
    ("qk", "v"), ("qk", "k"), ("none", "qk"), ("qk", "none"), ("none", "none"), ("qk", "qv"),
]  # fmt: skip


class Variant(pooling.Pooling):
    """`linear` and `norm` name which of query, key and value have a linear layer and a LayerNorm. `across` takes the softmax over the k
    vectors and then normalises each column (h = eta_2(sigma_1)); with k = 1 that is uniform. `layers` are steps with parameters of their own,
    `iterations` steps that share them. `initial` is U0: "gap", a "learned" vector, or "norm", the map weighed by diag(X^T X).
    With k > 1 the vectors start from k-means; `concat` joins and projects them to `dim`, else the classifier takes the largest logit.
    """

    def __init__(
        self, dim: int, gamma: float | None = 2.0, *, heads: int = 1, across: bool = False, layers: int = 1, iterations: int = 1,
        initial: Literal["gap", "learned", "norm"] = "gap", similarity: Literal["dot", "euclidean", "cosine"] = "dot", k: int = 1,
        concat: bool = False, shared: bool = False, linear: str = "qk", norm: str = "kv",
    ):  # fmt: skip
        super().__init__(dim, 1 if concat else k)
        choices = [("initial", initial, ("gap", "learned", "norm")), ("similarity", similarity, ("dot", "euclidean", "cosine"))]
        choices += [(name, letter, "qkv") for name, letters in (("linear", linear), ("norm", norm)) if letters != "none" for letter in letters]
        for name, value, allowed in choices:
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, found {value!r}")
        self.gamma, self.heads, self.across, self.iterations = gamma, heads, across, iterations
        self.initial, self.similarity, self.vectors = initial, similarity, k
        # one LayerNorm serves key and value, as in Algorithm 2; a query's is its own
        self.norm = pooling.ColumnNorm(dim) if set("kv") & set(norm) and norm != "none" else nn.Identity()
        self.norm_q = pooling.ColumnNorm(dim) if "q" in norm else nn.Identity()
        self.normed = norm if norm != "none" else ""
        linears = linear if linear != "none" else ""
        made = lambda letter: pooling.linear_map(dim) if letter in linears else nn.Identity()  # noqa: E731
        self.query = nn.ModuleList(made("q") for _ in range(layers))
        self.key = self.query if shared else nn.ModuleList(made("k") for _ in range(layers))
        self.value = nn.ModuleList(made("v") for _ in range(layers))
        self.token = nn.Parameter(0.02 * torch.randn(dim, 1)) if initial == "learned" else None
        self.join = nn.Linear(k * dim, dim) if concat else None

    def forward(self, x: Float[Tensor, "b d h w"]) -> pooling.Pooled:
        flat = x.flatten(2)
        normed = self.norm(flat)
        steps = [self._step(flat, normed, i) for i in range(len(self.query)) for _ in range(self.iterations)]
        found = pooling.packed(*pooling.generalized(flat, self._start(flat), steps), x)
        return found if self.join is None else pooling.Pooled(self.join(found.vector), found.attention)

    def _start(self, flat: Tensor) -> Float[Tensor, "b d k"]:
        if self.vectors > 1:
            return pooling.kmeans(flat, self.vectors, 3, random=self.training)[0]
        if self.initial == "learned":
            return self.token.expand(len(flat), -1, -1)
        if self.initial == "norm":
            weight = flat.square().sum(dim=1)[:, :, None]
            return flat @ (weight / weight.sum(dim=1, keepdim=True).clamp(min=pooling.EPS))
        return flat.mean(dim=2, keepdim=True)

    def _step(self, flat: Tensor, normed: Tensor, i: int) -> pooling.Step:
        b, d, _ = flat.shape
        split = lambda y: y.reshape(-1, d // self.heads, y.shape[2])  # noqa: E731
        chosen = {"k": normed if "k" in self.normed else flat, "v": normed if "v" in self.normed else flat}

        def value(_, q: Tensor) -> Tensor:
            v = self.value[i](chosen["v"])
            return split(v if self.gamma is None else v - v.amin(dim=(1, 2), keepdim=True))

        def attend(s: Tensor) -> Tensor:
            s = s / math.sqrt(d // self.heads)
            if not self.across:
                return pooling.softmax(s)
            a = s.softmax(dim=2)
            return a / a.sum(dim=1, keepdim=True)

        def compare(k: Tensor, q: Tensor) -> Tensor:
            if self.similarity == "euclidean":
                return pooling.minus_squared(k, q)
            if self.similarity == "cosine":  # scaled back, so that the softmax is as sharp as a dot product's can be
                return d * pooling.dot(F.normalize(k, dim=1), F.normalize(q, dim=1))
            return pooling.dot(k, q)

        return pooling.Step(
            lambda u: split(self.query[i](self.norm_q(u))), lambda _: split(self.key[i](chosen["k"])), compare, attend, value,
            pooling.average if self.gamma is None else pooling.power(self.gamma), pooled=lambda z, u: z.reshape(b, d, -1),
        )  # fmt: skip


class NormedGAP(pooling.Pooling):
    """The mean of LN(X): SimPool without its attention and its exponent, the control of what a LayerNorm does."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.norm = pooling.ColumnNorm(dim)

    def forward(self, x: Float[Tensor, "b d h w"]) -> pooling.Pooled:
        return pooling.Pooled(self.norm(x.flatten(2)).mean(dim=2), None)


class LearntGamma(pooling.SimPool):
    """SimPool with a learnt exponent (3.4.4): its logarithm moves at `rate` times the others' learning rate, under Adam, up to log(`most`)."""

    def __init__(self, dim: int, gamma: float = 1.0, *, rate: float = 10.0, most: float = 50.0):
        super().__init__(dim, gamma)
        self.rate, self.most = rate, most
        self.raw = nn.Parameter(torch.tensor(math.log(gamma) / rate))

    @property
    def gamma(self) -> Tensor:
        return (self.rate * self.raw).clamp(-2, math.log(self.most)).exp()
