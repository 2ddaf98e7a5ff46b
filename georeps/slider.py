"""A page element in which a reader picks an image, types a word and weighs one against the other; plain HTML, no network.

    score = (1 - w) image + w text        both sides come ready, between 0 and 1; the page only adds, sorts and shows
"""

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

PAGE = """
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
  const picture = i => {{ const e = document.createElement("img"); e.src = "data:image/jpeg;base64," + data.tiles[i];
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


def page(
    tiles: UInt8[Tensor, "n 3 s s"], asked: Sequence[int], image: Float[Tensor, "a n"], words: Sequence[str], text: Float[Tensor, "w n"], *, name: str = "weigh"
) -> str:
    """The element as HTML: `asked` are the tiles to pick from, `image` and `text` their and the words' scores of every tile, in 0..1."""
    for side, scores, rows in (("image", image, len(asked)), ("text", text, len(words))):
        if scores.shape != (rows, len(tiles)) or not 0 <= float(scores.min()) <= float(scores.max()) <= 1:
            raise ValueError(f"{side}: expected {rows} x {len(tiles)} scores in 0..1, found {tuple(scores.shape)} in {float(scores.min()):g}..{float(scores.max()):g}")
    data = {
        "tiles": [jpeg(t) for t in tiles], "asked": list(asked), "words": list(words),
        "image": [_packed(row) for row in image], "text": [_packed(row) for row in text],
    }  # fmt: skip
    options = "".join(f'<option value="{html.escape(w)}">' for w in words)
    return PAGE.format(id=name, first=html.escape(words[0]), options=options, data=json.dumps(data).replace("</", "<\\/"))


def _packed(row: Float[Tensor, "n"]) -> str:
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
