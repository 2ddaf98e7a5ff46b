"""Encoders and the two-branch models against torchvision and the listing in the thesis."""

import pytest
import torch
import torchvision
from torch import nn

from georeps.nets import encoders, pooling
from georeps.papers import crossview


def images(n: int, h: int = 64, w: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed))


def test_vgg16_equals_torchvision_with_its_weights(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.vgg16(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "vgg16.pth")
    ours = encoders.VGG16(weights=tmp_path / "vgg16.pth").eval()
    x = images(2)
    normalised = (x - ours.mean) / ours.std
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs.features(normalised), atol=1e-5)


def test_normalise_by_gives_training_images_mean_zero_and_deviation_one():
    trunk = encoders.VGG16(width=0.125)
    pictures = (images(6) * 100).to(torch.uint8)
    trunk.normalise_by(pictures)
    x = (pictures.float() / 255 - trunk.mean) / trunk.std
    assert x.mean(dim=(0, 2, 3)).abs().max() < 1e-5 and (x.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-5
    assert {"mean", "std"} <= set(trunk.state_dict())


@pytest.mark.parametrize(("last_pool", "side"), [(True, 2), (False, 4)])
def test_width_and_last_pool_set_the_grid(last_pool, side):
    trunk = encoders.VGG16(width=0.125, last_pool=last_pool)
    assert trunk(images(2)).shape == (2, 64, side, side)
    assert trunk.out_dim == 64 and trunk.stride == 64 // side


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="On a machine with internet run"):
        encoders.VGG16(weights="imagenet")
    with pytest.raises(FileNotFoundError, match="found no file"):
        encoders.VGG16(weights=tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="need width 1.0, found width 0.5"):
        encoders.VGG16(width=0.5, weights="imagenet")


def test_weights_of_another_network_are_named(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="lacks 26 of the tensors of torchvision's VGG16"):
        encoders.VGG16(weights=tmp_path / "other.pth")


def spe_listing(fmp: torch.Tensor, fc1: nn.Linear, fc2: nn.Linear, reduction: str) -> torch.Tensor:
    """The thesis's 6.1, one head."""
    b, _, h, w = fmp.shape
    pooled = fmp.max(dim=-3).values if reduction == "max" else fmp.mean(dim=-3)
    x = fc2(fc1(pooled.flatten(-2))).reshape(b, -1, h * w)
    return torch.einsum("bci,bdi->bdc", fmp.flatten(-2), x).flatten(-2)


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_spatial_aware_aggregation_equals_the_listing_head_by_head(reduction):
    torch.manual_seed(0)
    module = crossview.SpatialAware(5, (4, 6), heads=3, reduction=reduction)
    fmp = images(2)[:, :1, :4, :6].expand(2, 5, 4, 6) * torch.rand(1, 5, 1, 1)
    expected = [spe_listing(fmp, a, b, reduction) for a, b in zip(module.first, module.second, strict=True)]
    assert torch.allclose(module(fmp).vector, torch.cat(expected, dim=1), atol=1e-6)
    assert module(fmp).attention.shape == (2, 4, 6)


def test_spatial_aware_aggregation_refuses_another_grid_and_reduction(unchecked):
    with pytest.raises(ValueError, match=r"expected a grid of \(4, 6\), found \(4, 4\)"):
        crossview.SpatialAware(5, (4, 6))(torch.zeros(1, 5, 4, 4))
    with pytest.raises(ValueError, match="reduction: expected 'max' or 'mean'"):
        crossview.SpatialAware(5, (4, 6), reduction="median")


@pytest.mark.parametrize("name", ["siamese", "safa"])
def test_descriptors_are_unit_rows_and_a_batch_equals_its_rows(name):
    torch.manual_seed(0)
    if name == "siamese":
        model = crossview.siamese_vgg(width=0.125, dim=32).eval()
    else:
        model = crossview.safa_vgg(ground_size=(32, 64), satellite_size=(64, 64), width=0.125).eval()
    ground, satellite = images(4, 32, 64), images(4)
    with torch.no_grad():
        g, s = model(ground, satellite)
        rows = torch.cat([model.ground(x[None]) for x in ground])
    assert torch.allclose(g.norm(dim=1), torch.ones(4)) and torch.allclose(s.norm(dim=1), torch.ones(4))
    assert torch.allclose(g, rows, atol=1e-6)


def test_describe_keeps_the_mode_and_does_not_depend_on_the_batch_size():
    model = crossview.siamese_vgg(width=0.125, dim=32)
    pictures = (images(10) * 255).to(torch.uint8)
    assert torch.allclose(encoders.describe(model.ground, pictures, batch=3), encoders.describe(model.ground, pictures), atol=1e-6)
    assert model.ground.training


def test_gap_is_the_mean_over_the_grid():
    x = torch.rand(2, 3, 4, 5)
    pooled = pooling.POOLINGS["gap"](3)(x)
    assert torch.equal(pooled.vector, x.mean(dim=(2, 3))) and pooled.attention is None


def test_a_centred_projection_maps_the_mean_of_the_images_to_nothing():
    torch.manual_seed(0)
    trunk = encoders.VGG16(width=0.0625, blocks=2)
    model = encoders.Descriptor(trunk, pooling.GAP(trunk.out_dim), torch.nn.Linear(trunk.out_dim, 6))
    images = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8)
    encoders.centre(model, images, batch=4)
    raw = model.projection(model.pool(trunk(images.float() / 255)).vector)
    assert float(raw.mean(dim=0).abs().max()) < 1e-4 and float(raw.abs().max()) > 1e-2
    with pytest.raises(ValueError, match="descriptor: expected a linear projection to centre, found NoneType"):
        encoders.centre(encoders.Descriptor(trunk, pooling.GAP(trunk.out_dim)), images)
