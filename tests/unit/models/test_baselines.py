"""The baselines against golden values of the released code, and their invariances.

``golden_baselines.json`` lists for each network its tensors (name, number and scale of the fill, gradient norm and its
tolerance) and outputs with tolerances, for the released code run with those tensors.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from models.batch import Batch, Sizes
from models.bilinear import Bilinear, BilinearConfig
from models.mcat import GeneTokens
from models.model import Model
from models.registry import model_class
from models.transmil import NystromAttention, PositionEncoding
from pipeline.contracts.errors import InputError
from tests.model_batches import make_case, side_by_side, sizes_of
from tests.toy_cohort import SMALL_PARAMS

GOLDEN = json.loads(Path(__file__).with_name("golden_baselines.json").read_text())
ATTENTION = ["pool.attention.content", "pool.attention.score"]
SNN = [f"{3 * k}" for k in range(4)]


def pooled(*more: str) -> list[str]:
    """Layers of a network on AttMIL's embedding and the SNN's, in the order of the golden tensors."""
    return [*ATTENTION, "embed", *(f"genes.{k}" for k in SNN), *more, "head"]


def attention(name: str) -> list[str]:
    return [f"{name}.in_proj", f"{name}.out_proj"]


def nystrom(name: str, has_map: bool = True) -> list[str]:
    first, second = ([f"{name}.attentions.{k}.{part}" for part in ("qkv", "residual", "out")] for k in (0, 1))
    position = [f"{name}.position.convolutions.{k}" for k in range(3)] if has_map else []
    return [f"{name}.class_token", *first, *position, *second]


def side(name: str) -> list[str]:
    layers = []
    for k in (0, 1):
        layer = f"{name}.layers.{k}"
        layers += [*attention(f"{layer}.self_attn"), f"{layer}.linear1", f"{layer}.linear2"]
    return [*layers, *(f"{name}.pool.{part}" for part in ("content", "gate", "score")), f"{name}.out.0"]


PIECES = [f"tokens.pieces.{piece}.{layer}" for piece in range(4) for layer in (0, 3)]
GATED = [f"gated_{own}.{part}" for own in ("slide", "gene") for part in ("content", "gate", "out")]
NETWORKS: dict[str, tuple[str, list[str]]] = {
    "SNN": ("snn", [*(f"encoder.{k}" for k in SNN), "head"]),
    "AttMIL": ("abmil", [*ATTENTION, "head"]),
    "Concat": ("concat", pooled()),
    "Add": ("add", pooled()),
    "Bilinear": ("bilinear", pooled(*GATED, "fusion.1", "fusion.5")),
    "MCAT": (
        "mcat",
        ["project.0", *PIECES, *attention("attention"), *side("slide"), *side("gene"), "fusion.0", "fusion.2", "head"],
    ),
    "TransMIL": ("transmil", ["project", *nystrom("encoder"), "head"]),
    "CMTA": (
        "cmta",
        [
            *("project.0", *PIECES, *nystrom("slide_encoder"), *nystrom("gene_encoder", has_map=False)),
            *(*attention("slide_from_gene"), *attention("gene_from_slide")),
            *(*nystrom("slide_decoder"), *nystrom("gene_decoder", has_map=False), "fusion.0", "fusion.2", "head"),
        ],
    ),
}


def wave(number: int, shape: torch.Size, scale: float) -> torch.Tensor:
    i = torch.arange(shape.numel(), dtype=torch.float64)
    return (scale * torch.sin(1 + 0.618 * number + 0.37 * i)).float().reshape(shape)


def tensors(model: Model, layers: list[str]) -> list[torch.nn.Parameter]:
    """Parameters of the layers in order, each layer's weight before its bias."""
    named, found = dict(model.named_parameters()), []
    for layer in layers:
        keys = [layer + end for end in ("", ".weight", ".bias", "_weight", "_bias")]
        found += [named[key] for key in keys if key in named]
    return found


def reference(name: str) -> Model:
    """The released network with the golden tensors, evaluation mode."""
    model_name, layers = NETWORKS[name]
    cls = model_class(model_name)
    params = {k: v for k, v in (cls.reference_params or {}).items() if k != "fixed_length"}
    model = cls(cls.Config(**params), Sizes(1024, {"all": 431}, 4, "classification")).eval()
    with torch.no_grad():
        found, listed = tensors(model, layers), GOLDEN[name]["tensors"]
        for parameter, (_, number, scale, *_) in zip(found, listed, strict=True):
            parameter.copy_(wave(number, parameter.shape, scale))
    if name == "Bilinear":
        for layer, number in ((2, 28), (6, 32)):
            norm = model.fusion[layer]
            norm.running_mean.copy_(wave(number, norm.running_mean.shape, 0.05))
            norm.running_var.copy_(1 + wave(number + 1, norm.running_var.shape, 0.5))
    return model


