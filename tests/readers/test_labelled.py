"""Readers of the metric-learning and landmark data sets, on trees that mimic theirs."""

import pickle

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from georeps.core import metrics
from georeps.readers import images, labelled


def picture(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


@pytest.fixture
def cub(tmp_path):
    rows = [(1, "001.Albatross/a.jpg", 1), (2, "100.Pelican/b.jpg", 100), (3, "101.Pelican/c.jpg", 101), (4, "200.Yellowthroat/d.jpg", 200)]
    for _, name, _ in rows:
        picture(tmp_path / "images" / name)
    picture(tmp_path / "images" / "001.Albatross" / "._a.jpg")  # is in no list
    (tmp_path / "images.txt").write_text("".join(f"{i} {name}\n" for i, name, _ in rows))
    (tmp_path / "image_class_labels.txt").write_text("".join(f"{i} {c}\n" for i, _, c in rows))
    return tmp_path


def test_cub_trains_on_the_first_hundred_classes(cub):
    train, test = (labelled.cub(cub, part) for part in ("train", "test"))
    assert [p.name for p in train.files] == ["a.jpg", "b.jpg"] and train.names == ["001", "100"]
    assert [p.name for p in test.files] == ["c.jpg", "d.jpg"] and test.labels.tolist() == [0, 1]


def test_a_broken_line_and_a_lost_file_of_cub_are_named(cub):
    (cub / "images" / "001.Albatross" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 missing: .*001.Albatross/a.jpg"):
        labelled.cub(cub)
    (cub / "image_class_labels.txt").write_text("1 1\n2 one\n3 101\n4 200\n")
    with pytest.raises(ValueError, match=r"image_class_labels.txt, line 2: expected a whole number, found '2 one'"):
        labelled.cub(cub)
    (cub / "image_class_labels.txt").write_text("1 1\n2 100\n3 101\n")
    with pytest.raises(ValueError, match="found in one only: 4"):
        labelled.cub(cub)
    (cub / "image_class_labels.txt").write_text("1 1\n2 100\n3 101\n4 201\n")
    with pytest.raises(ValueError, match=r"expected classes 1..200, found 201 for d.jpg"):
        labelled.cub(cub)


def test_cars_are_read_from_their_annotations(tmp_path):
    for i in range(4):
        picture(tmp_path / "car_ims" / f"00000{i}.jpg")
    kind = [("relative_im_path", object), ("class", object)]
    rows = np.array([[(f"car_ims/00000{i}.jpg", c) for i, c in enumerate((1, 98, 99, 196))]], dtype=kind)
    scipy.io.savemat(tmp_path / "cars_annos.mat", {"annotations": rows})
    assert [p.stem for p in labelled.cars(tmp_path).files] == ["000000", "000001"]
    assert labelled.cars(tmp_path, "test").names == ["099", "196"]
    scipy.io.savemat(tmp_path / "cars_annos.mat", {"other": 1})
    with pytest.raises(ValueError, match="expected 'annotations' with relative_im_path and class"):
        labelled.cars(tmp_path)


def test_sop_is_read_from_its_lists(tmp_path):
    picture(tmp_path / "bicycle_final" / "1_0.JPG")
    header = "image_id class_id super_class_id path\n"
    (tmp_path / "Ebay_test.txt").write_text(header + "1 11319 1 bicycle_final/1_0.JPG\n")
    assert labelled.sop(tmp_path, "test").names == ["11319"]
    (tmp_path / "Ebay_test.txt").write_text(header + "1 11319 bicycle_final/1_0.JPG\n")
    with pytest.raises(ValueError, match=r"Ebay_test.txt, line 2: expected 4 columns, found 3"):
        labelled.sop(tmp_path, "test")
    (tmp_path / "Ebay_train.txt").write_text("1 1 1 x\n")
    with pytest.raises(ValueError, match="line 1: expected the columns image_id class_id super_class_id path, found 1 1 1 x"):
        labelled.sop(tmp_path)


def test_in_shop_numbers_query_and_gallery_alike(tmp_path):
    rows = [("img/a.jpg", "id_3", "train"), ("img/b.jpg", "id_7", "gallery"), ("img/c.jpg", "id_9", "gallery"), ("img/d.jpg", "id_9", "query")]
    for name, _, _ in rows:
        picture(tmp_path / "Img" / name)
    (tmp_path / "Eval").mkdir()
    path = tmp_path / "Eval" / "list_eval_partition.txt"
    path.write_text("4\nimage_name item_id evaluation_status\n" + "".join(f"{n}   {i} {s}\n" for n, i, s in rows))
    query, gallery = (labelled.in_shop(tmp_path, part) for part in ("query", "gallery"))
    assert query.labels.tolist() == [1] and gallery.labels.tolist() == [0, 1] and query.names == gallery.names == ["id_7", "id_9"]
    assert labelled.in_shop(tmp_path).names == ["id_3"]
    path.write_text("1\nimage_name item_id evaluation_status\nimg/a.jpg id_3 trian\n")
    with pytest.raises(ValueError, match="line 3: expected train, query or gallery, found 'trian'"):
        labelled.in_shop(tmp_path)


def test_a_folder_a_class_is_split_by_class(tmp_path):
    for name in ("ash", "birch", "cedar", "douglas fir"):
        picture(tmp_path / name / "1.png")
    assert labelled.class_folders(tmp_path).names == ["ash", "birch"]
    assert labelled.class_folders(tmp_path, "test").names == ["cedar", "douglas fir"]
    (tmp_path / "ash" / "notes.txt").write_text("of the summer")
    found = labelled.class_folders(tmp_path, "all")
    assert len(found.files) == 4 and [p[-9:] for p in found.left_out["no images"]] == ["notes.txt"]
    (tmp_path / "ash" / "1.png").unlink()
    with pytest.raises(ValueError, match="found none in ash"):
        labelled.class_folders(tmp_path)


def test_landmarks_are_read_and_judged_by_medium_and_hard(tmp_path):
    folder = tmp_path / "roxford5k"
    for stem in ("q", "g0", "g1", "g2", "g3"):
        picture(folder / "jpg" / f"{stem}.jpg")
    truth = {"easy": np.array([2]), "hard": [0], "junk": [1], "bbx": np.array([0, 0, 4, 4.5])}
    content = {"imlist": ["g0", "g1", "g2", "g3"], "qimlist": ["q"], "gnd": [truth]}
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content))
    found = labelled.landmarks(tmp_path, "roxford5k")
    assert found.boxes == [(0.0, 0.0, 4.0, 4.5)] and [p.stem for p in found.gallery] == content["imlist"]
    scores = torch.tensor([[0.1, 0.9, 0.8, 0.5]])  # junk first, then the easy one, a wrong one, the hard one
    medium, hard = (metrics.landmark_ap(scores, found.easy, found.hard, found.junk, protocol=p) for p in ("medium", "hard"))
    assert float(medium[0]) == pytest.approx((1 + (0.5 + 2 / 3) / 2) / 2)  # trapezoids, without junk
    assert float(hard[0]) == pytest.approx((0 + 0.5) / 2)  # without junk and the easy one


def test_a_query_is_the_part_of_its_image_in_the_box(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2:4, 4:8] = 200
    Image.fromarray(pixels).save(tmp_path / "q.png")
    found = images.load_boxes([tmp_path / "q.png"], [(4.0, 2.0, 8.0, 4.0)], size=(4, 4))
    assert found.shape == (1, 3, 4, 4) and bool((found == 200).all())
    with pytest.raises(ValueError, match=r"q.png: expected a box .* inside the image, found \(9.0"):
        images.load_boxes([tmp_path / "q.png"], [(9.0, 9.0, 12.0, 12.0)], size=(4, 4))


def test_a_pickle_with_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    (tmp_path / "rparis6k").mkdir()
    (tmp_path / "rparis6k" / "gnd_rparis6k.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="expected arrays, lists and dictionaries, found builtins.print"):
        labelled.landmarks(tmp_path, "rparis6k")
