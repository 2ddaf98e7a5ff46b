"""Readers of composed retrieval: round trips, the published semantics, and every malformed line."""

import json
import random
import string

import pytest
import torch

from georeps.papers import composed
from georeps.readers import compositions as lists
from georeps.tasks import compositions, export
from georeps.worlds import patterns


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("patternnet")
    tiles = patterns.benchmark(scale=0.003)
    export.patterncom(root, tiles, patterns.render(tiles, size=16))
    return root, tiles


def test_what_is_written_is_read_back(tree):
    root, tiles = tree
    bench = compositions.patterncom(root)
    assert not bench.left_out["missing"] and not bench.left_out["listed twice"]
    names = compositions.names_of(tiles)
    own = compositions.attribute_queries(names, compositions.rows_of(tiles))
    asked = lambda q, files: sorted(
        (files[i], t, tuple(sorted(files[j] for j in p.tolist()))) for i, t, p in zip(q.image.tolist(), q.text, q.positives, strict=True)
    )  # noqa: E731
    assert asked(bench.queries, [p.name for p in bench.gallery]) == asked(own, names)


def test_relevance_is_the_value_and_the_merged_class():
    names = ["airplane001.jpg", "airplane002.jpg", "crosswalk001.jpg", "bridge001.jpg", "overpass001.jpg", "overpass002.jpg"]
    rows = [("airplane001.jpg", "color", "white"), ("airplane002.jpg", "color", "purple"), ("crosswalk001.jpg", "color", "white"),
            ("bridge001.jpg", "context", "water"), ("overpass001.jpg", "context", "concrete"), ("overpass002.jpg", "context", "concrete")]  # fmt: skip
    q = compositions.attribute_queries(names, rows)
    found = {(names[i], t): [names[j] for j in p.tolist()] for i, t, p in zip(q.image.tolist(), q.text, q.positives, strict=True)}
    assert found == {
        ("airplane001.jpg", "purple"): ["airplane002.jpg"], ("airplane002.jpg", "white"): ["airplane001.jpg"],  # not the white crosswalk
        ("bridge001.jpg", "concrete"): ["overpass001.jpg", "overpass002.jpg"],
        ("overpass001.jpg", "water"): ["bridge001.jpg"], ("overpass002.jpg", "water"): ["bridge001.jpg"],
    }  # fmt: skip


def test_the_number_of_queries_is_that_of_table_5_1():
    tiles = [patterns.Tile(f, v, scene=i) for f, (_, counts) in patterns.COUNTS.items() for v, n in counts.items() for i in range(n)]
    q = compositions.attribute_queries(compositions.names_of(tiles), compositions.rows_of(tiles))
    assert set(q.value) >= {"airplane white", "parking with cars", "roadpass water"}
    assert len(q) > 21_000 and q.group.count("density") == 1600 and q.group.count("existence") == 3200


@pytest.mark.parametrize("line,match", [
    ("airplane001.jpg,color", "line 2: expected 3 columns .* found 2"),
    ("airplane1,color,white", "line 2: expected a file"),
    ("airplane001.jpg,hue,white", "line 2: expected the attribute 'color' .* found 'hue'"),
    ("airplane001.jpg,color,", "line 2: expected a value of color"),
])  # fmt: skip
def test_a_malformed_row_names_its_line(tmp_path, line, match):
    path = tmp_path / "color.csv"
    path.write_text("airplane002.jpg,color,white\n" + line + "\n")
    with pytest.raises(ValueError, match=match):
        lists.read_attribute_rows(path)


def test_an_unknown_attribute_file_and_an_empty_one_are_errors(tmp_path):
    (tmp_path / "mood.csv").write_text("airplane001.jpg,mood,happy\n")
    with pytest.raises(ValueError, match="expected the attribute 'mood' of color"):
        lists.read_attribute_rows(tmp_path / "mood.csv")
    (tmp_path / "color.csv").write_text("")
    with pytest.raises(ValueError, match="expected rows"):
        lists.read_attribute_rows(tmp_path / "color.csv")


def test_a_file_listed_twice_counts_once_and_is_named(tmp_path):
    (tmp_path / "color.csv").write_text("airplane001.jpg,color,white\nairplane001.jpg,color,purple\n")
    assert lists.read_attribute_rows(tmp_path / "color.csv") == ([("airplane001.jpg", "color", "purple")], ["airplane001.jpg"])


def test_missing_images_are_listed_in_one_error_or_dropped_by_name(tree, tmp_path):
    root, _ = tree
    import shutil

    other = shutil.copytree(root, tmp_path / "less")
    gone = [next((other / "images" / f).glob("*001.jpg")) for f in ("airplane", "river")]
    for path in gone:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"found 2 missing: airplane001.jpg, river001.jpg"):
        compositions.patterncom(other)
    bench = compositions.patterncom(other, missing="drop")
    assert sorted(bench.left_out["missing"]) == ["airplane001.jpg", "river001.jpg"]


