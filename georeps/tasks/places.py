"""Where was this seen: places, the features of what was seen there and their names, of the embedded Earth or of OSV-5M on disk.

    world = places.world(encode, "blocks", "train", n=2000)      patches of the Earth's layers, described by `encode`
    world = places.published("/your/osv5m", "train", encode)
"""  # fmt: skip

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from georeps.core import sphere
from georeps.nets import encoders
from georeps.readers import images, located
from georeps.worlds import earth

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


def world(
    encode: nn.Module, split: Literal["blocks", "cross"], part: Literal["train", "val", "test"], *, n: int | None = None,
    layers: Sequence[str] = LAYERS, spacing_km: float = 60.0, seed: int = 0,
) -> World:  # fmt: skip
    """Places of a part, their optical patches and their features by the encoder, on CPU."""
    where, seen = patches(split, part, layers, n=n, size=SIZE, extent_km=EXTENT_KM, spacing_km=spacing_km, seed=seed)
    features = encoders.describe(encode, seen, batch=512)
    return World(sphere.from_latlon(where.latlon.double()).float(), features, seen[:, :3], earth.admin_names(where.latlon))


def patches(
    split: str, part: str, layers: Sequence[str], *, n: int | None, size: int, extent_km: float, spacing_km: float, seed: int
) -> tuple[earth.Places, UInt8[Tensor, "n c s s"]]:
    """Places and their patches, layer upon layer of LAYERS; the world stores them."""
    found = earth.pairs(split=split, part=part, n=n, size=size, extent_km=extent_km, spacing_km=spacing_km, seed=seed)
    return found.places, torch.cat([getattr(found, name) for name in layers], dim=1)


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
