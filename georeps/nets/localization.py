"""From attention maps and features to boxes, and how good boxes are: MaxBoxAccV2, DINO-seg, LOST, CorLoc (dissertation, Tables 3.5, 3.6).

Boxes are (left, top, right, bottom) in pixels of the image.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from scipy import ndimage
from torch import Tensor

EIGHT, FOUR = np.zeros((2, 3, 3, 3), int)  # neighbours that OpenCV's contours join, of regions and of what is not
EIGHT[1], FOUR[1] = 1, [[0, 1, 0], [1, 1, 1], [0, 1, 0]]


def max_box_acc_v2(
    maps: Float[Tensor, "n h w"], boxes: Sequence[Float[Tensor, "_ 4"]], *, size: int, steps: int = 1000, overlaps: Sequence[float] = (0.3, 0.5, 0.7)
) -> Float[Tensor, " n"]:
    """MaxBoxAccV2 in percent is the mean of these, one an image (Choe et al., 2020): at each threshold of the map the boxes of all its contours, an image
    counts where one of them overlaps a true box by so much; the best threshold over the set for each overlap, then the mean over overlaps.

    As its authors compute it: a map is resized to `size` pixels by cubic interpolation, scaled to whole numbers up to 255, and cut above each of
    `steps` shares of its largest value (published: 1,000), in whole numbers too. Contours are those of OpenCV's RETR_TREE: outlines of regions and of holes.
    """
    best = _best(maps, boxes, size, steps)
    hits = [best >= overlap for overlap in overlaps]
    return torch.from_numpy(100 * np.mean([hit[:, hit.mean(axis=0).argmax()] for hit in hits], axis=0)).float()


def boxes_of(maps: Float[Tensor, "n h w"], boxes: Sequence[Float[Tensor, "_ 4"]], *, size: int, steps: int = 1000) -> Float[Tensor, "n 4"]:
    """The box of each map's largest contour, at the threshold that suits the set best at an overlap of one half."""
    cut = int((_best(maps, boxes, size, steps) >= 0.5).mean(axis=0).argmax())
    found = []
    for grey in _grey(maps, size):
        own, _ = contour_boxes((grey > cut * int(grey.max()) // steps)[None])
        area = (own[:, 2:] - own[:, :2]).prod(axis=1)
        found.append(own[area.argmax()] if len(own) else np.zeros(4, np.float32))
    return torch.from_numpy(np.stack(found))


def _grey(maps: Tensor, size: int) -> np.ndarray:
    return (255 * resized(maps, size, mode="bicubic")).byte().numpy()


def _best(maps: Tensor, boxes: Sequence[Tensor], size: int, steps: int) -> np.ndarray:
    """The largest overlap of each image's contours with a true box "n t", threshold by threshold."""
    if len(maps) != len(boxes) or not len(maps):
        raise ValueError(f"boxes: expected those of {len(maps)} maps, found {len(boxes)}")
    return np.stack([_best_by_threshold(grey, own, steps) for grey, own in zip(_grey(maps, size), boxes, strict=True)])


def attention_auc(maps: Float[Tensor, "n h w"], masks: Bool[Tensor, "n s s"]) -> Float[Tensor, " n"]:
    """Of each image, how often a pixel of the object has more attention than one beside it: 1/2 for an even map, whatever the object's size.

    NaN where an image is all object or has none.
    """
    large = F.interpolate(maps[:, None].float(), size=masks.shape[1:], mode="bilinear")[:, 0].flatten(1)
    found = []
    for a, own in zip(large, masks.flatten(1), strict=True):
        inside, beside = a[own], a[~own].sort().values
        below = torch.searchsorted(beside, inside) + torch.searchsorted(beside, inside, right=True)
        found.append(below.double().mean() / (2 * len(beside)) if len(inside) and len(beside) else torch.tensor(float("nan")))
    return torch.stack(found).float()


def resized(maps: Float[Tensor, "n h w"], size: int, *, mode: Literal["bilinear", "bicubic"] = "bilinear") -> Float[Tensor, "n s s"]:
    """To `size` pixels a side, each scaled to 0..1; a constant map to 0."""
    large = F.interpolate(maps[:, None].float(), size=(size, size), mode=mode)[:, 0]
    low, high = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
    return (large - low) / (high - low).clamp(min=1e-12)


def _best_by_threshold(grey: np.ndarray, boxes: Tensor, steps: int) -> np.ndarray:
    """The largest overlap of a contour's box with a true one, for each threshold; contours are sought once where thresholds give the same mask."""
    levels = np.unique(grey)
    level = np.searchsorted(levels, np.arange(steps) * int(grey.max()) // steps, side="right")  # how many levels a threshold leaves dark
    own, place = np.unique(level, return_inverse=True)
    masks = grey >= levels[own.clip(max=len(levels) - 1), None, None]
    masks[own == len(levels)] = False
    best, (proposed, at) = np.zeros(len(own)), contour_boxes(masks)
    if len(proposed) and len(boxes):
        np.maximum.at(best, at, iou(torch.from_numpy(proposed), boxes).amax(dim=1).numpy())
    return best[place]


def contour_boxes(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes "m 4" of the regions of masks "t h w" (joined over corners) and of their holes, with the pixels that line a hole; and whose they are.

    All masks are labelled in one call: a structure that joins within a mask alone.
    """
    regions = ndimage.find_objects(ndimage.label(masks, EIGHT)[0])
    holes, _ = ndimage.label(~masks, FOUR)
    edge = set(np.unique(np.concatenate([holes[:, 0].ravel(), holes[:, -1].ravel(), holes[:, :, 0].ravel(), holes[:, :, -1].ravel()])).tolist())
    inner = [where for i, where in enumerate(ndimage.find_objects(holes), 1) if i not in edge]
    h, w = masks.shape[1:]  # published code takes x + width for the right edge, within the picture
    rows = [[x.start - g, y.start - g, min(x.stop + g, w - 1), min(y.stop + g, h - 1)] for g, group in ((0, regions), (1, inner)) for _, y, x in group]
    return np.array(rows, np.float32).reshape(-1, 4), np.array([t.start for t, _, _ in (*regions, *inner)], int)


def iou(x: Float[Tensor, "n 4"], y: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Intersection over union; a box holds its last pixel."""
    low, high = torch.maximum(x[:, None, :2], y[None, :, :2]), torch.minimum(x[:, None, 2:], y[None, :, 2:])
    common = (high - low + 1).clamp(min=0).prod(dim=2)
    area = lambda b: (b[:, 2:] - b[:, :2] + 1).prod(dim=1)  # noqa: E731
    return common / (area(x)[:, None] + area(y)[None] - common)


def dino_seg(attention: Float[Tensor, "h w"], *, size: int, mass: float = 0.6) -> Float[Tensor, "4"]:
    """The box of the largest region that holds `mass` of the attention (Caron et al., 2021, as LOST's code has it, which takes the map of one head)."""
    order = attention.flatten().argsort(descending=True)
    share = attention.flatten()[order].cumsum(0) / attention.sum()
    kept = torch.zeros(attention.numel(), dtype=torch.bool)
    kept[order[: int((share < mass).sum()) + 1]] = True
    regions, _ = ndimage.label(kept.view(attention.shape).numpy())
    return _patch_box(regions == np.bincount(regions[regions > 0]).argmax(), size)


def lost(keys: Float[Tensor, "d h w"], *, size: int, k: int = 100) -> Float[Tensor, "4"]:
    """LOST (Simeoni et al., 2021): the patch whose key agrees with fewest others is on an object; those of the k next such patches that agree
    with it widen the search; the box is that of the region of patches that agree with them and holds the first.
    """
    f = keys.flatten(1).T
    alike = f @ f.T
    order = (alike > 0).sum(dim=1).argsort(stable=True)
    seed = int(order[0])
    near = order[:k]
    near = near[alike[seed, near] > 0]
    regions, _ = ndimage.label((alike[near].sum(dim=0) > 0).view(keys.shape[1:]).numpy())
    own = regions.ravel()[seed]
    return _patch_box(regions == own if own else np.arange(regions.size).reshape(regions.shape) == seed, size)


def _patch_box(region: np.ndarray, size: int) -> Float[Tensor, "4"]:
    """Around the patches of a region, in pixels."""
    (y, x), (h, w) = np.nonzero(region), region.shape
    return torch.tensor([x.min() * size / w, y.min() * size / h, (x.max() + 1) * size / w - 1, (y.max() + 1) * size / h - 1], dtype=torch.float32)


def corloc(found: Sequence[Float[Tensor, "4"]], boxes: Sequence[Float[Tensor, "_ 4"]]) -> Float[Tensor, " n"]:
    """100 for each image whose one box overlaps a true one by at least half, their mean is CorLoc (%); an image without objects is an error."""
    empty = [i for i, own in enumerate(boxes) if not len(own)]
    if empty or len(found) != len(boxes):
        raise ValueError(f"boxes: expected at least one for each of {len(found)} images, found none for {empty[:5] or len(found) - len(boxes)}")
    return torch.tensor([100.0 * (float(iou(box[None], own).max()) >= 0.5) for box, own in zip(found, boxes, strict=True)])


def segmentation(found: Int64[Tensor, "n h w"], truth: Int64[Tensor, "n h w"], classes: int) -> dict[str, float]:
    """mIoU, mean class accuracy and pixel accuracy in percent, over the classes that occur in the truth."""
    table = torch.bincount((truth * classes + found).flatten(), minlength=classes**2).view(classes, classes).double()
    hit, true, said = table.diagonal(), table.sum(dim=1), table.sum(dim=0)
    there = true > 0
    return {
        "miou": 100 * float((hit / (true + said - hit))[there].mean()), "macc": 100 * float((hit / true)[there].mean()),
        "aacc": 100 * float(hit.sum() / table.sum()),
    }  # fmt: skip
