"""MoCo v2 (Chen et al., 2020) around any trunk, as the thesis pre-trains with it (3.1, 6.2), and its unified variant (6.5).

    q = head(trunk(view));  k = slow(other view);  loss = InfoNCE(q, k, queue);  slow <- m slow + (1 - m) fast
"""  # fmt: skip

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from georeps.nets import encoders, losses, pooling


class Queue(nn.Module):
    """The last `size` keys, unit rows in a ring. Keys and pointer are buffers: a checkpoint holds them.

    Starts with random rows, as published. Any batch size is taken, and none of its keys lost: published code asks that the
    batch divides the size, lightly cuts off what does not fit.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        if size < 1:
            raise ValueError(f"size: expected a queue of at least 1 key, found {size}")
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Float[Tensor, "b d"]) -> None:
        """Replace the oldest keys; of more than `size` the last stay."""
        size = len(self.keys)
        keys = F.normalize(keys.float(), dim=1)[-size:]
        self.keys[(self.pointer + torch.arange(len(keys), device=keys.device)) % size] = keys
        self.pointer.copy_((self.pointer + len(keys)) % size)


def slow_copy(module: nn.Module) -> nn.Module:
    """A momentum encoder: equal to `module` at first, never trained itself (`follow`)."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """slow <- momentum slow + (1 - momentum) fast (Eq. 3.2), parameters only: buffers stay each module's own, as published."""
    for own, other in zip(slow.parameters(), fast.parameters(), strict=True):
        own.lerp_(other, 1 - momentum)


class Projected(nn.Module):
    """Trunk, average pooling and MoCo v2's head, a hidden layer as wide as the trunk (512-512-128): what the trunk reads, "b c h w" -> "b dim"."""

    def __init__(self, trunk: nn.Module, dim: int = 128):
        super().__init__()
        self.trunk, self.pool = trunk, pooling.GAP(trunk.out_dim)
        self.head = nn.Sequential(nn.Linear(trunk.out_dim, trunk.out_dim), nn.ReLU(), nn.Linear(trunk.out_dim, dim))

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.head(self.pool(self.trunk(image)).vector)


class MoCo(nn.Module):
    """A step of pre-training: indices of images -> InfoNCE (`train.fit` calls it); what has learned is `query.trunk`.

    `views(indices)` gives two augmented views of each image (`of_images`, `of_stored`). In training mode each call first moves the key
    encoder (after the optimiser's last step: Algorithm 1 in another order) and last enqueues the keys, so that no key is a negative of
    its own step. In evaluation mode the loss alone is computed. Shuffled batch normalisation is left out: VGG16 has none, a frozen tower's is not of batches.
    """

    def __init__(
        self, trunk: nn.Module, views: Callable[[Int64[Tensor, " b"]], tuple[Tensor, Tensor]], *, dim: int = 128, queue: int = 16384,
        momentum: float = 0.999, temperature: float = 0.2,
    ):  # fmt: skip
        super().__init__()
        _check_momentum(momentum)
        self.query = Projected(trunk, dim)
        self.key = slow_copy(self.query)
        self.queue = Queue(queue, dim)
        self.views, self.momentum, self.temperature = views, momentum, temperature

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        view, other = (x.to(self.queue.keys.device, non_blocking=True) for x in self.views(index))
        query = self.query(view)
        with torch.no_grad():
            if self.training:
                follow(self.key, self.query, self.momentum)
            key = self.key(other)
        loss = losses.info_nce(query, key, self.queue.keys, self.temperature)
        if self.training:
            self.queue.push(key)
        return loss


def of_images(images: UInt8[Tensor, "n 3 h w"], augment: Callable[[Tensor], Tensor]) -> Callable[[Int64[Tensor, " b"]], tuple[Tensor, Tensor]]:
    """Indices -> two views of these images, augmented anew."""
    return lambda index: (augment(images[index]), augment(images[index]))


def of_stored(views: Float[Tensor, "n v c h w"]) -> Callable[[Int64[Tensor, " b"]], tuple[Tensor, Tensor]]:
    """Indices -> two different ones of the views that are stored of each."""

    def pick(index: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.randint(views.shape[1], (len(index),))
        other = (first + torch.randint(1, views.shape[1], (len(index),))) % views.shape[1]
        return views[index, first].float(), views[index, other].float()

    return pick


class CrossViewMoCo(nn.Module):
    """The thesis's unified variant (6.5, Figure 6.3c): MoCo between the views, twice. Indices of pairs -> loss.

    The query encoder of each view is a branch of `model` (a `crossview.TwoBranch`); the key encoder of each pair is the slow copy
    of the other pair's query encoder, for it sees the other view. One queue a view. The mean of the two InfoNCE losses.
    """

    def __init__(
        self, model: nn.Module, fetch: Callable[[Int64[Tensor, " b"]], tuple[Tensor, Tensor]], augment: Callable[[Tensor], Tensor] | None = None, *,
        dim: int, queue: int = 16384, momentum: float = 0.999, temperature: float = 0.2,
    ):  # fmt: skip
        super().__init__()
        _check_momentum(momentum)
        self.model, self.slow = model, slow_copy(model)
        self.ground_keys, self.satellite_keys = Queue(queue, dim), Queue(queue, dim)
        self.fetch, self.augment, self.momentum, self.temperature = fetch, augment or encoders.scale, momentum, temperature

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        device = self.ground_keys.keys.device
        ground, satellite = (self.augment(x.to(device, non_blocking=True)) for x in self.fetch(index))
        queries = self.model(ground, satellite)
        with torch.no_grad():
            if self.training:
                follow(self.slow, self.model, self.momentum)
            keys = self.slow(ground, satellite)
        loss = losses.info_nce(queries[0], keys[1], self.satellite_keys.keys, self.temperature)
        loss = loss + losses.info_nce(queries[1], keys[0], self.ground_keys.keys, self.temperature)
        if self.training:
            self.ground_keys.push(keys[0])
            self.satellite_keys.push(keys[1])
        return loss / 2


class Augmentation:
    """MoCo v2's augmentation (thesis, 6.2): uint8 images "b 3 h w" -> float in [0, 1], on the images' device, drawn anew each call.

    `crop` is the least share of the area that a random resized crop keeps; None leaves cropping out, as the last row of Table 4.8.
    Without `flip` nothing is mirrored. `blur` is the range of the Gaussian's deviation, in pixels: the paper's 0.1 to 2 is meant for
    224 pixels. Each `group` images of a batch share their draws, which saves time and costs nothing but variety within a step:
    images of one batch are no negatives of each other.
    """

    def __init__(self, *, crop: float | None = 0.2, flip: bool = True, blur: tuple[float, float] = (0.1, 2.0), group: int = 1):
        if group < 1 or not 0 < blur[0] <= blur[1]:
            raise ValueError(f"group, blur: expected group >= 1 and 0 < low <= high, found {group} and {blur}")
        from torchvision.transforms import v2

        self.crop, self.group = crop, group
        self.cropped = v2.RandomResizedCrop if crop else None
        self.rest = v2.Compose([
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(2 * math.ceil(3 * blur[1]) + 1, tuple(blur))], p=0.5),
            v2.RandomHorizontalFlip(0.5 if flip else 0.0),
        ])  # fmt: skip

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        cropped = self.cropped(tuple(images.shape[-2:]), scale=(self.crop, 1.0)) if self.crop else nn.Identity()
        return torch.cat([self.rest(cropped(part)) for part in encoders.scale(images).split(self.group)])


def _check_momentum(momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: expected 0 <= m < 1, found {momentum}")
