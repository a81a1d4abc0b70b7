"""The tabulated position bias against the network it stands for: values, logits, gradients, and when it is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from models.batch import Batch, Sizes
from models.deformable import DeformableAttention
from models.model import Model
from models.position_bias import ERROR_BOUND, KNOTS, Displacement, PositionBias
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
    assert (ours - exact).square().mean().sqrt() < 2 * ERROR_BOUND


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


NAMES = ("subspace", "disentangled-teacher", "disentangled-student")
NETWORK = "position_bias"


def one_case(magnifications: int, tiles: int = 672) -> Batch:
    """A slide in rows of a lattice a sixth higher than wide; of two magnifications, a fine tile in each coarse one."""
    width, number = math.ceil((6 / 7 * tiles) ** 0.5), torch.arange(tiles)
    cell = torch.stack([number % width, number // width], dim=1)[None]
    yes, mask = torch.ones(1, dtype=torch.bool), torch.ones(1, tiles, dtype=torch.bool)
    genes = {"tumour": torch.randn(1, 9), "tme": torch.randn(1, 7)}
    slide = torch.zeros(1, tiles, dtype=torch.int64)
    batch = Batch(("C",), yes, yes, torch.randn(1, tiles, 16), mask, slide, cell, cell, genes)
    if magnifications == 1:
        return batch
    return replace(batch, features=torch.randn(1, tiles, 16), coarser=batch, parent=number[None])


def model_of(name: str, method: str) -> Model:
    torch.manual_seed(4)
    cls = model_class(name)
    off = {"attention_dropout": 0} | ({"dropout": 0} if "dropout" in cls.Config.__dataclass_fields__ else {})
    return cls(cls.Config(position_bias=method, **off), Sizes(16, {"tumour": 9, "tme": 7}, 4, "classification"))


def step(
    name: str, method: str, weights: float, biases: float, offsets: float, tiles: int = 672
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients of a whole model: bias network times `weights`, its biases moved by N(0, `biases`^2)."""
    model = model_of(name, method)
    with torch.no_grad():
        for attention in (m for m in model.modules() if isinstance(m, DeformableAttention)):
            for parameter in attention.position_bias.parameters():
                parameter.mul_(weights)
                if parameter.ndim == 1:
                    parameter.add_(torch.randn(parameter.shape), alpha=biases)
            for parameter in (attention.offset_point.weight, attention.query, attention.key):
                parameter.mul_(offsets)
    outputs = model(one_case(model.magnifications, tiles))
    losses = [functional.cross_entropy(x, torch.tensor([1])) for x in outputs.branches or (outputs.logits,)]
    (sum(losses) + sum(outputs.losses.values())).backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    return outputs.logits.detach(), gradients


SCALES = {"initial": (1, 0, 1), "trained": (3, 0, 3), "large": (6, 0, 3), "badly scaled": (5, 20, 10)}


def check_bounds(name: str, scale: str, tiles: int = 672) -> None:
    """Logits absolute at the start, then relative. The bias networks' gradients, which nearly cancel, count as one."""
    (ours, gradients), (exact, expected) = (step(name, m, *SCALES[scale], tiles) for m in ("tabulated", "exact"))
    bound = 1e-4 if scale == "initial" else 1e-3
    assert (ours - exact).norm() <= (1e-5 if scale == "initial" else 1e-3 * exact.norm())
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    for key, gradient in gradients.items():
        error, size = (gradient - expected[key]).norm(), expected[key].norm()
        assert error <= (bound * whole if NETWORK in key else 10 * bound * size + 1e-6 * whole), key
    assert torch.stack([(gradients[key] - expected[key]).norm() for key in expected]).norm() <= bound * whole


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", SCALES)
def test_a_training_step_is_within_the_bounds(monkeypatch, name, scale):
    real, knots = PositionBias.table, []

    def spied(self, at, pairs):
        table = real(self, at, MANY)  # so many that every grid but the finest may be taken
        knots.append(0 if table is None else len(table.values))
        return table

    monkeypatch.setattr(PositionBias, "table", spied)
    check_bounds(name, scale)
    half = len(knots) // 2
    assert any(knots[:half]) and not any(knots[half:])


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", SCALES)
def test_bounds_at_2500_tiles(name, scale):
    check_bounds(name, scale, 2500)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tiles", [1, 7, 1250, *(pytest.param(n, marks=pytest.mark.full) for n in (2500, 20_000))])
@torch.no_grad()
def test_any_number_of_tiles(name, tiles):
    if (name, tiles) == ("disentangled-teacher", 20_000):
        pytest.skip("its four attentions are of the class that the others try; evaluating them directly takes minutes")
    torch.manual_seed(5)
    models = [model_of(name, method).eval() for method in ("tabulated", "exact")]
    batch = one_case(models[0].magnifications, tiles)
    ours, exact = (model(batch).logits for model in models)
    assert torch.isfinite(exact).all() and (ours - exact).norm() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_bag_alone_equals_the_bag_in_a_padded_batch(name):
    """Each slide has a table of its own; the others' tiles and the padding move none of its knots."""
    torch.manual_seed(6)
    model = model_of(name, "tabulated").eval()
    cases = [one_case(model.magnifications, tiles) for tiles in (700, 3, 1100)]
    alone = torch.cat([model(case).logits for case in cases])
    torch.testing.assert_close(model(side_by_side(cases, 1105)).logits, alone, rtol=1e-5, atol=2e-6)


def side_by_side(cases: list[Batch], length: int) -> Batch:
    """Cases padded to `length` with features that nobody may read, at every magnification."""
    blank = {"features": 1e6, "mask": False, "slide": -1, "cell": 0, "coords": 0, "parent": -1}
    columns = {}
    for name, value in blank.items():
        rows = [getattr(case, name) for case in cases]
        if rows[0] is not None:
            padding = [row.new_full((1, length - row.shape[1], *row.shape[2:]), value) for row in rows]
            columns[name] = torch.cat([torch.cat(pair, dim=1) for pair in zip(rows, padding, strict=True)])
    yes = torch.ones(len(cases), dtype=torch.bool)
    genes = {group: torch.cat([case.genes[group] for case in cases]) for group in cases[0].genes}
    coarser = side_by_side([case.coarser for case in cases], length) if cases[0].coarser is not None else None
    return Batch(tuple(map(str, range(len(cases)))), yes, yes, **columns, genes=genes, coarser=coarser)
