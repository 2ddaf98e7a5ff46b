"""Where was this seen: places, the features of what was seen there and their names, of the embedded Earth or of OSV-5M on disk.

    world = places.world("blocks", "train", n=2000)      patches of the Earth's layers, as the pretrained tower sees them
    world = places.published("/your/osv5m", "train", encode)
"""  # fmt: skip

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from georeps.core import sphere
from georeps.nets import towers
from georeps.readers import images, located
from georeps.worlds import earth

EXTENT_KM, SIZE = 240.0, 64  # of a patch, kilometres and pixels; chapter 01 compares extents
LAYERS = ("optical", "relief")
DIM = 256  # axes that features are reduced to


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
    split: Literal["blocks", "cross"], part: Literal["train", "val", "test"], *, n: int | None = None, layers: Sequence[str] = LAYERS,
    spacing_km: float = 60.0, basis: int = 2000, seed: int = 0, device: str = "cpu",
) -> World:  # fmt: skip
    """Places of a part, their optical patches, and their features, the role of StreetCLIP's in the paper.

    Features are the tower's means and deviations of each layer, on the first DIM principal axes of `basis` training places, unscaled.
    """
    options = {"split": split, "extent_km": EXTENT_KM, "spacing_km": spacing_km}
    where = earth.places(part=part, n=n, seed=seed, **options)
    features = _projected(where, earth.places(part="train", **options), basis, layers, device)
    pixels = earth.patches("optical", where, size=SIZE)
    return World(sphere.from_latlon(where.latlon.double()).float(), features, pixels, earth.admin_names(where.latlon))


def sea(n: int, *, layers: Sequence[str] = LAYERS, basis: int = 2000, seed: int = 0, device: str = "cpu") -> Float[Tensor, "n d"]:
    """Features of n patches without land, on the axes of the `world` of split "blocks"."""
    known = earth.places(split="blocks", part="train", extent_km=EXTENT_KM, spacing_km=60.0)
    latlon = sphere.to_latlon(sphere.fibonacci(8000)).float()
    latlon = latlon[latlon[:, 0].abs() < 60]
    latlon = latlon[earth.land_share(latlon, extent_km=EXTENT_KM) == 0]
    if not 1 <= n <= len(latlon):
        raise ValueError(f"n: expected 1..{len(latlon)} (patches of the lattice without land), found {n}")
    latlon = latlon[torch.randperm(len(latlon), generator=torch.Generator().manual_seed(seed))[:n]]
    return _projected(dataclasses.replace(known, latlon=latlon), known, basis, layers, device)


def _projected(where: earth.Places, known: earth.Places, basis: int, layers: Sequence[str], device: str) -> Float[Tensor, "n d"]:
    """Features on the principal axes of the first `basis` known places."""
    centre, axes = _axes(_seen(dataclasses.replace(known, latlon=known.latlon[:basis]), layers, device))
    return (_seen(where, layers, device) - centre) @ axes


def _seen(where: earth.Places, layers: Sequence[str], device: str) -> Float[Tensor, "n d"]:
    """Means and deviations of the tower's maps of each layer."""
    found = [towers.stored(towers.image(), earth.patches(layer, where, size=SIZE), device=device) for layer in layers]
    return torch.cat([moments[name].float() for moments in found for name in ("mean", "deviation")], dim=1)


def _axes(features: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d e"]]:
    """Mean and leading principal axes, each pointing to where its largest entry is positive."""
    centre = features.mean(0)
    x = (features - centre).double()
    axes = torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, : min(DIM, len(x) - 1)]
    return centre, (axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()).float()


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


def of_files(paths: Sequence[Path], *, size: int = SIZE, device: str = "cpu") -> Float[Tensor, "n d"]:
    """Means and deviations of image files by the tower, each resampled to `size` pixels."""
    found = towers.stored(towers.image(), images.load_all(paths, size=(size, size)), device=device)
    return torch.cat([found[name].float() for name in ("mean", "deviation")], dim=1)
