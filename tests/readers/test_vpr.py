"""Place recognition on disk: names, the 25 metre rule, and the traps of the data sets (zones, Nordland's frames, MSLS's 740 queries)."""

import math

import pytest
import torch
from PIL import Image
from torch import nn

from georeps.core import metrics
from georeps.nets import encoders
from georeps.readers import images, vpr


def picture(path, size=(8, 8), colour=(90, 60, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def put(folder, east: float, north: float, **said) -> str:
    name = vpr.file_name(vpr.Name(east, north, **said))
    picture(folder / name)
    return name


@pytest.mark.parametrize("name", [
    vpr.Name(549_912.34, 4_180_001.5, "10S", "Xy-_9", 271.0, "20140705_123000", "night"), vpr.Name(0.0, 12.5), vpr.Name(-3.25, 0.0, "1C", "7"),
])  # fmt: skip
def test_a_name_reads_back_as_it_was_written(name):
    assert repr(vpr.parse_name(vpr.file_name(name))) == repr(name)


def test_the_published_format_is_read():
    found = vpr.parse_name("a/b@c/@0549912.34@4180001.50@10@S@037.76580@-122.43310@aRfd@03@090@@@@201407@@.jpg")
    assert found[:6] == (549912.34, 4180001.5, "10S", "aRfd", 90.0, "201407")  # only the name counts, not the folders' @
    assert vpr.parse_name("@0@00002.3@@@@@1@@@@@@@@.jpg")[:4] == (0.0, 2.3, "", "1")
    assert vpr.parse_name("@550123.5@4180000.25@.png")[:2] == vpr.parse_name("@550123.5@4180000.25.png")[:2] == (550123.5, 4180000.25)


@pytest.mark.parametrize(("name", "message"), [
    ("photo.jpg", r"expected a name @<east>@<north>@"), ("@x@2@.jpg", "east: expected UTM metres, found 'x'"), ("@1@2@99@S@.jpg", "zone: expected a UTM zone"),
    ("@1@2@10@I@.jpg", "zone: expected a UTM zone"), ("@1@2@10@S@@@@@north@.jpg", "heading: expected degrees or nothing, found 'north'"),
])  # fmt: skip
def test_a_broken_name_says_which_field(tmp_path, name, message):
    picture(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        vpr.views(tmp_path)


def test_a_thousand_damaged_names_are_refused_or_are_names():
    whole = vpr.file_name(vpr.Name(549_912.34, 4_180_001.5, "10S", "abc", 90.0, "201407", "day"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        cells = list(whole)
        at = int(torch.randint(len(cells), (), generator=generator))
        cells[at] = chr(int(torch.randint(32, 127, (), generator=generator)))
        try:
            found = vpr.parse_name("".join(cells))
        except ValueError as error:
            assert "expected" in str(error) and "found" in str(error)
        else:
            assert math.isfinite(found.east) and math.isfinite(found.north) and vpr.ZONE.fullmatch(found.zone)


def test_positives_are_all_within_25_metres(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for part, n in (("database", 60), ("queries", 20)):
        for e, s in (100 * torch.rand(n, 2, generator=generator)).tolist():
            put(tmp_path / "images" / "test" / part, round(e, 2), round(s, 2), identity=f"{e}")
    found = vpr.part(tmp_path)
    apart = torch.cdist(found.queries.position, found.database.position)
    assert [p.tolist() for p in found.positives] == [(row <= 25).nonzero()[:, 0].tolist() for row in apart]


def test_zones_are_respected_and_said_by_all_or_none(tmp_path):
    folder = tmp_path / "val"
    put(folder / "database", 500_000.0, 4_000_000.0, zone="10S")
    put(folder / "database", 500_001.0, 4_000_000.0, zone="32S")
    put(folder / "queries", 500_000.0, 4_000_003.0, zone="32T")  # the next band of the same zone
    found = vpr.part(tmp_path, "val")
    assert [found.database.zone[int(r)] for r in found.positives[0]] == ["32S"]
    put(folder / "queries", 500_000.0, 4_000_004.0)
    with pytest.raises(ValueError, match="expected a UTM zone, as .* has one, found none"):
        vpr.part(tmp_path, "val")
    for path in (folder / "queries").glob("*@32@*"):
        path.unlink()
    with pytest.raises(ValueError, match="expected UTM zones in queries and database or in neither"):
        vpr.part(tmp_path, "val")


def nordland(root, *, frames: int = 60, every: int = 1, threshold: int = 10) -> None:
    """The downloader's names: a straight line on which so many frames are 25 metres."""
    step = 25 / (threshold + 0.5)
    for part, stride in (("database", 1), ("queries", every)):
        for i in range(0, frames, stride):
            picture(root / "images" / "test" / part / f"@0@{i * step:07.1f}@@@@@{i}@@@@@@@@.jpg")


def test_nordland_s_names_make_25_metres_of_ten_frames(tmp_path):
    nordland(tmp_path)
    by_metres, by_frame = vpr.part(tmp_path), vpr.part(tmp_path, frames=10)
    numbers = [int(i) for i in by_metres.database.identity]
    asked = [int(i) for i in by_metres.queries.identity]
    for found in (by_metres, by_frame):
        for query, own in zip(asked, found.positives, strict=True):
            assert sorted(numbers[int(r)] for r in own) == [f for f in range(60) if abs(f - query) <= 10]


def test_frames_need_no_coordinates_and_one_frame_is_stricter(tmp_path):
    nordland(tmp_path, every=10)
    found = vpr.part(tmp_path, frames=1)
    assert [len(p) for p in found.positives] == [2, 3, 3, 3, 3, 3]


def test_msls_is_judged_on_its_740_queries(tmp_path, monkeypatch):
    monkeypatch.setitem(vpr.PUBLISHED, "msls", (3, 2))
    for i in range(3):
        put(tmp_path / "val" / "database", 1.0 + i, 2.0, identity=f"db{i}")
        put(tmp_path / "val" / "queries", 1.5 + i, 2.0, identity=f"key{i}")
    with pytest.raises(ValueError, match="expected the published 3 database views and 2 queries of msls, found 3 and 3; of MSLS the downloader writes"):
        vpr.part(tmp_path, "val", published="msls")
    listed = tmp_path / "official.txt"
    listed.write_text("key2\nkey0")
    found = vpr.part(tmp_path, "val", only=listed, published="msls")
    assert found.queries.identity == ["key2", "key0"] and found.queries.position[:, 0].tolist() == [3.5, 1.5]
    listed.write_text("key2\nkey0\nkey2\n")
    with pytest.raises(ValueError, match="official.txt, line 1: expected each query once, found 'key2' for two"):
        vpr.part(tmp_path, "val", only=listed)
    listed.write_text("key2\nkey9\n")
    with pytest.raises(ValueError, match=r"official.txt, line 2: expected an identity or file name of a query, found 'key9' \(1 such lines\)"):
        vpr.part(tmp_path, "val", only=listed)


def test_queries_without_positives_count_as_missed(tmp_path):
    for i in range(4):
        put(tmp_path / "test" / "database", 100.0 * i, 0.0)
    for east in (0.0, 100.0, 5000.0):
        put(tmp_path / "test" / "queries", east, 1.0)
    found = vpr.part(tmp_path)
    assert [f.name[1:11] for f in found.alone] == ["0005000.00"]
    ranks = metrics.place_ranks(torch.eye(4)[[0, 1, 2]], torch.eye(4), found.positives)
    assert ranks.tolist() == [0, 0, metrics.UNMATCHED] and metrics.recall_at(ranks, 4) == pytest.approx(2 / 3)


def test_sf_xl_s_folders_are_found(tmp_path):
    put(tmp_path / "train" / "37.75", 1.0, 2.0)
    put(tmp_path / "another disk", 3.0, 4.0)
    (tmp_path / "train" / "paths.txt").write_text("a cached listing")
    (tmp_path / "train" / "37.76").symlink_to(tmp_path / "another disk")
    for name in ("database", "queries_v1", "queries_v2"):
        put(tmp_path / "test" / name, 1.0, 2.0)
    assert [p.name for p in vpr.training(tmp_path).left_out] == ["paths.txt"]
    assert len(vpr.training(tmp_path)) == 2 and vpr.query_sets(tmp_path) == ["queries_v1", "queries_v2"]
    assert len(vpr.part(tmp_path, queries="queries_v2").positives[0]) == 1
    with pytest.raises(FileNotFoundError, match="queries: expected a folder of views"):
        vpr.part(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected images/val or val, found neither"):
        vpr.part(tmp_path, "val")


class Mean(nn.Module):
    """Mean and spread of colours of an image of any size."""

    def __init__(self):
        super().__init__()
        self.turn = nn.Parameter(torch.eye(6))
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        return nn.functional.normalize(self.norm(torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1) @ self.turn), dim=1)


def test_batches_of_one_give_what_any_batch_gives(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 3, 20, 30), dtype=torch.uint8, generator=generator)
    for i, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"@{i}@0@.png")
    files = images.Files(vpr.views(tmp_path).files, None)
    model = Mean().train()
    with torch.no_grad():
        model(torch.rand(8, 3, 4, 4))  # statistics that evaluation must not renew
    whole = encoders.describe(model, pixels[[int(p.stem.split("@")[1]) for p in files.paths]])
    for batch in (1, 5, 12):
        torch.testing.assert_close(encoders.describe(model, files, batch=batch), whole, rtol=0, atol=1e-6)
    database, positives = whole.roll(1, 0), [torch.tensor([(i + 1) % 12]) for i in range(12)]
    one = encoders.describe(model, files, batch=1)
    assert torch.equal(metrics.place_ranks(one, database, positives), metrics.place_ranks(whole, database, positives))
    assert model.training


def test_files_give_a_batch_for_a_tensor_of_indices(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", colour=(i, 0, 0))
    files = images.Files(sorted(tmp_path.glob("*.png")), (8, 8))
    batch = files[torch.tensor([2, 0])]
    assert batch.shape == (2, 3, 8, 8) and batch[:, 0, 0, 0].tolist() == [2, 0]
