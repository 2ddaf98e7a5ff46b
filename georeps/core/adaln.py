"""The network of the flows: an AdaLN MLP from a noisy place, a time and a condition to a velocity (Dufour et al., 2025).

    h <- h + gate * MLP((1 + scale) * norm(h) + shift),   (scale, shift, gate) = Linear(SiLU(Linear(condition) + time(s)))
"""  # fmt: skip

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class VelocityNet(nn.Module):
    """The AdaLN MLP: residual blocks whose scale, shift and gate come from the condition and s; raw coordinates in, a vector out.

    512 x 12 for OSV-5M and YFCC100M, 256 x 12 for iNat21. s and the condition may have one row where x has many; c conditions for c m points
    serve m consecutive points each. o = 3, but where a head takes the place of the last layer (`geolocation`).
    """

    def __init__(self, cond_dim: int, *, dim: int = 512, depth: int = 12, expansion: int = 4):
        super().__init__()
        if dim % 8:
            raise ValueError(f"dim: expected a multiple of 8, found {dim}")
        self.cond_dim, self.dim, self.depth = cond_dim, dim, depth
        self.enter = nn.Linear(3, dim)
        self.condition = nn.Linear(cond_dim, dim)
        self.time = nn.Sequential(nn.Linear(dim // 4, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(_Block(dim, expansion) for _ in range(depth))
        self.last_modulation = nn.Linear(dim, 2 * dim)
        self.leave = nn.Linear(dim, 3)

    def forward(self, x: Float[Tensor, "b 3"], s: Float[Tensor, "a 1"], condition: Float[Tensor, "c d"] | None) -> Float[Tensor, "b o"]:
        return self.with_tangents(x, None, s, condition)[0]

    def with_tangents(
        self, x: Float[Tensor, "b 3"], tangents: Float[Tensor, "k b 3"] | None, s: Float[Tensor, "a 1"], condition: Float[Tensor, "c d"] | None
    ) -> tuple[Float[Tensor, "b o"], Float[Tensor, "k b o"] | None]:
        """The velocity and its derivatives along k directions a row, exact, by forward mode: one pass, no graph.

        What depends on s and the condition alone is computed for their own rows only.
        """
        return self._run(x, tangents, s, self._project(condition, s))

    def _run(self, x: Tensor, tangents: Tensor | None, s: Tensor, projected: Tensor) -> tuple[Tensor, Tensor | None]:
        context = F.silu(self.time(self._waves(s)) + projected)
        many = 1 < len(context) < len(x)
        if many:
            if len(x) % len(context):
                raise ValueError(f"condition: expected rows that divide the {len(x)} points, found {len(context)}")
            context, x = context[:, None], x.unflatten(0, (len(context), -1))
            tangents = None if tangents is None else tangents.unflatten(1, x.shape[:2])
        h, dh = self.enter(x), None if tangents is None else F.linear(tangents, self.enter.weight)
        for block in self.blocks:
            h, dh = block(h, dh, context)
        scale, shift = self.last_modulation(context).chunk(2, dim=-1)
        h, dh = _normalise(h, dh)
        h = self.leave((1 + scale) * h + shift)
        dh = None if dh is None else F.linear((1 + scale) * dh, self.leave.weight)
        return (h.flatten(0, 1), None if dh is None else dh.flatten(1, 2)) if many else (h, dh)

    def _waves(self, s: Tensor) -> Tensor:
        half = self.dim // 8
        frequency = 1e-4 ** (torch.arange(half, device=s.device, dtype=s.dtype) / half)
        angle = 1000 * s * frequency
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return (waves - waves.mean(-1, keepdim=True)) / waves.std(-1, keepdim=True)

    def _project(self, condition: Tensor | None, like: Tensor) -> Tensor:
        if condition is None:  # "no condition" is a vector of zeros, as in training
            condition = like.new_zeros(1, self.cond_dim)
        if condition.shape[-1] != self.cond_dim:
            raise ValueError(f"condition: expected {self.cond_dim} channels, found {condition.shape[-1]}")
        return self.condition(condition)


class Conditioned:
    """A `VelocityNet` with its condition projected once, for a sampler that asks many times; asked with None it uses the projection of none."""

    def __init__(self, net: VelocityNet, condition: Tensor | None):
        like = next(net.parameters())
        self.net, self.free = net, net._project(None, like)
        self.own = self.free if condition is None else net._project(condition, like)

    def __call__(self, x: Tensor, s: Tensor, condition: Tensor | None) -> Tensor:
        return self.with_tangents(x, None, s, condition)[0]

    def with_tangents(self, x: Tensor, tangents: Tensor | None, s: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.net._run(x, tangents, s, self.free if condition is None else self.own)


class _Block(nn.Module):
    """x + gate * MLP((1 + scale) * norm(x) + shift); the gate and the last layer make it the identity at first."""

    def __init__(self, dim: int, expansion: int):
        super().__init__()
        self.modulation = nn.Linear(dim, 3 * dim)
        self.rise, self.fall = nn.Linear(dim, expansion * dim), nn.Linear(expansion * dim, dim)
        nn.init.zeros_(self.fall.weight)
        nn.init.zeros_(self.fall.bias)

    def forward(self, x: Tensor, dx: Tensor | None, context: Tensor) -> tuple[Tensor, Tensor | None]:
        scale, shift, gate = self.modulation(context).chunk(3, dim=-1)
        h, dh = _normalise(x, dx)
        z = self.rise((1 + scale) * h + shift)
        if dh is not None:
            slope = 0.5 * (1 + (z * math.sqrt(0.5)).erf()) + z * (-0.5 * z * z).exp() * (1 / math.sqrt(2 * math.pi))  # of GELU
            dx = dx + gate * F.linear(slope * F.linear((1 + scale) * dh, self.rise.weight), self.fall.weight)
        return x + gate * self.fall(F.gelu(z)), dx


def published(path: Path | str, *, cond_dim: int = 1024) -> VelocityNet:
    """A published network (PLONK's safetensors) as a `VelocityNet`; its samples are drawn with method "published".

    Layers are told apart by their shapes, and blocks by the number in their names, since the names differ between releases. ValueError
    where a layer is missing, left over, or of another width than `cond_dim` says.
    """
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(f"path: expected a safetensors file, found no file {path}")
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(path).items():
        stem, _, kind = name.rpartition(".")
        if kind in ("weight", "bias"):
            layers.setdefault(stem, {})[kind] = value.float()
    odd = [stem for stem, v in layers.items() if set(v) != {"weight", "bias"} or v["weight"].ndim != 2]
    if odd:
        raise ValueError(f"path: expected linear layers with a bias in {path}, found {len(odd)} others, first {odd[0]}")
    enter = [v["weight"] for v in layers.values() if v["weight"].shape[1] == 3]
    if len(enter) != 1:
        raise ValueError(f"path: expected one layer that reads 3 coordinates, found {len(enter)} in {path}")
    dim = len(enter[0])
    rise = [s for s, v in layers.items() if _block_of(s) is not None and v["weight"].shape[1] == dim and v["weight"].shape[0] > 3 * dim]
    expansion = len(layers[rise[0]]["weight"]) // dim if rise else 4
    net = VelocityNet(cond_dim, dim=dim, depth=max(1, len(rise)), expansion=expansion)
    kinds = {_kind(stem, tuple(v["weight"].shape), cond_dim): stem for stem, v in layers.items()}
    for stem, layer in ((n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)):
        shape = tuple(layer.weight.shape)
        source = kinds.pop(_kind(stem, shape, cond_dim), None)
        if source is None:
            found = ", ".join(f"{s} {key[1]}" for key, s in list(kinds.items())[:6])
            raise ValueError(f"path: expected a layer {stem} of shape {shape} in {path}, found of others {found or 'none'}")
        layer.load_state_dict(layers[source])
    if kinds:
        raise ValueError(f"path: expected the layers of a {dim} x {net.depth} network, found {len(kinds)} more, first {next(iter(kinds.values()))}")
    return net


def _block_of(stem: str) -> int | None:
    """The number of the block a layer belongs to, if its name has one after "blocks" or "layers"."""
    found = re.search(r"(?:blocks|layers)\.(\d+)\.", stem + ".")
    return int(found[1]) if found else None


def _kind(stem: str, shape: tuple[int, ...], cond_dim: int) -> tuple[int | None, tuple[int, ...], bool]:
    """Block and shape; where the condition is as wide as the network, its layer is told from the time's by its name."""
    return _block_of(stem), shape, shape == (cond_dim, cond_dim) and _block_of(stem) is None and "cond" in stem


def _normalise(x: Tensor, dx: Tensor | None, eps: float = 1e-5) -> tuple[Tensor, Tensor | None]:
    """Layer normalisation without parameters, and its derivative along dx."""
    if dx is None:
        return F.layer_norm(x, x.shape[-1:], eps=eps), None
    centred = x - x.mean(-1, keepdim=True)
    rate = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    h, dc = centred * rate, dx - dx.mean(-1, keepdim=True)
    return h, rate * (dc - h * (h * dc).mean(-1, keepdim=True))
