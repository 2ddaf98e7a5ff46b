"""A page element: click an image of a place and see on the world map where a model thinks it could be; plain HTML, no network.

The map is equirectangular, coasts of the installed wheel; a density is shown by the share of its mass that lies where it is as dense.
"""

import base64
import html
import json
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from georeps import slider, sphere
from georeps.data import earth

PAGE = """
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


def page(
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
        "images": [slider.jpeg(i) for i in images], "rows": rows, "columns": 2 * rows, "coasts": coasts, "notes": list(notes),
        "shares": [_packed(s) for s in shares(log_density, rows)], "samples": _degrees(samples), "truth": _degrees(truth),
    }  # fmt: skip
    return PAGE.format(id=html.escape(name), data=json.dumps(data).replace("</", "<\\/"))


def _packed(row: Float[Tensor, "g"]) -> str:
    """A byte a cell: 0 at the peak, 254 at a share of 0.99, 255 beyond."""
    scaled = torch.where(row > 0.99, torch.tensor(255.0), row / 0.99 * 254)
    return base64.b64encode(scaled.round().to(torch.uint8).numpy().tobytes()).decode()


def _degrees(x: Float[Tensor, "*b 3"]) -> list:
    return np.round(sphere.to_latlon(x).double().numpy(), 2).tolist()
