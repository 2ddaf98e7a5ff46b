"""The Earth as a geolocation task: patches of it, frozen features of a trunk that no label taught, and locators trained on them.

    trunk      told neighbouring crops of one window from crops of others (Tile2Vec, Jean et al., 2019, with InfoNCE), on training ground only
    features   means and deviations of the trunk's maps at every scale, frozen ever after (the role of StreetCLIP and DINOv2 in the paper)

Trained weights are stored by content (`data.cached`): chapters and seeds that ask for the same train them once.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from georeps import adaln, data, encoders, flow, geolocation, sphere, study, train, vmf
from georeps.data import earth, images, located

EXTENT_KM, SIZE = 120.0, 16  # of a patch, about its layers' own resolution
LAYERS = ("optical", "relief")


@dataclass(frozen=True)
class World:
    """Places with the features of what was seen there, the images to be looked at (None: embeddings alone), and their admin names."""

    x: Float[Tensor, "n 3"]
    features: Float[Tensor, "n d"]
    pixels: UInt8[Tensor, "n 3 s s"] | None
    names: dict[str, list[str | None]]  # by level, as `earth.admin_names`

    def __len__(self) -> int:
        return len(self.x)

    def latlon(self) -> Float[Tensor, "n 2"]:
        """Degrees."""
        return sphere.to_latlon(self.x)

    def rows(self, index: Tensor) -> "World":
        """Some of the places; images only where every place has one (a published tree keeps the first 1,000)."""
        names = {level: [values[i] for i in index.tolist()] for level, values in self.names.items()}
        return World(self.x[index], self.features[index], self.pixels[index] if self.pixels is not None and len(self.pixels) == len(self) else None, names)


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

    def forward(self, index: Int64[Tensor, "b"]) -> Float[Tensor, ""]:
        device = self.head[0].weight.device
        whole, size = self.windows[index].to(device).float() / 255, self.windows.shape[-1] // 2
        first = torch.randint(size + 1, (2,))
        second = (first + torch.randint(-self.shift, self.shift + 1, (2,))).clamp(0, size)
        crops = [whole[..., y : y + size, x : x + size] for y, x in (first.tolist(), second.tolist())]
        a, b = F.normalize(self.head(self.encoder(torch.cat(crops))), dim=1).chunk(2)
        scores, match = a @ b.T / self.temperature, torch.arange(len(index), device=device)
        return (F.cross_entropy(scores, match) + F.cross_entropy(scores.T, match)) / 2


def encoder(
    split: Literal["blocks", "cross"], *, width: float, epochs: int, layers: Sequence[str] = LAYERS, n: int | None = None, spacing_km: float = 60.0,
    shift: int = 8, temperature: float = 0.05, batch: int = 256, lr: float = 4e-3, seed: int = 0, device: str = "cpu",
) -> Scales:  # fmt: skip
    """The frozen encoder of a split: trained on windows of twice a patch's extent, none of which meets a test or validation patch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = Scales(encoders.VGG16(width=width, blocks=3, channels=3 * len(layers)))
        head_dim = 2 * sum(round(c * width) for c in (64, 128, 256))
    where, windows = _stacked(split, "train", layers, n=n, size=2 * SIZE, extent_km=2 * EXTENT_KM, spacing_km=spacing_km, seed=seed)
    unseen = [earth.patches(split=split, part=part, size=8, extent_km=EXTENT_KM).places.latlon for part in earth.PARTS[split][1:]]
    windows = windows[~earth.overlaps(where.latlon, torch.cat(unseen), extent_km=1.55 * EXTENT_KM)]  # half a window and half a patch, and some more
    found.trunk.normalise_by(windows)
    recipe = train.Recipe(epochs=epochs, lr=lr, optimizer="adamw", weight_decay=0.05, schedule="cosine", warmup=min(0.5, epochs / 4), seed=seed)
    key = {
        "version": _version(), "windows": _digest([windows]), "width": width, "shift": shift, "temperature": temperature, "batch": batch,
        "recipe": str(recipe), "device": device.split(":")[0],
    }  # fmt: skip

    def build() -> dict[str, np.ndarray]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            step = Neighbours(found.to(device), head_dim, windows, shift=shift, temperature=temperature).to(device)
        batches = train.shuffled(len(windows), min(batch, len(windows)), seed=seed)
        train.fit(step, batches, recipe, out=study.scratch(f"trunk-{_name(key)}"), label="trunk of places")
        return {k: v.detach().cpu().numpy() for k, v in found.state_dict().items()}

    found.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in data.cached("trunk-places", key, build).items()})
    return found.to(device).eval().requires_grad_(False)


