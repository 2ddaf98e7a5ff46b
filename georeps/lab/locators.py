"""`geolocation.Locator`s on features of places, trained once for all chapters that ask."""

import torch
from jaxtyping import Float
from torch import Tensor

from georeps.core import cache
from georeps.lab import trained
from georeps.nets import train
from georeps.papers import geolocation


def locator(
    kind: geolocation.Kind, features: Float[Tensor, "n d"], x: Float[Tensor, "n 3"], *, recipe: train.Recipe, batch: int = 256, device: str = "cpu", **shape
) -> geolocation.Locator:  # fmt: skip
    """A trained `geolocation.Locator`, started and trained by the recipe's seed; `shape` are its other arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        found = geolocation.Locator(kind, features, x, **shape).to(device)
    key = {"data": cache.digest(features, x), "kind": kind, "shape": shape, "device": device.split(":")[0]}
    found.load_state_dict(trained.once(
        "locator", lambda: geolocation.Lesson(found, features, x), lambda step: step.locator, n=len(x), batch=batch, recipe=recipe, key=key,
        code=__name__, label=kind,
    ))  # fmt: skip
    return found.eval().requires_grad_(False)
