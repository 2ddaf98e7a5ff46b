"""DINO (Caron et al., 2021): self-distillation without labels, the self-supervised training of the dissertation's chapter 3.

    loss = mean over a teacher's view t and every other view s of  -softmax((teacher(t) - centre) / 0.04) . log softmax(student(s) / 0.1)
"""  # fmt: skip

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from georeps.papers import moco


class Head(nn.Module):
    """Three layers, a bottleneck of length 1, and `out` prototypes of length 1."""

    def __init__(self, dim: int, out: int, hidden: int = 256, bottleneck: int = 64):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Parameter(torch.randn(out, bottleneck))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b o"]:
        return F.normalize(self.mlp(x), dim=1) @ F.normalize(self.prototypes, dim=1).T


class Embedded(nn.Module):
    """What a classifier's pooling gives, through the head."""

    def __init__(self, model: nn.Module, head: nn.Module):
        super().__init__()
        self.model, self.head = model, head

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b o"]:
        return self.head(self.model.vector(image))


class Dino(nn.Module):
    """A step of training: indices of images -> loss (`train.fit` calls it). What has learned is `student.model`.

    `model.vector(image)` is trained (a `backbones.Classifier`, whose own linear layer stays out). Two large views a step and `small` small ones;
    here small views have the pixels of large ones.
    `upright` images are never turned upside down, as photographs want. The teacher is the student's momentum average; its centre, an average of its
    outputs, keeps one prototype from taking all. In evaluation mode nothing is updated.
    """

    def __init__(
        self, model: nn.Module, dim: int, fetch: Callable[[Int64[Tensor, " b"]], Tensor], *, out: int = 256, small: int = 2, momentum: float = 0.99,
        teacher_temperature: float = 0.04, student_temperature: float = 0.1, large_crop: float = 0.25, upright: bool = False,
    ):  # fmt: skip
        super().__init__()
        for name, value in (("momentum", momentum), ("large_crop", large_crop)):
            if not 0 < value < 1:
                raise ValueError(f"{name}: expected a number between 0 and 1, found {value}")
        self.student = Embedded(model, Head(dim, out))
        self.teacher = moco.slow_copy(self.student)
        self.register_buffer("centre", torch.zeros(out))
        self.fetch, self.small, self.momentum, self.large_crop = fetch, small, momentum, large_crop
        self.temperatures = teacher_temperature, student_temperature
        from torchvision.transforms import v2

        self.crop = v2.RandomResizedCrop
        self.look = v2.Compose([
            v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(0.0 if upright else 0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8), v2.RandomGrayscale(p=0.2),
        ])  # fmt: skip

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        images = self.fetch(index).to(self.centre.device, non_blocking=True).float() / 255
        views = [self._view(images, (self.large_crop, 1.0)) for _ in range(2)] + [self._view(images, (0.05, self.large_crop)) for _ in range(self.small)]
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

    def _view(self, images: Float[Tensor, "b 3 h w"], scale: tuple[float, float]) -> Float[Tensor, "b 3 h w"]:
        """Each group of eight shares its draws."""
        crop = self.crop(tuple(images.shape[-2:]), scale=scale, antialias=True)
        return torch.cat([self.look(crop(part)) for part in images.split(8)])
