"""Metrix: mixup for metric learning (dissertation, chapter 2; Venkataramanan et al., 2022), and what it is compared with.

    error = mean over anchors a of  l(a) + w l~(a)                                              (Eq. 2.10)
    l~: the same loss on mixed examples v = f_lambda(x, x'), labels lambda y + (1 - lambda) y'   (Eq. 2.8, 2.9)
"""  # fmt: skip

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from georeps.nets import losses

PAIRS = ("pos-neg", "anc-neg", "pos-pos", "neg-neg")
Pair = Literal["pos-neg", "anc-neg", "pos-pos", "neg-neg"]


@dataclass(frozen=True)
class Mixup:
    """What is mixed with what. The defaults are Metrix; Metrix/input is `Mixup("input", hardest=3)`.

    Lambda is drawn for each pair (Eq. 2.8); published code draws it once a batch. `renormalise`: a mixed embedding is scaled to
    unit length (published; Eq. 2.4 leaves it inside the sphere). `label="negative"` counts mixed examples as negatives whatever
    they are made of (MoCHi); `anchor="mixed"` compares them with clean examples instead of the other way round (i-Mix).
    """

    kind: Literal["input", "feature", "embedding"] = "feature"
    pairs: tuple[Pair, ...] = ("pos-neg", "anc-neg")  # one of them is drawn each step
    hardest: int | None = None  # negatives of an anchor that are mixed, the most similar; None: all
    positives: int | None = None  # of an anchor that are mixed, drawn each step; None: all
    alpha: float = 2.0  # lambda ~ Beta(alpha, alpha)
    largest: float = 1.0  # ... times this
    strength: float = 0.4  # w
    label: Literal["mixed", "negative"] = "mixed"
    anchor: Literal["clean", "mixed"] = "clean"
    renormalise: bool = False

    def __post_init__(self):
        for name, value, allowed in (
            ("kind", self.kind, ("input", "feature", "embedding")),
            ("label", self.label, ("mixed", "negative")), ("anchor", self.anchor, ("clean", "mixed")), *(("pairs", p, PAIRS) for p in self.pairs),
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, found {value!r}")
        if not self.pairs or self.alpha <= 0 or self.strength < 0 or any(k is not None and k < 1 for k in (self.hardest, self.positives)):
            raise ValueError(f"pairs, alpha, strength, hardest, positives: expected some pairs, alpha > 0, strength >= 0, counts >= 1, found {self}")


I_MIX = Mixup("input", ("anc-neg",), anchor="mixed")  # Lee et al., 2021
MOCHI_NEG_NEG = Mixup("embedding", ("neg-neg",), hardest=100, label="negative", renormalise=True)  # Kalantidis et al., 2020
MOCHI_ANC_NEG = Mixup("embedding", ("anc-neg",), hardest=100, largest=0.5, label="negative", renormalise=True)


def row(
    name: str, *, k: int = 3, few: int = 20, more: int = 40, positives: int | None = 1, strength: float = 0.4, proxy_anchor: bool = False
) -> tuple[Mixup, ...]:
    """What a row of Tables 2.3-2.6 mixes: "clean", "feature", "input_k1", "embedding_few", "input_pos_pos", "input_feature", "i_mix", ...

    Metrix/input takes the `k` hardest negatives and `positives` drawn positives of each anchor; combinations take one negative where inputs
    meet features, as the tables do. Inputs and features are mixed with proxy anchors as pos-neg pairs alone.
    """
    fixed = {"clean": (), "i_mix": (I_MIX,), "mochi_neg_neg": (MOCHI_NEG_NEG,), "mochi_anc_neg": (MOCHI_ANC_NEG,), "proxy_synthesis": ()}
    if name in fixed:
        return tuple(dataclasses.replace(m, strength=strength) for m in fixed[name])
    words = name.split("_")
    kinds = [w for w in words if w in ("input", "feature", "embedding")]
    choice = "_".join(words[len(kinds) :])
    pairs = {"pos_pos": ("pos-pos",), "pos_neg": ("pos-neg",), "anc_neg": ("anc-neg",)}
    counts = {"few": few, "more": more, **{f"k{i}": i for i in (1, 2, 3)}}
    if not kinds or choice not in ("", *pairs, *counts):
        raise ValueError(f"name: expected a row such as feature, input_k1, embedding_few, input_pos_pos, input_feature or i_mix, found {name!r}")
    found = []
    for kind in kinds:
        hard = counts.get(choice, (1 if "feature" in kinds else k) if kind == "input" else None)
        both = ("pos-neg",) if proxy_anchor and kind != "embedding" else ("pos-neg", "anc-neg")
        found.append(Mixup(kind, pairs.get(choice, both), hard, positives if kind == "input" else None, strength=strength))
    return tuple(found)


class Mixing(NamedTuple):
    """M(a) of all anchors at once: m pairs of sources, and which of them belong to which anchor."""

    first: Int64[Tensor, " m"]  # of the batch
    second: Int64[Tensor, " m"]  # of the batch; of all images where the mixed ones are a bank's
    member: Bool[Tensor, "q m"]
    labels: tuple[float, float]  # y of the first, of the second: 1 a positive, 0 a negative

    def weights(self, lam: Float[Tensor, " m"]) -> tuple[Float[Tensor, "q m"], Float[Tensor, "q m"]]:
        """y and 1 - y of each mixed example to each anchor, 0 where it is not in V(a)."""
        label = mix(*(torch.full_like(lam, y) for y in self.labels), lam)
        return self.member * label, self.member * (1 - label)


def mix(x: Float[Tensor, " m *s"], y: Float[Tensor, " m *s"], lam: Float[Tensor, " m"]) -> Float[Tensor, " m *s"]:
    """lambda x + (1 - lambda) y."""
    lam = lam.view(-1, *[1] * (x.ndim - 1))
    return lam * x + (1 - lam) * y


def mixing(pairs: Pair, positive: Bool[Tensor, "q n"], negative: Bool[Tensor, "q n"], own: Int64[Tensor, " q"] | None = None) -> Mixing:
    """The pairs to mix (Eq. 2.8): U+ x U-, S x U-, U+ x U+ or U- x U-, each pair once however many anchors share it.

    `own` is the row of each anchor among the sources, for "anc-neg": among the n examples, or beyond them where an anchor is a proxy.
    """
    if pairs == "anc-neg":
        if own is None:
            raise ValueError("own: anchor-negative pairs need to know which source is the anchor")
        first = F.one_hot(own, max(positive.shape[1], int(own.max()) + 1)).bool()
    else:
        first = positive if pairs.startswith("pos") else negative
    second = positive if pairs == "pos-pos" else negative
    both = first[:, :, None] & second[:, None, :]
    if pairs in ("pos-pos", "neg-neg"):
        both = both.triu(1)
    i, j = both.any(0).nonzero(as_tuple=True)
    return Mixing(i, j, both[:, i, j], (float(pairs != "neg-neg"), float(pairs == "pos-pos")))


def hardest(similarity: Float[Tensor, "q n"], negative: Bool[Tensor, "q n"], k: int) -> Bool[Tensor, "q n"]:
    """Of each anchor's negatives the k most similar."""
    near = similarity.masked_fill(~negative, -math.inf).topk(min(k, similarity.shape[1]), dim=1).indices
    return torch.zeros_like(negative).scatter_(1, near, True) & negative


def drawn(mask: Bool[Tensor, "q n"], k: int) -> Bool[Tensor, "q n"]:
    """k of each row's true entries at random."""
    return hardest(torch.rand(mask.shape, device=mask.device), mask, k)


@dataclass(frozen=True)
class Bank:
    """Mixed inputs that were made ahead, for a trunk that stays frozen: of each of n images k, with a partner and a lambda of their own.

    Paper: an anchor's hardest negatives in the batch, mixed anew each step. Here: an image's hardest in the training set, by the
    frozen trunk, mixed once; a step then costs no pass of the trunk.
    """

    seen: Float[Tensor, "n k *s"]  # what the trunk makes of lambda x + (1 - lambda) x'
    partner: Int64[Tensor, "n k"]  # x' among the n
    lam: Float[Tensor, "n k"]


def bank(
    images: UInt8[Tensor, "n 3 h w"], labels: Int64[Tensor, " n"], see: Callable[[UInt8[Tensor, "n 3 h w"]], Tensor], *,
    partners: Literal["hardest", "negative", "positive"] = "hardest", k: int = 3, alpha: float = 2.0, seed: int = 0,
) -> Bank:  # fmt: skip
    """Each image with k partners: the most similar of other classes, as `see` (images -> rows) has it, or drawn ones of other classes or of its own."""
    generator = torch.Generator().manual_seed(seed)
    same = labels[:, None] == labels
    if partners == "hardest":
        rows = F.normalize(see(images), dim=1)
        near = rows @ rows.T
    else:
        near = torch.rand(same.shape, generator=generator)
    allowed = same & ~torch.eye(len(same), dtype=torch.bool) if partners == "positive" else ~same
    if int(allowed.sum(1).min()) < k:
        raise ValueError(f"k: expected at most {int(allowed.sum(1).min())}, the partners ({partners}) that every image has, found {k}")
    partner = near.masked_fill(~allowed, -math.inf).topk(k, dim=1).indices
    low, high = (torch._standard_gamma(torch.full(partner.shape, alpha), generator=generator) for _ in range(2))
    lam = low / (low + high)
    mixed = [mix(images.float(), images[partner[:, j]].float(), lam[:, j]).round().byte() for j in range(k)]
    return Bank(torch.stack([see(x) for x in mixed], dim=1), partner, lam)


class Head(nn.Module):
    """What learns on a frozen trunk: two linear layers with a ReLU between, or one without `hidden`; rows "b c" -> unit rows "b d".

    To `Metrix` its features are what comes before the ReLU: a linear layer of mixed features is the mixture of what it makes of them.
    """

    def __init__(self, width: int, dim: int, hidden: int = 512):
        super().__init__()
        self.trunk = nn.Linear(width, hidden) if hidden else nn.Identity()
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, dim)) if hidden else nn.Linear(width, dim)

    def forward(self, rows: Float[Tensor, "b c"]) -> Float[Tensor, "b d"]:
        return self.embed(self.trunk(rows))

    def embed(self, features: Float[Tensor, "b c"]) -> Float[Tensor, "b d"]:
        return F.normalize(self.rest(features), dim=-1)


