"""ProGEO (Mao et al., 2024): texts learnt for geographic classes, then an image encoder trained with them. CosPlace's classes, CLIP-ReID's stages.

    class = (zone, floor(east / M), floor(north / M), floor(heading / alpha));   group = its last three modulo N, N, L
    stage 1   min over t   L_i2t + L_t2i          encoders frozen; text of a class: "A photo of a t1 t2 t3 t4 street."
    stage 2   min          CE(CosFace(f), y) + CE(f g(t)', y; smoothed) + w Triplet(f, y)         texts g(t) frozen

Two classes of a group lie at least M (N - 1) metres or alpha (L - 1) degrees apart: each group has a classifier of its own, so that nobody learns to
tell neighbours apart.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from georeps.nets import encoders, losses, pooling, prompts, towers

PROMPT = "A photo of a {} street."


@dataclass(frozen=True)
class Classes:
    """n of the images, in classes 0..c-1 of groups 0..: `rows[i]` is an image's number, `labels[i]` its class."""

    rows: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    group: Int64[Tensor, " c"]
    corner: Float64[Tensor, "c 3"]  # of a class: east and north in metres, heading in degrees, the least of each; NaN without headings
    zone: list[str]  # of a class: UTM zone and hemisphere, "10N"; "" where names say none

    @property
    def groups(self) -> int:
        return int(self.group.max()) + 1

    def of_group(self, number: int) -> Int64[Tensor, " m"]:
        """Positions in `rows` of the images of a group."""
        return (self.group[self.labels] == number).nonzero()[:, 0]


def geographic(
    position: Float64[Tensor, "n 2"], heading: Float64[Tensor, " n"], zone: Sequence[str] | None = None, *, M: float = 10.0,
    alpha: float | None = 30.0, N: int = 5, L: int = 2, least: int = 10, groups: int = 8, first: int = 0,
) -> Classes:  # fmt: skip
    """Classes of `M` metres and `alpha` degrees with at least so many images, in `groups` groups: those from number `first` on, of a fixed shuffle.

    UTM zones are kept apart, which published code forgets; their letters are bands of one system but for the equator. `alpha` None takes views of
    every heading as one class (and L as 1): for images without headings. Raises ValueError where a heading is missing, where there are too few
    classes or groups, or where alpha L does not divide the circle, so that classes on both sides of north would be neighbours in a group.
    """
    if M <= 0 or N < 1 or L < 1 or groups < 1 or (alpha is not None and not 0 < alpha <= 360):
        raise ValueError(f"M, alpha, N, L, groups: expected M > 0, 0 < alpha <= 360, the others >= 1, found {M}, {alpha}, {N}, {L}, {groups}")
    if alpha is not None and L > 1 and 360 % (alpha * L):
        raise ValueError(f"alpha, L: expected alpha L to divide 360 degrees, found {alpha:g} and {L}")
    if alpha is not None and bool(heading.isnan().any()):
        raise ValueError(f"heading: expected degrees of every image or alpha=None, found none of image {int(heading.isnan().nonzero()[0])}")
    turn = torch.zeros(len(position)) if alpha is None else heading % 360 // alpha
    grids = [z[:-1] + ("N" if z[-1] >= "N" else "S") if z else "" for z in zone or [""] * len(position)]
    names = sorted(set(grids))
    number_of = {name: i for i, name in enumerate(names)}
    where = torch.tensor([number_of[z] for z in grids])
    key = torch.stack([where.double(), *(position // M).unbind(1), turn.double()], dim=1).long()
    cells, label, count = key.unique(dim=0, return_inverse=True, return_counts=True)
    kept = count >= least
    found = (cells[:, 1:] % torch.tensor([N, N, 1 if alpha is None else L]))[kept]
    numbers, group = found.unique(dim=0, return_inverse=True)
    if len(numbers) < groups:
        most = int(count.max()) if len(count) else 0
        raise ValueError(f"groups: expected at least {groups} groups of classes of {least} or more images, found {len(numbers)} (the largest class has {most})")
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0)).roll(-first)[:groups]
    place = torch.full((len(numbers),), -1)
    place[order] = torch.arange(groups)
    used = kept.nonzero()[:, 0][place[group] >= 0]
    number = torch.full((len(cells),), -1)
    number[used] = torch.arange(len(used))
    rows = (number[label] >= 0).nonzero()[:, 0]
    corner = cells[used, 1:].double() * torch.tensor([M, M, math.nan if alpha is None else alpha], dtype=torch.float64)
    return Classes(rows, number[label][rows], place[group][place[group] >= 0], corner, [names[int(i)] for i in cells[used, 0]])


class Prompts(nn.Module):
    """`tokens` learnable vectors for each class in the gap of one frozen text: classes "b" -> features "b d", not normalised.

    Nothing is shared between classes. The vectors start normal with deviation 0.02, as published.
    """

    def __init__(self, prompt: prompts.Prompt, classes: int, *, tokens: int = 4):
        super().__init__()
        self.prompt, self.words = prompt, nn.Parameter(0.02 * torch.randn(classes, tokens, prompt.before.shape[1]))

    def forward(self, classes: Int64[Tensor, " b"]) -> Float[Tensor, "b d"]:
        return self.prompt(self.words[classes])


@torch.no_grad()
def nearest_words(vectors: Float[Tensor, "c t w"], vocabulary: Float[Tensor, "v w"]) -> tuple[Int64[Tensor, "c t"], Float[Tensor, "c t"]]:
    """The row of the vocabulary's embeddings nearest to each vector by cosine, and the cosine."""
    words = F.normalize(vocabulary, dim=1).T
    near = [(F.normalize(part, dim=2) @ words).max(dim=2) for part in vectors.split(256)]
    return torch.cat([n.indices for n in near]), torch.cat([n.values for n in near])


def logits(image: Float[Tensor, "b d"], text: Float[Tensor, "c d"], scale: float | None) -> Float[Tensor, "b c"]:
    """Cosines times `scale`, as CLIP compares; None: inner products of the features as they are, ProGEO's published code."""
    if scale is None:
        return image @ text.T
    return scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T


@torch.no_grad()
def own_is_nearest(
    features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], of_class: Float[Tensor, "c d"], group: Int64[Tensor, " c"]
) -> Bool[Tensor, " n"]:
    """Whether of all rows of `of_class` in an image's group that of its own class is nearest to it by cosine."""
    found = []
    for x, y in zip(features.split(4096), labels.split(4096), strict=True):
        cosine = logits(x, of_class, 1.0).masked_fill(group[y][:, None] != group[None], -math.inf)
        found.append(cosine.argmax(dim=1) == y)
    return torch.cat(found)


