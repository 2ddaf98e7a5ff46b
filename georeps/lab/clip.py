"""Image-text models with unit features in one space: a small CLIP of the embedded worlds, and published ones from a file.

    cosine(image, text) = <f(image), g(text)>

Towers, tokenizer and loss are open_clip's (Radford et al., 2021). The small one is a modified ResNet of 1.4 million parameters and two
transformer layers of text, trained on captions of `worlds.patterns`; what was trained is stored by content.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from georeps.lab import trained
from georeps.nets import train
from georeps.readers import images
from georeps.worlds import patterns
from georeps.worlds.patterns import captions

SMALL = {  # an open_clip config
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the images OpenAI trained on
CAPTIONS = 8  # drawn for each tile; an epoch picks one


@dataclass(frozen=True)
class Clip:
    """A pair of towers in evaluation mode; features are unit rows, float32 on CPU."""

    name: str
    model: nn.Module
    tokenize: Callable[[list[str]], Int64[Tensor, "b n"]]
    size: int  # pixels of the images it takes
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    @torch.no_grad()
    def images(self, pixels: UInt8[Tensor, "n 3 h w"], *, batch: int = 256) -> Float[Tensor, "n d"]:
        """Features of images in memory, resampled bicubically to the size the model takes."""
        return torch.cat([self._encode_image(part) for part in pixels.split(batch)])

    @torch.no_grad()
    def files(self, paths: Sequence[Path | str], *, batch: int = 64, workers: int = 0) -> Float[Tensor, "n d"]:
        """Features of image files: shorter side to the model's size, middle square, as open_clip's own preprocessing does."""
        found = _Squares(paths, self.size)
        loader = torch.utils.data.DataLoader(found, batch_size=batch, num_workers=workers)
        return torch.cat([self._encode_image(part) for part in loader])

    @torch.no_grad()
    def texts(self, texts: Sequence[str], *, batch: int = 512) -> Float[Tensor, "n d"]:
        """Features of texts; each distinct text is encoded once. Longer than the context: cut, as the tokenizer does."""
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            raise ValueError("texts: expected at least one text, found none")
        device = next(self.model.parameters()).device
        parts = [self.model.encode_text(self.tokenize(distinct[i : i + batch]).to(device)) for i in range(0, len(distinct), batch)]
        features = F.normalize(torch.cat(parts).float().cpu(), dim=1)
        place = {text: i for i, text in enumerate(distinct)}
        return features[[place[text] for text in texts]]

    def _encode_image(self, pixels: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        device = next(self.model.parameters()).device
        return F.normalize(self.model.encode_image(normalised(pixels.to(device), self.size, self.mean, self.std)).float().cpu(), dim=1)


class _Squares(images.Files):
    """Files as squares: the shorter side resampled to `side` pixels bicubically, the middle kept."""

    def __init__(self, paths: Sequence[Path | str], side: int):
        super().__init__(paths, (side, side))
        self.side = side

    def __getitem__(self, i: int) -> UInt8[Tensor, "3 s s"]:
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
    size = model.visual.image_size
    side = size[0] if isinstance(size, tuple) else size
    return Clip(f"{Path(checkpoint).stem} ({activation})", model.eval(), open_clip.get_tokenizer(architecture), side)


class Contrast(nn.Module):
    """A training step: indices -> open_clip's symmetric cross-entropy between tiles and one caption of each, drawn anew."""

    def __init__(self, model: nn.Module, pixels: UInt8[Tensor, "n 3 s s"], tokens: Int64[Tensor, "n e t"]):
        import open_clip

        super().__init__()
        self.model, self.pixels, self.tokens = model, pixels, tokens
        self.loss = open_clip.ClipLoss()

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        device = self.model.logit_scale.device
        pixels = self.pixels[index].to(device)
        turn, flip = torch.randint(4, (1,)).item(), torch.rand(1).item() < 0.5
        pixels = torch.rot90(pixels.flip(-1) if flip else pixels, turn, (-2, -1))  # an aerial tile has no upper side
        tokens = self.tokens[index, torch.randint(self.tokens.shape[1], (len(index),))].to(device)
        image, text, scale = self.model(normalised(pixels, pixels.shape[-1]), tokens)[:3]
        return self.loss(image, text, scale.clamp(max=100.0))


def small(*, tiles: int, epochs: int, seed: int = 0, batch: int = 128, lr: float = 2e-3, device: str = "cpu") -> Clip:
    """The small CLIP, trained once for all who ask with the same settings, code and device; `tiles` as in `patterns.training`."""
    import open_clip

    amp = "bf16" if device.startswith("cuda") else "off"  # on a CPU without units for it bfloat16 is tens of times slower
    recipe = train.Recipe(epochs=epochs, lr=lr, optimizer="adamw", weight_decay=0.05, schedule="cosine", warmup=min(1.0, epochs / 8), amp=amp, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**SMALL)
    tokenize = open_clip.SimpleTokenizer(context_length=SMALL["text_cfg"]["context_length"])
    side = SMALL["vision_cfg"]["image_size"]
    key = {"tiles": tiles, "small": SMALL, "device": device.split(":")[0]}

    def step() -> nn.Module:
        shown = patterns.training(tiles, seed=seed)
        spoken = captions.captions(shown, each=CAPTIONS, seed=seed)
        return Contrast(model.to(device), patterns.render(shown, size=side), torch.stack([tokenize(c) for c in spoken]))

    n = len(patterns.training(tiles, seed=seed))
    model.load_state_dict(trained.once(
        "clip", step, lambda step: step.model, n=n, batch=batch, recipe=recipe, key=key, code=__name__, libraries=("open_clip_torch",), label="small CLIP",
    ))  # fmt: skip
    return Clip("small CLIP", model.to(device).eval(), tokenize, side)


def zero_shot(clip: Clip, features: Float[Tensor, "n d"], labels: Sequence[str], names: Sequence[str]) -> float:
    """Share of images whose own name is the best of `names` by cosine; chance is 1 / len(names)."""
    if not len(labels):
        raise ValueError("labels: expected the names of at least one image, found none")
    best = (features @ clip.texts([f"an aerial photo of {n}" for n in names]).T).argmax(1).tolist()
    return sum(names[b] == label for b, label in zip(best, labels, strict=True)) / len(labels)
