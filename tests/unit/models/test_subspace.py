"""The subspace model against the test vectors of its specification (section 15) and its invariances."""

from __future__ import annotations

import math

import pytest
import torch

from models.batch import Batch, Sizes, Targets
from models.coordination import confidences, gecon
from models.experiment import Experiment
from models.subspace import Subspace, SubspaceConfig, common_offsets, unpadded


def fill(parameter: torch.Tensor, number: int, scale: float) -> None:
    i = torch.arange(parameter.numel(), dtype=torch.float64)
    values = scale * torch.sin(1 + 0.618 * number + 0.37 * i)
    with torch.no_grad():
        parameter.copy_(values.reshape(parameter.shape))


def stream_order() -> list[str]:
    """Names of a stream's tensors in the specification's order."""
    attention = ("query", "offset_window", "offset_point", "key", "value", *(f"position_bias.{k}" for k in (0, 2, 4)))
    layers = [
        *(f"genes.{3 * k}" for k in range(4)), "project", "teacher", *(f"attention.{name}" for name in attention),
        "attention.output", "pool", "final",
    ]  # fmt: skip
    bare = {f"attention.{name}": [""] for name in ("query", "key", "value")}
    bare["attention.offset_point"] = [".weight"]
    return [layer + part for layer in layers for part in bare.get(layer, [".weight", ".bias"])]


def filled(model: Subspace) -> Subspace:
    order = stream_order()
    assert len(order) == 30
    for stream, start in ((model.tumour, 0), (model.tme, 40)):
        parameters = dict(stream.named_parameters())
        assert {name for name in parameters if not name.startswith("norm")} == set(order)
        for number, name in enumerate(order, start=start):
            bias = name.endswith("bias")
            fill(parameters[name], number, 0.01 if bias else math.prod(parameters[name].shape[1:]) ** -0.5)
    fill(model.head.weight, 90, 1 / 16)
    fill(model.head.bias, 91, 0.01)
    return model


def batch_of(features, genes, cell=None, mask=None, slide=None) -> Batch:
    samples, tiles = features.shape[:2]
    present = torch.ones(samples, dtype=torch.bool)
    return Batch(
        tuple(f"C{k}" for k in range(samples)), present, present, features,
        torch.ones(samples, tiles, dtype=torch.bool) if mask is None else mask,
        torch.zeros(samples, tiles, dtype=torch.int64) if slide is None else slide,
        torch.zeros(samples, tiles, 2, dtype=torch.int64) if cell is None else cell,
        torch.zeros(samples, tiles, 2, dtype=torch.int64), genes,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["exact", "tabulated"])
def full_stream(request):
    config = SubspaceConfig(fixed_length=324, convention="corner", position_bias=request.param)
    model = filled(Subspace(config, Sizes(1024, {"tumour": 59, "tme": 361}, 4, "classification"))).eval()
    b = torch.arange(2, dtype=torch.float64)
    n, c = torch.arange(324, dtype=torch.float64), torch.arange(1024, dtype=torch.float64)
    features = torch.sin(0.11 * n[:, None] + 0.07 * c + b[:, None, None]).abs().float()
    genes = {
        "tumour": (1 + torch.sin(0.3 * torch.arange(59, dtype=torch.float64) + 0.5 * b[:, None])).float(),
        "tme": (1 + torch.cos(0.2 * torch.arange(361, dtype=torch.float64) + 0.5 * b[:, None])).float(),
    }
    batch = batch_of(features, genes)
    slides = unpadded(batch, 324)
    with torch.no_grad():
        streams = [getattr(model, group)(slides, genes[group]) for group in ("tumour", "tme")]
        return model, slides, streams, model(batch)


def near(values, expected, tolerance=5e-6):
    """The vectors were computed in float32: rounding its inputs alone moves the norms by 2e-6 (seen in float64)."""
    torch.testing.assert_close(
        torch.as_tensor(values, dtype=torch.float64),
        torch.tensor(expected, dtype=torch.float64),
        rtol=0,
        atol=tolerance,
    )


