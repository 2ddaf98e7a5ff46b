"""Shards on disk: what is read is what was embedded; a kill loses no finished shard; what is damaged or another's is named."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from georeps.core import embeddings, search

ITEMS = F.normalize(torch.randn(1030, 16, generator=torch.Generator().manual_seed(0)), dim=1)


def write(folder, **options):
    calls = []

    def embed(part):
        calls.append(part)
        return ITEMS[part]

    return embeddings.write(folder, len(ITEMS), embed, **({"made_by": {"network": "x"}, "rows": 200} | options)), calls


def test_what_is_read_is_what_was_embedded_in_float16(tmp_path):
    stored, calls = write(tmp_path)
    assert len(calls) == 6 and len(stored) == 1030 and stored.made_by == {"network": "x"}
    assert torch.equal(stored.part(), ITEMS.half())
    assert np.array_equal(np.load(tmp_path / "shard-00005.npy"), ITEMS[1000:].half().numpy())
    assert torch.equal(torch.cat([stored.part(r, 4) for r in range(4)]), ITEMS.half())


def test_ranks_write_in_turns_and_what_is_missing_is_said(tmp_path):
    stored, calls = write(tmp_path, rank=1, ranks=2)
    assert [c.start for c in calls] == [200, 600, 1000] and stored.missing == [0, 2, 4]
    with pytest.raises(ValueError, match="expected 6 shards in .*, 3 are missing, first 0"):
        stored.part()
    assert not write(tmp_path, rank=0, ranks=2)[0].missing


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    program = f"""
import time, torch
from georeps.core import embeddings
def embed(part):
    time.sleep(0.3 if part.start < 600 else 60)
    return torch.ones(part.stop - part.start, 4)
embeddings.write({str(tmp_path)!r}, 1000, embed, made_by={{"network": "x"}}, rows=200)
"""
    run = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (tmp_path / "shard-00002.npy").exists() and time.monotonic() < end:
        time.sleep(0.05)
    run.kill(), run.wait()
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("shard-*")}
    again = []
    stored = embeddings.write(tmp_path, 1000, lambda part: again.append(part.start) or torch.ones(200, 4), made_by={"network": "x"}, rows=200)
    assert len(before) == 3 and again == [600, 800] and torch.equal(stored.part(), torch.ones(1000, 4).half())
    assert all((tmp_path / name).stat().st_mtime_ns == then for name, then in before.items())


def test_search_over_shards_equals_search_over_the_whole(tmp_path):
    stored, _ = write(tmp_path, rows=300)
    queries = ITEMS[:7].half() + 0.1
    for k in (1, 20, 1030):
        found, expected = stored.topk(queries, k), search.topk(queries, ITEMS.half(), k)
        assert torch.equal(found.index, expected.index)
    with pytest.raises(ValueError, match="k: expected 1 <= k <= 1030"):
        stored.topk(queries, 1031)


def test_another_run_in_the_same_folder_is_refused_by_name(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="folder: expected made_by {'network': 'y'} in .*manifest.json, found {'network': 'x'}: embed into another folder"):
        write(tmp_path, made_by={"network": "y"})
    with pytest.raises(ValueError, match="folder: expected rows 100 in"):
        write(tmp_path, rows=100)
    with pytest.raises(FileNotFoundError, match="expected the manifest of an embedding"):
        embeddings.Embeddings(tmp_path / "none")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3, 4), "embed: expected descriptors of items 0..199 as rows, found shape"),
        (torch.full((200, 4), 1e6), "expected finite descriptors within float16, found 200 that are not, first of item 0"),
        (torch.full((200, 4), float("nan")), "expected finite descriptors within float16, found 200"),
    ],
)
def test_bad_descriptors_are_refused_and_leave_no_shard(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        embeddings.write(tmp_path, 1000, lambda part: value, made_by={}, rows=200)
    assert not list(tmp_path.glob("shard-*")) and json.loads((tmp_path / "manifest.json").read_text())["items"] == 1000


def test_a_shard_of_another_shape_is_named(tmp_path):
    stored, _ = write(tmp_path)
    np.save(tmp_path / "shard-00002.npy", np.zeros((200, 15), np.float16))
    with pytest.raises(ValueError, match=r"expected float16 \(200, 16\) in .*shard-00002.npy, found float16 \(200, 15\)"):
        stored.part()
    (tmp_path / "shard-00001.npy").write_bytes((tmp_path / "shard-00001.npy").read_bytes()[:500])
    with pytest.raises(ValueError, match="expected a whole .npy file of float16 in .*shard-00001.npy"):
        stored.part()
    (tmp_path / "manifest.json").write_text('{"items": 3}')
    with pytest.raises(ValueError, match="expected a manifest with items, rows, dtype float16 and made_by in .*manifest.json"):
        embeddings.Embeddings(tmp_path)
    with pytest.raises(ValueError, match="rank below 2, found 10, 65536 and 2"):
        embeddings.write(tmp_path / "b", 10, lambda p: torch.ones(10, 2), made_by={}, rank=2, ranks=2)