class PromptLearning(nn.Module):
    """Stage 1: positions in `classes.rows` -> L_i2t + L_t2i between fixed image features and the texts of their classes."""

    def __init__(self, learner: Prompts, features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], *, scale: float | None):
        super().__init__()
        self.learner, self.scale = learner, scale
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        index = index.to(self.labels.device)
        y = self.labels[index]
        distinct, place = y.unique(return_inverse=True)  # a text is encoded once, however many images share it
        found = logits(self.features[index], self.learner(distinct)[place], self.scale)
        same = y[:, None] == y
        return losses.supervised_contrastive(found, same) + losses.supervised_contrastive(found.T, same)


class Encoder(nn.Module):
    """A descriptor network: image "b 3 h w" in [0, 1] -> unit rows "b d".

    `stem` stays as it is, so that what it gives for an image can be stored; `tail` and `head` learn. Published: statistics of batches move in every layer,
    here in none; CLS tokens are not normalised; images are normalised by ImageNet's moments.
    """

    def __init__(self, stem: nn.Module, tail: nn.Module, head: nn.Module):
        super().__init__()
        self.stem, self.tail, self.head = stem.requires_grad_(False), tail, head
        self.train()

    def train(self, mode: bool = True) -> "Encoder":
        super().train(mode)
        self.stem.eval()
        return self

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return self.trained(self.stem(image))

    def trained(self, x: Tensor) -> Float[Tensor, "b d"]:
        """The descriptor from what the stem gave."""
        return F.normalize(self.head(self.tail(x.float())), dim=1)

    @torch.no_grad()
    def whiten(self, x: Tensor, target: Float[Tensor, "n d"], *, batch: int = 256) -> None:
        """Start a linear head as PCA whitening of pooled features, turned towards `target`, given what the stem gave for n images.

        Published: a random head, and hundreds of thousands of steps. Distances do not change by the turn; with CLIP's own features as `target` texts are
        comparable from the start. Axes that hold next to nothing are left out.
        """
        if not isinstance(self.head, _GeMHead):
            raise ValueError("encoder: expected a convolutional tower, found a ViT, whose head is CLIP's own")
        pooled = torch.cat([self.head.pooled(self.tail(part.float())) for part in x.split(batch)])
        if len(pooled) <= pooled.shape[1]:
            raise ValueError(f"x: expected more than {pooled.shape[1]} images to whiten as many channels, found {len(pooled)}")
        mean, weight = pooled.mean(dim=0), self.head.project.weight
        _, deviation, axes = torch.linalg.svd(pooled - mean, full_matrices=False)
        kept = (deviation > 1e-3 * deviation[0]).nonzero()[:, 0][: len(weight)]
        axes = axes[kept] * (len(pooled) ** 0.5 / deviation[kept, None])
        white = F.normalize((pooled - mean) @ axes.T, dim=1)
        u, _, v = torch.linalg.svd(white.T @ F.normalize(target - target.mean(dim=0), dim=1), full_matrices=False)
        weight.copy_((u @ v).T @ axes)
        self.head.project.bias.copy_(-weight @ mean)


