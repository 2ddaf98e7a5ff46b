"""What the ground of the city is made of, as masks of its tiles."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from georeps.worlds import city
from georeps.worlds.city import scene as scenes


def share(where: city.Places, *, size: int, materials: Sequence[str] = ("road", "marking")) -> Float[Tensor, "q size size"]:
    """Share of each pixel of the tiles centred on the cameras (`city.satellite`) that is of these `scene.MATERIALS`, between 0 and 1."""
    unknown = sorted(set(materials) - set(scenes.MATERIALS))
    if unknown:
        raise ValueError(f"materials: expected some of {', '.join(scenes.MATERIALS)}, found {', '.join(unknown)}")
    kinds = [scenes.MATERIALS.index(name) for name in materials]
    parts = [None] * len(where)
    for c in where.cities:
        own = np.flatnonzero(where.city.numpy() == c)
        made_of = np.isin(scenes._materials(city.plan_of(c, where.tiles)), kinds)[::-1]  # row 0 of a scene is its southern edge
        image = np.repeat((255 * made_of[:, :, None]).astype(np.uint8), 3, axis=2)
        centres = where.position.numpy()[own] - c * city.APART
        for i, tile in zip(own, scenes.tiles(np.ascontiguousarray(image), centres, size=size, extent=city.TILE), strict=True):
            parts[i] = tile[0].float() / 255
    import torch

    return torch.stack(parts)