def golden_batch(samples: int) -> Batch:
    b, n = torch.arange(samples, dtype=torch.float64), torch.arange(300, dtype=torch.float64)
    c, j = torch.arange(1024, dtype=torch.float64), torch.arange(431, dtype=torch.float64)
    features = torch.sin(0.11 * n[:, None] + 0.07 * c + b[:, None, None]).abs().float()
    genes = (1 + torch.sin(0.23 * j + 0.5 * b[:, None])).float()
    return batch_of(features, torch.ones(samples, 300, dtype=torch.bool), genes)


def batch_of(features, mask, genes) -> Batch:
    present = torch.ones(len(genes), dtype=torch.bool)
    return Batch(tuple(map(str, range(len(genes)))), present, present, features, mask, genes={"all": genes})


def near(values: torch.Tensor, expected: dict, key: str = "") -> None:
    aim = torch.tensor(expected["values"], dtype=torch.float64).reshape(values.shape)
    torch.testing.assert_close(values.detach().double(), aim, rtol=0, atol=expected["tol"], msg=key or None)


@pytest.mark.parametrize("name", NETWORKS)
class TestGolden:
    def test_outputs_and_gradients(self, name):
        model, expected = reference(name), GOLDEN[name]["expected"]
        outputs = model(golden_batch(2))
        near(outputs.logits, expected["B2 logits"])
        weights = torch.tensor([1.0, 4.15, 2.93, 2.43])
        loss = functional.cross_entropy(outputs.logits, torch.tensor([1, 3]), weights)
        if name == "CMTA":
            aligned = model.alignment(outputs.hidden)
            near(2 * aligned["align_slide"], expected["B2 alignment loss L1(P_hat, P)"])
            near(2 * aligned["align_gene"], expected["B2 alignment loss L1(G_hat, G)"])
            loss = loss + sum(aligned.values())
        near(loss, expected["B2 loss"])
        loss.backward()
        for parameter, (tensor, _, _, norm, tolerance) in zip(
            tensors(model, NETWORKS[name][1]), GOLDEN[name]["tensors"], strict=True
        ):
            assert abs(float(parameter.grad.double().norm()) - norm) <= tolerance, tensor

    def test_one_sample(self, name):
        """The released MCAT fails on one sample; nothing couples its samples, so the first of two is the aim."""
        model, expected = reference(name), GOLDEN[name]["expected"]
        with torch.no_grad():
            logits = model(golden_batch(1)).logits
        near(
            logits,
            expected.get("B1 logits") or {**expected["B2 logits"], "values": expected["B2 logits"]["values"][:4]},
        )

    def test_parameters_are_those_that_the_released_code_trains(self, name):
        """Without scale and shift of normalisations, which the golden tensors leave at 1 and 0, none is forgotten."""
        model = reference(name)
        assert sum(p.numel() for p in model.parameters()) == GOLDEN[name]["live_parameters"]
        listed = {id(p) for p in tensors(model, NETWORKS[name][1])}
        rest = {key for key, p in model.named_parameters() if id(p) not in listed}
        assert all("norm" in key or key.startswith(("fusion.2.", "fusion.6.")) for key in rest)


def test_co_attention_of_mcat():
    with torch.no_grad():
        seen = reference("MCAT")(golden_batch(2)).hidden["co-attended"]
    near(seen.sum(dim=2), GOLDEN["MCAT"]["expected"]["B2 co-attended tokens sum per (sample, token)"])


def test_bilinear_on_the_mean_has_the_parameters_of_the_released_variant():
    config = BilinearConfig(**{**Bilinear.reference_params, "pooling": "mean"})
    model = Bilinear(config, Sizes(1024, {"all": 431}, 4, "classification"))
    assert sum(p.numel() for p in model.parameters()) == 6_576_084


def small(name: str, kind: str = "survival", **params) -> Model:
    cls = model_class(name)
    torch.manual_seed(1)
    return cls(cls.Config(**{**SMALL_PARAMS.get(name, {}), **params}), sizes_of(kind))


def cases(*slides: tuple[int, ...]) -> list[Batch]:
    rng = torch.Generator().manual_seed(0)
    return [make_case(rng, tiles) for tiles in slides]


FUSIONS = ("add", "bilinear", "mcat", "cmta", "porpoise", "survpath", "feature-generation", "ensemble")


