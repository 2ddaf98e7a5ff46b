"""The starts of Table 3.1: which images and which weights each term stands for, and that each is trained once."""

import pytest
import torch

from georeps.lab import starts
from georeps.nets import towers, train
from georeps.tasks import pairs

HOW = starts.Contrast(train.Recipe(epochs=1, lr=1e-2), batch=4, queue=8, dim=4, views=2, blur=(0.1, 0.3))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path))


def pictures(n: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def table() -> starts.Starts:
    parts = [pairs.Pairs(pictures(6, s), {"plain": pictures(n, s + 10)}, torch.arange(6), None, None, torch.zeros(n, 2)) for s, n in ((1, 6), (2, 8))]
    return starts.Starts(images=starts.images_of(*parts, equal=True), how=HOW, depth=1, stride=16)


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_each_term_of_table_3_1_has_its_images_and_its_start():
    made = table()
    assert {k: len(v) for k, v in made.images.items()} == {"sat train": 6, "sat val": 6, "grd": 12, "sat": 12}
    known, blank = towers.image("lite0").split(1, 16), towers.image("lite0", seed=0).split(1, 16)
    assert all(equal(a, b) for a, b in zip(made.trunk("ImageNet"), known)) and all(equal(a, b) for a, b in zip(made.trunk("/"), blank))
    for term in ("sat", "sat*", "sat train*"):
        stem, tail = known if term.endswith("*") else blank
        own_stem, own_tail = made.trunk(term)
        assert equal(own_stem, stem) and not equal(own_tail, tail), term
        assert equal(own_tail, starts.contrasted(stem, tail, made.images[term.removesuffix("*")], HOW)), term
    assert not equal(made.trunk("sat*")[1], made.trunk("sat train*")[1])


def test_a_start_is_trained_once_and_another_anew(monkeypatch):
    first = table().trunk("sat*")[1]
    monkeypatch.setattr(train, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert equal(first, table().trunk("sat*")[1])
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        table().trunk("sat train*")


def test_a_trunk_standardises_what_its_tail_gives():
    stem, tail = towers.image("lite0").split(1, 16)
    with torch.no_grad():
        maps = stem(pictures(40, 1).float() / 255)
        out = starts.Trunk(tail, maps)(maps)
    assert float(out.mean((0, 2, 3)).abs().max()) < 1e-3 and float((out.std((0, 2, 3)) - 1).abs().max()) < 0.05


def test_unknown_terms_are_named():
    with pytest.raises(ValueError, match="term: expected '/', 'ImageNet' or one of .* found 'sky'"):
        table().trunk("sky")