class Metrix(nn.Module):
    """A step of metric learning: indices of images -> the error of Eq. 2.10 (`train.fit` calls it).

    `model` is an `encoders.Descriptor` or a `Head`; `labels` are classes 0.. of all images; `fetch(index)` gives uint8 images, `augment` makes them
    floats. Without mixups the clean loss; of several one is drawn each step. Embeddings and features are computed once a step; input mixup needs a
    second pass, for its negatives are known after the first, or a `Bank` by each kind of partner.

    Proxies, where the loss has some, start as rows of length 1 / `speed`: normalised they turn under Adam about `speed` times as fast as rows
    of length 1, the slower the longer they grow, which stands for the proxies' own learning rate; a bound on the norm of all gradients sees
    theirs as many times larger. `centres` proxies a class are SoftTriple's; `mine` chooses among positives and negatives
    (`losses.easy_positive`). `synthesis` is Proxy Synthesis (Gu et al., 2021): mixed embeddings and as mixed proxies are new classes.

    With proxies as positives and negatives (ProxyNCA++) no set M(a) holds examples; here mixed examples are then the anchors, and
    their labels to the two classes' proxies are lambda and 1 - lambda. In evaluation mode the clean loss alone is computed.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[Tensor, Tensor, Tensor], Tensor], labels: Int64[Tensor, " n"],
        fetch: Callable[[Int64[Tensor, " b"]], Tensor], *, augment: Callable[[Tensor], Tensor], dim: int, mixups: tuple[Mixup, ...] = (),
        mine: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None, centres: int = 1, speed: float = 10.0,
        synthesis: bool = False, banks: Mapping[str, Bank] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.banks = banks or {}
        self.model, self.loss, self.fetch, self.augment = model, loss, fetch, augment
        self.mixups, self.mine, self.centres, self.synthesis = mixups, mine, centres, synthesis
        self.register_buffer("labels", labels)
        self.anchor, self.other = getattr(loss, "anchor", "example"), getattr(loss, "other", "example")
        if "proxy" in (self.anchor, self.other):
            self.proxies = nn.Parameter(F.normalize(torch.randn((int(labels.max()) + 1) * centres, dim), dim=1) / speed)
        if self.anchor == "proxy" and any("anc-neg" in m.pairs and m.kind != "embedding" for m in mixups):
            raise ValueError("mixups: a proxy is mixed only as an embedding; with proxy anchors expected pairs 'pos-neg' for inputs and features")
        if synthesis and self.anchor != "proxy":
            raise ValueError(f"synthesis: expected a loss whose anchors are proxies, found anchors {self.anchor!r}")

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        images = self.augment(self.fetch(index).to(self.labels.device, non_blocking=True))
        y = self.labels[index.to(self.labels.device)]
        grid = self.model.trunk(images)
        e = self.model.embed(grid)
        if self.synthesis and self.training:
            return self._synthesised(e, y)
        similarity, positive, negative = self._clean(e, y)
        error = self.loss(similarity, *(self.mine(similarity, positive, negative) if self.mine else (positive, negative))).mean()
        if not self.mixups or not self.training:
            return error
        mixup = self.mixups[int(torch.randint(len(self.mixups), ()))]
        if mixup.anchor == "mixed" or self.other == "proxy":
            return error + mixup.strength * self._mixed_anchors(mixup, index, images, grid, e, y)
        pairs = mixup.pairs[int(torch.randint(len(mixup.pairs), ()))]
        stored = mixup.kind == "input" and self.banks
        v, lam, chosen = self.stored(mixup, pairs, index, y) if stored else self.mixed(mixup, pairs, images, grid, e, y)
        if not len(v):
            return error
        anchors = e if self.anchor == "example" else self.unit_proxies()
        weights = chosen.weights(lam) if mixup.label == "mixed" else (torch.zeros_like(chosen.member), chosen.member)
        return error + mixup.strength * self.loss(_products(anchors, v), *weights).mean()

    def mixed(
        self, mixup: Mixup, pairs: Pair, images: Tensor, grid: Tensor, e: Float[Tensor, "b d"], y: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"], Mixing]:
        """The mixed embeddings of a batch, their lambda, and whose they are (Eq. 2.4, 2.8)."""
        similarity, positive, negative = self._clean(e, y)
        if mixup.hardest is not None:
            negative = hardest(similarity.detach(), negative, mixup.hardest)
        if mixup.positives is not None:
            positive = drawn(positive, mixup.positives + (pairs == "pos-pos"))  # of one alone there is no pair
        own = torch.arange(len(positive), device=e.device) + (0 if self.anchor == "example" else len(e))
        chosen = mixing(pairs, positive, negative, own)
        lam = self._lambda(mixup, len(chosen.first), e.device)
        return self._f(mixup, images, grid, e, chosen.first, chosen.second, lam), lam, chosen

    def stored(self, mixup: Mixup, pairs: Pair, index: Int64[Tensor, " b"], y: Int64[Tensor, " b"]) -> tuple[Tensor, Tensor, Mixing]:
        """As `mixed`, of the bank: each image of the batch as anyone's positive, or as the anchor, with as many of its partners as are mixed."""
        partners, k = ("positive", None) if pairs == "pos-pos" else ("hardest", mixup.hardest)
        v, lam, first, second = self._of_bank(partners, k, index)
        if self.anchor == "proxy":
            member = torch.arange(len(self.proxies), device=y.device)[:, None] == y[first]
        else:
            itself = torch.arange(len(y), device=y.device)[:, None] == first
            member = itself if pairs == "anc-neg" else (y[:, None] == y[first]) & ~itself
        return v, lam, Mixing(first, second, member, (1.0, float(pairs == "pos-pos")))

    def _of_bank(self, partners: str, k: int | None, index: Int64[Tensor, " b"], *, one: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings of mixed inputs, k or all of each image or `one` drawn, their lambda, which of the batch and which of all they were made of."""
        if partners not in self.banks:
            raise ValueError(f"banks: expected one of partners {partners!r}, found {', '.join(self.banks)}")
        found, device = self.banks[partners], self.labels.device
        if k is not None and k > found.lam.shape[1]:
            raise ValueError(f"hardest: expected at most the {found.lam.shape[1]} partners of each image in the bank, found {k}")
        column = torch.randint(found.lam.shape[1], (len(index), 1)) if one else torch.arange(found.lam.shape[1])[None, :k].expand(len(index), -1)
        seen, lam, partner = (x[index.cpu()[:, None], column].flatten(0, 1).to(device) for x in (found.seen, found.lam, found.partner))
        return self.model(seen), lam, torch.arange(len(index), device=device).repeat_interleave(len(lam) // len(index)), partner

    def unit_proxies(self) -> Float[Tensor, "c d"]:
        return F.normalize(self.proxies, dim=1)

    def _f(self, mixup: Mixup, images, grid, e, first, second, lam) -> Float[Tensor, "m d"]:
        """f_lambda (Eq. 2.4)."""
        if mixup.kind == "input":
            return self.model(mix(images[first], images[second], lam)) if len(first) else e[:0]
        if mixup.kind == "feature":
            return self.model.embed(mix(grid[first], grid[second], lam)) if len(first) else e[:0]
        sources = e if self.anchor == "example" else torch.cat([e, self.unit_proxies()])
        v = mix(sources[first], sources[second], lam)
        return F.normalize(v, dim=1) if mixup.renormalise else v

    def _clean(self, e: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Similarities of the anchors to what they are compared with, and which of these are positives and negatives."""
        if self.anchor == "example" == self.other:
            same = y[:, None] == y[None]
            return _products(e, e), same & ~torch.eye(len(y), dtype=torch.bool, device=y.device), ~same
        same = y[:, None] == torch.arange(len(self.proxies) // self.centres, device=y.device)
        similarity = self._to_proxies(e)
        return (similarity, same, ~same) if self.other == "proxy" else (similarity.T, same.T, ~same.T)

    def _to_proxies(self, e: Tensor) -> Float[Tensor, "b c"]:
        similarity = _products(e, self.unit_proxies()).unflatten(1, (-1, self.centres))
        return losses.centre_similarity(similarity) if self.centres > 1 else similarity[:, :, 0]

    def _mixed_anchors(self, mixup: Mixup, index, images, grid, e, y) -> Float[Tensor, ""]:
        """Mixed examples as anchors, against proxies or clean examples, whose labels are those of the two sources mixed."""
        apart, alone = y[:, None] != y[None], mixup.anchor == "mixed"  # i-Mix: each with one of another class
        if mixup.kind == "input" and self.banks:
            v, lam, first, second = self._of_bank("negative" if alone else "hardest", None if alone else mixup.hardest, index, one=alone)
            own, other = y[first], self.labels[second]
        else:
            near = drawn(apart, 1) if alone else apart if mixup.hardest is None else hardest(_products(e, e).detach(), apart, mixup.hardest)
            first, second = near.nonzero(as_tuple=True)
            lam = self._lambda(mixup, len(first), e.device)
            v = self._f(mixup, images, grid, e, first, second, lam)
            own, other = y[first], y[second]
        classes = torch.arange(len(self.proxies) // self.centres, device=y.device) if self.other == "proxy" else y
        label = mix(*((of[:, None] == classes).to(v) for of in (own, other)), lam)
        return self.loss(self._to_proxies(v) if self.other == "proxy" else _products(v, e), label, 1 - label).mean()

    def _synthesised(self, e: Tensor, y: Tensor) -> Float[Tensor, ""]:
        """Proxy Synthesis: the loss on the batch and as many mixed examples, each a class of its own with a mixed proxy."""
        second = torch.randperm(len(y), device=y.device)
        first = (y != y[second]).nonzero()[:, 0]
        second = second[first]
        lam = self._lambda(self.mixups[0] if self.mixups else Mixup(), len(first), e.device)
        proxies = self.unit_proxies()
        e = torch.cat([e, F.normalize(mix(e[first], e[second], lam), dim=1)])
        new = torch.arange(len(first), device=y.device) + len(proxies)
        proxies = torch.cat([proxies, F.normalize(mix(proxies[y[first]], proxies[y[second]], lam), dim=1)])
        same = torch.arange(len(proxies), device=y.device)[:, None] == torch.cat([y, new])
        return self.loss(_products(proxies, e), same, ~same).mean()

    def _lambda(self, mixup: Mixup, m: int, device: torch.device) -> Float[Tensor, " m"]:
        return (mixup.largest * torch.distributions.Beta(mixup.alpha, mixup.alpha).sample((m,))).to(device)


def _products(x: Float[Tensor, "q d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "q m"]:
    """Inner products in float32 whatever autocast says: a loss multiplies their errors by its beta and gamma, up to 75."""
    with torch.autocast(x.device.type, enabled=False):
        return x.float() @ y.float().T


def acts_as_positive(
    loss: losses.PairLoss, similarity: Float[Tensor, "q m"], positive: Float[Tensor, "q m"], negative: Float[Tensor, "q m"]
) -> Bool[Tensor, "q m"]:
    """Pos(a, v): the loss does not rise with the similarity (Eq. 2.14, 2.16), measured by differentiating it."""
    s = similarity.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(loss(s, positive, negative).sum(), s)
    return slope <= 0


def positivity_bound(lam: float, beta: float = 18.0, gamma: float = 75.0, margin: float = 0.77) -> float:
    """The similarity up to which one mixed example acts as a positive under multi-similarity (Eq. 2.22)."""
    if not 0 < lam < 1:
        raise ValueError(f"lam: expected 0 < lambda < 1, found {lam}")
    return math.log(lam / (1 - lam)) / (beta + gamma) + margin
