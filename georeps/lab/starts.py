"""Stage 1 of the thesis: trunks trained on images of one view, and the starts of Table 3.1 that pair them.

    found = starts.Starts(make_trunk, images=starts.images_of(train, test, equal=True), supervised=..., contrast=how)
    found.load(model, setting=6)       both branches of a two-branch model;  found.weights("sat train*") for one
"""  # fmt: skip

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from georeps.core import cache
from georeps.lab import trained
from georeps.nets import backbones, pooling, train
from georeps.papers import crossview, moco
from georeps.tasks import pairs
from georeps.worlds import city, earth

SUPERVISED = "supervised"  # "ImageNet" in the thesis, and here where ImageNet weights are given
SETTINGS = {  # Table 3.1: number -> weights of the ground branch, of the satellite branch; * starts from supervised ones
    1: ("/", "/"),
    2: (SUPERVISED, SUPERVISED),
    3: (SUPERVISED, "sat"),
    4: (SUPERVISED, "sat train*"),
    5: (SUPERVISED, "sat val*"),
    6: (SUPERVISED, "sat*"),
    7: ("grd*", "sat*"),
}


@dataclass(frozen=True)
class Contrast:
    """How MoCo v2 is run; the defaults but for the recipe are the thesis's (4.2)."""

    recipe: train.Recipe
    batch: int = 128
    queue: int = 16384
    momentum: float = 0.999
    temperature: float = 0.2
    dim: int = 128
    crop: float | None = 0.2  # least share of the area that random cropping keeps; None crops nothing
    blur: tuple[float, float] = (0.1, 2.0)  # pixels
    group: int = 1  # images that share the draws of an augmentation

    def step(self, trunk: nn.Module, images: UInt8[Tensor, "n 3 h w"]) -> moco.MoCo:
        """The training step on images in memory, on the trunk's device."""
        device = next(trunk.parameters()).device
        augment = moco.Augmentation(crop=self.crop, blur=self.blur, group=self.group)
        options = {"dim": self.dim, "queue": self.queue, "momentum": self.momentum, "temperature": self.temperature}
        return moco.MoCo(trunk, lambda index: images[index], augment, **options).to(device)


def contrasted(trunk: nn.Module, images: UInt8[Tensor, "n 3 h w"], how: Contrast, *, label: str = "") -> trained.Weights:
    """The trunk's weights after MoCo v2 on the images."""
    settings = {k: v for k, v in dataclasses.asdict(how).items() if k != "recipe"}
    return _trained("trunk-moco", trunk, lambda: how.step(trunk, images), lambda step: step.query.trunk, [images], how.recipe, how.batch, settings, label)


def classified(
    trunk: nn.Module, images: UInt8[Tensor, "n 3 h w"], labels: Int64[Tensor, " n"], recipe: train.Recipe, batch: int, *, label: str = ""
) -> trained.Weights:
    """The trunk's weights after supervised classification: the start that stands where the thesis has ImageNet's."""

    def step() -> nn.Module:
        model = backbones.Classifier(trunk, pooling.GAP(trunk.out_dim), int(labels.max()) + 1)
        return backbones.Recognition(model, images, labels, turn=False, flip=False).to(next(trunk.parameters()).device)

    return _trained("trunk-supervised", trunk, step, lambda step: step.model.trunk, [images, labels], recipe, batch, {}, label)


def _trained(name, trunk, step, part, tensors, recipe, batch, settings, label) -> trained.Weights:
    """A trunk's parameters after a training that is done once."""
    key = {
        "start": cache.digest(*trunk.state_dict().values()), "images": cache.digest(*tensors), "settings": settings,
        "device": next(trunk.parameters()).device.type,
    }  # fmt: skip
    found = trained.once(name, step, part, n=len(tensors[0]), batch=batch, recipe=recipe, key=key, code=__name__, libraries=("torchvision",), label=label)
    return {k: found[k] for k, _ in trunk.named_parameters()}


def load(trunk: nn.Module, weights: trained.Weights | None) -> None:
    """Put weights into a trunk; its normalisation of images stays its own, and None leaves it as it is."""
    if weights is None:
        return
    own = {k: v.shape for k, v in trunk.named_parameters()}
    if own != {k: v.shape for k, v in weights.items()}:
        raise ValueError(f"weights: expected {len(own)} parameters of the trunk's shapes, found {len(weights)} that differ")
    trunk.load_state_dict(weights, strict=False)


def labelled(world: str, *, n: int, size: tuple[int, int], tiles: int, seed: int) -> tuple[UInt8[Tensor, "n 3 h w"], Int64[Tensor, " n"]]:
    """At most n images and classes of an embedded world, to learn a supervised start from: climates of the "earth", or the "city" of a tile."""
    if world == "earth":
        found = earth.pairs(split="cross", part="train", n=n, size=size[0], seed=seed)
        return found.optical, torch.from_numpy(np.unique(found.places.climate, return_inverse=True)[1])
    if world == "city":
        most = len(city.places(split="same", part="train", tiles=tiles))
        where = city.places(split="same", part="train", n=min(n, most), tiles=tiles, seed=seed)
        return city.satellite(where, size=size[0]), where.city
    raise ValueError(f"world: expected 'earth' or 'city', found {world!r}")


def images_of(learn: pairs.Pairs, judge: pairs.Pairs, *, equal: bool) -> dict[str, Tensor]:
    """What the terms of Table 3.1 are trained on, from the training and the evaluation part; `equal` takes as many tiles of either."""
    train_tiles, val_tiles = learn.gallery(), judge.gallery()
    most = min(len(train_tiles), len(val_tiles)) if equal else None
    return {"sat train": train_tiles[:most], "sat val": val_tiles[:most], "grd": torch.cat([learn.ground, judge.ground])}


class Starts:
    """The weights of Table 3.1 for one world, trained when first asked for.

    `trunk(images)` makes an untrained trunk that normalises as these images want. `images` holds "grd", "sat train" and "sat val"; "sat"
    is both. `supervised()` gives the supervised weights (ImageNet's where there are some).
    """

    def __init__(
        self, trunk: Callable[[Tensor], nn.Module], *, images: Mapping[str, Tensor], supervised: Callable[[], trained.Weights], contrast: Contrast,
        label: str = "",
    ):  # fmt: skip
        self.trunk, self.how, self.label = trunk, contrast, label
        self.images = {**images, "sat": torch.cat([images["sat train"], images["sat val"]])}
        self.supervised = functools.cache(supervised)
        self.weights = functools.cache(self._weights)

    def _weights(self, term: str) -> trained.Weights | None:
        """The weights that a term of Table 3.1 names; None for "/"."""
        if term == "/":
            return None
        if term == SUPERVISED:
            return self.supervised()
        name = term.removesuffix("*")
        if name not in self.images:
            raise ValueError(f"term: expected '/', {SUPERVISED!r} or one of {', '.join(self.images)} with or without *, found {term!r}")
        trunk = self.trunk(self.images[name])
        if term.endswith("*"):
            load(trunk, self.supervised())
        return contrasted(trunk, self.images[name], self.how, label=f"{self.label} {term}".strip())

    def load(self, model: crossview.TwoBranch, setting: int) -> None:
        """Start both branches of a model as a setting of Table 3.1 says."""
        if setting not in SETTINGS:
            raise ValueError(f"setting: expected one of Table 3.1, 1..7, found {setting}")
        for branch, term in zip((model.ground, model.satellite), SETTINGS[setting], strict=True):
            load(branch.trunk, self.weights(term))
