"""The tiles: their counts, their determinism, their styles; and the words for them."""

from collections import Counter

import numpy as np
import pytest
import torch

from georeps.worlds import patterns
from georeps.worlds.patterns import captions, paint

TABLE_5_1 = {  # queries that the dissertation prints for some rows: images of the class with another value
    ("airplane", "white"): 53, ("crosswalk", "yellow"): 412, ("tennis_court", "red"): 602, ("storage_tank", "two"): 498,
    ("wastewater_treatment_plant", "three"): 792, ("basketball_court", "half"): 662, ("swimming_pool", "oval"): 508, ("river", "curved"): 623,
}  # fmt: skip


def test_the_whole_benchmark_has_the_counts_of_table_5_1():
    tiles = patterns.benchmark(scale=1.0)
    found = Counter((t.folder, t.value) for t in tiles)
    for folder, (_, counts) in patterns.COUNTS.items():
        assert {v: found[folder, v] for v in counts} == counts
    for (folder, value), queries in TABLE_5_1.items():
        assert sum(n for v, n in patterns.COUNTS[folder][1].items() if v != value) == queries
    per_folder = Counter(t.folder for t in tiles)
    assert set(per_folder) == set(patterns.FOLDERS) and len(patterns.FOLDERS) == 38
    assert {n for f, n in per_folder.items() if f != "wastewater_treatment_plant"} == {800}  # the table lists 802 of these


def test_training_tiles_show_no_held_out_combination_and_no_scene_of_another_world():
    tiles = patterns.training(16)
    assert not {(t.folder, t.value) for t in tiles} & patterns.HELD_OUT
    assert not {(t.folder, t.style) for t in tiles} & patterns.HELD_OUT_STYLES
    assert not {(t.folder, t.context) for t in tiles} & patterns.HELD_OUT_CONTEXTS
    others = [*patterns.benchmark(scale=0.01), *(t for w in patterns.DOMAINS for t in patterns.conversion(w, n=2))]
    assert not {t.scene for t in tiles} & {t.scene for t in others}


def test_a_folder_that_always_shows_a_value_is_never_trained_on_without_one():
    """A river is curved or straight: one without a value would show the held-out shape under no name."""
    assert not [t for t in patterns.training(16) if t.value is None and patterns.complete(t.folder)]
    assert not [t for t in patterns.benchmark(scale=0.02) if t.value is None and patterns.complete(t.folder)]
    assert {"river", "harbor", "crosswalk", "bridge"} < {f for f in patterns.FOLDERS if patterns.complete(f)}


def test_a_held_out_value_is_spoken_of_elsewhere():
    shown = Counter(t.value for t in patterns.training(16))
    assert all(shown[value] for _, value in patterns.HELD_OUT)


def test_tiles_are_the_same_however_they_are_asked_for_and_differ_with_the_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path))
    tiles = patterns.benchmark(scale=0.004)[:12]
    whole = patterns.render(tiles, size=32)
    assert torch.equal(patterns.render(tiles[3:5], size=32), whole[3:5])
    assert not torch.equal(patterns.render(patterns.benchmark(scale=0.004, seed=1)[:12], size=32), whole)


@pytest.mark.parametrize("folder", patterns.FOLDERS)
def test_every_folder_paints_in_every_look_and_its_values_differ(folder):
    images = [paint.paint(patterns.scene(patterns.Tile(folder, v, scene=3)), 32, np.random.default_rng(0)) for v in (None, *patterns.values(folder))]
    if folder not in ("bridge", "overpass", "sparse_residential", "dense_residential", "intersection", "closed_road"):
        assert len({i.tobytes() for i in images}) > 1 or not patterns.values(folder)
    looks = [("photo", c) for c in (None, *paint.CONTEXTS)] + [(s, None) for s in paint.STYLES[1:]]
    painted = [paint.paint(patterns.scene(patterns.Tile(folder, scene=3)), 32, np.random.default_rng(0), style=s, context=c) for s, c in looks]
    assert all(p.shape == (3, 32, 32) and p.std() > 4 for p in painted) and len({p.tobytes() for p in painted}) == len(looks)


def test_boxes_hold_the_objects_that_were_asked_for():
    for value, n in (("one", 1), ("three", 3), ("four", 4)):
        boxes = patterns.scene(patterns.Tile("storage_tank", value, scene=5)).boxes()
        assert Counter(name for name, _ in boxes) == {"storage tank": n}
        assert all(0 <= a < c <= 1 and 0 <= b < d <= 1 for _, (a, b, c, d) in boxes)


def test_views_of_a_place_keep_its_class_and_differ():
    tiles = [t for t in patterns.conversion("places", n=2) if t.label == patterns.conversion("places", n=2)[0].label]
    assert Counter(t.domain for t in tiles) == {"today": 2, "archive": 2} and len({t.scene for t in tiles}) == 1
    assert len({t.label for t in patterns.conversion("places", n=1)}) == patterns.PLACES


def test_phrases_are_english():
    assert captions.phrase(patterns.Tile("airplane", "purple")) == "purple airplane"
    assert captions.phrase(patterns.Tile("storage_tank", "three")) == "three storage tanks"
    assert captions.phrase(patterns.Tile("harbor", "with boats")) == "pier with boats"
    assert captions.phrase(patterns.Tile("forest")) == "forest"


def test_captions_are_drawn_from_the_vocabulary_and_speak_of_the_domain():
    words = {part for word in captions.vocabulary() for part in word.split()} | set("a an of the in at photo aerial".split())
    tiles = patterns.training(5)
    drawn = captions.captions(tiles, each=4, seed=0)
    plural = {w + "s" for w in words}
    assert {w for row in drawn for c in row for w in c.split()} <= words | plural
    assert drawn == captions.captions(tiles, each=4, seed=0)
    sketch = [c for t, row in zip(tiles, drawn, strict=True) if t.style == "sketch" for c in row]
    assert sum("sketch" in c for c in sketch) > 0.6 * len(sketch)


def test_bad_settings_are_named(unchecked):
    with pytest.raises(ValueError, match="scale: .* found 2"):
        patterns.benchmark(scale=2)
    with pytest.raises(ValueError, match="world: expected one of styles"):
        patterns.conversion("moods", n=1)
    with pytest.raises(ValueError, match="size: expected a multiple of 8"):
        patterns.render(patterns.benchmark(scale=0.001), size=30)
    with pytest.raises(ValueError, match="style: expected one of photo"):
        paint.paint(paint.Scene(np.random.default_rng(0), "grass"), 16, np.random.default_rng(0), style="oil")
