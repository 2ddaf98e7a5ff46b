"""Flows on the sphere: laws of the field, of its samplers and of its density."""

import math

import pytest
import torch
import torch.nn.functional as F

from georeps.core import adaln, flow, sphere


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bent_net(seed=0, dim=32, depth=2, cond_dim=5):
    """A velocity network whose blocks are not the identity, and whose answers are not tangent."""
    torch.manual_seed(seed)
    net = adaln.VelocityNet(cond_dim, dim=dim, depth=depth)
    for block in net.blocks:
        torch.nn.init.normal_(block.fall.weight, std=0.3)
    return net.double()


def rotation(x, s, condition):
    """The rotation about the z axis by 2 radians; its flow is known."""
    return 2 * torch.stack([-x[:, 1], x[:, 0], 0 * x[:, 0]], dim=1)


@pytest.mark.parametrize(("dim", "parameters"), [(512, 36_034_563), (256, 9_153_539)])
def test_the_network_has_the_published_number_of_parameters(dim, parameters):
    assert sum(p.numel() for p in adaln.VelocityNet(1024, dim=dim, depth=12).parameters()) == parameters


def test_the_schedule_has_the_published_values():
    t = torch.tensor([0, 0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1], dtype=torch.float64)
    published = torch.tensor([1, 0.9984, 0.9894, 0.8757, 0.4756, 0.2328, 0.0754, 0], dtype=torch.float64)
    assert torch.allclose(flow.schedule(t), published, atol=1e-4)
    assert torch.allclose(flow.grid(10, even=0.0).double(), flow.schedule(torch.linspace(1, 0, 11, dtype=torch.float64)))
    at = flow.grid(10)
    assert float(at[0]) == 0 and float(at[-1]) == 1 and bool((at.diff() > 0).all())


def test_forward_mode_equals_autograd_and_one_row_of_context_equals_many():
    net, x = bent_net(), sphere.uniform(7, generator=seeded()).double()
    tangents = torch.randn(2, 7, 3, generator=seeded(1)).double()
    s, condition = torch.full((7, 1), 0.3).double(), torch.randn(1, 5, generator=seeded(2)).double()
    v, along = net.with_tangents(x, tangents, s[:1], condition)
    for k in range(2):
        expected = torch.func.jvp(lambda y: net(y, s, condition.expand(7, -1)), (x,), (tangents[k],))
        assert torch.allclose(v, expected[0]) and torch.allclose(along[k], expected[1])


def test_the_divergence_is_the_one_on_the_sphere():
    net, x = bent_net(), sphere.uniform(9, generator=seeded()).double()
    s, condition = torch.full((1, 1), 0.6).double(), torch.randn(1, 5, generator=seeded(2)).double()

    def field(y):  # tangent, and the same along a radius: its divergence in R3 is the one on S2
        unit = y / y.norm()
        return sphere.tangent(unit, net(unit[None], s, condition)[0])

    jacobian = torch.func.vmap(torch.func.jacrev(field))(x)
    v, div = flow.divergence(net, x, s, condition)
    assert torch.allclose(div, jacobian.diagonal(dim1=1, dim2=2).sum(1)) and torch.allclose((v * x).sum(1), torch.zeros(9).double(), atol=1e-6)
    _, loose = flow.divergence(lambda *a: net(*a), x, s, condition)  # any callable, without the network's own forward mode
    assert torch.allclose(loose, div)


def test_the_divergence_integrates_to_zero_over_the_sphere_though_the_net_is_not_tangent():
    points = sphere.fibonacci(4000).double()
    _, div = flow.divergence(bent_net(), points, torch.full((1, 1), 0.5).double(), None)
    assert abs(float(div.mean())) < 1e-4 * float(div.abs().mean())


def test_the_density_integrates_to_one_though_the_net_is_not_tangent():
    points = sphere.fibonacci(3000).double()
    condition = torch.randn(1, 5, generator=seeded(2)).double()
    density = flow.log_prob(bent_net(), points, condition, steps=96).exp()
    assert float(density.std()) > 0.01 and float(density.mean()) * 4 * math.pi == pytest.approx(1, abs=2e-3)


def test_no_velocity_is_the_uniform_density():
    x = sphere.uniform(5, generator=seeded())
    for method in ("adams", "heun", "rk4", "dopri5"):
        density = flow.log_prob(lambda y, s, c: 0 * y, x, steps=4, method=method)
        assert torch.allclose(density, torch.full((5,), -math.log(4 * math.pi)))


