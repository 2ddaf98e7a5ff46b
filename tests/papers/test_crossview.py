"""Cross-view matching: geometry of the transforms, and what a training step feeds its loss."""

import math

import torch

from georeps.nets import encoders, losses, towers
from georeps.papers import crossview
from georeps.worlds import city


def images(n: int, h: int = 64, w: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed))


def polar_loop(image, height, width):
    """SAFA's data preparation, letter by letter: floor and the next pixel, 0 outside."""
    side = image.shape[-1]
    out = torch.zeros(image.shape[0], height, width)
    for i in range(height):
        for j in range(width):
            row = side / 2 + side / 2 / height * (height - 1 - i) * math.cos(2 * math.pi * j / width)
            column = side / 2 - side / 2 / height * (height - 1 - i) * math.sin(2 * math.pi * j / width)
            for a in (math.floor(row), math.floor(row) + 1):
                for b in (math.floor(column), math.floor(column) + 1):
                    if 0 <= a < side and 0 <= b < side:
                        out[:, i, j] += image[:, a, b] * (1 - abs(row - a)) * (1 - abs(column - b))
    return out


def test_polar_equals_the_published_loop():
    picture = images(1, 24, 24)
    assert torch.allclose(crossview.polar(picture, 9, 20)[0], polar_loop(picture[0], 9, 20), atol=1e-4)


def test_polar_has_north_in_the_centre_column_and_the_rim_in_row_zero():
    picture = torch.zeros(1, 3, 65, 65)
    picture[:, 0, :8] = 1  # the north rim
    picture[:, 1, :, :8] = 1  # the west rim
    picture[:, 2, 28:37, 28:37] = 1  # the centre
    out = crossview.polar(picture, 32, 64)[0]
    assert out[0, 0, 32] == 1 and out[0, :, 0].max() == 0 and out[0, -8:].max() == 0
    assert out[1, 0, 16] == 1 and out[1, :, 48].max() == 0
    assert out[2, -1].min() == 1 and out[2, 0].max() == 0


def test_same_place_is_closer_than_25_metres():
    position = torch.tensor([[0.0, 0.0], [24.9, 0.0], [0.0, 25.1]])
    assert crossview.same_place(position).tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_turn_shifts_each_panorama_by_its_own_columns_and_wraps():
    panorama = torch.arange(6).repeat(3, 3, 2, 1).float()
    turned = crossview.turn(panorama, torch.tensor([0, 2, 6]))
    assert turned[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5] and turned[1, 2, 1].tolist() == [2, 3, 4, 5, 0, 1]
    assert torch.equal(turned[2], turned[0])


def test_turn_is_what_a_camera_that_turned_right_would_see(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path))
    places = city.places(cities=[1], tiles=4, n=6)
    north, turned = (city.ground(places, size=(16, 64), heading=h) for h in (0.0, 90.0))
    expected = crossview.turn(north.float(), torch.full((6,), 16))
    assert (turned.float() - expected).abs().mean() < 0.1 * (turned.float() - north.float()).abs().mean()


def test_siamese_vgg_shares_its_projection_and_nothing_else():
    model = crossview.siamese_vgg(width=0.125, dim=16)
    assert model.ground.projection is model.satellite.projection
    assert not torch.equal(model.ground.trunk.features[0].weight, model.satellite.trunk.features[0].weight)


def test_published_sizes_give_4096_dimensions():
    siamese = crossview.siamese_vgg()
    assert siamese.ground.projection.out_features == 4096
    safa = crossview.safa_vgg(ground_size=(112, 616), satellite_size=(256, 256))
    assert safa.ground.pool.grid == (3, 19) and safa.satellite.pool.grid == (8, 8)
    assert safa.ground.pool.out_dim == safa.satellite.pool.out_dim == 4096