def of_tower(tower: towers.Image, *, depth: int, dim: int, stride: int = 16) -> Encoder:
    """The last `depth` stages of a tower up to a stride as the tail, none for 0, with a GeM head of both signs: its maps are not rectified."""
    stem, tail = tower.split(max(1, depth), stride)
    stem, tail = (stem, tail) if depth else (nn.Sequential(stem, tail), [])
    return Encoder(stem, towers.Frozen(*tail, _Signs()), _GeMHead(2 * tower.channels[stride], dim))


def of_clip(visual: nn.Module, *, depth: int, dim: int, mean: Sequence[float], std: Sequence[float], size: int | None = None) -> Encoder:
    """A copy of an open_clip image tower of whose stages the last `depth` learn: a ResNet's stem and four layers, or a ViT's embedding and blocks.

    A ResNet ends in a GeM head in place of attention pooling, and images may be of any size. A ViT ends in its projected CLS token, `dim` the tower's
    own; `size` resamples its positions for images of that side.
    """
    from torchvision.transforms import v2

    visual = copy.deepcopy(visual)
    if hasattr(visual, "layer4"):
        first = nn.Sequential(*(getattr(visual, f"{name}{i}") for i in (1, 2, 3) for name in ("conv", "bn", "act")), visual.avgpool)
        stages = [first, *(getattr(visual, f"layer{i}") for i in (1, 2, 3, 4))]
        head = _GeMHead(visual.attnpool.q_proj.in_features, dim)
    else:
        stages, head = [_Tokens(visual, size), *visual.transformer.resblocks], _ClassHead(visual, dim)
    if not 0 <= depth <= len(stages):
        raise ValueError(f"depth: expected 0..{len(stages)} stages of the tower, found {depth}")
    cut = len(stages) - depth
    return Encoder(nn.Sequential(v2.Normalize(mean, std), *stages[:cut]), towers.Frozen(*stages[cut:]).requires_grad_(True), head)


