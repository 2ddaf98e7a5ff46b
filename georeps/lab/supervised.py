"""A supervised start of a trunk from an embedded world, where chapters 06 and 07 do not stand on a pretrained tower yet."""

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from georeps.core import cache
from georeps.lab import trained
from georeps.nets import backbones, pooling, train
from georeps.worlds import city, earth


def classified(
    trunk: nn.Module, images: UInt8[Tensor, "n 3 h w"], labels: Int64[Tensor, " n"], recipe: train.Recipe, batch: int, *, label: str = ""
) -> trained.Weights:
    """The trunk's weights after supervised classification: the start that stands where the thesis has ImageNet's."""

    def step() -> nn.Module:
        model = backbones.Classifier(trunk, pooling.GAP(trunk.out_dim), int(labels.max()) + 1)
        return backbones.Recognition(model, images, labels, turn=False, flip=False).to(next(trunk.parameters()).device)

    key = {
        "start": cache.digest(*trunk.state_dict().values()), "images": cache.digest(images, labels), "device": next(trunk.parameters()).device.type,
    }  # fmt: skip
    found = trained.once(
        "trunk-supervised", step, lambda step: step.model.trunk, n=len(images), batch=batch, recipe=recipe, key=key, code=__name__, libraries=("torchvision",),
        label=label,
    )  # fmt: skip
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
