"""Image-text models with unit features in one space: a small CLIP of two real towers, and published ones from a file.

    cosine(image, text) = <f(image), g(text)>;   small:  f = W max_p relu(D z_p),  g = V MiniLM(text)

The small one reads the maps z of a frozen Lite0 (ImageNet) by detectors D that look at one position each, of which the strongest answer counts, and the
sentences of a frozen MiniLM; detectors and the maps W and V are trained on captions of `worlds.patterns` with open_clip's loss (Radford et al., 2021).
"""

import hashlib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from georeps.core import cache
from georeps.lab import trained
from georeps.nets import prompts, towers, train
from georeps.readers import images
from georeps.worlds import patterns
from georeps.worlds.patterns import captions

SIDE = 96  # pixels of the images that the small CLIP takes
CAPTIONS = 4  # drawn for each tile; an epoch picks one
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the images OpenAI trained on


@dataclass(frozen=True)
class Clip:
    """A pair of towers in evaluation mode; features are unit rows, float32 on CPU."""

    name: str
    model: nn.Module  # open_clip's CLIP, or the `Heads` of the small one
    see: Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b d"]]
    say: Callable[[list[str]], Float[Tensor, "b d"]]
    prompt: Callable[[str], prompts.Prompt]  # a text with a gap for vectors
    words: Callable[[], tuple[list[str], Float[Tensor, "v w"]]]  # what has an embedding of its own, and the embeddings
    size: int  # pixels of the images it takes
    scale: float  # that its loss multiplied cosines with

    @torch.no_grad()
    def images(self, pixels: UInt8[Tensor, "n 3 h w"], *, batch: int = 256) -> Float[Tensor, "n d"]:
        """Features of images in memory, resampled bicubically to the size the model takes."""
        return torch.cat([F.normalize(self.see(part).float().cpu(), dim=1) for part in pixels.split(batch)])

    def files(self, paths: Sequence[Path | str], *, batch: int = 64) -> Float[Tensor, "n d"]:
        """Features of image files: shorter side to the model's size, middle square, as open_clip's own preprocessing does."""
        squares = _Squares(paths, self.size)
        return torch.cat([self.images(squares[part]) for part in torch.arange(len(squares)).split(batch)])

    @torch.no_grad()
    def texts(self, texts: Sequence[str], *, batch: int = 512) -> Float[Tensor, "n d"]:
        """Features of texts; each distinct text is encoded once. Longer than the context: cut, as the tokenizer does."""
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            raise ValueError("texts: expected at least one text, found none")
        parts = [self.say(distinct[i : i + batch]).float().cpu() for i in range(0, len(distinct), batch)]
        place = {text: i for i, text in enumerate(distinct)}
        return F.normalize(torch.cat(parts), dim=1)[[place[text] for text in texts]]


class _Squares(images.Files):
    """Files as squares: the shorter side resampled to `side` pixels bicubically, the middle kept."""

    def __init__(self, paths: Sequence[Path | str], side: int):
        super().__init__(paths, (side, side))
        self.side = side

    def read(self, i: int) -> UInt8[Tensor, "3 s s"]:
        pixels = images.load(self.paths[i])
        scale = self.side / min(pixels.shape[1:])
        size = [max(self.side, round(scale * n)) for n in pixels.shape[1:]]
        pixels = F.interpolate(pixels[None].float(), size=size, mode="bicubic", antialias=True)[0].clamp(0, 255)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        return pixels[:, top : top + self.side, left : left + self.side].round().to(torch.uint8)


