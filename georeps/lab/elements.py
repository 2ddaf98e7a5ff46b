"""Page elements, plain HTML and no network: an image weighed against a word, and where on Earth an image could be.

    slider     pick an image, type a word, weigh one against the other;  score = (1 - w) image + w text, both ready, between 0 and 1
    worldmap   click an image of a place and see a model's density on the world, shown by the share of its mass that lies where it is as dense
"""  # fmt: skip

import base64
import html
import io
import json
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from georeps.core import sphere
from georeps.worlds import earth

SLIDER = """
<div class="georeps-slider" id="{id}">
<p>Pick an image: <span class="pick"></span></p>
<p><label>and type a word: <input class="word" list="{id}-words" value="{first}" size="22"></label>
<datalist id="{id}-words">{options}</datalist> <span class="note"></span></p>
<p><label>weight of the text <input class="weight" type="range" min="0" max="1" step="0.05" value="0.5" style="width:16em"></label>
<output class="shown">0.50</output></p>
<p class="found"></p>
<script>
(function () {{
  const at = document.getElementById("{id}"), data = {data};
  const numbers = t => {{ const b = atob(t), v = new Float32Array(b.length / 2);
    for (let i = 0; i < v.length; i++) v[i] = (b.charCodeAt(2 * i) + 256 * b.charCodeAt(2 * i + 1)) / 65535; return v; }};
  const image = data.image.map(numbers), text = data.text.map(numbers);
  const picture = i => {{ const e = document.createElement("img"); e.alt = "tile " + i; e.src = "data:image/jpeg;base64," + data.tiles[i];
    e.style.cssText = "width:64px;height:64px;margin:2px;border:3px solid transparent"; return e; }};
  let asked = 0;
  const show = () => {{
    const word = data.words.indexOf(at.querySelector(".word").value.trim()), w = +at.querySelector(".weight").value;
    at.querySelector(".note").textContent = word < 0 ? "not among the " + data.words.length + " words of this page" : "";
    at.querySelector(".shown").textContent = w.toFixed(2);
    const s = data.tiles.map((_, i) => (1 - w) * image[asked][i] + (word < 0 ? 0 : w * text[word][i]));
    const order = s.map((_, i) => i).sort((a, b) => s[b] - s[a] || a - b).slice(0, 12);
    at.querySelector(".found").replaceChildren(...order.map(picture));
    at.querySelectorAll(".pick img").forEach((e, i) => e.style.borderColor = i === asked ? "#e08214" : "transparent");
  }};
  data.asked.forEach((tile, i) => {{ const e = picture(tile); e.style.cursor = "pointer"; e.alt = "query " + (i + 1);
    e.onclick = () => {{ asked = i; show(); }}; at.querySelector(".pick").append(e); }});
  at.querySelector(".word").oninput = show; at.querySelector(".weight").oninput = show; show();
}})();
</script></div>
"""


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
    return SLIDER.format(id=name, first=html.escape(words[0]), options=options, data=json.dumps(data).replace("</", "<\\/"))


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


WORLDMAP = """
<div class="georeps-worldmap" id="{id}">
<p>Click an image: <span class="pick"></span></p>
<p><label><input type="checkbox" class="samples" checked> samples</label>
<label><input type="checkbox" class="truth" checked> true place</label></p>
<p class="note"></p>
<canvas width="900" height="450" style="width:100%;max-width:900px;border:1px solid #bbb;background:#fff"></canvas>
<script>
(function () {{
  const at = document.getElementById("{id}"), data = {data}, canvas = at.querySelector("canvas"), pen = canvas.getContext("2d");
  const bytes = t => Uint8Array.from(atob(t), c => c.charCodeAt(0)), shares = data.shares.map(bytes);
  const X = lon => (lon + 180) / 360 * 900, Y = lat => (90 - lat) / 180 * 450;
  let asked = 0;
  const show = () => {{
    pen.clearRect(0, 0, 900, 450);
    const w = 900 / data.columns, h = 450 / data.rows;
    shares[asked].forEach((v, i) => {{ if (v === 255) return;
      const t = 1 - v / 255; pen.fillStyle = `rgba(${{Math.round(255 - 75 * t)}},${{Math.round(235 - 215 * t)}},${{Math.round(170 - 100 * t)}},1)`;
      pen.fillRect(i % data.columns * w, Math.floor(i / data.columns) * h, w + 0.5, h + 0.5); }});
    pen.strokeStyle = "#666"; pen.lineWidth = 0.7;
    data.coasts.forEach(line => {{ pen.beginPath();
      line.forEach((p, i) => i && Math.abs(p[1] - line[i - 1][1]) < 180 ? pen.lineTo(X(p[1]), Y(p[0])) : pen.moveTo(X(p[1]), Y(p[0]))); pen.stroke(); }});
    const dot = (p, r, fill) => {{ pen.beginPath(); pen.arc(X(p[1]), Y(p[0]), r, 0, 7); pen.fillStyle = fill; pen.fill(); }};
    if (at.querySelector(".samples").checked) data.samples[asked].forEach(p => dot(p, 2.2, "#0173b2"));
    if (at.querySelector(".truth").checked) {{ dot(data.truth[asked], 6, "#fff"); dot(data.truth[asked], 4.2, "#029e73"); }}
    at.querySelector(".note").textContent = data.notes[asked];
    at.querySelectorAll(".pick img").forEach((e, i) => e.style.borderColor = i === asked ? "#e08214" : "transparent");
  }};
  data.images.forEach((jpeg, i) => {{ const e = document.createElement("img"); e.src = "data:image/jpeg;base64," + jpeg; e.alt = "image " + (i + 1);
    e.style.cssText = "width:64px;height:64px;margin:2px;border:3px solid transparent;cursor:pointer";
    e.onclick = () => {{ asked = i; show(); }}; at.querySelector(".pick").append(e); }});
  at.querySelector(".samples").onchange = show; at.querySelector(".truth").onchange = show; show();
}})();
</script></div>
"""


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
    coasts = [np.round(line[:: max(1, len(line) // 400)], 1).tolist() for line in earth.outlines("coast") if len(line) > 12]
    data = {
        "images": [jpeg(i) for i in images], "rows": rows, "columns": 2 * rows, "coasts": coasts, "notes": list(notes),
        "shares": [_packed_shares(s) for s in shares(log_density, rows)], "samples": _degrees(samples), "truth": _degrees(truth),
    }  # fmt: skip
    return WORLDMAP.format(id=html.escape(name), data=json.dumps(data).replace("</", "<\\/"))


def _packed_shares(row: Float[Tensor, " g"]) -> str:
    """A byte a cell: 0 at the peak, 254 at a share of 0.99, 255 beyond."""
    scaled = torch.where(row > 0.99, torch.tensor(255.0), row / 0.99 * 254)
    return base64.b64encode(scaled.round().to(torch.uint8).numpy().tobytes()).decode()


def _degrees(x: Float[Tensor, "*b 3"]) -> list:
    return np.round(sphere.to_latlon(x).double().numpy(), 2).tolist()
