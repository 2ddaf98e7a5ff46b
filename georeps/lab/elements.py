"""Page elements, plain HTML and no network: an image weighed against a word, and where on Earth an image could be.

    slider     pick an image, type a word, weigh one against the other;  score = (1 - w) image + w text, both ready, between 0 and 1
    worldmap   click an image of a place and see a model's density on the world, shown by the share of its mass that lies where it is as dense
"""  # fmt: skip

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from georeps.core import sphere
from georeps.worlds import earth


def slider(
    tiles: UInt8[Tensor, "n 3 s s"], asked: Sequence[int], image: Float[Tensor, "a n"], words: Sequence[str], text: Float[Tensor, "w n"], *, name: str = "weigh"
) -> str:
    """The element as HTML: `asked` are the tiles to pick from, `image` and `text` their and the words' scores of every tile, in 0..1."""
    for side, scores, rows in (("image", image, len(asked)), ("text", text, len(words))):
        if scores.shape != (rows, len(tiles)) or not 0 <= float(scores.min()) <= float(scores.max()) <= 1:
            raise ValueError(
                f"{side}: expected {rows} x {len(tiles)} scores in 0..1, found {tuple(scores.shape)} in {float(scores.min()):g}..{float(scores.max()):g}"
            )
    data = {
        "tiles": [jpeg(t) for t in tiles], "asked": list(asked), "words": list(words),
        "image": [_packed_scores(row) for row in image], "text": [_packed_scores(row) for row in text],
    }  # fmt: skip
    options = "".join(f'<option value="{html.escape(w)}">' for w in words)
    return _filled("slider", data, id=name, first=html.escape(words[0]), options=options)


def _filled(element: str, data: dict, **parts: str) -> str:
    """The HTML file of an element beside this one, each __NAME__ in it replaced."""
    page = Path(__file__).with_name(f"{element}.html").read_text(encoding="utf-8")
    for name, value in {**parts, "data": json.dumps(data).replace("</", "<\\/")}.items():
        page = page.replace(f"__{name.upper()}__", value)
    return "\n" + page


def _packed_scores(row: Float[Tensor, " n"]) -> str:
    return base64.b64encode((row.double().numpy() * 65535).round().astype("<u2").tobytes()).decode()


def jpeg(tile: UInt8[Tensor, "3 s s"]) -> str:
    """A tile as base64 text of a JPEG file."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(tile.permute(1, 2, 0).numpy())).save(out, "JPEG", quality=70)
    return base64.b64encode(out.getvalue()).decode()


def sample(n: int, most: int, keep: Sequence[int]) -> list[int]:
    """At most `most` of n positions, evenly spread, those to keep first."""
    spread = torch.linspace(0, n - 1, max(1, min(n, most) - len(keep))).round().long().tolist()
    return list(dict.fromkeys([*keep, *spread]))


def grid(rows: int) -> Float[Tensor, "g 3"]:
    """Centres of the cells of a map of `rows` x 2 `rows` cells, from the north-west corner eastwards."""
    latitude = 90 - (torch.arange(rows) + 0.5) * 180 / rows
    longitude = (torch.arange(2 * rows) + 0.5) * 180 / rows - 180
    return sphere.from_latlon(torch.cartesian_prod(latitude, longitude))


def shares(log_density: Float[Tensor, "a g"], rows: int) -> Float[Tensor, "a g"]:
    """For each cell of `grid` the mass of the cells that are denser, 0 at the peak: 0.9 is the edge of the 90% region."""
    area = torch.deg2rad(90 - (torch.arange(rows) + 0.5) * 180 / rows).cos().repeat_interleave(2 * rows)
    mass = (log_density + area.log()).softmax(1)
    order = log_density.argsort(dim=1, descending=True)
    before = mass.gather(1, order).cumsum(1) - mass.gather(1, order)
    return torch.empty_like(before).scatter_(1, order, before)


def worldmap(
    images: UInt8[Tensor, "a 3 s s"], log_density: Float[Tensor, "a g"], samples: Float[Tensor, "a n 3"], truth: Float[Tensor, "a 3"],
    notes: Sequence[str], *, name: str = "worldmap",
) -> str:  # fmt: skip
    """The element as HTML; `log_density` is on the cells of `grid`, a line of `notes` stands beside the map when its image is chosen."""
    rows = round((log_density.shape[1] / 2) ** 0.5)
    if log_density.shape != (len(images), 2 * rows * rows):
        raise ValueError(f"log_density: expected {len(images)} maps of rows x 2 rows cells, found {tuple(log_density.shape)}")
    if not len(images) == len(samples) == len(truth) == len(notes):
        raise ValueError(f"images, samples, truth, notes: expected as many of each, found {len(images)}, {len(samples)}, {len(truth)}, {len(notes)}")
    coasts = [np.round(line[:: max(1, len(line) // 400)], 1).tolist() for line in earth.outlines() if len(line) > 12]
    data = {
        "images": [jpeg(i) for i in images], "rows": rows, "columns": 2 * rows, "coasts": coasts, "notes": list(notes),
        "shares": [_packed_shares(s) for s in shares(log_density, rows)], "samples": _degrees(samples), "truth": _degrees(truth),
    }  # fmt: skip
    return _filled("worldmap", data, id=html.escape(name))


def _packed_shares(row: Float[Tensor, " g"]) -> str:
    """A byte a cell: 0 at the peak, 254 at a share of 0.99, 255 beyond."""
    scaled = torch.where(row > 0.99, torch.tensor(255.0), row / 0.99 * 254)
    return base64.b64encode(scaled.round().to(torch.uint8).numpy().tobytes()).decode()


def _degrees(x: Float[Tensor, "*b 3"]) -> list:
    return np.round(sphere.to_latlon(x).double().numpy(), 2).tolist()