def test_ten_thousand_damaged_rows_give_an_error_or_the_row_itself(tmp_path):
    draw = random.Random(0)
    row = "swimmingpool123.jpg,shape,kidney-shaped"
    path = tmp_path / "shape.csv"
    for _ in range(10_000):
        cells = list(row)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(cells))
            cells[at : at + draw.randint(0, 2)] = draw.choice(["", draw.choice(string.ascii_letters + string.digits + ",.-_ ")])
        path.write_text("".join(cells))
        try:
            rows, _ = lists.read_attribute_rows(path)
        except ValueError as error:
            assert "line 1" in str(error) or "expected rows" in str(error)
        else:
            name, attribute, value = rows[0]
            assert lists.IMAGE_NAME.fullmatch(name) and attribute == "shape" and value == value.strip() != ""


def test_conversion_asks_for_every_other_domain_and_keeps_what_has_no_answer():
    gallery = [("cat", "photo"), ("cat", "sketch"), ("dog", "photo")]
    q = compositions.conversion_queries(gallery, gallery, {"photo": "photograph", "sketch": "sketch"})
    found = [(i, t, p.tolist(), s) for i, t, p, s in zip(q.image.tolist(), q.text, q.positives, q.group, strict=True)]
    assert found == [(0, "sketch", [1], "photo"), (1, "photograph", [0], "sketch"), (2, "sketch", [], "photo")]
    judged = composed.judge(lambda rows: torch.rand(3, 3)[rows], q.positives)
    assert int(judged.hits.isnan().sum()) == 1


