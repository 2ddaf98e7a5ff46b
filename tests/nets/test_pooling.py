"""Poolings against their equations, timm's modules, and each other."""

import functools
import math

import pytest
import timm.layers
import timm.layers.cbam
import torch
import torch.nn.functional as F

from georeps.nets import pooling, variants

X = torch.randn(3, 32, 4, 5, generator=torch.Generator().manual_seed(0))
FLAT = X.flatten(2)


def made(name: str, **options):
    torch.manual_seed(1)
    return pooling.POOLINGS[name](32, **options).eval()


@pytest.mark.parametrize("name", pooling.POOLINGS)
def test_an_image_is_pooled_alike_alone_and_in_a_batch(name):
    pool = made(name)
    together, alone = pool(X), [pool(x[None]) for x in X]
    torch.testing.assert_close(together.vector, torch.cat([p.vector for p in alone]), rtol=1e-4, atol=1e-5)
    assert together.vector.shape == (3, pool.out_dim) and pool.out_dim == 32 * pool.k
    if together.attention is not None:
        torch.testing.assert_close(together.attention, torch.cat([p.attention for p in alone]), rtol=1e-4, atol=1e-6)
        assert together.attention.shape == (3, 4, 5) and bool((together.attention >= 0).all())
        torch.testing.assert_close(together.attention.sum(dim=(1, 2)), torch.ones(3))


@pytest.mark.parametrize("name", pooling.POOLINGS)
def test_every_parameter_learns_and_every_gradient_is_finite(name):
    pool, x = made(name).train(), X.clone().requires_grad_()
    pool(x).vector.square().sum().backward()
    assert bool(x.grad.isfinite().all()) and float(x.grad.abs().sum()) > 0
    for key, parameter in pool.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), key


