"""Readers of the official trees, on small trees that hold every trap of the real ones."""

import csv
import random
import string

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from georeps.readers import folders

CHICAGO = (
    "L-1poX8YZAmBZVLMqBu-4w,41.877949,-87.689396,.jpg satellite_41.877971796211014_-87.68943505304125.png 23.0 -29.0 "
    "satellite_41.877643726_-87.689435053.png -305.0 -29.0 satellite_41.877971796_-87.688994463.png 23.0 299.0 "
    "satellite_41.877643726_-87.688994463.png -305.0 299.0"
)  # the first row of the corrected Chicago test file; its semi-positives rebuilt from the grid step


def panorama(i: int, latitude: float, longitude: float) -> str:
    return f"{'-' if i % 3 == 0 else '_'}{i:020d},{latitude:.6f},{longitude:.6f},.jpg"


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


CENTRES = {"NewYork": (40.75, -73.98), "Seattle": (47.6, -122.33), "SanFrancisco": (37.77, -122.42), "Chicago": (41.88, -87.64)}
STEP = 0.00032807  # degrees of latitude between tile rows


def make_vigor(root, *, layout="official", labels="official", final_newline=False, queries=3):
    """Four cities of 3 x 3 tiles and a few panoramas near the centre tile; returns city -> label lines."""
    lines = {}
    for city, (latitude, longitude) in CENTRES.items():
        step = STEP / np.cos(np.deg2rad(latitude))
        resolution = folders.VIGOR_OFFICIAL_RESOLUTION if labels == "official" else folders.VIGOR_CITIES[city]
        tiles = [(latitude + r * STEP, longitude + c * step) for r in (-1, 0, 1) for c in (-1, 0, 1)]
        names = [f"satellite_{a:.12f}_{o:.12f}.png" for a, o in tiles]
        rows = []
        for i in range(queries):
            camera = (round(latitude + 0.2 * STEP * (i - 1), 6), round(longitude + 0.1 * step, 6))
            cells = [panorama(i + 100 * len(lines), *camera)]
            for t in (4, 5, 7, 8):
                metres = np.deg2rad([tiles[t][0] - camera[0], (tiles[t][1] - camera[1]) * np.cos(np.deg2rad(latitude))]) * 6371000
                cells += [names[t], *(f"{round(m / resolution)}.0" for m in metres)]
            rows.append(" ".join(cells))
        lines[city] = rows
        suffix, folder = ("", "splits") if labels == "official" else ("__corrected", "splits__corrected")
        (root / folder / city).mkdir(parents=True)
        ending = "\n" if final_newline else ""
        (root / folder / city / "satellite_list.txt").write_text("\n".join(names) + ending)
        (root / folder / city / f"pano_label_balanced{suffix}.txt").write_text("\n".join(rows) + ending)
        for part, some in (("train", rows[:-1]), ("test", rows[-1:])):
            (root / folder / city / f"same_area_balanced_{part}{suffix}.txt").write_text("\n".join(some) + ending)
        where = {"official": (root / city / "panorama", root / city / "satellite"),
                 "re-arranged": (root / "ground" / city, root / "satellite" / city)}[layout]  # fmt: skip
        for row in rows:
            picture(where[0] / row.split()[0])
        for name in names:
            picture(where[1] / name)
    return lines


def test_the_published_row_parses():
    line = folders.parse_vigor_line(CHICAGO)
    assert line.panorama.startswith("L-1poX8YZAmBZVLMqBu-4w,") and len(line.satellites) == 4
    assert line.offsets[0].tolist() == [23.0, -29.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (CHICAGO.rsplit(" ", 1)[0], "expected 13 fields"),
        (CHICAGO.replace(",.jpg", ".jpg"), "field 1: expected a panorama"),
        (CHICAGO.replace(".png", ".jpg", 1), "field 2: expected a tile"),
        (CHICAGO.replace("satellite_", "satelitte_", 1), "field 2: expected a tile"),
        (CHICAGO.replace("23.0", "nan", 1), "field 3: expected an offset within 640 pixels, found 'nan'"),
        (CHICAGO.replace("23.0", "2300.0", 1), "field 3: expected an offset"),
        (CHICAGO.replace("41.877949", "141.877949"), "field 1: expected a panorama"),
        (CHICAGO.replace("satellite_41.877643726_-87.689435053.png", "satellite_41.877971796_-87.688994463.png"), "four different tiles"),
    ],
)
def test_a_damaged_line_says_what_is_wrong(line, message):
    with pytest.raises(ValueError, match=message):
        folders.parse_vigor_line(line)