class TestFullStream:
    def test_gene_embeddings(self, full_stream):
        _, _, (tumour, tme), _ = full_stream
        near(tumour.genes.sum(dim=1), (1.145065, 1.167855))
        near(tme.genes.sum(dim=1), (1.368295, 1.371202))
        assert (tumour.genes > 0).sum(dim=1).tolist() == [67, 69]

    def test_sampling_points(self, full_stream):
        place = full_stream[2][0].points[0].place
        near(place[0, 0, 0], (-3.650474, -2.911388, -1.651397, 0.915735))
        near(place[0, 1, 0], (3.070568, 2.573546, 1.860448, 2.648562))
        near(place.sum(), 388.8712, 1e-4)

    def test_embeddings(self, full_stream):
        _, _, (tumour, tme), _ = full_stream
        near(
            tumour.embedding[:, :5],
            (
                (0.051088, -0.036074, 0.035368, -0.005045, 0.009698),
                (0.025785, -0.019327, 0.028106, -0.007671, 0.022066),
            ),
        )
        near(
            tme.embedding[:, :5],
            (
                (0.034581, -0.029776, 0.024450, -0.002944, 0.007783),
                (0.043705, -0.038423, 0.032140, -0.009251, 0.012357),
            ),
        )
        near(tumour.embedding.norm(dim=1), (0.497794, 0.216152))
        near(tme.embedding.norm(dim=1), (0.384133, 0.446441))

    def test_logits(self, full_stream):
        near(
            full_stream[3].logits,
            ((0.013862, 0.026795, 0.034591, 0.035643), (0.013739, 0.025521, 0.032445, 0.033095)),
        )

    def test_gecon(self, full_stream):
        model, slides, (tumour, tme), _ = full_stream
        near(gecon(tumour.genes, model.points(slides, tumour)), 0.012554)
        near(gecon(tme.genes, model.points(slides, tme)), 0.002810)


def sizes(kind="classification", outputs=4, features=8) -> Sizes:
    return Sizes(features, {"tumour": 5, "tme": 3}, outputs, kind)


def model_of(**params) -> Subspace:
    torch.manual_seed(3)
    return Subspace(SubspaceConfig(**params), sizes()).eval()


