"""timm's networks up to their last map, with what chapter 07 looks at: the CLS token, its attention in every block, the last block's keys.

    trunk = backbones.resnet(width=8);  trunk(image) -> grid "b d h w"
    model = backbones.Classifier(trunk, pooling.SimPool(trunk.out_dim), classes=11);  model(image) -> logits
"""  # fmt: skip

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from georeps.nets import encoders, pooling, towers


class Blocks(NamedTuple):
    """What a transformer's blocks look at."""

    attention: Float[Tensor, "l b i j"]  # of the CLS token over the patches, mean over the heads, each map of sum 1
    keys: Float[Tensor, "b d i j"]  # of the last block, all heads


class Trunk(nn.Module):
    """A timm model without its pooling and head: image "b 3 h w" in [0, 1] -> its last map "b d i j".

    Of a vision transformer the map is that of the patch tokens after the final norm. A model with a CLS token gives it by `cls`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.out_dim = model, model.num_features
        self.has_cls = bool(getattr(model, "num_prefix_tokens", 0))
        self.register_buffer("mean", torch.tensor(encoders.IMAGENET_MEAN).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(encoders.IMAGENET_STD).view(-1, 1, 1))

    def normalise_by(self, images: Shaped[Tensor, "n c h w"]) -> "Trunk":
        """Take the channel means and deviations of training images, or of what a tower has seen of them, in place of ImageNet's."""
        x = encoders.scale(images)
        self.mean, self.std = x.mean(dim=(0, 2, 3)).view(-1, 1, 1), x.std(dim=(0, 2, 3)).clamp(min=1e-3).view(-1, 1, 1)
        return self

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return self._grid(self.model.forward_features((image - self.mean) / self.std))

    def cls(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The CLS token after the last block."""
        if not self.has_cls:
            raise ValueError("cls: expected a transformer with a CLS token, found a network without one")
        return self.model.forward_features((image - self.mean) / self.std)[:, 0]

    @torch.no_grad()
    def blocks(self, image: Float[Tensor, "b c h w"]) -> Blocks:
        """The CLS token's attention in each block, and the keys of the last; without a CLS token the attention is that of the tokens' mean query."""
        seen: list[Tensor] = []
        hooks = [block.norm1.register_forward_hook(lambda _, __, out: seen.append(out)) for block in self.model.blocks]
        try:
            self.model.forward_features((image - self.mean) / self.std)
        finally:
            for hook in hooks:
                hook.remove()
        maps, start = [], int(self.has_cls)
        for block, tokens in zip(self.model.blocks, seen, strict=True):
            heads = block.attn.num_heads
            q, k, _ = block.attn.qkv(tokens).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # each "b heads n d/heads"
            query = q[:, :, :1] if self.has_cls else q.mean(dim=2, keepdim=True)
            a = (query @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)[:, :, 0, start:].mean(dim=1)
            maps.append(a / a.sum(dim=1, keepdim=True))
        h, w = self.model.patch_embed.grid_size
        return Blocks(torch.stack(maps).unflatten(2, (h, w)), k[:, :, start:].transpose(2, 3).flatten(1, 2).unflatten(2, (h, w)))

    def _grid(self, features: Tensor) -> Tensor:
        if features.ndim == 4:
            return features
        grid = features[:, int(self.has_cls) :].transpose(1, 2)
        return grid.unflatten(2, self.model.patch_embed.grid_size)


def resnet(*, width: int = 64, stride: int = 32) -> Trunk:
    """ResNet-18 whose first stage has `width` channels; at stride 8 or 16 the last stages are dilated instead."""
    from timm.models.resnet import BasicBlock, ResNet

    return Trunk(ResNet(BasicBlock, (2, 2, 2, 2), num_classes=0, global_pool="", channels=tuple(width * m for m in (1, 2, 4, 8)), output_stride=stride))


def convnext(*, width: int = 96, depths: tuple[int, int, int, int] = (3, 3, 27, 3), stride: int = 32) -> Trunk:
    """ConvNeXt; the defaults are ConvNeXt-S."""
    from timm.models.convnext import ConvNeXt

    return Trunk(ConvNeXt(depths=depths, dims=tuple(width * m for m in (1, 2, 4, 8)), output_stride=stride, num_classes=0, global_pool=""))


def vit(
    *, size: int = 224, patch: int = 16, dim: int = 384, depth: int = 12, heads: int = 6, cls: bool = False, channels: int = 3
) -> Trunk:  # fmt: skip
    """A vision transformer, with a CLS token or without; the defaults are ViT-S/16.

    On a tower's maps of `size` positions a side and so many `channels`, with a patch a position, it is the hybrid of Dosovitskiy et al. (2021).
    """
    from timm.models.vision_transformer import VisionTransformer

    return Trunk(VisionTransformer(
        img_size=size, patch_size=patch, in_chans=channels, embed_dim=dim, depth=depth, num_heads=heads, num_classes=0, class_token=cls,
        global_pool="token" if cls else "",
    ))  # fmt: skip


class CLS(pooling.Pooling):
    """In a pooling's place: the CLS token of a transformer, its attention that of the last block."""


class Classifier(nn.Module):
    """Trunk, pooling, linear layer; of a pooling with k vectors the largest logit counts (dissertation, 3.4.2). `pool` None: the CLS token."""

    def __init__(self, trunk: nn.Module, pool: nn.Module | None, classes: int):
        super().__init__()
        self.trunk, self.pool = trunk, pool or CLS(trunk.out_dim)
        self.head = nn.Linear(self.pool.out_dim // self.pool.k, classes)

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        vector = self.vector(image)
        return self.head(vector.unflatten(1, (self.pool.k, -1))).amax(dim=1)

    def vector(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e"]:
        """What the pooling gives."""
        return self.trunk.cls(image) if isinstance(self.pool, CLS) else self.pool(self.trunk(image)).vector

    @torch.no_grad()
    def attention(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b i j"] | None:
        """The map that the pooling looks by, None where it has none; of a CLS token that of the last block."""
        if isinstance(self.pool, CLS):
            return self.trunk.blocks(image).attention[-1]
        return self.pool(self.trunk(image)).attention


class Recognition(nn.Module):
    """A step of supervised training: indices of images, or of what a tower has seen, -> cross-entropy.

    With `flip` a batch is flipped, or not, with `turn` turned by quarters, all of it alike: from above there is no up.
    """

    def __init__(self, model: nn.Module, images: Shaped[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, turn: bool = True, flip: bool = True):
        super().__init__()
        self.model, self.images, self.turn, self.flip = model, images, turn, flip
        self.register_buffer("labels", labels)

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        x = encoders.scale(self.images[index].to(self.labels.device, non_blocking=True))
        if self.training:
            x = x.flip(3) if self.flip and torch.rand(()) < 0.5 else x
            x = x.rot90(int(torch.randint(4, ())), (2, 3)) if self.turn else x
        return F.cross_entropy(self.model(x), self.labels[index.to(self.labels.device)])


def published(name: Literal["resnet18", "resnet50", "convnext", "vit"], *, cls: bool = False, weights: str | Path | None = None) -> Trunk:
    """The papers' networks at full size; `weights` is the path of a state dict with timm's names, without it they are random."""
    if name not in ("resnet18", "resnet50", "convnext", "vit"):
        raise ValueError(f"name: expected resnet18, resnet50, convnext or vit, found {name!r}")
    import timm

    full = {"convnext": "convnext_small"}.get(name, name)
    trunk = vit(cls=cls) if name == "vit" else Trunk(timm.create_model(full, num_classes=0, global_pool=""))
    if weights is not None:
        towers.load(trunk.model, weights, of=f"timm's {full}", theirs=("fc.", "head.", "cls_token"))
    return trunk


def cost(make: Callable[[], Classifier], size: int = 224) -> tuple[float, float]:
    """Millions of parameters, and billions of multiply-adds for one image (what the field calls GFLOPs), on meta tensors: nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = make().eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, size, size))
    return sum(p.numel() for p in model.parameters()) / 1e6, counter.get_total_flops() / 2e9
