"""DINO (Caron et al., 2021): self-distillation without labels, the self-supervised training of the dissertation's chapter 3.

    loss = mean over a teacher's view t and every other view s of  -softmax((teacher(t) - centre) / 0.04) . log softmax(student(s) / 0.1)
"""  # fmt: skip

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from georeps.core import cache
from georeps.nets import encoders, pooling
from georeps.papers import moco


class Head(nn.Module):
    """Three layers, a bottleneck of length 1, and `out` prototypes of length 1."""

    def __init__(self, dim: int, out: int, hidden: int = 256, bottleneck: int = 64):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Parameter(torch.randn(out, bottleneck))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b o"]:
        z = self.mlp(x)
        with pooling.full(z):  # never in 16 bits: the loss divides it by 0.04
            return F.normalize(z.float(), dim=1) @ F.normalize(self.prototypes.float(), dim=1).T


class Embedded(nn.Module):
    """What a classifier's pooling gives, through the head."""

    def __init__(self, model: nn.Module, head: nn.Module):
        super().__init__()
        self.model, self.head = model, head

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o"]:
        return self.head(self.model.vector(image))


class Dino(nn.Module):
    """A step of training: indices of images -> loss (`train.fit` calls it). What has learned is `student.model`.

    `model.vector(image)` is trained (a `backbones.Classifier`, whose own linear layer stays out). `views(index)` gives views of each image, of which the
    first two, the large ones, are the teacher's (`of_images`, `of_stored`). The teacher is the student's momentum average; its centre, an average of its
    outputs, keeps one prototype from taking all. In evaluation mode nothing is updated.
    """

    def __init__(
        self, model: nn.Module, dim: int, views: Callable[[Int64[Tensor, " b"]], Sequence[Tensor]], *, out: int = 256, momentum: float = 0.99,
        teacher_temperature: float = 0.04, student_temperature: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        if not 0 < momentum < 1:
            raise ValueError(f"momentum: expected a number between 0 and 1, found {momentum}")
        self.student = Embedded(model, Head(dim, out))
        self.teacher = moco.slow_copy(self.student)
        self.register_buffer("centre", torch.zeros(out))
        self.views, self.momentum = views, momentum
        self.temperatures = teacher_temperature, student_temperature

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        views = [view.to(self.centre.device, non_blocking=True) for view in self.views(index)]
        students = self.student(torch.cat(views)).chunk(len(views))
        with torch.no_grad():
            if self.training:
                moco.follow(self.teacher, self.student, self.momentum)
            teachers = self.teacher(torch.cat(views[:2])).chunk(2)
        targets = [((t - self.centre) / self.temperatures[0]).softmax(dim=1) for t in teachers]
        terms = [
            -(t * (s / self.temperatures[1]).log_softmax(dim=1)).sum(dim=1).mean() for i, t in enumerate(targets) for j, s in enumerate(students) if i != j
        ]
        if self.training:
            with torch.no_grad():
                self.centre.lerp_(torch.cat(teachers).mean(dim=0), 0.1)
        return torch.stack(terms).mean()


class Views:
    """uint8 images "b 3 h w" -> two large views and `small` small ones, floats in [0, 1], drawn anew each call; each group of eight shares its draws.

    Small views, of at most a share `large` of the image, have the pixels of large ones here. `upright` images are never turned upside down, as
    photographs want.
    """

    def __init__(self, *, small: int = 2, large: float = 0.25, upright: bool = False):
        if not 0.05 < large < 1:
            raise ValueError(f"large: expected a share between 0.05 and 1, found {large}")
        from torchvision.transforms import v2

        self.scales = [(large, 1.0)] * 2 + [(0.05, large)] * small
        self.crop = v2.RandomResizedCrop
        self.look = v2.Compose([
            v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(0.0 if upright else 0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8), v2.RandomGrayscale(p=0.2),
        ])  # fmt: skip

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b 3 h w"]]:
        x = encoders.scale(images)
        crops = [self.crop(tuple(x.shape[-2:]), scale=scale, antialias=True) for scale in self.scales]
        return [torch.cat([self.look(crop(part)) for part in x.split(8)]) for crop in crops]


def of_images(images: UInt8[Tensor, "n 3 h w"], views: Views) -> Callable[[Int64[Tensor, " b"]], list[Tensor]]:
    """Indices -> views of these images, drawn anew."""
    return lambda index: views(images[index])


def of_stored(seen: Float[Tensor, "n v c h w"]) -> Callable[[Int64[Tensor, " b"]], list[Tensor]]:
    """Indices -> the views that are stored of each, the large ones first (`stored`)."""
    return lambda index: [seen[index, i].float() for i in range(seen.shape[1])]


def stored(stem: nn.Module, images: UInt8[Tensor, "n 3 h w"], views: Views, *, device: str = "cpu") -> Float[Tensor, "n v c i j"]:
    """What a frozen stem gives of one draw of views of each image, float16: drawn and seen once for all who ask."""
    key = {
        "code": cache.code(__name__, libraries=("torch", "torchvision", "timm")), "stem": cache.digest(*stem.state_dict().values()),
        "images": cache.digest(images), "views": [views.scales, str(views.look)], "device": device.split(":")[0],
    }  # fmt: skip

    @torch.no_grad()
    def build() -> dict[str, np.ndarray]:
        see = copy.deepcopy(stem).to(device).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            order = torch.randperm(len(images))  # so that images that share their draws are of any class
            parts = [torch.stack([see(v.to(device)).half().cpu() for v in views(part)], dim=1) for part in images[order].split(64)]
        return {"views": torch.cat(parts)[order.argsort()].numpy()}

    return torch.from_numpy(np.array(cache.cached("views", key, build)["views"]))
