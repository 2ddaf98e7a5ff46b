"""Continuous textual inversion: an image as a vector in the place of a word, what FreeDom's words are compared with (dissertation, 4.4.4).

    SEARLE (Baldrati et al., 2023), for each image   min over v     (1 - cos(g("a photo of" v), f(y))) + w (1 - cos(g(p(v)), g(p(c))))
    Pic2Word (Saito et al., 2023), a map for all     min over phi   InfoNCE(g("a photo of" phi(f(y))), f(y))

p: a phrase around a word, c: one of the words nearest to the image. Everything but v and phi is frozen.
"""

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from georeps.nets import losses, prompts


def pseudo_words(
    images: Float[Tensor, "n d"], photo: prompts.Prompt, *, lr: float, steps: int, phrases: Sequence[tuple[prompts.Prompt, Float[Tensor, "n d"]]] = (),
    weight: float = 0.5, decay: float = 0.99, seed: int = 0,
) -> Float[Tensor, "n 1 w"]:  # fmt: skip
    """SEARLE's optimisation-based inversion: a vector for each image (unit rows), all at once; the moving average of the optimisation is returned.

    `photo` is the text whose feature is drawn to the image's; of `phrases`, a prompt and the features of the same phrase with each image's nearest word,
    one is drawn at each step. Paper: phrases that GPT continues from the word. Here: templates, because no language model comes with the install.
    """
    draw, choose = torch.Generator().manual_seed(seed), random.Random(seed)
    start = photo.before.std().cpu() * torch.randn(len(images), 1, photo.before.shape[1], generator=draw)
    words = start.to(images.device).requires_grad_(True)
    average, optimizer = words.detach().clone(), torch.optim.AdamW([words], lr=lr, weight_decay=0.01)
    for step in range(steps):
        loss = (1 - F.cosine_similarity(photo(words), images)).sum()
        if phrases:
            phrase, meant = choose.choice(phrases)
            loss = loss + weight * (1 - F.cosine_similarity(phrase(words), meant)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.lerp_(words.detach(), 1 - min(decay, step / (step + 1)))  # of few steps the mean, not mostly the start
    return average


class Mapping(nn.Module):
    """Pic2Word's map of image features to a word: three layers, of `hidden` units; "b d" -> "b 1 w"."""

    def __init__(self, dim: int, width: int, *, hidden: int = 512, dropout: float = 0.1):
        super().__init__()
        layers = [nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, width))

    def forward(self, images: Float[Tensor, "b d"]) -> Float[Tensor, "b 1 w"]:
        return self.layers(images)[:, None]


class MappingStep(nn.Module):
    """A training step of the map: indices -> InfoNCE between images and the texts of their words, both ways, at the scale of the CLIP's own loss."""

    def __init__(self, mapping: Mapping, images: Float[Tensor, "n d"], photo: prompts.Prompt, *, scale: float):
        super().__init__()
        self.mapping, self.images, self.photo, self.scale = mapping, images, photo, scale

    def forward(self, index: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        images = self.images[index]
        texts = F.normalize(self.photo(self.mapping(images)), dim=1)
        cosine, own = self.scale * texts @ images.T, torch.eye(len(index), dtype=torch.bool, device=images.device)
        return (losses.supervised_contrastive(cosine, own) + losses.supervised_contrastive(cosine.T, own)) / 2