def test_freedom_s_lists_are_read_in_both_forms(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("ltll/New/images/TajMahal/x.jpg New TajMahal\n./imgnet/real/a.JPEG 6123 \ncartoon/b.jpg 7")
    assert lists.read_conversion_list(path, ("New", "real", "cartoon")) == [
        ("ltll/New/images/TajMahal/x.jpg", "New", "TajMahal"), ("./imgnet/real/a.JPEG", "real", "123"), ("cartoon/b.jpg", "cartoon", "7"),
    ]  # fmt: skip
    for text, match in (("a b", "line 1: expected `path domain class`"), ("a Young c", "line 1: expected a domain of New"), ("", "found none")):
        path.write_text(text)
        with pytest.raises(ValueError, match=match):
            lists.read_conversion_list(path, ("New", "Old"))


PUBLISHED = {  # lines as the published lists have them
    "ltll/full_files.csv": "ltll/New/images/TajMahal/tajwater1024.jpg New TajMahal\nltll/Old/images/TajMahal/a.jpg Old TajMahal\n",
    "minidn/query_files.csv": "minidn/clipart/aircraft_carrier/clipart_001_000014.jpg clipart aircraft_carrier\n"
    "minidn/sketch/zebra/sketch_344_000127.jpg sketch zebra",
    "minidn/database_files.csv": "minidn/real/zebra/real_344_000001.jpg real zebra\n",
    "nico/query_files.csv": "nico/dim/bear/dim_000001.jpg dim bear\n",
    "nico/database_files.csv": "nico/autumn/bear/autumn_000002.jpg autumn bear\n",
    "imagenet_r/imgnet_targets.txt": "./imgnet/imagenet-r/n01443537/art_0.jpg 1 \n"
    "./imgnet/real/n01443537/ILSVRC2012_val_00000236.JPEG 6001 \n./imgnet/imagenet-r/n01443537/toy_0.jpg 2001 \n",
    "imagenet_r/imgnet_real_query.txt": "./imgnet/real/n01443537/ILSVRC2012_val_00000236.JPEG 1 \n",
    "imagenet_r/label_names.csv": "tench\ngoldfish\n",
}


@pytest.mark.parametrize(
    ("name", "queries", "called"), [("ltll", 2, "TajMahal"), ("minidn", 6, "aircraft carrier"), ("nico", 5, "bear"), ("imagenet_r", 12, "goldfish")]
)
def test_lines_of_the_published_lists_are_read(tmp_path, name, queries, called):
    for path, text in PUBLISHED.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
        for line in text.splitlines() if not path.endswith("names.csv") else ():
            image = tmp_path / line.split()[0]
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
    bench = compositions.conversion(tmp_path, name)
    assert len(bench.queries) == queries and bench.called[0] == called
    if name == "imagenet_r":  # the photograph is listed once, as 6001, and is no cartoon
        assert len(bench.images) == 3 and bench.queries.group.count("cartoon") == 4 and bench.queries.group.count("real") == 4
        answered = [(g, v) for g, v, p in zip(bench.queries.group, bench.queries.value, bench.queries.positives, strict=True) if len(p)]
        assert len(answered) == 6 and ("real", "toy") in answered
    if name == "nico":
        assert "autumn" in bench.queries.text and "dimlight" not in bench.queries.text


def test_words_are_read_as_csv_and_an_empty_line_is_named(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text('\'Nduja\n"Fiat 500 ""topolino"""\n\u017bubr\u00f3wka\n', encoding="utf-8")
    assert lists.read_words(path) == ["'Nduja", 'Fiat 500 "topolino"', "\u017bubr\u00f3wka"]
    path.write_text("a\n\nb\n")
    with pytest.raises(ValueError, match="line 2: expected a word"):
        lists.read_words(path)
    with pytest.raises(FileNotFoundError, match="expected words"):
        lists.read_words(tmp_path / "none.csv")


def test_a_conversion_tree_is_read(tmp_path):
    rows = [f"ltll/{d}/{c}{i}.jpg {d} {c}" for d in ("New", "Old") for c in ("bath", "forum") for i in (1, 2)]
    (tmp_path / "ltll").mkdir()
    (tmp_path / "ltll" / "full_files.csv").write_text("\n".join(rows))
    with pytest.raises(FileNotFoundError, match="found 8 missing"):
        compositions.conversion(tmp_path, "ltll")
    for row in rows:
        path = tmp_path / row.split()[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    bench = compositions.conversion(tmp_path, "ltll")
    assert len(bench.queries) == 8 and set(bench.queries.text) == {"today", "archive"} and all(len(p) == 2 for p in bench.queries.positives)


def test_free_form_trees_are_read(tmp_path):
    def put(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content) if not isinstance(content, str) else content)

    put(tmp_path / "fiq/image_splits/split.dress.val.json", ["A", "B"])
    put(tmp_path / "fiq/captions/cap.dress.val.json", [{"candidate": "A", "target": "B", "captions": ["is red ", "longer"]}])
    put(tmp_path / "cirr/cirr/image_splits/split.rc2.val.json", {"d0": "./dev/d0.png", "d1": "./dev/d1.png"})
    put(tmp_path / "cirr/cirr/captions/cap.rc2.val.json", [{"reference": "d0", "target_hard": "d1", "caption": "two dogs"}])
    put(tmp_path / "circo/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", {"images": [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2, 3)]})
    put(tmp_path / "circo/annotations/val.json", [{"reference_img_id": 1, "relative_caption": "in snow", "gt_img_ids": [2, 3]}])
    with pytest.raises(FileNotFoundError, match="found 2 missing"):
        compositions.free_form(tmp_path / "fiq", "dress")
    for path in (
        "fiq/images/A.jpg",
        "fiq/images/B.jpg",
        "cirr/dev/d0.png",
        "cirr/dev/d1.png",
        *(f"circo/COCO2017_unlabeled/unlabeled2017/{i}.jpg" for i in (1, 2, 3)),
    ):
        put(tmp_path / path, "x")
    fiq, cirr, circo = (compositions.free_form(tmp_path / a, b) for a, b in (("fiq", "dress"), ("cirr", "cirr"), ("circo", "circo")))
    assert (fiq.queries.text, cirr.queries.text, circo.queries.text) == (["is red and longer"], ["two dogs"], ["in snow"])
    assert [b.queries.positives[0].tolist() for b in (fiq, cirr, circo)] == [[1], [1], [1, 2]]
    (tmp_path / "cirr/dev/d0.png").unlink()
    dropped = compositions.free_form(tmp_path / "cirr", "cirr", missing="drop")
    assert len(dropped.queries) == 0 and dropped.left_out == {"missing": ["d0"], "queries": ["two dogs"]}
    put(tmp_path / "cirr/cirr/captions/cap.rc2.val.json", [{"reference": "d9", "target_hard": "d1", "caption": "x"}])
    with pytest.raises(ValueError, match="found 1 that are not: d9"):
        compositions.free_form(tmp_path / "cirr", "cirr")
    put(tmp_path / "cirr/cirr/captions/cap.rc2.val.json", [{"reference": "d0", "caption": "x"}])
    with pytest.raises(ValueError, match="entry 0: expected keys .* none named target_hard"):
        compositions.free_form(tmp_path / "cirr", "cirr")
    put(tmp_path / "cirr/cirr/captions/cap.rc2.val.json", "[{")
    with pytest.raises(ValueError, match="line 1: expected JSON"):
        compositions.free_form(tmp_path / "cirr", "cirr")