def normalised(pixels: UInt8[Tensor, "b 3 h w"], size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Float[Tensor, "b 3 s s"]:
    """Pixels as a tower takes them: resampled, in [0, 1], less the mean, by the deviation."""
    x = pixels.float()
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(0, 255)
    return (x / 255 - x.new_tensor(mean).view(3, 1, 1)) / x.new_tensor(std).view(3, 1, 1)


def published(checkpoint: Path | str, *, architecture: str = "ViT-L-14", activation: Literal["gelu", "quickgelu"], device: str = "cpu") -> Clip:
    """A published CLIP from its checkpoint on disk: OpenAI's as open_clip stores it, RemoteCLIP's, any open_clip state dict.

    `activation` has no default, because a checkpoint does not hold it and features depend on it: OpenAI's weights were trained with
    QuickGELU, yet the WeiCom code runs them with GELU; of RemoteCLIP the authors' own repository does both.
    """
    import open_clip

    if activation not in ("gelu", "quickgelu"):
        raise ValueError(f"activation: expected 'gelu' or 'quickgelu', found {activation!r}")
    if architecture not in open_clip.list_models():
        raise ValueError(f"architecture: expected one that open_clip knows (ViT-L-14, ...), found {architecture!r}")
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"checkpoint: expected a state dict of {architecture}, found no file {checkpoint}")
    try:
        model, _ = open_clip.create_model_from_pretrained(
            architecture.removesuffix("-quickgelu"), pretrained=str(checkpoint), force_quick_gelu=activation == "quickgelu", device=device
        )
    except (RuntimeError, AssertionError, KeyError, AttributeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        first = " ".join(str(error).split())[:300]
        raise ValueError(f"checkpoint: expected the weights of {architecture}, found a file {checkpoint} that does not fit: {first}") from error
    tokenize = open_clip.get_tokenizer(architecture)
    side = model.visual.image_size[0] if isinstance(model.visual.image_size, tuple) else model.visual.image_size
    table = model.eval().requires_grad_(False).token_embedding.weight
    return Clip(
        f"{Path(checkpoint).stem} ({activation})", model, lambda x: model.encode_image(normalised(x.to(device), side)),
        lambda texts: model.encode_text(tokenize(texts).to(device)), lambda text: prompts.of_open_clip(model, tokenize, text),
        lambda: ([tokenize.decode([i]).strip() for i in range(len(table) - 2)], table[:-2]),  # but for start and end
        side, float(model.logit_scale.exp()),
    )  # fmt: skip


# --- the small CLIP ---


class Sight(nn.Module):
    """What the small CLIP sees of an image: a tower's maps at strides 8 and 16, and at 4 with the colours, pooled to the grid of 8."""

    def __init__(self, tower: towers.Image):
        super().__init__()
        self.tower, self.pool, self.colours = tower, nn.AvgPool2d(2), nn.AvgPool2d(8)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b c i j"]]:
        maps = self.tower.maps(image, (4, 8, 16))
        return {"fine": torch.cat([self.pool(maps[4]), self.colours(image)], dim=1), "middle": maps[8], "coarse": maps[16]}


class Detectors(nn.Module):
    """Maps -> features "b d": detectors at each position, the strongest answer of each, a linear map.

    What is found anywhere is found whatever surrounds it, so that a colour learnt on one class is seen on another; means over the map tie colours to classes.
    """

    def __init__(self, like: dict[str, Float[Tensor, "n c i j"]], *, detectors: int, dim: int, dropout: float):
        super().__init__()
        self.look = nn.ModuleDict({k: nn.Conv2d(x.shape[1], detectors, 1) for k, x in like.items()})
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Linear(detectors * len(like), dim))
        for k, x in like.items():
            deviation, mean = torch.std_mean(x.float(), dim=(0, 2, 3), keepdim=True)
            self.register_buffer(f"{k}_mean", mean)
            self.register_buffer(f"{k}_deviation", deviation + 1e-3)

    def forward(self, maps: dict[str, Float[Tensor, "b c i j"]]) -> Float[Tensor, "b d"]:
        standard = {k: (x.float() - getattr(self, f"{k}_mean")) / getattr(self, f"{k}_deviation") for k, x in maps.items()}
        return self.out(torch.cat([self.look[k](x).relu().amax(dim=(2, 3)) for k, x in standard.items()], dim=1))


class Heads(nn.Module):
    """What is trained: the detectors, a linear map of sentences, and the scale of cosines."""

    def __init__(self, like: dict[str, Tensor], *, detectors: int = 128, dim: int = 256, dropout: float = 0.5):
        super().__init__()
        self.image, self.text = Detectors(like, detectors=detectors, dim=dim, dropout=dropout), nn.Linear(384, dim)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())


class Contrast(nn.Module):
    """A training step: indices -> open_clip's symmetric cross-entropy between tiles and one caption of each, drawn anew."""

    def __init__(self, heads: Heads, maps: dict[str, Tensor], texts: Float[Tensor, "n e 384"]):
        import open_clip

        super().__init__()
        self.heads, self.maps, self.texts, self.loss = heads, maps, texts, open_clip.ClipLoss()

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        device = self.heads.logit_scale.device
        spoken = self.texts[index, torch.randint(self.texts.shape[1], (len(index),))].to(device)
        image = F.normalize(self.heads.image({k: x[index].to(device) for k, x in self.maps.items()}), dim=1)
        return self.loss(image, F.normalize(self.heads.text(spoken), dim=1), self.heads.logit_scale.exp().clamp(max=100.0))


