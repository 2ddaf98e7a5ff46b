"""What surrounds a place: panoramas, whose columns wrap around, and tiles laid out as panoramas are.

    polar:  row 0 is the outermost circle, the last row the centre; columns run from south over west, north (the centre column) and east
"""  # fmt: skip

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def polar(image: Float[Tensor, "b c s s"], height: int, width: int) -> Float[Tensor, "b c height width"]:
    """Polar transform of satellite tiles about their centre: the layout of a panorama taken there (SAFA, Eq. 1-2).

    Row 0 is the outermost circle, the last row the centre; columns run from south over west, north (the centre column) and
    east. Bilinear, 0 outside the tile. Published maps were stretched to 8 bits by their minimum and maximum; these are not.
    """
    side = image.shape[-1]
    radius = side / 2 / height * (height - 1 - torch.arange(height, device=image.device))
    angle = 2 * math.pi / width * torch.arange(width, device=image.device)
    rows = side / 2 + radius[:, None] * angle.cos()
    columns = side / 2 - radius[:, None] * angle.sin()
    grid = torch.stack([columns, rows], dim=-1).to(image) * 2 / (side - 1) - 1
    return F.grid_sample(image, grid.expand(len(image), -1, -1, -1), align_corners=True)


def turn(panorama: Float[Tensor, "b c h w"], columns: Int64[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
    """Each panorama as a camera turned to the right by so many columns would have taken it; they wrap around."""
    width = panorama.shape[-1]
    index = (torch.arange(width, device=panorama.device) + columns[:, None].to(panorama.device)) % width
    return panorama.gather(-1, index[:, None, None].expand_as(panorama))
