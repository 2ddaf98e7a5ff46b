"""Locators of the embedded Earth: a trunk that no label taught, frozen, and `geolocation.Locator`s trained on its features.

    trunk      told neighbouring crops of one window from crops of others (Tile2Vec, Jean et al., 2019, with InfoNCE), on training ground only
    features   means and deviations of the trunk's maps at every scale, frozen ever after (the role of StreetCLIP and DINOv2 in the paper)
"""  # fmt: skip

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from georeps.core import cache
from georeps.lab import trained
from georeps.nets import encoders, train
from georeps.papers import geolocation
from georeps.tasks import places
from georeps.worlds import earth


class Scales(nn.Module):
    """A trunk read at every scale: image "b c h w" in [0, 1] -> means and deviations over space of the maps before each pooling, "b d"."""

    def __init__(self, trunk: encoders.VGG16):
        super().__init__()
        self.trunk = trunk

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        h, found = (image - self.trunk.mean) / self.trunk.std, []
        for layer in self.trunk.features:
            if isinstance(layer, nn.MaxPool2d):
                found += [h.mean(dim=(2, 3)), h.flatten(2).std(dim=2)]
            h = layer(h)
        return torch.cat(found, dim=1)


class Neighbours(nn.Module):
    """A step of self-supervision: indices of windows "n c 2s 2s" -> symmetric InfoNCE between two crops "s s" of each.

    Crops of one window are at most `shift` pixels apart along either axis and share ground; crops of other windows are the negatives.
    """

    def __init__(self, encoder: nn.Module, dim: int, windows: UInt8[Tensor, "n c h w"], *, shift: int, temperature: float):
        super().__init__()
        self.encoder, self.windows, self.shift, self.temperature = encoder, windows, shift, temperature
        self.head = nn.Sequential(nn.Linear(dim, 256), nn.ReLU(), nn.Linear(256, 128))

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        device = self.head[0].weight.device
        whole, size = self.windows[index].to(device).float() / 255, self.windows.shape[-1] // 2
        first = torch.randint(size + 1, (2,))
        second = (first + torch.randint(-self.shift, self.shift + 1, (2,))).clamp(0, size)
        crops = [whole[..., y : y + size, x : x + size] for y, x in (first.tolist(), second.tolist())]
        a, b = F.normalize(self.head(self.encoder(torch.cat(crops))), dim=1).chunk(2)
        scores, match = a @ b.T / self.temperature, torch.arange(len(index), device=device)
        return (F.cross_entropy(scores, match) + F.cross_entropy(scores.T, match)) / 2


def encoder(
    split: Literal["blocks", "cross"], *, width: float, epochs: int, layers: Sequence[str] = places.LAYERS, n: int | None = None, spacing_km: float = 60.0,
    shift: int = 8, temperature: float = 0.05, batch: int = 256, lr: float = 4e-3, seed: int = 0, device: str = "cpu",
) -> Scales:  # fmt: skip
    """The frozen encoder of a split: trained on windows of twice a patch's extent, none of which meets a test or validation patch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = Scales(encoders.VGG16(width=width, blocks=3, channels=3 * len(layers)))
        head_dim = 2 * sum(round(c * width) for c in (64, 128, 256))
    where, windows = places.patches(split, "train", layers, n=n, size=2 * places.SIZE, extent_km=2 * places.EXTENT_KM, spacing_km=spacing_km, seed=seed)
    unseen = [earth.places(split=split, part=part, extent_km=places.EXTENT_KM).latlon for part in earth.PARTS[split][1:]]
    windows = windows[~earth.overlaps(where.latlon, torch.cat(unseen), extent_km=1.55 * places.EXTENT_KM)]  # half a window and half a patch, and some more
    found.trunk.normalise_by(windows)
    recipe = train.Recipe(epochs=epochs, lr=lr, optimizer="adamw", weight_decay=0.05, schedule="cosine", warmup=min(0.5, epochs / 4), seed=seed)
    key = {
        "windows": cache.digest(windows), "width": width, "shift": shift, "temperature": temperature, "device": device.split(":")[0],
    }  # fmt: skip

    def step() -> nn.Module:
        return Neighbours(found.to(device), head_dim, windows, shift=shift, temperature=temperature).to(device)

    found.load_state_dict(trained.once(
        "trunk-places", step, lambda step: step.encoder, n=len(windows), batch=batch, recipe=recipe, key=key, code=__name__, label="trunk of places",
    ))  # fmt: skip
    return found.to(device).eval().requires_grad_(False)


def locator(
    kind: geolocation.Kind, features: Float[Tensor, "n d"], x: Float[Tensor, "n 3"], *, recipe: train.Recipe, batch: int = 256,
    dim: int = 128, depth: int = 4, k: int = 16, dropout: float = 0.0, device: str = "cpu",
) -> geolocation.Locator:  # fmt: skip
    """A trained `geolocation.Locator`, started and trained by the recipe's seed."""
    shape = {"dim": dim, "depth": depth, "k": k, "dropout": dropout}
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        found = geolocation.Locator(kind, features, **shape).to(device)
    key = {"data": cache.digest(features, x), "kind": kind, "shape": shape, "device": device.split(":")[0]}
    found.load_state_dict(trained.once(
        "locator", lambda: geolocation.Lesson(found, features, x), lambda step: step.locator, n=len(x), batch=batch, recipe=recipe, key=key,
        code=__name__, label=kind,
    ))  # fmt: skip
    return found.eval().requires_grad_(False)