@pytest.mark.parametrize("name", ["transmil", *FUSIONS])
class TestInvariance:
    def test_one_case_trains_every_parameter(self, name):
        model = small(name).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout | torch.nn.AlphaDropout):
                module.p = 0.0
        outputs = model(cases((9, 5))[0])
        trained = outputs.branches or (outputs.logits,)
        (sum(logits.square().sum() for logits in trained) + sum(outputs.losses.values())).backward()
        dead = {key for key, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()}
        assert not dead

    def test_shuffled_tiles_with_their_places(self, name):
        """Landmarks are means of consecutive tokens, so the order of the list stays part of TransMIL and CMTA."""
        model, case = small(name).eval(), cases((40,))[0]
        order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
        shuffled = replace(case, features=case.features[:, order], cell=case.cell[:, order])
        with torch.no_grad():
            one, other = model(case).logits, model(shuffled).logits
        same = torch.allclose(one, other, rtol=1e-4, atol=1e-5)
        assert same == (name not in ("transmil", "cmta"))


def test_batch_normalisation_takes_a_batch_of_one():
    model = small("bilinear", normalisation="batch").train()
    outputs = model(cases((4,))[0])
    outputs.logits.sum().backward()
    assert torch.isfinite(outputs.logits).all() and model.head.weight.grad.abs().sum() > 0


def test_only_the_released_start_couples_the_samples():
    """On equal lengths, so that samples run together: another second sample must not change the first."""
    first, second, third = cases((16,), (16,), (16,))
    third.features.mul_(30)
    for positions in ("lattice", "square"):
        model = small("transmil", positions=positions).eval()
        with torch.no_grad():
            model.encoder.attentions[0].qkv.weight.mul_(6)
            one, other = (model(side_by_side([first, b], extra=0)).logits[0] for b in (second, third))
        assert torch.equal(one, other) == (positions == "lattice")


def test_landmarks_that_are_the_tokens_give_softmax_attention(monkeypatch):
    """With the inverse run until it is one: six steps, as published, fall short on matrices close to singular."""
    monkeypatch.setattr("models.transmil.INVERSE_STEPS", 40)
    torch.manual_seed(2)
    layer = NystromAttention(32, 0.0, shared_start=False).double().eval()
    tokens = torch.randn(2, 16, 32, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = layer.qkv(tokens).unflatten(-1, (3, 8, 4)).permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(q, k, v) + layer.residual(v)
        expected = layer.out(heads.transpose(1, 2).flatten(2))
        torch.testing.assert_close(layer(tokens), expected)


def test_full_lattice_is_the_square():
    torch.manual_seed(3)
    layer = PositionEncoding(8)
    tokens = torch.randn(1, 25, 8)
    cell = torch.stack(torch.meshgrid(torch.arange(5), torch.arange(5), indexing="xy"), dim=-1).reshape(25, 2)
    order = torch.randperm(25)
    placed = layer(tokens[:, order], [(slice(0, 25), cell[order])])
    torch.testing.assert_close(placed, layer(tokens, None)[:, order])


@pytest.mark.parametrize(
    ("genes", "pieces", "cut", "sizes"),
    [
        (431, 4, "reference", [100, 100, 100, 131]),
        (431, 6, "equal", [72, 72, 72, 72, 72, 71]),
        (12, 4, "reference", [2, 2, 2, 6]),
        (3, 6, "equal", [1, 1, 1]),
        (5, 5, "reference", [1, 1, 1, 1, 1]),
        (1, 4, "reference", [1]),
    ],
)
def test_pieces_of_the_gene_list(genes, pieces, cut, sizes):
    tokens = GeneTokens(Sizes(0, {"all": genes}, 2, "classification"), pieces, cut, 4, 0.0)
    assert tokens.lengths == sizes
    assert tokens.columns.tolist() == list(range(genes))
    assert tokens(torch.randn(2, genes)).shape == (2, len(sizes), 4)


def test_a_token_per_gene_family_sees_its_genes_and_no_others():
    sizes = Sizes(6, {"all": 5}, 3, "survival", families=[[0, 3], [3], [1, 4, 0]])
    tokens = GeneTokens(sizes, 6, "families", 4, 0.0).eval()
    genes = torch.randn(2, 5)
    before = tokens(genes)
    assert before.shape == (2, 3, 4)
    for gene, members in ((0, {0, 2}), (1, {2}), (2, set()), (3, {0, 1})):
        changed = genes.clone()
        changed[:, gene] += 1
        moved = {k for k in range(3) if not torch.equal(tokens(changed)[:, k], before[:, k])}
        assert moved == members
    for name in ("mcat", "cmta"):
        cls = model_class(name)
        model = cls(cls.Config(cut="families"), sizes)
        assert len(model.tokens.pieces) == 3
        assert not any("columns" in key for key in model.state_dict())
        with pytest.raises(InputError, match="no gene family"):
            cls(cls.Config(cut="families"), Sizes(6, {"all": 5}, 3, "survival"))
