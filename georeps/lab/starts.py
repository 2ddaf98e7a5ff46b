"""Stage 1 of the thesis on a pretrained tower: MoCo v2 of its tail on images of one view, and the starts of Table 3.1 that pair such tails.

    found = starts.Starts(images={"sat train": ..., "sat val": ..., "grd": ...}, how=starts.Contrast(recipe), depth=1, stride=16)
    stem, tail = found.trunk("sat train*")      a frozen stem and the tail that stage 1 left behind it
"""  # fmt: skip

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from georeps.core import cache
from georeps.lab import trained
from georeps.nets import towers, train
from georeps.papers import moco
from georeps.tasks import matching, pairs

SETTINGS = {  # Table 3.1: number -> weights of the ground branch, of the satellite branch; / is random, * starts from ImageNet's
    1: ("/", "/"),
    2: ("ImageNet", "ImageNet"),
    3: ("ImageNet", "sat"),
    4: ("ImageNet", "sat train*"),
    5: ("ImageNet", "sat val*"),
    6: ("ImageNet", "sat*"),
    7: ("grd*", "sat*"),
}


@dataclass(frozen=True)
class Contrast:
    """How MoCo v2 is run; the defaults but for the recipe are the thesis's (4.2). Each image has so many augmented `views`, drawn once."""

    recipe: train.Recipe
    batch: int = 128
    queue: int = 16384
    momentum: float = 0.999
    temperature: float = 0.2
    dim: int = 128
    views: int = 4
    crop: float | None = 0.2  # least share of the area that random cropping keeps; None crops nothing
    flip: bool = True
    blur: tuple[float, float] = (0.1, 2.0)  # pixels
    group: int = 1  # images that share the draws of an augmentation

    @classmethod
    def of(cls, parameters: Mapping[str, Any], *, seed: int) -> "Contrast":
        """As the parameter `contrast` of a chapter says, whose names are the recipe's and these."""
        own = {f.name for f in dataclasses.fields(cls)}
        parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}
        recipe = train.Recipe(seed=seed, **{k: v for k, v in parameters.items() if k not in own})
        return cls(recipe, **{k: v for k, v in parameters.items() if k in own})


class Trunk(nn.Module):
    """A trunk on what a frozen stem gives: the tail's maps, standardised by channel as it gave them of `like`."""

    def __init__(self, tail: nn.Module, like: Float[Tensor, "n c h w"]):
        super().__init__()
        self.tail = tail.to(memory_format=torch.channels_last)  # in which depthwise convolutions of small maps take three quarters of the time
        with torch.no_grad():
            maps = torch.cat([tail.cpu()(part.float().cpu()) for part in like.split(256)])
        self.register_buffer("mean", maps.mean(dim=(0, 2, 3), keepdim=True))
        self.register_buffer("std", maps.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-3))
        self.out_dim, self.grid = maps.shape[1], tuple(maps.shape[-2:])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return (self.tail(x.contiguous(memory_format=torch.channels_last)) - self.mean) / self.std


@torch.no_grad()
def augmented(stem: nn.Module, images: UInt8[Tensor, "n 3 h w"], how: Contrast, *, seed: int = 0, device: str = "cpu") -> Float[Tensor, "n v c i j"]:
    """What a frozen stem gives of `how.views` augmented views of each image, float16."""
    augment, views = moco.Augmentation(crop=how.crop, flip=how.flip, blur=how.blur, group=how.group), []
    stem = copy.deepcopy(stem).to(device, memory_format=torch.channels_last)  # a copy, for in this format it rounds otherwise
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(how.views):
            views.append(torch.cat([stem(augment(part.to(device))).half().cpu() for part in images.split(64)]))
    return torch.stack(views, dim=1)


def images_of(learn: pairs.Pairs, judge: pairs.Pairs, *, equal: bool, held: int = 0) -> dict[str, Tensor]:
    """What the terms of Table 3.1 are trained on, from the training and the evaluation part; `equal` takes as many tiles of either.

    The last `held` training pairs are left out: their tiles and panoramas stay unseen by stage 1.
    """
    kept = torch.ones(len(learn.gallery()), dtype=torch.bool)
    kept[learn.positive[len(learn) - held :]] = False
    train_tiles, val_tiles = learn.gallery()[kept], judge.gallery()
    most = min(len(train_tiles), len(val_tiles)) if equal else None
    return {"sat train": train_tiles[:most], "sat val": val_tiles[:most], "grd": torch.cat([learn.ground[: len(learn) - held], judge.ground])}


