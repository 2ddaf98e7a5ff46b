"""Image files on disk, decoded lazily in worker processes; an error names the file."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from georeps.readers import folders

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # what converts to 8-bit RGB without a choice
THREADS = min(16, os.cpu_count() or 1)
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")


def load(path: Path | str, *, size: tuple[int, int] | None = None, rows: tuple[float, float] = (0.0, 1.0)) -> UInt8[Tensor, "3 h w"]:
    """One file as RGB; with `size` = (height, width) in pixels resampled to it by area-aware bilinear filtering.

    `rows` keeps a share of the image's rows, from above: (0.25, 0.75) is the middle half that is used of CVACT's panoramas.

    Raises FileNotFoundError, or ValueError for what no decoder can read to its end; both name the file.
    """
    path = folders.there(Path(path), "an image")
    try:
        with Image.open(path) as image:
            mode, image = image.mode, image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: expected a whole image, found {path.stat().st_size} bytes that fail: {error}") from error
    if mode not in MODES:
        raise ValueError(f"{path}: expected 8 bits a channel ({', '.join(MODES)}), found mode {mode}: scale it first")
    if not 0 <= rows[0] < rows[1] <= 1:
        raise ValueError(f"rows: expected shares of the height, 0 <= first < last <= 1, found {rows}")
    if rows != (0.0, 1.0):
        image = image.crop((0, round(rows[0] * image.height), image.width, round(rows[1] * image.height)))
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Files(Dataset):
    """The images of `paths`, decoded when asked for: item i is "3 h w" uint8 of `size` = (height, width), of `rows` as in `load`.

    A tensor of indices gives the batch of these images, decoded side by side.
    """

    def __init__(self, paths: Sequence[Path | str], size: tuple[int, int] | None, rows: tuple[float, float] = (0.0, 1.0)):
        self.paths, self.size, self.rows = list(paths), size, rows

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int | Tensor) -> UInt8[Tensor, "*b 3 h w"]:
        if isinstance(i, Tensor):
            with ThreadPoolExecutor(THREADS) as pool:
                return torch.stack(list(pool.map(self.read, i.tolist())))
        return self.read(i)

    def read(self, i: int) -> UInt8[Tensor, "3 h w"]:
        return load(self.paths[i], size=self.size, rows=self.rows)


def load_all(paths: Sequence[Path | str], *, size: tuple[int, int], rows: tuple[float, float] = (0.0, 1.0), batch: int = 64) -> UInt8[Tensor, "n 3 h w"]:
    """Every file, in order, decoded by THREADS threads straight into its place."""
    if len(paths) == 0:
        raise ValueError("paths: expected at least one image file, found none")
    files, found = Files(paths, size, rows), torch.empty(len(paths), 3, *size, dtype=torch.uint8)
    for part in tqdm(torch.arange(len(files)).split(batch), desc="decode", unit="batch", mininterval=1.0):
        found[part] = files[part]
    return found


def load_boxes(paths: Sequence[Path | str], boxes: Sequence[tuple[float, float, float, float]], *, size: tuple[int, int]) -> UInt8[Tensor, "n 3 h w"]:
    """A part of each file, (left, top, right, bottom) in its pixels, resampled to `size` = (height, width)."""
    from torchvision.transforms.v2.functional import resize

    found = []
    for path, (left, top, right, bottom) in zip(paths, boxes, strict=True):
        part = load(path)[:, max(0, math.floor(top)) : math.ceil(bottom), max(0, math.floor(left)) : math.ceil(right)]
        if part.numel() == 0:
            raise ValueError(f"{path}: expected a box (left, top, right, bottom) inside the image, found {(left, top, right, bottom)}")
        found.append(resize(part, list(size), antialias=True))
    return torch.stack(found)


def paired(root: Path | str, first: str, second: str) -> tuple[list[Path], list[Path]]:
    """The images of two folders under `root` that show the same places, matched by name without extension, in order.

    Raises FileNotFoundError for a missing or empty folder, ValueError naming every image that has no partner, shares its
    name with another, or is of another format (hidden files are passed over).
    """
    found = [_by_stem(Path(root) / name) for name in (first, second)]
    alone = [str(found[i][stem]) for i in (0, 1) for stem in sorted(set(found[i]) - set(found[1 - i]))]
    if alone:
        raise ValueError(f"{root}: expected pairs of one name, found {len(alone)} images without a partner: {', '.join(alone)}")
    stems = sorted(found[0])
    return [found[0][s] for s in stems], [found[1][s] for s in stems]


def _by_stem(folder: Path) -> dict[str, Path]:
    files = [p for p in sorted(folder.glob("*")) if not p.name.startswith(".")]
    other = [p.name for p in files if p.suffix.lower() not in SUFFIXES]
    stems = [p.stem for p in files]
    doubled = sorted({p.name for p in files if stems.count(p.stem) > 1})
    if not files:
        raise FileNotFoundError(f"{folder}: expected images ({', '.join(SUFFIXES)}), found none")
    if other or doubled:
        wrong = f"other files: {', '.join(other)}" if other else f"one name twice: {', '.join(doubled)}"
        raise ValueError(f"{folder}: expected images ({', '.join(SUFFIXES)}) of different names, found {wrong}")
    return dict(zip(stems, files, strict=True))
