"""The tabulated position bias against the network it stands for: values, logits, gradients, and when it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from models.batch import Batch, Sizes
from models.deformable import DeformableAttention
from models.position_bias import KNOTS, Displacement, PositionBias
from models.registry import model_class

MANY = 10**6


def bias_of(scale: float = 1.0, seed: int = 0) -> PositionBias:
    torch.manual_seed(seed)
    network = PositionBias()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale)
    return network


def displacement(seed: int = 1, keys: int = 20) -> Displacement:
    rng = torch.Generator().manual_seed(seed)
    columns, rows = torch.arange(30) / 24.5, torch.arange(17) / 24.5
    return Displacement.between(columns, rows, torch.rand(2, keys, 2, generator=rng) * 1.5)


def every_cell() -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(30), torch.arange(17))


def test_displacement_is_the_warped_difference_of_every_pair():
    rng = torch.Generator().manual_seed(0)
    keys, cell = torch.rand(2, 5, 2, generator=rng), torch.tensor([[3, 1], [0, 2], [3, 0]])
    at = Displacement.between(torch.arange(4) / 7, torch.arange(3) / 7, keys).pairs(cell)
    for group in range(2):
        for tile in range(3):
            for key in range(5):
                difference = cell[tile] / 7 - keys[group, key]
                torch.testing.assert_close(at[group, tile, key], difference.sign() * (1 + difference.abs()).log())


@pytest.mark.parametrize("scale", [1.0, 3.0, 6.0])
def test_error_on_pairs_is_within_the_bound(scale):
    network, at = bias_of(scale), displacement()
    table = network.table(at, MANY)
    with torch.no_grad():
        ours, exact = (network.bias(*args, every_cell()) for args in ((table.scaled(at), table), (at, None)))
    assert exact.std() > 0.01 * scale**3
    assert (ours - exact).square().mean().sqrt() < 2 * 3e-3


def test_a_network_without_a_switch_inside_the_grid_is_exact():
    """Every unit on everywhere, or off: the function is linear, and the table and its gradients are exact."""
    network, at = bias_of(), displacement()
    with torch.no_grad():
        network[0].bias.fill_(5)
        network[2].bias.copy_(torch.where(torch.arange(32) % 2 == 0, 30.0, -30.0))
    table = network.table(at, MANY)
    assert len(table.values) == KNOTS[0]
    results = []
    for args in ((table.scaled(at), table), (at, None)):
        network.zero_grad()
        out = network.bias(*args, every_cell())
        (out * torch.linspace(0.5, 1, out.numel()).reshape(out.shape)).mean().backward()
        results.append([out.detach(), *(p.grad for p in network.parameters())])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=2e-5)


def test_grid_is_refined_with_the_weights_and_given_up_at_last():
    at = displacement()
    knots = [len(bias_of(scale).table(at, MANY).values) for scale in (1.0, 6.0)]
    assert knots[0] == KNOTS[0] < knots[1]
    assert bias_of(30.0).table(at, MANY) is None


def test_few_pairs_and_exact_need_no_table():
    assert bias_of().table(displacement(), 1000) is None
    assert PositionBias("exact").table(displacement(), MANY) is None


def test_one_column_and_one_key_make_a_grid():
    at = Displacement.between(torch.zeros(1), torch.zeros(1), torch.zeros(1, 1, 2))
    network = bias_of()
    table = network.table(at, MANY)
    cell = torch.zeros(1, 2, dtype=torch.int64)
    torch.testing.assert_close(network.bias(table.scaled(at), table, cell), network.bias(at, None, cell))


def one_case(magnifications: int) -> Batch:
    """A slide of 24 x 28 tiles; with two magnifications, of 24 x 28 coarse ones and a fine one in each."""
    cell = torch.cartesian_prod(torch.arange(24), torch.arange(28))[None]
    yes, n = torch.ones(1, dtype=torch.bool), cell.shape[1]
    genes = {"tumour": torch.randn(1, 9), "tme": torch.randn(1, 7)}
    mask, slide = yes.expand(1, n), torch.zeros(1, n, dtype=torch.int64)
    batch = Batch(("C",), yes, yes, torch.randn(1, n, 16), mask, slide, cell, cell, genes)
    if magnifications == 1:
        return batch
    return replace(batch, features=torch.randn(1, n, 16), coarser=batch, parent=torch.arange(n)[None])


def step(name: str, method: str, weights: float, offsets: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients of a whole model."""
    torch.manual_seed(4)
    cls = model_class(name)
    off = {"attention_dropout": 0} | ({"dropout": 0} if "dropout" in cls.Config.__dataclass_fields__ else {})
    model = cls(cls.Config(position_bias=method, **off), Sizes(16, {"tumour": 9, "tme": 7}, 4, "classification"))
    with torch.no_grad():
        for attention in (m for m in model.modules() if isinstance(m, DeformableAttention)):
            for parameter in attention.position_bias.parameters():
                parameter.mul_(weights)
            for parameter in (attention.offset_point.weight, attention.query, attention.key):
                parameter.mul_(offsets)
    outputs = model(one_case(cls.magnifications))
    losses = [functional.cross_entropy(x, torch.tensor([1])) for x in outputs.branches or (outputs.logits,)]
    (sum(losses) + sum(outputs.losses.values())).backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    return outputs.logits.detach(), gradients


@pytest.mark.parametrize("name", ["subspace", "disentangled-teacher", "disentangled-student"])
@pytest.mark.parametrize(
    ("weights", "offsets", "logit_bound", "gradient_bound"),
    [(1, 1, 1e-5, 1e-4), (3, 3, 1e-4, 1e-3), (6, 3, 1e-3, 1e-3), (30, 10, 1e-3, 1e-3)],
    ids=["initial", "trained", "large", "badly scaled"],
)
def test_a_training_step_is_within_the_bounds(name, weights, offsets, logit_bound, gradient_bound):
    """Absolute at the start, then relative. The network's own gradients, which nearly cancel, are bound as a whole."""
    (ours, gradients), (exact, expected) = (step(name, method, weights, offsets) for method in ("tabulated", "exact"))
    assert (ours - exact).norm() <= logit_bound * (1 if weights == 1 else exact.norm())
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    own = "position_bias"
    for name, gradient in gradients.items():
        error, size = (gradient - expected[name]).norm(), expected[name].norm()
        assert error <= (gradient_bound * whole if own in name else 10 * gradient_bound * size + 1e-6 * whole), name
    total = torch.stack([(gradients[name] - expected[name]).norm() for name in expected]).norm()
    assert total <= gradient_bound * whole