class Starts:
    """The trunks of Table 3.1 for one world, trained when first asked for.

    `images` holds "grd", "sat train" and "sat val"; "sat" is both. ImageNet's weights are those of the tower (`name`, `weights` as `towers.image` takes
    them), random ones are drawn by `seed`; the last `depth` stages up to `stride` learn, behind a stem of the same weights that stays as it is.
    """

    def __init__(
        self, *, images: Mapping[str, Tensor], how: Contrast, depth: int, stride: int, name: str = "lite0", weights: str | None = None, seed: int = 0,
        device: str = "cpu", label: str = "",
    ):  # fmt: skip
        self.images = {**images, "sat": torch.cat([images["sat train"], images["sat val"]])}
        self.how, self.seed, self.device, self.label = how, seed, device, label
        known, blank = towers.image(name, weights=weights), towers.image(name, seed=seed)
        self.split = {"ImageNet": known.split(depth, stride), "/": blank.split(depth, stride)}
        self.trunk = functools.cache(self._trunk)

    @classmethod
    def of(cls, parameters: Mapping[str, Any], learn: pairs.Pairs, judge: pairs.Pairs, *, equal: bool, seed: int, device: str, label: str = "") -> "Starts":
        """As the parameters of a chapter say: contrast, tower, tower_weights, tail, and n_val, the training pairs that no start has seen."""
        return cls(
            images=images_of(learn, judge, equal=equal, held=parameters["n_val"]), how=Contrast.of(parameters["contrast"], seed=seed), name=parameters["tower"],
            weights=parameters["tower_weights"] or None, seed=seed, device=device, label=label, **parameters["tail"],
        )  # fmt: skip

    def stem(self, term: str, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n c i j"]:
        """What the stem of a term gives of images, stored."""
        network, _ = self.split["ImageNet" if term == "ImageNet" or term.endswith("*") else "/"]
        return towers.stored(network, images, "forward", device=self.device)["forward"].float()

    def _trunk(self, term: str) -> tuple[nn.Module, nn.Module]:
        """The stem and the tail that a term of Table 3.1 names; the tail is shared: copy it before it is trained."""
        if term in self.split:
            return self.split[term]
        name = term.removesuffix("*")
        if name not in self.images:
            raise ValueError(f"term: expected '/', 'ImageNet' or one of {', '.join(self.images)} with or without *, found {term!r}")
        stem, tail = self.split["ImageNet" if term.endswith("*") else "/"]
        return stem, contrasted(stem, tail, self.images[name], self.how, device=self.device, label=f"{self.label} {term}".strip())


def contrasted(stem: nn.Module, tail: nn.Module, images: UInt8[Tensor, "n 3 h w"], how: Contrast, *, device: str = "cpu", label: str = "") -> nn.Module:
    """The tail after MoCo v2 on the images behind a frozen stem; done once for all who ask."""

    def step() -> nn.Module:
        views = augmented(stem, images, how, seed=how.recipe.seed, device=device)
        trunk = Trunk(copy.deepcopy(tail).requires_grad_(True), views[:256, 0])
        options = {k: getattr(how, k) for k in ("dim", "queue", "momentum", "temperature")}
        return moco.MoCo(trunk, moco.of_stored(views), **options).to(device)

    settings = {k: v for k, v in dataclasses.asdict(how).items() if k not in ("recipe", "batch")}
    states = [*stem.state_dict().values(), *tail.state_dict().values()]
    key = {"start": cache.digest(*states), "images": cache.digest(images), "settings": settings, "device": device.split(":")[0]}
    found = trained.once(
        "tail-moco", step, lambda step: step.query.trunk.tail, n=len(images), batch=how.batch, recipe=how.recipe, key=key, code=__name__,
        libraries=("torchvision", "timm"), label=label,
    )  # fmt: skip
    learnt = copy.deepcopy(tail)
    learnt.load_state_dict(found)
    return learnt


def prepare(parameters: Mapping[str, Any], *, device: str = "cpu", terms: Sequence[str] = ("sat*", "grd*")) -> None:
    """Stage 1 of unseen cities for seed 0 of a chapter with these parameters, which then lies stored."""
    world = matching.City.of(parameters, seed=0)
    made = Starts.of(parameters, world.part("cross", "train"), world.part("cross", "test"), equal=True, seed=0, device=device, label="stage 1")
    for term in terms:
        made.trunk(term)