@pytest.mark.parametrize("layout", ["official", "re-arranged"])
@pytest.mark.parametrize("labels", ["official", "corrected"])
@pytest.mark.parametrize("final_newline", [True, False])
def test_vigor_reads_both_trees_and_both_labels(tmp_path, layout, labels, final_newline):
    lines = make_vigor(tmp_path, layout=layout, labels=labels, final_newline=final_newline)
    found = folders.vigor(tmp_path, split="cross", part="test", labels=labels, tolerance=6.0)
    expected = [row.split() for city in ("SanFrancisco", "Chicago") for row in lines[city]]
    assert [q.name for q in found.queries] == [row[0] for row in expected]
    assert len(found.gallery) == 18 and all(p.is_file() for p in [*found.queries, *found.gallery])
    assert [found.gallery[i].name for i in found.positive] == [row[1] for row in expected]
    assert [[found.gallery[i].name for i in row] for row in found.semi] == [[row[4], row[7], row[10]] for row in expected]
    assert found.offset.tolist() == [[float(row[2]), float(row[3])] for row in expected]
    assert found.query_position.shape == (6, 2) and found.unit == "degrees"


def test_vigor_splits_use_the_official_order_of_the_cities(tmp_path):
    make_vigor(tmp_path)
    cities = lambda r: list(dict.fromkeys(p.parts[-3] for p in r.gallery))  # noqa: E731
    assert cities(folders.vigor(tmp_path, split="cross", part="train")) == ["NewYork", "Seattle"]
    assert cities(folders.vigor(tmp_path, split="swapped", part="train")) == ["SanFrancisco", "Chicago"]
    assert cities(folders.vigor(tmp_path, split="same", part="test")) == ["NewYork", "Seattle", "SanFrancisco", "Chicago"]
    counts = {part: len(folders.vigor(tmp_path, split="same", part=part).queries) for part in ("train", "test")}
    assert counts == {"train": 8, "test": 4}


def test_missing_files_are_listed_in_one_error(tmp_path):
    lines = make_vigor(tmp_path)
    gone = [tmp_path / "Seattle" / "panorama" / row.split()[0] for row in lines["Seattle"][:2]]
    for path in gone:
        path.unlink()
    with pytest.raises(FileNotFoundError, match="found 2 missing") as error:
        folders.vigor(tmp_path, part="train")
    assert all(str(path) in str(error.value) for path in gone)
    next((tmp_path / "NewYork" / "satellite").iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match="satellite_"):
        folders.vigor(tmp_path, part="train")


def test_wrong_roots_lists_and_options_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="found neither"):
        folders.vigor(tmp_path)
    lines = make_vigor(tmp_path)
    path = tmp_path / "splits" / "Chicago" / "pano_label_balanced.txt"
    path.write_text("\n".join([lines["Chicago"][0], "", lines["Chicago"][1]]))
    with pytest.raises(ValueError, match=r"pano_label_balanced.txt, line 2: expected 13 fields"):
        folders.vigor(tmp_path, part="test")
    path.write_text(lines["Chicago"][0].replace("satellite_41.88", "satellite_41.99"))
    with pytest.raises(ValueError, match="line 1: expected tiles of satellite_list.txt"):
        folders.vigor(tmp_path, part="test")
    cells = lines["Chicago"][0].split()
    cells[2] = str(float(cells[2]) + 100)
    path.write_text(" ".join(cells))
    with pytest.raises(ValueError, match="line 1: tile 1: expected the offset"):
        folders.vigor(tmp_path, part="test")
    listed = tmp_path / "splits" / "Chicago" / "satellite_list.txt"
    listed.write_text(listed.read_text() + "\n" + listed.read_text().splitlines()[0])
    with pytest.raises(ValueError, match="is listed twice"):
        folders.vigor(tmp_path, part="test")