def world(
    encode: nn.Module, split: Literal["blocks", "cross"], part: Literal["train", "val", "test"], *, n: int | None = None,
    layers: Sequence[str] = LAYERS, spacing_km: float = 60.0, seed: int = 0,
) -> World:  # fmt: skip
    """Places of a part, their optical patches and their features by the encoder, on CPU."""
    where, seen = _stacked(split, part, layers, n=n, size=SIZE, extent_km=EXTENT_KM, spacing_km=spacing_km, seed=seed)
    features = encoders.describe(encode, seen, batch=512)
    return World(sphere.from_latlon(where.latlon.double()).float(), features, seen[:, :3], earth.admin_names(where.latlon))


def locator(
    kind: geolocation.Kind, features: Float[Tensor, "n d"], x: Float[Tensor, "n 3"], *, recipe: train.Recipe, batch: int = 256,
    dim: int = 128, depth: int = 4, k: int = 16, dropout: float = 0.0, device: str = "cpu",
) -> geolocation.Locator:  # fmt: skip
    """A trained `geolocation.Locator`, started and trained by the recipe's seed."""
    shape = {"dim": dim, "depth": depth, "k": k, "dropout": dropout}
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        found = geolocation.Locator(kind, features, **shape).to(device)
    key = {
        "version": _version(), "data": _digest([features, x]), "kind": kind, "batch": batch, "recipe": dataclasses.asdict(recipe), "shape": shape,
        "device": device.split(":")[0],
    }  # fmt: skip

    def build() -> dict[str, np.ndarray]:
        batches = train.shuffled(len(x), min(batch, len(x)), seed=recipe.seed)
        lesson = geolocation.Lesson(found, features, x)
        fitted = train.fit(lesson, batches, recipe, out=study.scratch(f"locator-{_name(key)}"), label=kind)
        return {k: v.detach().cpu().numpy() for k, v in fitted.module.locator.state_dict().items()}

    found.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in data.cached("locator", key, build).items()})
    return found.eval().requires_grad_(False)


def published(
    root: Path | str, part: Literal["train", "test"], encode: Callable[[list[Path]], Tensor] | None = None, *, embedding: str = "street_clip",
    missing: Literal["error", "drop"] = "error", n: int | None = None, thumbnail: int = 64,
) -> World:  # fmt: skip
    """OSV-5M on disk: its shards of precomputed embeddings where <root>/<part>/*.tar are, else its tree of images, read by `encode`.

    The first n rows (all without n). Thumbnails of the first 1,000 images are kept to be looked at. ValueError where there are only images
    and no `encode`.
    """
    folder = Path(root) / part
    if any(folder.glob("*.tar")):
        found = located.shards(folder, embedding=embedding)
        whole = World(sphere.from_latlon(found.latlon).float(), found.embedding, None, found.labels)
        return whole.rows(torch.arange(min(n or len(whole), len(whole))))
    found = located.osv5m(root, part, missing=missing)
    if encode is None:
        raise ValueError(f"encode: expected what reads images, or shards *.tar with embeddings in {folder}, found neither")
    kept = slice(n)
    files = found.files[kept]
    pixels = images.load_all(files[:1000], size=(thumbnail, thumbnail))
    names = {level: values[kept] for level, values in found.labels.items()}
    return World(sphere.from_latlon(found.latlon[kept]).float(), encode(files), pixels, names)


def of_files(paths: Sequence[Path], encode: nn.Module, *, size: int = SIZE) -> Float[Tensor, "n d"]:
    """Features of image files by an encoder of one layer, each resampled to `size` pixels."""
    return torch.cat([encoders.describe(encode, images.load_all(paths[i : i + 1024], size=(size, size))) for i in range(0, len(paths), 1024)])


def _stacked(
    split: str, part: str, layers: Sequence[str], *, n: int | None, size: int, extent_km: float, spacing_km: float, seed: int
) -> tuple[earth.Places, UInt8[Tensor, "n c s s"]]:
    """Places and their patches, layer upon layer of LAYERS; the world stores them."""
    found = earth.pairs(split=split, part=part, n=n, size=size, extent_km=extent_km, spacing_km=spacing_km, seed=seed)
    return found.places, torch.cat([getattr(found, name) for name in layers], dim=1)


def _name(key: dict) -> str:
    return hashlib.sha256(repr(sorted(key.items())).encode()).hexdigest()[:12]


def _digest(tensors: Sequence[Tensor]) -> str:
    found = hashlib.sha256()
    for x in tensors:
        found.update(str((tuple(x.shape), x.dtype)).encode() + x.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


@functools.cache
def _version() -> str:
    modules = (__file__, adaln.__file__, encoders.__file__, flow.__file__, geolocation.__file__, sphere.__file__, train.__file__, vmf.__file__)
    return hashlib.sha256(repr([Path(m).read_text() for m in modules] + [torch.__version__]).encode()).hexdigest()[:16]
