"""Image -> feature map -> descriptor.

    descriptor = normalise(projection(pooling(trunk(image))))

The trunk is VGG16 (Simonyan & Zisserman, 2015), the network of both cross-view models (thesis, 6.1).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn
from torch.utils.data import Dataset

from georeps.nets import pooling, towers

VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG16_FILE = "vgg16-397923af.pth"  # torchvision's IMAGENET1K_V1 state dict
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VGG16(nn.Module):
    """The convolutional part of VGG16: image in [0, 1] -> grid of stride 32 (16 without the last pooling).

    `width` multiplies every channel count and `blocks` keeps the first of the five: an eighth of the width and four
    blocks train in seconds on a laptop. The layers and their names are torchvision's `vgg16().features`, so its state
    dict loads; `weights` is a path, or "imagenet" for the file that torch hub caches, and needs width 1. Without
    weights: He initialisation.
    """

    def __init__(self, *, width: float = 1.0, blocks: int = 5, last_pool: bool = True, weights: str | Path | None = None):
        super().__init__()
        if not 1 <= blocks <= len(VGG16_BLOCKS):
            raise ValueError(f"blocks: expected 1..{len(VGG16_BLOCKS)}, found {blocks}")
        layers: list[nn.Module] = []
        channels = 3
        for block in VGG16_BLOCKS[:blocks]:
            for out in (round(c * width) for c in block):
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*(layers if last_pool else layers[:-1]))
        self.out_dim = channels
        self.stride = 2 ** (blocks if last_pool else blocks - 1)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(-1, 1, 1))
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        if weights is not None:
            self._load(weights, width)
        self.to(memory_format=torch.channels_last)  # convolutions run 1.4 times faster on CPU, and on tensor cores

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return self.features((image - self.mean) / self.std)

    def normalise_by(self, images: UInt8[Tensor, "n c h w"]) -> "VGG16":
        """Take the channel means and deviations of training images in place of ImageNet's, for training from scratch."""
        x = images.float() / 255
        self.mean.copy_(x.mean(dim=(0, 2, 3)).view(-1, 1, 1))
        self.std.copy_(x.std(dim=(0, 2, 3)).view(-1, 1, 1))
        return self

    def _load(self, weights: str | Path, width: float) -> None:
        if width != 1.0:
            raise ValueError(f"weights: published VGG16 weights need width 1.0, found width {width}")
        path = Path(torch.hub.get_dir()) / "checkpoints" / VGG16_FILE if weights == "imagenet" else Path(weights)
        if weights == "imagenet" and not path.is_file():
            raise FileNotFoundError(
                f"weights: expected a torchvision VGG16 state dict, found no file {path}. On a machine with internet run\n"
                "  python -c 'import torchvision; torchvision.models.vgg16(weights=\"IMAGENET1K_V1\")'\n"
                f"and copy {VGG16_FILE} from torch hub's cache there, or pass its path as weights."
            )
        towers.load(self, path, of="torchvision's VGG16", ours=("mean", "std"), theirs=("features.", "classifier."))


class Descriptor(nn.Module):
    """Trunk, pooling, projection (None: none), L2 normalisation: image "b c h w" in [0, 1] -> unit rows "b d"."""

    def __init__(self, trunk: nn.Module, pool: nn.Module, projection: nn.Module | None = None):
        super().__init__()
        self.trunk, self.pool, self.projection = trunk, pool, projection

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.embed(self.trunk(image))

    def pooled(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e"]:
        """What the projection reads."""
        return self.pool(self.trunk(image)).vector

    def embed(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """What follows the trunk."""
        pooled: pooling.Pooled = self.pool(grid)
        vector = pooled.vector if self.projection is None else self.projection(pooled.vector)
        return F.normalize(vector, dim=-1)


def scale(images: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Bytes to [0, 1]: no augmentation. What a tower has seen, float maps or rows, stays as it is."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


@torch.no_grad()
def centre(descriptor: Descriptor, images: UInt8[Tensor, "n 3 h w"], *, batch: int = 256) -> None:
    """Set the bias of a linear projection so that the mean of these images is mapped to 0.

    Pooled features are mostly positive: without it a new projection maps all images into a narrow cone, where metric losses begin slowly.
    """
    if not isinstance(descriptor.projection, nn.Linear):
        raise ValueError(f"descriptor: expected a linear projection to centre, found {type(descriptor.projection).__name__}")
    pooled = evaluate(descriptor, images, "pooled", batch=batch)
    descriptor.projection.bias.copy_(-(descriptor.projection.weight @ pooled.mean(dim=0).to(descriptor.projection.weight)))


def describe(encoder: nn.Module, images: Shaped[Tensor, "n ..."] | Dataset, *, batch: int = 256) -> Float[Tensor, "n d"]:
    """Descriptors of images in memory, or of files (`readers.images.Files`), decoded as they are needed; those of their own sizes need batches of one."""
    if isinstance(images, Tensor):
        return evaluate(encoder, images, batch=batch)
    return torch.cat([evaluate(encoder, images[part], batch=batch) for part in torch.arange(len(images)).split(batch)])


@torch.no_grad()
def evaluate(model: nn.Module, images: Shaped[Tensor, "n ..."], what: str = "forward", *, batch: int = 256) -> Tensor | None:
    """What a method of the model gives for images (`scale`), batch by batch on its device in evaluation mode; float32 on CPU, None where it gives None.

    The mode the model was in is restored.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        made = ((model if what == "forward" else getattr(model, what))(scale(part.to(device))) for part in images.split(batch))
        parts = [None if part is None else part.float().cpu() for part in made]
    finally:
        model.train(training)
    return None if parts[0] is None else torch.cat(parts)
