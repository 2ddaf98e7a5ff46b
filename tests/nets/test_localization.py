"""Boxes from maps against hand-made shapes, overlaps against torchvision, scores against their definitions."""

import numpy as np
import pytest
import torch
import torchvision
from sklearn.metrics import jaccard_score, roc_auc_score

from georeps.nets import localization


def blob(size: int, left: int, top: int, right: int, bottom: int) -> torch.Tensor:
    found = torch.zeros(size, size)
    found[top : bottom + 1, left : right + 1] = 1
    return found


def test_overlap_is_torchvision_s_with_the_last_pixel_inside():
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(0, 20, (6, 2), generator=generator).float()
    boxes = torch.cat([low, low + torch.randint(0, 9, (6, 2), generator=generator)], dim=1)
    expected = torchvision.ops.box_iou(boxes + torch.tensor([0, 0, 1, 1]), boxes + torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(localization.iou(boxes, boxes), expected)


def test_contours_are_regions_over_corners_and_holes_with_their_lining():
    mask = np.zeros((10, 10), bool)
    mask[1:6, 1:6] = True
    mask[2:5, 2:5] = False  # a ring: its hole is a contour too
    mask[7, 7] = mask[8, 8] = True  # joined over a corner
    boxes, whose = localization.contour_boxes(np.stack([mask, ~mask, np.zeros_like(mask)]))
    assert sorted(map(tuple, boxes[whose == 0].tolist())) == [(1, 1, 6, 6), (1, 1, 6, 6), (7, 7, 9, 9)]
    assert (0, 0, 9, 9) in map(tuple, boxes[whose == 1].tolist()) and not (whose == 2).any()
    assert localization.contour_boxes(np.ones((1, 4, 4), bool))[0].tolist() == [[0, 0, 3, 3]]


def test_a_map_that_is_the_object_localises_it_and_an_empty_one_nothing():
    boxes = [torch.tensor([[8.0, 12.0, 23.0, 31.0]]), torch.tensor([[0.0, 0.0, 15.0, 15.0], [24.0, 24.0, 39.0, 39.0]])]
    maps = torch.stack([blob(40, 8, 12, 23, 31), blob(40, 24, 24, 39, 39)])
    assert localization.max_box_acc_v2(maps, boxes, size=40, steps=20).tolist() == [100, 100]
    assert localization.max_box_acc_v2(torch.zeros(2, 40, 40), boxes, size=40, steps=20).mean() == 0
    found = localization.boxes_of(maps, boxes, size=40, steps=20)
    assert found.tolist() == [[8, 12, 24, 32], [24, 24, 39, 39]], "published code takes x + width for the right edge"


def test_the_score_is_the_mean_of_three_overlaps_each_at_its_best_threshold():
    boxes = [torch.tensor([[0.0, 0.0, 39.0, 19.0]])]
    whole = torch.ones(1, 40, 40)
    whole[0, 36:, 36:] = 0.9  # not constant; the box of all has overlap one half
    assert localization.max_box_acc_v2(whole, boxes, size=40, steps=10).mean() == pytest.approx(200 / 3)
    graded = blob(40, 0, 0, 39, 19)[None] + 0.5 * blob(40, 0, 20, 39, 39)[None]  # at one threshold all, at another the object
    assert localization.max_box_acc_v2(graded, boxes, size=40, steps=10).tolist() == [100]


def test_contours_are_sought_once_where_thresholds_agree_and_found_as_by_each():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 5, 5, generator=generator)
    boxes = [torch.tensor([[4.0, 4.0, 14.0, 16.0]]), torch.tensor([[0.0, 8.0, 9.0, 19.0]]), torch.tensor([[2.0, 2.0, 18.0, 9.0]])]
    best = localization._best(maps, boxes, 20, 300)
    for grey, own, found in zip(localization._grey(maps, 20), boxes, best, strict=True):
        for step in range(0, 300, 7):
            proposed, _ = localization.contour_boxes((grey > step * int(grey.max()) // 300)[None])
            expected = localization.iou(torch.from_numpy(proposed), own).max() if len(proposed) else 0.0
            assert found[step] == pytest.approx(float(expected))


def test_attention_auc_is_the_library_s_and_one_half_for_an_even_map():
    generator = torch.Generator().manual_seed(0)
    maps, masks = torch.rand(3, 8, 8, generator=generator), torch.rand(3, 8, 8, generator=generator) > 0.7
    found = localization.attention_auc(maps, masks)
    assert found.tolist() == pytest.approx([roc_auc_score(m.flatten(), a.flatten()) for m, a in zip(masks, maps, strict=True)])
    assert localization.attention_auc(torch.ones(1, 4, 4), masks[:1]).tolist() == [0.5]
    assert bool(localization.attention_auc(torch.ones(1, 4, 4), torch.zeros(1, 8, 8, dtype=torch.bool)).isnan())


def test_dino_seg_boxes_the_largest_region_of_the_mass():
    attention = 0.2 * blob(6, 1, 1, 3, 2) + 0.9 * blob(6, 5, 5, 5, 5)
    assert localization.dino_seg(attention, size=60, mass=0.99).tolist() == [10, 10, 39, 29]


def test_lost_boxes_what_agrees_with_the_loneliest_patch():
    keys = torch.zeros(2, 6, 6)
    keys[0], keys[1] = -0.1, 1.0
    keys[:, 2:4, 1:5] = torch.tensor([1.0, 0.05])[:, None, None]  # eight patches that agree with each other and with nobody else
    assert localization.lost(keys, size=60, k=8).tolist() == [10, 20, 49, 39]


def test_corloc_counts_images_with_half_an_overlap():
    found = [torch.tensor([0.0, 0, 9, 9]), torch.tensor([0.0, 0, 9, 9])]
    boxes = [torch.tensor([[0.0, 0, 9, 4], [50, 50, 60, 60]]), torch.tensor([[0.0, 0, 9, 3]])]
    assert localization.corloc(found, boxes).mean() == 50
    with pytest.raises(ValueError, match=r"boxes: expected at least one for each of 2 images, found none for \[1\]"):
        localization.corloc(found, [boxes[0], torch.zeros(0, 4)])


def test_segmentation_scores_are_the_library_s():
    generator = torch.Generator().manual_seed(0)
    truth, found = (torch.randint(0, 3, (2, 8, 8), generator=generator) for _ in range(2))
    scores = localization.segmentation(found, truth, 5)  # classes 3 and 4 never occur
    assert scores["miou"] == pytest.approx(100 * jaccard_score(truth.flatten(), found.flatten(), average="macro"))
    assert scores["aacc"] == pytest.approx(100 * float((truth == found).float().mean()))