class Means(crossview.TwoBranch):
    """Describes an image by its mean colour in each column, so that what was fed can be recognised."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, ground, satellite):
        return tuple(x.mean(dim=2).flatten(1) * self.weight for x in (ground, satellite))


def step(seen: list, **options) -> crossview.Matching:
    pictures = [(images(8, 4, 12, seed=s) * 255).to(torch.uint8) for s in (0, 1)]

    def loss(ground, satellite, same_place=None):
        seen.append((ground.detach(), satellite.detach(), same_place))
        return losses.soft_margin_triplet(ground, satellite, same_place=same_place)

    return crossview.Matching(Means(), lambda i: (pictures[0][i], pictures[1][i]), loss=loss, **options)


def test_matching_marks_the_places_less_than_25_metres_apart():
    seen, position = [], torch.arange(8)[:, None] * torch.tensor([[20.0, 0.0]])
    step(seen, position=position)(torch.tensor([0, 1, 3]))
    step(seen)(torch.tensor([0, 1, 3]))
    assert seen[0][2].tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert seen[1][2] is None


def test_matching_augments_either_view():
    seen = []
    step(seen, augment=lambda x: 1 - x.float() / 255)(torch.arange(4))
    step(seen)(torch.arange(4))
    assert all(torch.allclose(a + b, torch.ones_like(a), atol=1e-6) for a, b in zip(seen[0][:2], seen[1][:2], strict=True))


def test_a_step_keeps_the_gradient_finite():
    torch.manual_seed(0)
    model = crossview.safa_vgg(ground_size=(16, 64), satellite_size=(32, 32), width=0.0625, blocks=3, last_pool=False)
    pictures = [(images(6, *size) * 255).to(torch.uint8) for size in ((16, 64), (32, 32))]
    module = crossview.Matching(model, lambda i: (pictures[0][i], pictures[1][i]), loss=losses.symmetric_info_nce)
    module(torch.arange(6)).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert encoders.describe(model.ground, pictures[0]).shape == (6, model.ground.pool.out_dim)


def test_directions_turn_with_the_panorama_and_are_compared_at_every_turn():
    grid = torch.rand(3, 8, 4, 16)
    head = crossview.Columns(8, rows=4, columns=16, out=5)
    turned = crossview.turn(grid, torch.tensor([3, 0, 9]))
    first, second = (head(x).vector for x in (grid, turned))
    scores = crossview.at_every_turn(second, first, 16)
    assert scores.argmax(-1).diagonal().tolist() == [3, 0, 9]
    loops = torch.stack([(second.view(3, 5, 16)[:, None] * first.view(3, 5, 16).roll(-t, -1)[None]).sum((2, 3)) for t in range(16)], dim=-1)
    assert torch.allclose(scores, loops, atol=1e-4)


def test_a_turned_gallery_changes_no_rank_where_every_turn_is_compared():
    torch.manual_seed(0)
    maps = torch.rand(20, 6, 4, 16)
    model = crossview.columns([crossview.OnMaps(maps, out=8)] * 2).eval()
    model.satellite = model.ground
    turned = crossview.turn(maps, torch.randint(16, (20,)))
    assert (crossview.ranks(model, turned, maps, turns=16) == 0).all() and (crossview.ranks(model, maps, maps) == 0).all()


def test_a_trunk_on_stored_maps_standardises_them_and_trains_the_tail_it_is_given():
    tower = towers.image("lite0", seed=0)
    stem, tail = tower.split(2, 16)
    images = torch.randint(256, (6, 3, 32, 64), dtype=torch.uint8)
    stored = crossview.seen(tower, images, (8,))
    both = crossview.seen(tower, images, (8, 16))
    assert torch.equal(both[:, :40], stored) and both.shape == (6, 152, 4, 8)
    frozen, trained = crossview.OnMaps(both), crossview.OnMaps(stored, tail=tail.requires_grad_(True))
    trained.load_state_dict({f"mix.{k}": v for k, v in frozen.mix.state_dict().items()}, strict=False)
    assert torch.allclose(frozen(both), trained(stored), atol=0.05), "before training the tail repeats the tower, but for float16"
    trained(stored).sum().backward()
    assert all(p.grad is not None for p in trained.tail.parameters())
    plain = (frozen._maps(both) - frozen.mean) / frozen.std
    assert float(plain.mean(dim=(0, 2, 3)).abs().max()) < 1e-3


def test_hard_batches_hold_every_item_once_beside_its_neighbours():
    near = torch.stack([torch.arange(40), torch.arange(40).roll(-1), torch.arange(40).roll(-2)], dim=1)  # itself, as a search gives it
    make = crossview.hard_batches(lambda epoch: near, 40, 8, seed=3)
    found = make(0)
    assert sorted(torch.cat(found).tolist()) == list(range(40)) and all(len(b) == 8 for b in found)
    assert [b.tolist() for b in make(0)] == [b.tolist() for b in found] != [b.tolist() for b in make(1)]
    beside = sum(int(near[i, 1]) in b.tolist() for b in found for i in b.tolist())
    assert beside > 14, "at random, seven of forty do"
    apart = crossview.hard_batches(lambda epoch: near, 40, 8, seed=3, tiles=torch.arange(40)[:, None] // 2)(0)
    assert all(len({i // 2 for i in b.tolist()}) == 8 for b in apart) and len(set(torch.cat(apart).tolist())) == 8 * len(apart)