def test_bad_options_raise(tmp_path, unchecked):
    for options in ({"split": "other"}, {"part": "val"}, {"labels": "new"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected one of"):
            folders.vigor(tmp_path, **options)


def test_ten_thousand_damaged_lines_give_clear_errors_or_correct_records(tmp_path):
    """Random edits of label lines, read as `vigor` reads them: what is accepted names listed tiles, and offsets that its
    coordinates confirm to 6 pixels."""
    lines = make_vigor(tmp_path)["Chicago"]
    names = {n: i for i, n in enumerate((tmp_path / "splits" / "Chicago" / "satellite_list.txt").read_text().split())}
    panoramas = {row.split()[0] for row in lines}
    generator = random.Random(0)
    accepted = 0
    for _ in range(10_000):
        line = generator.choice(lines)
        damaged = list(line)
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(damaged))
            damaged[at] = generator.choice(["", " ", generator.choice(string.printable), damaged[at] * 2])
        damaged = "".join(damaged)
        try:
            found = folders._checked_line(damaged, names, folders.VIGOR_OFFICIAL_RESOLUTION, 6.0)
        except ValueError as error:
            assert "expected" in str(error)
            continue
        if found.panorama not in panoramas:
            continue  # another well-formed name: its file is not on disk, which `vigor` reports
        accepted += 1
        true = folders.parse_vigor_line(line)
        assert found.panorama == true.panorama and found.satellites == true.satellites
        assert (found.offsets - true.offsets).abs().max() <= 12
    assert 0 < accepted < 2_000


def make_cvact(root, n=6):
    ids = np.array([f"{'-' if i == 2 else '_'}place{i:02d}xyz" for i in range(n)])
    content = {
        "panoIds": ids,
        "utm": np.arange(2.0 * n).reshape(n, 2),
        "trainSet": {"trainInd": np.array([[1], [2], [3]])},
        "valSet": {"valInd": np.array([[4], [5]])},
        "valSetAll": {"valInd": np.array([[4], [6]])},
    }
    scipy.io.savemat(root / "ACT_data.mat", content)
    for folder in ("ANU_data_small", "ANU_data_test"):
        for i in ids:
            picture(root / folder / "streetview" / f"{i}_grdView.jpg")
            picture(root / folder / "satview_polish" / f"{i}_satView_polish.jpg")
    return ids


def test_cvact_indices_are_one_based_and_parts_have_their_folders(tmp_path):
    ids = make_cvact(tmp_path)
    for part, rows, folder in (("train", [0, 1, 2], "small"), ("val", [3, 4], "small"), ("test", [3, 5], "test")):
        found = folders.cvact(tmp_path, part)
        assert [q.name for q in found.queries] == [f"{ids[i]}_grdView.jpg" for i in rows]
        assert found.queries[0].parts[-3] == f"ANU_data_{folder}"
        assert found.positive.tolist() == list(range(len(rows)))
        assert found.query_position.tolist() == [[2.0 * i, 2.0 * i + 1] for i in rows] and found.unit == "metres"


def test_cvact_names_what_is_missing_or_out_of_range(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected ACT_data.mat"):
        folders.cvact(tmp_path)
    ids = make_cvact(tmp_path)
    gone = tmp_path / "ANU_data_small" / "satview_polish" / f"{ids[1]}_satView_polish.jpg"
    gone.unlink()
    with pytest.raises(FileNotFoundError, match="found 1 missing") as error:
        folders.cvact(tmp_path, "train")
    assert str(gone) in str(error.value)
    content = scipy.io.loadmat(tmp_path / "ACT_data.mat")
    content["trainSet"]["trainInd"][0, 0][0] = 0
    scipy.io.savemat(tmp_path / "ACT_data.mat", {k: v for k, v in content.items() if not k.startswith("__")})
    with pytest.raises(ValueError, match="1-based indices in 1..6, found 0"):
        folders.cvact(tmp_path, "train")
    scipy.io.savemat(tmp_path / "ACT_data.mat", {"panoIds": ids})
    with pytest.raises(ValueError, match="expected the field utm"):
        folders.cvact(tmp_path, "train")


def test_cvusa_reads_its_csv_and_names_bad_lines(tmp_path):
    (tmp_path / "splits").mkdir()
    rows = [[f"bingmap/19/{i:07d}.jpg", f"streetview/panos/{i:07d}.jpg", f"streetview/annotations/{i:07d}.png"] for i in range(4)]
    path = tmp_path / "splits" / "val-19zl.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for row in rows:
        for name in row[:2]:
            picture(tmp_path / name)
    found = folders.cvusa(tmp_path, "val")
    assert [str(q.relative_to(tmp_path)) for q in found.queries] == [row[1] for row in rows]
    assert [str(g.relative_to(tmp_path)) for g in found.gallery] == [row[0] for row in rows]
    path.write_text(path.read_text() + "bingmap/19/1.jpg,streetview/panos/2.jpg,streetview/annotations/1.png")
    with pytest.raises(ValueError, match="val-19zl.csv, line 5: expected bingmap"):
        folders.cvusa(tmp_path, "val")


def test_positions_and_offsets_agree(tmp_path):
    """Tile centre minus camera, in metres by the coordinates, is the offset times the resolution."""
    make_vigor(tmp_path, labels="corrected")
    found = folders.vigor(tmp_path, part="test", labels="corrected")
    gap = found.gallery_position[found.positive] - found.query_position
    metres = torch.deg2rad(gap) * 6371000
    metres[:, 1] *= torch.deg2rad(found.query_position[:, 0]).cos()
    resolution = torch.tensor([folders.VIGOR_CITIES[q.parts[-3]] for q in found.queries])[:, None]
    assert (metres / resolution - found.offset).abs().max() < 1
