"""A gallery in shards over gloo processes gives what one process gives, ties and all; an error on one rank is one on all."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from georeps.core import search, sharded


def rows(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def galleries():
    plain = rows(1300, 24, 1)
    return {"distinct": plain, "duplicates": plain[torch.arange(1300) % 500], "collapsed": plain[:1].expand(1300, 24).contiguous()}


def broken():
    raise RuntimeError("out of something")


def check(rank, sizes, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(sizes))
    queries = rows(37, 24, 0)
    target = torch.randint(-1, 1300, (37, 3), generator=torch.Generator().manual_seed(2))
    for gallery in galleries().values():
        shard = gallery.split(sizes)[rank].contiguous()
        for k in (1, 9, 600, 1300):
            found, expected = sharded.topk(queries, shard, k), search.topk(queries, gallery, k)
            assert torch.equal(found.index, expected.index) and torch.allclose(found.scores, expected.scores, atol=1e-6)
        assert torch.equal(sharded.rank_of(queries, shard, target), search.rank_of(queries, gallery, target))
        single = target[:, 0].clamp(min=0)
        assert torch.equal(sharded.rank_of(queries, shard, single), search.rank_of(queries, gallery, single))
    damaged = shard.clone()
    if rank == 1:
        damaged[2, 3] = float("nan")
    try:
        sharded.topk(queries, damaged, 5)
        raise AssertionError("no error")
    except ValueError as error:
        assert str(error).startswith("rank 1: gallery: expected finite descriptors, found 1 rows"), error
    for call, message in (
        (lambda: sharded.topk(queries, shard, 1301), "k: expected 1 <= k <= 1300"),
        (lambda: sharded.rank_of(queries, shard, target + 1300), "target: expected gallery indices in -1..1299, found"),
        (lambda: sharded.topk(queries, shard[:0], 1), "shard: expected at least one row"),
        (lambda: sharded.topk(queries, shard[:, : 24 - rank], 1), "shard: expected one width on all ranks, found 24, 23"),
        (lambda: sharded._together(broken if rank else int, None), "rank 1: RuntimeError: out of something"),
    ):
        try:
            call()
            raise AssertionError("no error")
        except ValueError as error:
            assert str(error).startswith(message), error
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path):
    mp.spawn(check, ([800, 500], str(tmp_path)), nprocs=2)


def test_four_uneven_ranks_equal_one_process_even_where_one_is_empty(tmp_path):
    mp.spawn(check, ([1000, 290, 0, 10], str(tmp_path)), nprocs=4)