class _Signs(nn.Module):
    """Positive and negative parts as channels of their own, for GeM takes what is below 0 as 0."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2*c h w"]:
        return torch.cat([x, -x], dim=1)


class _GeMHead(nn.Module):
    """L2 along the channels, GeM, linear."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.pool, self.project = pooling.GeM(channels), nn.Linear(channels, dim)

    def pooled(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        return self.pool(F.normalize(x, dim=1)).vector

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.project(self.pooled(x))


class _Tokens(nn.Module):
    """A ViT's image -> tokens."""

    def __init__(self, visual: nn.Module, size: int | None):
        super().__init__()
        self.conv, self.norm, self.first = visual.conv1, visual.ln_pre, visual.class_embedding
        position = visual.positional_embedding.detach()
        if size is not None:
            side, new = math.isqrt(len(position) - 1), size // visual.conv1.stride[0]
            grid = position[1:].T.reshape(1, -1, side, side)
            grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=True)  # as published
            position = torch.cat([position[:1], grid.flatten(2)[0].T])
        self.position = nn.Parameter(position.clone())

    def forward(self, image: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b n w"]:
        x = self.conv(image).flatten(2).transpose(1, 2)
        return self.norm(torch.cat([self.first.expand(len(x), 1, -1), x], dim=1) + self.position)


class _ClassHead(nn.Module):
    """The CLS token, normalised and projected as CLIP does."""

    def __init__(self, visual: nn.Module, dim: int):
        super().__init__()
        self.norm, self.project = visual.ln_post, visual.proj
        if self.project.shape[1] != dim:
            raise ValueError(f"dim: expected the tower's own {self.project.shape[1]}, found {dim}")

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b d"]:
        return self.norm(x[:, 0]) @ self.project


class Guided(nn.Module):
    """Stage 2: positions in `classes.rows`, all of one group -> the loss of the image encoder.

    `inputs(index)` gives what the encoder's stem made of the images, or uint8 images, which `augment` makes floats in [0, 1]. `text` holds the frozen
    features of every class; without it CosFace alone is left, which is CosPlace. `triplet` weighs `losses.weighted_triplet` and needs several images of
    a class in a batch. Published: weight 32, the batch size, with one image a class, and so no positives. `speed` is the rate of the classifiers, times the
    network's: their rows only count by direction, so they start shorter by that.
    """

    def __init__(
        self, encoder: Encoder, classes: Classes, inputs: Callable[[Int64[Tensor, " b"]], Tensor], *, dim: int,
        augment: Callable[[Tensor], Tensor] = encoders.scale, text: Float[Tensor, "c d"] | None = None, scale: float | None = None, smoothing: float = 0.1,
        triplet: float = 0.0, margin: float = 0.4, cosface_scale: float = 30.0, speed: float = 10.0,
    ):  # fmt: skip
        super().__init__()
        if text is not None and text.shape[1] != dim:
            raise ValueError(f"dim: expected the texts' {text.shape[1]}, found {dim}: a descriptor is compared with them")
        self.encoder, self.inputs, self.augment = encoder, inputs, augment
        self.scale, self.smoothing, self.triplet, self.margin, self.cosface_scale = scale, smoothing, triplet, margin, cosface_scale
        self.members = [(classes.group == g).nonzero()[:, 0] for g in range(classes.groups)]
        within = torch.empty_like(classes.group)
        for own in self.members:
            within[own] = torch.arange(len(own))
        self.classifiers = nn.ParameterList(F.normalize(torch.randn(len(own), dim), dim=1) / speed for own in self.members)
        for name, value in (("labels", classes.labels), ("group", classes.group), ("within", within), ("text", text)):
            self.register_buffer(name, value, persistent=False)

    def describe(self, index: Int64[Tensor, " b"], augment: Callable[[Tensor], Tensor]) -> Float[Tensor, "b d"]:
        """Descriptors of images by number."""
        x = self.inputs(index).to(self.labels.device, non_blocking=True)
        return self.encoder(augment(x)) if x.dtype == torch.uint8 else self.encoder.trained(x)

    @torch.no_grad()
    def imprint(self, *, batch: int = 256) -> None:
        """Start each class's row of its classifier as the mean descriptor of its images, not augmented (Qi et al., 2018).

        From random rows the first steps only pull all descriptors together, and short trainings never recover.
        """
        features = torch.cat([self.describe(index, encoders.scale) for index in torch.arange(len(self.labels)).split(batch)])
        total = torch.zeros(len(self.within), features.shape[1], device=features.device).index_add_(0, self.labels, features.float())
        for rows, own in zip(self.classifiers, self.members, strict=True):
            rows.copy_(F.normalize(total[own.to(total.device)], dim=1) * rows.norm(dim=1, keepdim=True))

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        label = self.labels[index.to(self.labels.device)]
        number = int(self.group[label[0]])
        if bool((self.group[label] != number).any()):
            raise ValueError(f"index: expected images of one group, found groups {self.group[label].unique().tolist()}")
        feature, target = self.describe(index, self.augment), self.within[label]
        cosine = feature @ F.normalize(self.classifiers[number], dim=1).T
        loss = F.cross_entropy(losses.cosface(cosine, target, margin=self.margin, scale=self.cosface_scale), target)
        if self.text is not None:
            found = logits(feature, self.text[self.members[number].to(feature.device)], self.scale)
            loss = loss + F.cross_entropy(found, target, label_smoothing=self.smoothing)
        return loss + self.triplet * losses.weighted_triplet(feature, label) if self.triplet else loss


class Augmentation:
    """CosPlace's augmentation, an image at a time: uint8 "b 3 h w" -> [0, 1] of the same size. Nothing is mirrored: a mirrored street is another one."""

    def __init__(self, *, jitter: float = 0.7, hue: float = 0.5, crop: float = 0.5):
        from torchvision.transforms import v2

        jitter = v2.ColorJitter(jitter, jitter, jitter, hue)
        self.change = lambda size: v2.Compose([jitter, v2.RandomResizedCrop(size, scale=(crop, 1.0), antialias=True)])

    def __call__(self, images: Tensor) -> Float[Tensor, "b 3 h w"]:
        change = self.change(tuple(images.shape[-2:]))
        return torch.stack([change(image) for image in images.float() / 255])