def sentences(texts: Sequence[str]) -> Float[Tensor, "n 384"]:
    """MiniLM's rows of texts, each encoded once and stored by content."""
    key = {"code": cache.code(towers.__name__, libraries=("torch", "transformers", "tokenizers"))}
    names = [hashlib.sha256(text.encode()).digest() for text in texts]
    of = dict(zip(names, texts, strict=True))
    compute = lambda part: {"row": towers.text()([of[name.tobytes()] for name in part]).cpu().numpy()}  # noqa: E731
    return torch.from_numpy(cache.rows("sentences", key, np.frombuffer(b"".join(names), np.uint8).reshape(-1, 32), compute, batch=1024)["row"])


def small(*, tiles: int, epochs: int, seed: int = 0, batch: int = 128, lr: float = 3e-3, device: str = "cpu") -> Clip:
    """The small CLIP, trained once for all who ask with the same settings, code and device.

    `tiles` as in `patterns.training`; a seed trains on three quarters of these, from its own initial weights and with its own choice of captions.
    """
    recipe = train.Recipe(epochs=epochs, lr=lr, optimizer="adamw", weight_decay=0.05, schedule="cosine", warmup=min(1.0, epochs / 8), seed=seed)
    pool = patterns.training(tiles, seed=0)
    sight = Sight(towers.image())
    look = lambda x: towers.stored(sight, x, "forward", size=None if x.shape[-1] == SIDE else (SIDE, SIDE), device=device)  # noqa: E731
    own = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[: len(pool) * 3 // 4]
    fine, middle, coarse = (sight.tower.channels[stride] for stride in (4, 8, 16))
    like = {k: torch.zeros(2, c, 1, 1) for k, c in {"fine": fine + 3, "middle": middle, "coarse": coarse}.items()}

    def step() -> nn.Module:
        spoken = captions.captions(pool, each=CAPTIONS, seed=0)
        with torch.random.fork_rng():  # a tower that has to be built draws numbers: the heads must not depend on what was stored
            maps = {k: x[own] for k, x in look(patterns.render(pool, size=SIDE)).items()}
            texts = sentences([text for each in spoken for text in each]).view(len(pool), CAPTIONS, -1)[own]
        return Contrast(Heads(maps).to(device), maps, texts)

    key = {"tiles": tiles, "side": SIDE, "captions": CAPTIONS, "device": device.split(":")[0]}
    heads = Heads(like)
    heads.load_state_dict(trained.once(
        "clip", step, lambda step: step.heads, n=len(own), batch=batch, recipe=recipe, key=key, code=__name__,
        libraries=("open_clip_torch", "timm"), label=f"small CLIP {seed}",
    ))  # fmt: skip
    heads = heads.to(device).eval().requires_grad_(False)

    def words() -> tuple[list[str], Tensor]:
        tower = towers.text()
        known = sorted(tower.tokenizer.get_vocab().items(), key=lambda item: item[1])  # as it hands them over, their order is another in every process
        spelt = {w: i for w, i in known if w.isalpha()}  # no pieces, marks or numbers
        return list(spelt), tower.model.get_input_embeddings().weight[list(spelt.values())]

    return Clip(
        "small CLIP", heads, lambda x: heads.image({k: v.to(device) for k, v in look(x).items()}), lambda texts: heads.text(sentences(texts).to(device)),
        lambda text: prompts.of_minilm(towers.text().to(device), text, heads.text), words, SIDE, float(heads.logit_scale.exp().clamp(max=100.0)),
    )  # fmt: skip


def zero_shot(
    clip: Clip, features: Float[Tensor, "n d"], labels: Sequence[str], names: Sequence[str], *, besides: Bool[Tensor, "n c"] | None = None
) -> Bool[Tensor, " n"]:  # fmt: skip
    """Whether an image's own name is the best of `names` by cosine; chance is 1 / len(names). Names that are true of it `besides` do not compete."""
    if not len(labels):
        raise ValueError("labels: expected the names of at least one image, found none")
    cosine = features @ clip.texts([f"an aerial photo of {n}" for n in names]).T
    if besides is not None:
        cosine = cosine.masked_fill(besides, -1.0)
    return cosine.argmax(1) == torch.tensor([list(names).index(label) for label in labels])