def test_what_is_off_the_tangent_plane_does_not_count():
    net, x = bent_net(), sphere.uniform(6, generator=seeded()).double()

    def pulled(y, s, c):
        return net(y, s, c) + 3 * (1 + y[:, :1]) * y

    assert torch.allclose(flow.log_prob(pulled, x, steps=8), flow.log_prob(net, x, steps=8))
    single = net.float()
    samples = [flow.sample(v, 6, steps=8, generator=seeded()) for v in (single, lambda y, s, c: single(y, s, c) + 3 * y)]
    assert torch.allclose(*samples, atol=1e-5)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_samplers_converge_at_their_order(method, order):
    def still(x, s, condition):  # a field that does depend on s and on the place
        return torch.stack([-x[:, 1], x[:, 0], s[:, 0].expand(len(x)) * x[:, 0]], dim=1).double()

    def end(steps):
        x = F.normalize(torch.randn(20, 3, generator=seeded()), dim=1).double()
        at = torch.linspace(0, 1, steps + 1).double()
        for now, then in zip(at[:-1], at[1:], strict=True):
            slope = lambda y, s: (sphere.tangent(y, still(y, s, None)), None)  # noqa: E731
            x = sphere.exp(x, (then - now) * slope(x, now.view(1, 1))[0]) if method == "euler" else flow._step(slope, x, now, then, method)[0]
        return x

    exact = end(512) if method == "rk4" else None
    if exact is None:
        kept, method = method, "rk4"
        exact, method = end(512), kept
    errors = [float((end(n) - exact).norm(dim=1).mean()) for n in (8, 16)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


def test_a_rotation_is_followed_and_changes_no_density():
    start = F.normalize(torch.randn(50, 3, generator=seeded(3)), dim=1)
    end = flow.sample(rotation, 50, steps=20, method="rk4", generator=seeded(3))
    c, z = math.cos(2), math.sin(2)
    expected = torch.stack([c * start[:, 0] - z * start[:, 1], z * start[:, 0] + c * start[:, 1], start[:, 2]], dim=1)
    assert torch.allclose(end, expected, atol=1e-4)
    assert torch.allclose(flow.log_prob(rotation, end, steps=8), torch.full((50,), flow.UNIFORM), atol=1e-5)


def test_guidance_zero_is_no_guidance_and_a_net_without_condition_is_not_guided():
    net, condition = bent_net().float(), torch.randn(1, 5, generator=seeded(2))
    plain = flow.sample(net, 8, condition, steps=6, generator=seeded())
    assert torch.equal(flow.sample(net, 8, condition, steps=6, guidance=0.0, generator=seeded()), plain)
    assert not torch.allclose(flow.sample(net, 8, condition, steps=6, guidance=2.0, generator=seeded()), plain, atol=1e-3)
    none = flow.sample(net, 8, None, steps=6, generator=seeded())
    assert torch.allclose(flow.sample(net, 8, None, steps=6, guidance=2.0, generator=seeded()), none, atol=1e-5)


def test_a_batch_equals_its_rows_in_samples_and_densities():
    net, condition = bent_net(), torch.randn(4, 5, generator=seeded(2)).double()
    x = sphere.uniform(4, generator=seeded()).double()
    whole = flow.log_prob(net, x, condition, steps=6)
    rows = torch.cat([flow.log_prob(net, x[i : i + 1], condition[i : i + 1], steps=6) for i in range(4)])
    assert torch.allclose(whole, rows)


def test_poles_antipodes_and_the_date_line_are_places_like_others():
    net = bent_net()
    places = torch.tensor([[90.0, 0], [-90, 0], [0, 180], [0, -180], [10, 179.9999999], [10, -180]], dtype=torch.float64)
    density = flow.log_prob(net, sphere.from_latlon(places), steps=8)
    assert bool(density.isfinite().all())
    assert torch.allclose(density[2], density[3]) and torch.allclose(density[4], density[5], atol=1e-6)


def test_fixed_steps_agree_with_adaptive_ones():
    net, x = bent_net(), sphere.uniform(3, generator=seeded()).double()

    def slow(y, s, c):  # an untrained network turns a thousand times with s, which no fixed grid follows; a trained one does not
        return net(y, 0.5 + 0.005 * s, c)

    adaptive = flow.log_prob(slow, x, method="dopri5", tolerance=1e-7)
    for method, tolerance in (("adams", 1e-3), ("heun", 1e-3), ("rk4", 1e-4)):
        assert torch.allclose(flow.log_prob(slow, x, steps=48, method=method), adaptive, atol=tolerance)


@pytest.mark.parametrize("kind", ["sphere", "space", "diffusion"])
def test_a_flow_learns_where_its_points_are(kind):
    torch.manual_seed(0)
    centres = sphere.from_latlon(torch.tensor([[40.0, 10.0], [-30.0, 140.0]]))
    net, flags = adaln.VelocityNet(2, dim=32, depth=2), torch.eye(2)
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    for _ in range(500):
        which = torch.randint(2, (256,))
        x = F.normalize(centres[which] + 0.05 * torch.randn(256, 3), dim=1)
        optimizer.zero_grad()
        flow.loss(net, x, flags[which], kind=kind).backward()
        optimizer.step()
    method = "heun" if kind == "sphere" else kind
    for i in range(2):
        found = flow.sample(net, 200, flags[i : i + 1], steps=24, method=method, generator=seeded())
        assert float(sphere.distance(found, centres[i : i + 1].expand(200, -1)).median()) < 0.35
    if kind == "sphere":
        near = flow.log_prob(net, centres, flags, steps=16)
        assert float(near.min()) > 0.5 and float(flow.log_prob(net, centres.flip(0), flags, steps=16).max()) < 0


def test_bad_input_is_named(unchecked):
    net = bent_net().float()
    with pytest.raises(ValueError, match="condition: expected 5 channels, found 4"):
        flow.sample(net, 2, torch.zeros(1, 4))
    with pytest.raises(ValueError, match="x: expected unit vectors, found 1"):
        flow.log_prob(net, torch.tensor([[1.0, 0, 0], [2.0, 0, 0]]))
    with pytest.raises(ValueError, match="x: expected unit vectors, found 1"):
        flow.log_prob(net, torch.tensor([[1.0, 0, 0], [math.nan, 0, 0]]))
    with pytest.raises(ValueError, match="method: expected 'euler'"):
        flow.sample(net, 2, method="leap")
    with pytest.raises(ValueError, match="condition: expected rows that divide the 3 points, found 2"):
        flow.log_prob(net, torch.eye(3), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="kind: expected 'sphere'"):
        flow.loss(net, torch.eye(3), None, kind="plane")
    with pytest.raises(ValueError, match="steps: expected at least 1"):
        flow.grid(0)


def test_conditions_serve_consecutive_points_and_batches_change_nothing():
    net, conditions = bent_net(), torch.randn(3, 5, generator=seeded(2)).double()
    x = sphere.uniform(12, generator=seeded()).double()
    each = flow.log_prob(net, x, conditions.repeat_interleave(4, dim=0), steps=6)
    assert torch.allclose(flow.log_prob(net, x, conditions, steps=6), each)
    assert torch.allclose(flow.log_prob(net, x, conditions, steps=6, batch=5), each)
    single = net.float()
    whole, parts = (flow.sample(single, 12, conditions.float(), steps=5, batch=b, generator=seeded()) for b in (99, 4))
    assert torch.allclose(whole, parts, atol=1e-5)


def test_the_published_way_gives_the_same_density():
    net, x = bent_net(), sphere.uniform(3, generator=seeded()).double()
    condition = torch.randn(1, 5, generator=seeded(2)).double()

    def slow(y, s, c):
        return net(y, 0.5 + 0.005 * s, c)

    reverse = flow.log_prob(slow, x, condition, method="reverse", tolerance=1e-8)  # at 1e-6 it is 4e-4 off
    assert torch.allclose(reverse, flow.log_prob(slow, x, condition, steps=48, method="rk4"), atol=1e-4)


def test_a_density_in_space_is_one_by_volume():
    """A network that answers with -mean noise of a known normal is followed exactly: the density is that normal's."""

    class Affine(adaln.VelocityNet):
        def with_tangents(self, x, tangents, s, condition):
            return 0.5 * x + 1, 0.5 * tangents  # dx/ds: from N(0, 1) to N(2 (e^.5 - 1), e)

        def forward(self, x, s, condition):
            return self.with_tangents(x, x[None], s, condition)[0]

    x = torch.randn(6, 3, generator=seeded()).double()
    normal = torch.distributions.Normal(2 * (math.exp(0.5) - 1), math.exp(0.5))
    found = flow.log_prob_space(Affine(2, dim=8, depth=1), x, steps=64)
    assert torch.allclose(found, normal.log_prob(x).sum(1), atol=1e-3)


def test_the_density_of_a_diffusion_of_a_normal_is_that_normal():
    scale = 0.5

    class Ideal(adaln.VelocityNet):  # the best guess of the noise in sqrt(s) x + sqrt(1 - s) noise, x ~ N(0, scale^2)
        def with_tangents(self, x, tangents, s, condition):
            rate = (1 - s).sqrt() / (s * scale**2 + 1 - s)
            return rate * x, rate * tangents

    x = scale * torch.randn(6, 3, generator=seeded()).double()
    found = flow.log_prob_space(Ideal(2, dim=8, depth=1), x, kind="diffusion", steps=400)
    assert torch.allclose(found, torch.distributions.Normal(0, scale).log_prob(x).sum(1), atol=2e-2)


def rename(state, names):
    """The tensors under the names of another release."""
    return {f"network.{next((v + k[len(a) :] for a, v in names.items() if k.startswith(a)), k)}": t for k, t in state.items()}


def test_a_published_checkpoint_is_read_whatever_its_layers_are_called(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    net = bent_net(dim=64, depth=3, cond_dim=7).float()
    names = {"enter": "initial_mapper", "condition": "cond_mapper", "time.0": "time_embedder.0", "time.2": "time_embedder.2", "leave": "final_linear"}
    safetensors.save_file(rename(net.state_dict(), names), tmp_path / "model.safetensors")
    read = adaln.published(tmp_path / "model.safetensors", cond_dim=7)
    x, condition = sphere.uniform(4, generator=seeded()), torch.randn(4, 7, generator=seeded(1))
    assert torch.equal(read(x, torch.full((4, 1), 0.4), condition), net(x, torch.full((4, 1), 0.4), condition))
    square = bent_net(dim=64, depth=1, cond_dim=64).float()  # the condition as wide as the network: told by its name
    safetensors.save_file(rename(square.state_dict(), names), tmp_path / "square.safetensors")
    read = adaln.published(tmp_path / "square.safetensors", cond_dim=64)
    assert torch.equal(read.condition.weight, square.condition.weight) and torch.equal(read.time[2].weight, square.time[2].weight)


def test_a_checkpoint_of_another_width_a_lacking_and_a_foreign_layer_are_named(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    state = bent_net(dim=64, depth=2, cond_dim=7).float().state_dict()
    safetensors.save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"expected a layer condition of shape \(64, 9\)"):
        adaln.published(tmp_path / "a.safetensors", cond_dim=9)
    safetensors.save_file({k: v for k, v in state.items() if not k.startswith("blocks.1.fall")}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="expected a layer blocks.1.fall"):
        adaln.published(tmp_path / "b.safetensors", cond_dim=7)
    safetensors.save_file(state | {"odd.weight": torch.zeros(5, 5), "odd.bias": torch.zeros(5)}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="found 1 more, first odd"):
        adaln.published(tmp_path / "c.safetensors", cond_dim=7)
    safetensors.save_file({"odd.weight": torch.zeros(5, 5), "odd.bias": torch.zeros(5)}, tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match="expected one layer that reads 3 coordinates, found 0"):
        adaln.published(tmp_path / "d.safetensors", cond_dim=7)
    safetensors.save_file(state | {"norm.weight": torch.zeros(5)}, tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match="expected linear layers with a bias in .* found 1 others, first norm"):
        adaln.published(tmp_path / "e.safetensors", cond_dim=7)
    with pytest.raises(FileNotFoundError, match="found no file"):
        adaln.published(tmp_path / "none.safetensors")


def test_a_condition_applied_once_changes_nothing():
    torch.manual_seed(0)
    net = adaln.VelocityNet(6, dim=16, depth=2)
    for block in net.blocks:
        torch.nn.init.normal_(block.fall.weight, std=0.3)
    condition, s = torch.randn(3, 6), torch.full((1, 1), 0.4)
    x = sphere.uniform(12)
    given = adaln.Conditioned(net, condition)
    assert torch.equal(given(x, s, condition), net(x, s, condition))
    assert torch.equal(given(x, s, None), net(x, s, None))
    plain = flow.sample(lambda *a: net(*a), 12, condition, steps=4, guidance=1.5, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(flow.sample(net, 12, condition, steps=4, guidance=1.5, generator=torch.Generator().manual_seed(1)), plain, atol=1e-6)
    assert torch.allclose(flow.log_prob(net, x, condition, steps=6), flow.log_prob(lambda *a: net(*a), x, condition, steps=6), atol=1e-5)
