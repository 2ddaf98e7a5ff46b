"""A training that chapters and seeds share: done once for all who ask with the same data, start, recipe and code, and stored.

    weights = trained.once("moco", step, lambda s: s.query.trunk, n=len(images), batch=128, recipe=recipe, key={...}, code=__name__)
"""  # fmt: skip

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from georeps.core import cache
from georeps.nets import train

Weights = dict[str, Tensor]  # a module's parameters and buffers by name


def once(
    name: str, step: Callable[[], nn.Module], part: Callable[[nn.Module], nn.Module], *, n: int, batch: int, recipe: train.Recipe, key: dict, code: str,
    libraries: tuple[str, ...] = (), label: str = "",
) -> Weights:  # fmt: skip
    """The weights of `part(module)` after `train.fit` of the step that `step()` builds, on shuffled batches of n items.

    `key` holds what the weights depend on beside recipe and batch: hashes of the data and of the start (`cache.digest`), settings, the device; `code` is
    the module that asks, whose own code and imports count too. A training that was killed goes on from its last epoch.
    """
    key = {**key, "code": cache.code(code, libraries=("torch", *libraries)), "batch": batch, "recipe": dataclasses.asdict(recipe)}

    def build() -> dict[str, np.ndarray]:
        out = cache.scratch(f"{name}-{cache.hash_of(key)}")
        with torch.random.fork_rng():  # what a step starts with depends on the recipe's seed alone, and later draws not on whether it was stored
            torch.manual_seed(recipe.seed)
            module = step()
        fitted = train.fit(module, train.shuffled(n, min(batch, n), seed=recipe.seed), recipe, out=out, label=label)
        return {k: v.detach().cpu().numpy() for k, v in part(fitted.module).state_dict().items()}

    return {k: torch.from_numpy(np.array(v)) for k, v in cache.cached(name, key, build).items()}
