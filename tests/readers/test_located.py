"""Readers of images with coordinates: what is written is read back, and what is malformed is named."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch

from georeps.readers import located
from georeps.tasks import export

NOWHERE = [("91", "0", "latitude in -90..90 degrees, found '91'"), ("0", "-180.5", "longitude in -180..180"),
           ("north", "0", "a latitude in degrees, found 'north'"),
           ("nan", "0", "latitude in -90..90"), ("0", "", "a longitude in degrees, found ''"), ("inf", "1", "latitude in")]  # fmt: skip


@pytest.mark.parametrize(("latitude", "longitude", "match"), NOWHERE)
def test_coordinates_out_of_range_are_named(latitude, longitude, match):
    with pytest.raises(ValueError, match=match):
        located.coordinates(latitude, longitude)
    assert located.coordinates("-90", 180) == (-90.0, 180.0)


def test_event_lists_are_read_after_their_headers_and_a_bad_line_is_named(tmp_path, unchecked):
    for kind, (name, header) in located.EVENTS.items():
        (tmp_path / name).write_text("# a header\n" * header + "1.5,2.5\n-30,140\n")
        assert located.events(tmp_path, kind).latlon.tolist() == [[1.5, 2.5], [-30.0, 140.0]]
    (tmp_path / "fire.csv").write_text("# header\n1,2\n95,0\n")
    with pytest.raises(ValueError, match=r"fire.csv, line 3: expected a latitude in -90..90 degrees, found '95'"):
        located.events(tmp_path, "fire")
    (tmp_path / "flood.csv").write_text("a\nb\n1;2\n")
    with pytest.raises(ValueError, match="flood.csv, line 3: expected latitude,longitude"):
        located.events(tmp_path, "flood")
    with pytest.raises(FileNotFoundError, match="quakes_all.csv: expected the list of events"):
        located.events(tmp_path / "none", "earthquake")


def test_the_split_is_a_partition_in_the_published_shares_and_changes_with_the_seed():
    train, val, test = located.split(827, seed=0)
    assert (len(train), len(val), len(test)) == (662, 82, 83)
    assert sorted(torch.cat([train, val, test]).tolist()) == list(range(827))
    assert not torch.equal(train, located.split(827, seed=1)[0])


def test_osv5m_is_written_and_read_back_with_its_missing_labels(tmp_path):
    pixels = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    latlon = torch.tensor([[1.0, 2], [-89, 179], [0, -180], [45.5, 7.25]])
    labels = {"country": ["NL", "NZ", None, "FR"], "city": ["Delft_NL", None, None, "Lyon_FR"]}
    export.osv5m(tmp_path, "test", pixels, latlon, labels)
    found = located.osv5m(tmp_path, "test")
    assert torch.allclose(found.latlon.float(), latlon) and found.labels["country"] == labels["country"] and found.labels["city"] == labels["city"]
    assert found.labels["region"] == [None] * 4 and all(f.is_file() for f in found.files)
    found.files[2].unlink()
    with pytest.raises(FileNotFoundError, match="found 1 missing: 1000000000000002"):
        located.osv5m(tmp_path, "test")
    dropped = located.osv5m(tmp_path, "test", missing="drop")
    assert dropped.left_out == {"missing": ["1000000000000002"]} and dropped.labels["country"] == ["NL", "NZ", "FR"]


@pytest.mark.parametrize(("change", "match"), [
    (("unique_city", "unique_town"), "line 1: expected columns .* none named unique_city"),
    (("45.5", "945.5"), "line 3: expected a latitude in -90..90"),
    ((",7.25,", ",7.25,x,y,z,w,q,"), "line 3: expected 7 columns"),
])  # fmt: skip
def test_a_malformed_osv5m_table_names_its_line(tmp_path, change, match):
    export.osv5m(tmp_path, "train", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([[1.0, 2], [45.5, 7.25]]), {})
    path = tmp_path / "train.csv"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ValueError, match=match):
        located.osv5m(tmp_path, "train")


def write_shard(path, samples):
    with tarfile.open(path, "w") as shard:
        for name, parts in samples:
            for kind, content in parts.items():
                info = tarfile.TarInfo(f"{name}.{kind}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))


def packed(vector):
    out = io.BytesIO()
    np.save(out, vector)
    return out.getvalue()


def test_shards_give_embeddings_places_and_labels(tmp_path):
    told = json.dumps({"latitude": 10, "longitude": -20, "unique_country": "SN", "unique_city": "NaN"}).encode()
    good = [(f"{i}", {"jpg": b"x", "json": told, "street_clip.npy": packed(np.full(4, i, np.float32))}) for i in range(3)]
    write_shard(tmp_path / "00.tar", good[:2])
    write_shard(tmp_path / "01.tar", good[2:])
    found = located.shards(tmp_path)
    assert found.names == ["0", "1", "2"] and found.embedding[:, 0].tolist() == [0, 1, 2]
    assert found.labels["country"] == ["SN"] * 3 and found.labels["city"] == [None] * 3
    wrong = {"sample 9: expected a finite embedding of 4 channels, found 4, 4 not": np.full(4, np.nan, np.float32), "found 5, 0 not finite": np.zeros(5)}
    for match, vector in wrong.items():
        write_shard(tmp_path / "02.tar", [("9", {"json": told, "street_clip.npy": packed(vector)})])
        with pytest.raises(ValueError, match=match):
            located.shards(tmp_path)
    write_shard(tmp_path / "02.tar", [("9", {"json": told})])
    with pytest.raises(ValueError, match="sample 9: expected 9.street_clip.npy, found json"):
        located.shards(tmp_path)


def test_unlabelled_places_are_left_out_or_wrong_as_asked():
    found, true = ["NL", "FR", "DE"], ["NL", None, "FR"]
    assert located.admin_accuracy(found, true) == (0.5, 2)
    assert located.admin_accuracy(found, true, unlabelled="wrong") == (pytest.approx(1 / 3), 3)