def case(rng: torch.Generator, tiles: list[int]) -> Batch:
    """One case with a slide per entry, each on a lattice of unequal sides."""
    n = sum(tiles)
    cells = [torch.randperm(13 * 9, generator=rng)[:k] for k in tiles]
    cell = torch.cat([torch.stack([c % 13, c // 13], dim=1) for c in cells])[None]
    slide = torch.cat([torch.full((k,), s) for s, k in enumerate(tiles)])[None]
    genes = {"tumour": torch.randn(1, 5, generator=rng), "tme": torch.randn(1, 3, generator=rng)}
    return batch_of(torch.randn(1, n, 8, generator=rng), genes, cell, slide=slide)


def joined(cases: list[Batch], extra: int) -> Batch:
    """Cases side by side, padded with garbage to `extra` tiles more than the longest."""
    longest = max(c.features.shape[1] for c in cases) + extra

    def pad(values: torch.Tensor, value: float) -> torch.Tensor:
        blank = values.new_full((1, longest, *values.shape[2:]), value)
        blank[:, : values.shape[1]] = values
        return blank

    genes = {g: torch.cat([c.genes[g] for c in cases]) for g in cases[0].genes}
    parts = {"features": 1e6, "cell": 0, "slide": -1, "mask": 0}
    stacked = {name: torch.cat([pad(getattr(c, name), v) for c in cases]) for name, v in parts.items()}
    return batch_of(stacked["features"], genes, stacked["cell"], stacked["mask"], stacked["slide"])


class TestStructure:
    def test_parameter_count_of_the_reference(self):
        model = Subspace(SubspaceConfig(), Sizes(1024, {"tumour": 59, "tme": 361}, 4, "classification"))
        assert sum(p.numel() for p in model.parameters()) == 628_966
        parts = {name: sum(p.numel() for p in getattr(model.tumour, name).parameters()) for name, _ in
                 model.tumour.named_children()}  # fmt: skip
        assert parts["genes"] == 12_752 and parts["attention"] == 93_921 and parts["teacher"] == 32_896
        assert sum(p.numel() for p in model.tme.genes.parameters()) == 32_080

    def test_every_parameter_gets_a_gradient(self):
        model = model_of().train()
        rng = torch.Generator().manual_seed(0)
        outputs = model(joined([case(rng, [30]), case(rng, [20, 9])], 0))
        (outputs.logits.square().sum() + sum(outputs.losses.values())).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


class TestInvariance:
    @pytest.mark.parametrize("tiles", [[1], [7], [50], [1, 1], [12, 1, 30]])
    def test_padding_and_batching_change_nothing(self, tiles):
        rng = torch.Generator().manual_seed(sum(tiles))
        cases = [case(rng, tiles), case(rng, [4]), case(rng, [21, 3])]
        model = model_of()
        with torch.no_grad():
            alone = torch.cat([model(c).logits for c in cases])
            together = model(joined(cases, extra=5)).logits
        assert torch.isfinite(alone).all()
        torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)

    def test_tile_order_does_not_matter_but_places_do(self):
        rng = torch.Generator().manual_seed(1)
        one = case(rng, [40])
        order = torch.randperm(40, generator=rng)
        shuffled = batch_of(one.features[:, order], one.genes, one.cell[:, order])
        moved = batch_of(one.features, one.genes, one.cell[:, order])
        model = model_of()
        with torch.no_grad():
            kept, same, other = (model(b).logits for b in (one, shuffled, moved))
        torch.testing.assert_close(kept, same, rtol=1e-5, atol=1e-6)
        assert (kept - other).abs().max() > 1e-4

    def test_slides_do_not_attend_to_each_other(self):
        """Two slides of equal place and content pool to what one of them gives."""
        rng = torch.Generator().manual_seed(2)
        one = case(rng, [17])
        twice = batch_of(
            one.features.repeat(1, 2, 1), one.genes, one.cell.repeat(1, 2, 1),
            slide=torch.arange(2).repeat_interleave(17)[None],
        )  # fmt: skip
        model = model_of()
        with torch.no_grad():
            torch.testing.assert_close(model(one).logits, model(twice).logits, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("method", ["tabulated", "exact"])
    def test_chunks_change_neither_values_nor_gradients(self, monkeypatch, method):
        rng = torch.Generator().manual_seed(4)
        one = case(rng, [60])
        grads = []
        monkeypatch.setattr("models.position_bias.KNOTS", (17,))  # so that so few pairs are tabulated at all
        for pairs in (2**19, 100):
            for name in ("PAIRS_PER_CHUNK", "EXACT_PAIRS_PER_CHUNK"):
                monkeypatch.setattr(f"models.deformable.{name}", pairs)
            model = model_of(position_bias=method)
            logits = model(one).logits
            logits.square().sum().backward()
            grads.append([logits.detach(), *(p.grad for p in model.parameters())])
        for whole, chunked in zip(*grads, strict=True):
            torch.testing.assert_close(whole, chunked, rtol=1e-4, atol=1e-7)


def test_windows_cover_every_tile():
    """Lone tiles in the far corners of a lattice whose sides are not multiples of 4 still have a key each."""
    cell = torch.tensor([[[6, 0], [0, 6]]])
    batch = batch_of(torch.randn(1, 2, 8), {"tumour": torch.randn(1, 5), "tme": torch.randn(1, 3)}, cell)
    model = model_of()
    slides = unpadded(batch, None)
    points = model.tumour(slides, batch.genes["tumour"]).points[0]
    assert points.valid.shape == (2, 2)
    assert points.valid[0, 1] and points.valid[1, 0] and not points.valid[1, 1]
    assert torch.isfinite(model(batch).logits).all()


@pytest.mark.parametrize(("side", "coarse"), [(50, 12), (18, 4), (8, 2)])
def test_coarse_side_of_the_reference(side, coarse):
    model = model_of(fixed_length=side * side, convention="corner")
    genes = {"tumour": torch.randn(1, 5), "tme": torch.randn(1, 3)}
    slides = unpadded(batch_of(torch.randn(1, side * side, 8), genes), side * side)
    points = model.tumour(slides, genes["tumour"]).points[0]
    assert points.place.shape == (8, 2, coarse, coarse) and points.valid.all()


@pytest.mark.parametrize(("convention", "expected"), [("half_pixel", [1.5, 5.5, 9.5]), ("corner", [-0.5, 5.5, 11.5])])
def test_resting_points_on_the_fine_lattice(convention, expected):
    """A linear ramp is sampled at the resting points of a 12 x 12 lattice: 3 coarse points per side."""
    model = model_of(**({"convention": "corner", "fixed_length": 144} if convention == "corner" else {}))
    attention = model.tumour.attention
    place = torch.stack(torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="xy"))[None]
    grid = attention._normalised(place, 12, 12)
    ramp = torch.arange(12.0).expand(1, 1, 12, 12)
    seen = torch.nn.functional.grid_sample(ramp, grid, padding_mode="border", align_corners=False)[0, 0, 1]
    torch.testing.assert_close(seen, torch.tensor(expected).clamp(0, 11))


def test_common_offsets_of_a_full_square_are_the_offsets():
    rng = torch.Generator().manual_seed(5)
    cell = torch.stack(torch.meshgrid(torch.arange(48), torch.arange(48), indexing="xy"), dim=-1).reshape(-1, 2)
    model = model_of()
    tokens = torch.randn(len(cell), 128, generator=rng)
    with torch.no_grad():
        _, points = model.tumour.attention(tokens, tokens, cell)
    torch.testing.assert_close(common_offsets(points), points.offset)


@pytest.mark.parametrize("kind", ["classification", "survival"])
def test_gradient_editing_touches_only_the_classifier_weight(kind):
    torch.manual_seed(0)
    model = Subspace(SubspaceConfig(), sizes(kind)).train()
    rng = torch.Generator().manual_seed(6)
    outputs = model(joined([case(rng, [9]), case(rng, [11]), case(rng, [5])], 0))
    outputs.logits.square().sum().backward()
    model.head.weight.grad[:, :128] = outputs.hidden["tumour"].detach()[:1] + 1
    model.head.weight.grad[:, 128:] = -model.head.weight.grad[:, :128]
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    edits = 0
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        model.head.weight.grad.copy_(before["head.weight"])
        targets = Targets(label=torch.tensor(order))
        if kind == "survival":
            targets = Targets(time=torch.tensor(order) + 1.0, event=torch.tensor([1, 1, 1]))
        weight = model.head.weight.detach()
        sure = confidences(weight, model.head.bias.detach(), outputs.hidden["tumour"], outputs.hidden["tme"], targets)
        model.edit_gradients(outputs, targets)
        changed = {name for name, p in model.named_parameters() if not torch.equal(p.grad, before[name])}
        assert changed == ({"head.weight"} if sure[0] != sure[1] else set())
        edits += bool(changed)
        grad = model.head.weight.grad
        if sure[0] != sure[1]:
            torch.testing.assert_close((grad[:, :128] * grad[:, 128:]).sum(dim=1), torch.zeros(4), rtol=0, atol=1e-4)
    assert edits


def test_presets_take_a_part_out_or_weigh_it():
    def trained(preset: str | None):
        params = {} if preset is None else {"preset": preset}
        made = Experiment("e", "subspace", params=params).resolved("classification")
        torch.manual_seed(3)
        model = Subspace(
            SubspaceConfig(**{**made.params, "dropout": 0.0, "attention_dropout": 0.0}), sizes("classification")
        )
        rng = torch.Generator().manual_seed(6)
        outputs = model.train()(joined([case(rng, [9]), case(rng, [11]), case(rng, [5])], 0))
        outputs.logits.square().sum().backward()
        model.head.weight.grad[:, 128:] = -model.head.weight.grad[:, :128]
        before = model.head.weight.grad.clone()
        model.edit_gradients(outputs, Targets(label=torch.tensor([0, 1, 2])))
        return outputs, not torch.equal(model.head.weight.grad, before)

    whole, edited = trained(None)
    assert edited and set(whole.losses) == {"gecon_tumour", "gecon_tme"}
    for preset, consistent, coordinates in (
        ("no-consistency", False, True), ("no-coordination", True, False), ("plain", False, False)
    ):  # fmt: skip
        outputs, edited = trained(preset)
        assert (bool(outputs.losses), edited) == (consistent, coordinates)
        torch.testing.assert_close(outputs.logits, whole.logits)
    for alpha in (0.1, 0.3, 0.7, 0.9):
        losses = trained(f"alpha-{alpha}")[0].losses
        torch.testing.assert_close(losses["gecon_tumour"], whole.losses["gecon_tumour"] * alpha / 0.5)
        torch.testing.assert_close(losses["gecon_tme"], whole.losses["gecon_tme"] * (1 - alpha) / 0.5)


def test_no_comparable_pair_leaves_the_gradient():
    model = Subspace(SubspaceConfig(), sizes("survival")).train()
    rng = torch.Generator().manual_seed(7)
    outputs = model(joined([case(rng, [9]), case(rng, [11])], 0))
    outputs.logits.square().sum().backward()
    before = model.head.weight.grad.clone()
    for event in ([0, 0], [0, 1]):
        targets = Targets(time=torch.tensor([3.0, 5.0]), event=torch.tensor(event))
        model.edit_gradients(outputs, targets)
        assert torch.equal(model.head.weight.grad, before)


def test_reference_needs_a_square():
    with pytest.raises(ValueError, match="not a square"):
        SubspaceConfig(fixed_length=2499, convention="corner")
    with pytest.raises(ValueError, match="needs a fixed_length"):
        SubspaceConfig(convention="corner")