@pytest.mark.parametrize("name", [n for n in pooling.POOLINGS if n not in ("cbam", "kmeans", "how", "ge")])
def test_poolings_but_those_with_a_neighbourhood_do_not_see_where_a_location_lies(name):
    pool, order = made(name), torch.randperm(20, generator=torch.Generator().manual_seed(2))
    mixed = FLAT[:, :, order].view_as(X)
    torch.testing.assert_close(pool(mixed).vector, pool(X).vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", pooling.POOLINGS)
def test_poolings_survive_bfloat16(name):
    pool, x = made(name).train(), X.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(x).vector
    found.float().sum().backward()
    assert (
        bool(found.isfinite().all()) and bool(x.grad.isfinite().all()) and all(bool(p.grad.isfinite().all()) for p in pool.parameters() if p.grad is not None)
    )


def test_a_step_with_nothing_chosen_is_the_average():
    u, a = pooling.generalized(FLAT, FLAT[:, :, :1], [pooling.Step()])
    torch.testing.assert_close(u[:, :, 0], X.mean(dim=(2, 3)))
    torch.testing.assert_close(a, torch.full((3, 20, 1), 1 / 20))


def test_simple_poolings_are_their_closed_forms():
    positive = X.abs()
    torch.testing.assert_close(made("gap")(X).vector, X.mean(dim=(2, 3)))
    torch.testing.assert_close(made("max")(X).vector, X.amax(dim=(2, 3)))
    torch.testing.assert_close(made("gap_max")(X).vector, X.mean(dim=(2, 3)) + X.amax(dim=(2, 3)))
    torch.testing.assert_close(made("gem")(positive).vector, F.avg_pool2d(positive**3, (4, 5))[:, :, 0, 0] ** (1 / 3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made("lse")(X).vector, ((10 * X).exp().mean(dim=(2, 3))).log() / 10)


def test_lse_is_timm_s():
    theirs = timm.layers.LsePlus2d(r=10.0, r_learnable=True)
    torch.testing.assert_close(made("lse")(X).vector, theirs(X).flatten(1))


def test_gem_runs_from_the_average_to_the_maximum():
    positive = X.abs()
    torch.testing.assert_close(made("gem", gamma=1.0)(positive).vector, positive.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made("gem", gamma=20.0)(positive).vector, positive.amax(dim=(2, 3)), rtol=0.16, atol=0)


def test_how_weighs_local_means_by_squared_norms():
    found = made("how")(X)
    weight = X.square().sum(dim=1)
    local = F.avg_pool2d(X, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(found.vector, F.normalize((local * weight[:, None]).sum(dim=(2, 3)), dim=1))
    torch.testing.assert_close(found.attention, weight / weight.sum(dim=(1, 2), keepdim=True))
    pool = made("how", out_dim=8)
    x = torch.randn(64, 32, 6, 6, generator=torch.Generator().manual_seed(3))
    pool.fit(x)
    local = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False).flatten(2)
    white = (pool.whiten @ (local - pool.centre)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(white @ white.T / white.shape[1], torch.eye(8), rtol=1e-3, atol=1e-3)


def test_sinkhorn_has_the_marginals_of_a_plan():
    plan = pooling.sinkhorn(torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(4)) / 0.1, 200)
    torch.testing.assert_close(plan.sum(dim=1), torch.full((2, 3), 1 / 3))
    torch.testing.assert_close(plan.sum(dim=2), torch.full((2, 20), 1 / 20), rtol=1e-2, atol=1e-4)


def test_otk_s_kernel_is_gaussian_at_its_anchors():
    pool = made("otk", sigma=1.0)
    anchors = F.normalize(pool.anchors, dim=0)[None].detach()
    psi = pool._kernel(anchors)[0]
    expected = (-torch.cdist(anchors[0].T, anchors[0].T).square() / 2).exp()
    torch.testing.assert_close(psi.T @ psi, expected, rtol=0, atol=5e-3)


def test_kmeans_ends_in_lloyd_s_fixed_point():
    u, a = pooling.kmeans(FLAT, 3, 50, random=False)
    nearest = torch.cdist(FLAT.transpose(1, 2), u.transpose(1, 2)).argmin(dim=2)
    for b in range(3):
        for j in range(3):
            torch.testing.assert_close(u[b, :, j], FLAT[b][:, nearest[b] == j].mean(dim=1))
    torch.testing.assert_close(a.sum(dim=1), torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"k: expected at most 20 centroids \(the locations\), found 21"):
        pooling.kmeans(FLAT, 21, 1, random=False)


def test_se_is_timm_s_before_the_average_and_so_is_ge_that_gathers_globally():
    ours, theirs = made("se"), timm.layers.SqueezeExcite(32, rd_channels=8)
    for mine, own in zip((ours.mlp[0], ours.mlp[2]), (theirs.fc1, theirs.fc2), strict=True):
        own.weight.data, own.bias.data = mine.weight.data[..., None].clone(), mine.bias.data.clone()
    torch.testing.assert_close(ours(X).vector, theirs(X).mean(dim=(2, 3)))
    pool = made("ge", extent=0)
    for mine, own in zip((pool.mlp[0], pool.mlp[2]), (theirs.fc1, theirs.fc2), strict=True):
        own.weight.data, own.bias.data = mine.weight.data.clone(), mine.bias.data.clone()
    torch.testing.assert_close(pool(X).vector, theirs(X).mean(dim=(2, 3)))


def test_cbam_is_timm_s_but_for_the_mean_of_the_two_branches():
    ours, theirs = made("cbam"), timm.layers.cbam.CbamModule(32, rd_channels=8).eval()
    theirs.channel.fc1.weight.data = ours.mlp[0].weight.data[..., None].clone()
    theirs.channel.fc2.weight.data = ours.mlp[2].weight.data[..., None] / 2  # timm adds what Eq. 3.38 averages
    theirs.spatial.conv.conv.weight.data = ours.conv.weight.data.clone()
    torch.testing.assert_close(ours(X).vector, theirs(X).mean(dim=(2, 3)), rtol=1e-3, atol=1e-4)  # timm's convolution has a normalisation


def test_the_transformer_s_attention_is_torch_s():
    pool = made("vit")
    tokens = torch.cat([pool.token.expand(3, -1, -1), FLAT], dim=2)
    normed = pool.norm(tokens)
    heads = lambda y: y.view(3, 4, 8, -1).transpose(2, 3)  # noqa: E731
    q, k, v = (heads(f(y)) for f, y in ((pool.query, normed[:, :, :1]), (pool.key, normed), (pool.value, normed)))
    z = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(3, 32, 1)
    g = tokens[:, :, :1] + pool.out(z)
    torch.testing.assert_close(pool(X).vector, pool.norm_out(g + pool.mlp(pool.norm_mlp(g)))[:, :, 0])


def test_simpool_without_gamma_is_timm_s():
    ours = made("simpool", gamma=None)
    theirs = timm.layers.SimPool2d(32, gamma=None, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6))
    theirs.q.weight.data, theirs.k.weight.data = ours.query.weight.data[:, :, 0].clone(), ours.key.weight.data[:, :, 0].clone()
    torch.testing.assert_close(ours(X).vector, theirs(X).view(3, 32), rtol=1e-4, atol=1e-5)


def test_simpool_is_algorithm_2_line_by_line():
    pool = made("simpool", gamma=2.0)
    for b in range(3):
        x = FLAT[b]
        u0 = x.mean(dim=1)
        normed = F.layer_norm(x.T, (32,), eps=1e-6).T
        q, k = pool.query.weight[:, :, 0] @ u0, pool.key.weight[:, :, 0] @ normed
        a = (k.T @ q / math.sqrt(32)).softmax(dim=0)
        v = normed - normed.min()
        expected = ((v**2) @ a).sqrt()
        torch.testing.assert_close(pool(X).vector[b], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(pool(X).attention[b].flatten(), a)


def test_the_average_minimises_the_distortion_that_simpool_starts_from():
    u = FLAT.mean(dim=2, keepdim=True)
    base = (FLAT - u).square().sum(dim=(1, 2))
    assert bool(((FLAT - u - 0.1).square().sum(dim=(1, 2)) > base).all())  # Eq. 3.60, 3.61


def test_gamma_1_is_the_average_up_to_the_minimum():
    plain, one = (made("simpool", gamma=g) for g in (None, 1.0))
    least = plain.norm(FLAT).amin(dim=(1, 2))[:, None]
    torch.testing.assert_close(one(X).vector + least, plain(X).vector, rtol=1e-4, atol=1e-4)


def test_efficient_probing_pools_each_group_with_its_query():
    pool = made("ep", queries=8)
    values = torch.einsum("ed,bdp->bep", pool.value.weight[:, :, 0], FLAT)
    for j in range(8):
        a = (FLAT.transpose(1, 2) @ pool.queries[:, j] / math.sqrt(32)).softmax(dim=1)
        torch.testing.assert_close(pool(X).vector[:, 4 * j : 4 * j + 4], torch.einsum("bep,bp->be", values[:, 4 * j : 4 * j + 4], a))
    assert sum(p.numel() for p in pool.parameters()) == 32 * 8 + 32 * 32
    with pytest.raises(ValueError, match="queries: expected a divisor of dim 32, found 5"):
        pooling.EP(32, queries=5)


@pytest.mark.parametrize("option", variants.DESIGN)
def test_variants_run_and_the_plain_one_is_simpool(option):
    torch.manual_seed(0)
    pool = variants.Variant(32, **variants.DESIGN[option]).eval()
    found = pool(X)
    assert found.vector.shape == (3, pool.out_dim) and bool(found.vector.isfinite().all())
    if option == "simpool":
        ours = made("simpool")
        ours.load_state_dict(
            {"norm.weight": pool.norm.weight, "norm.bias": pool.norm.bias, "query.weight": pool.query[0].weight, "key.weight": pool.key[0].weight}
        )
        torch.testing.assert_close(found.vector, ours(X).vector)


@pytest.mark.parametrize("linear, norm", variants.LAYERS)
def test_linear_and_layer_norms_are_where_they_are_asked_for(linear, norm):
    pool = variants.Variant(32, None, linear=linear, norm=norm)
    lines, norms = len(linear) if linear != "none" else 0, 0 if norm == "none" else ("q" in norm) + bool(set("kv") & set(norm))
    assert sum(p.numel() for p in pool.parameters()) == lines * 32**2 + norms * 2 * 32
    assert bool(pool(X).vector.isfinite().all())


def test_unknown_letters_and_names_are_refused():
    with pytest.raises(ValueError, match="linear: expected one of q, k, v, found 'x'"):
        variants.Variant(32, linear="x")
