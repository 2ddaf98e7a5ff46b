"""Parts for recognition: what validates and what is tested is never trained on."""

import pytest
import torch
from PIL import Image

from georeps.tasks import recognition
from georeps.worlds.patterns import objects


def pictures(x: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in x}


def test_seeds_draw_from_one_pool_and_share_the_test_part():
    first, second = (recognition.of_objects(size=24, n=3, n_val=2, n_test=2, pool=6, seed=s) for s in (0, 1))
    assert first.classes == len(objects.SEEN) and torch.equal(first.test.x, second.test.x) and torch.equal(first.pool, second.pool)
    for world in (first, second):
        assert world.train.labels.bincount().tolist() == [3] * 11 and world.val.labels.bincount().tolist() == [2] * 11
        assert not pictures(world.train.x) & (pictures(world.val.x) | pictures(world.test.x))
        assert torch.equal(world.pool[world.rows], world.train.x)
        assert world.train.masks.shape == (33, 24, 24) and len(world.train.boxes) == 33 and int(world.other.labels.max()) == 3
    assert pictures(first.train.x) != pictures(second.train.x)
    with pytest.raises(ValueError, match="n, n_val: expected at most 6 images of class 0 together, found 5 and 2"):
        recognition.of_objects(size=24, n=5, n_val=2, n_test=2, pool=6)


def test_covers_of_the_earth_have_the_same_number_in_each_part():
    world = recognition.of_earth(size=8, n=6, n_val=2, n_test=3, extent_km=240.0, spacing_km=240.0)
    assert world.classes >= 2
    for part, n in ((world.train, 6), (world.val, 2), (world.test, 3)):
        assert part.labels.bincount().tolist() == [n] * world.classes and part.x.shape == (n * world.classes, 3, 8, 8)
    with pytest.raises(ValueError, match="expected sizes that at least 2 covers have, found 100000, 2, 3"):
        recognition.of_earth(size=8, n=100000, n_val=2, n_test=3, extent_km=240.0, spacing_km=240.0)


def test_a_tree_keeps_a_fifth_of_each_class_to_validate(tmp_path):
    for part, n in (("train", 5), ("val", 2)):
        for c, name in enumerate(("a", "b")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (8, 8), (60 * c + 10 * i, 0, len(part))).save(tmp_path / part / name / f"{i}.png")
    world = recognition.of_tree(tmp_path, size=8)
    assert [len(p.x) for p in (world.train, world.val, world.test)] == [8, 2, 4] and world.test.boxes is None
    assert not pictures(world.train.x) & pictures(world.val.x)
    for path in list((tmp_path / "train" / "b").iterdir())[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="expected at least 2 training images a class, of which one validates, found 1"):
        recognition.of_tree(tmp_path, size=8)
    (tmp_path / "val" / "b").rename(tmp_path / "val" / "c")
    with pytest.raises(ValueError, match="expected the same classes in train and val, found b, c in one of them"):
        recognition.of_tree(tmp_path, size=8)
