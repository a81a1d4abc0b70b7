"""MIRROR in reference mode against the golden values, names and parameter counts of its specification (7.12 to 15)."""

from __future__ import annotations

import math

import pytest
import torch

from models.batch import Batch, Sizes
from models.mirror import Mirror, MirrorConfig
from models.mirror_encoders import Sequence
from models.mirror_losses import cluster_divergence, info_nce, masked_error, style_divergence
from models.mirror_pretraining import MirrorPretraining, PretrainingConfig
from models.mirror_weights import from_released, released_name

SMALL = {
    **MirrorPretraining.reference_params,
    "width": 96, "style_hidden": 16, "style_width": 12, "latent": 6, "prototypes": 7,
}  # fmt: skip
SIZES = Sizes(10, {"all": 20}, 3, "classification")


def filled(model):
    """Every tensor set by the rule of section 15, which reads its released name."""
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            key = released_name(name)
            index = torch.arange(tensor.numel(), dtype=torch.float64)
            value = 0.05 * torch.sin(0.37 * index + 0.01 * sum(map(ord, key)))
            value = value + (tensor.ndim == 1 and key.endswith(".weight"))
            tensor.copy_(value.reshape(tensor.shape))
    return model.eval()


def inputs(tiles: int) -> Batch:
    b, t, d, g = (torch.arange(n, dtype=torch.float64) for n in (2, tiles, 10, 20))
    slides = torch.sin(0.1 * (b[:, None, None] + 1) * (t[:, None] + 1) + 0.3 * d)
    genes = torch.cos(0.2 * (b[:, None] + 1) * (g + 1))
    yes, mask = torch.ones(2, dtype=torch.bool), torch.ones(2, tiles, dtype=torch.bool)
    return Batch(("a", "b"), yes, yes, slides.float(), mask, genes={"all": genes.float()})


def pretraining(tiles: int) -> MirrorPretraining:
    torch.manual_seed(0)
    return filled(MirrorPretraining(PretrainingConfig(**{**SMALL, "fixed_length": tiles}), SIZES))


def near(found: torch.Tensor, text: str) -> None:
    expected = torch.tensor([float(v) for v in text.split()])
    torch.testing.assert_close(found[: len(expected)], expected, rtol=0, atol=5e-5)


SLIDE = {
    7: {
        "E00": "-0.48223 -1.43862 -0.95332 -1.15085 -1.53645", "E10": "-0.46228 -1.45379 -0.93922 -1.13172 -1.55295",
        "E1last": "-1.26540 1.27433 -0.96950 -0.54937 1.70928", "a": "0.00954 -0.26430 0.33470 -0.02675 -0.17566",
        "retained": "-0.12064 0.19557 -0.02634 -0.04729 0.22420", "E2": 1475.875, "retained2": 18.6880,
        "mean": "0.02583 0.05668 0.05704 0.03270 0.03588", "variance": "-0.03458 -0.03018 -0.03363 0.00044 0.02864",
        "logits": ("2.25771 -2.98397 -0.13526", "2.29058 -2.92502 -0.20903"), "count": 541_074,
    },
    100: {
        "E00": "-0.72929 -1.41378 -0.40986 -1.42760 -1.38933", "E10": "-0.69052 -1.44070 -0.41941 -1.39033 -1.42426",
        "E1last": "-0.95819 0.57373 -0.40068 -0.68261 2.19845", "a": "0.00803 -0.23739 0.30545 -0.02023 -0.15386",
        "retained": "-0.11180 0.18908 -0.02777 -0.03917 0.21635", "E2": 18726.212, "retained2": 406.7627,
        "mean": "0.02609 0.05682 0.05671 0.03274 0.03620", "variance": "-0.03449 -0.03052 -0.03354 0.00073 0.02839",
        "logits": ("2.06444 -2.68398 -0.15007", "2.10831 -2.64207 -0.22301"), "count": 550_002,
    },
}  # fmt: skip


@pytest.mark.parametrize("tiles", [7, 100])
@torch.no_grad()
def test_slide_side(tiles):
    model, batch, golden = pretraining(tiles), inputs(tiles), SLIDE[tiles]
    assert sum(p.numel() for p in model.parameters()) == golden["count"]
    torch.testing.assert_close(float(model.logit_scale), -0.041701, rtol=0, atol=1e-6)
    first, tokens = model.slide(Sequence(batch.features))
    near(first[0], golden["E00"])
    near(first[1], golden["E10"])
    near(tokens[1, -1], golden["E1last"])
    squares = first.double().square().sum() + tokens.double().square().sum()
    torch.testing.assert_close(float(squares), golden["E2"], rtol=1e-6, atol=0)
    near(model.aligned(first, first)[0][0], golden["a"])
    prediction = model.slide_retention(first, tokens, torch.zeros(2, tiles), None)
    near(prediction[0, 0], golden["retained"])
    torch.testing.assert_close(float(prediction.double().square().sum()), golden["retained2"], rtol=1e-6, atol=0)
    mean, variance, _ = model.style(first)
    near(mean[0], golden["mean"])
    near(variance[0], golden["variance"])
    near(model.style.scores(mean)[0], "0.11505 -0.08437 -0.01862 0.10565 -0.10213")


@torch.no_grad()
def test_rna_side():
    model, batch = pretraining(7), inputs(7)
    rna = model.rna(batch.genes["all"])
    near(rna[0], "-1.11245 -0.05574 0.57774 -0.07956 -0.88130")
    near(rna[1], "-1.13266 0.17586 0.20058 0.03141 -0.68499")
    torch.testing.assert_close(float(rna.double().square().sum()), 193.298, rtol=1e-6, atol=0)
    near(model.aligned(rna, rna)[1][0], "-0.00103 -0.02221 0.04204 0.04281 0.02141")
    near(model.rna_retention(rna, torch.zeros(2, 96))[0], "0.38023 0.47806 -0.87449 0.62108 0.29823")


@pytest.mark.parametrize("tiles", [7, 100])
@torch.no_grad()
def test_classifier(tiles):
    config = MirrorConfig(width=96, attention="nystrom", fixed_length=tiles)
    logits = filled(Mirror(config, SIZES))(inputs(tiles)).logits
    for row, text in zip(logits, SLIDE[tiles]["logits"], strict=True):
        near(row, text)


def counting(*shape: int) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


def test_losses():
    align = info_nce(0.1 * counting(2, 3), 0.2 * counting(2, 3).flip(1), 14.2857)
    prediction = 0.05 * counting(2, 4, 3)
    slide = masked_error(prediction, prediction.flip(1), torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 1]]))
    genes = 0.4 * counting(2, 3)
    rna = masked_error(genes, genes.flip(0), torch.tensor([[1.0, 1, 0], [0, 1, 1]]))
    style = style_divergence(0.1 * counting(2, 2), -0.2 * counting(2, 2))
    style = style + style_divergence(-0.3 * counting(2, 2), 0.1 * counting(2, 2))
    cluster = cluster_divergence(0.3 * counting(2, 5), 0.2 * counting(2, 5).flip(1))
    found = [float(v) for v in (align, slide, rna, style, cluster)]
    expected = [1.322554, 0.112500, 1.440000, 0.428574, 0.242754]
    assert found == pytest.approx(expected, abs=6e-7)
    config = PretrainingConfig()
    weights = [config.align, config.retain_slide, config.retain_rna, config.style, config.cluster]
    assert sum(w * v for w, v in zip(weights, found, strict=True)) == pytest.approx(0.961285, abs=6e-7)


@pytest.mark.parametrize(
    ("features", "ratio", "count"), [(768, 4.0, 54_030_618), (1024, 4.0, 54_227_226), (768, 2.572, 48_972_351)]
)
def test_parameter_counts_at_full_size(features, ratio, count):
    with torch.device("meta"):
        config = PretrainingConfig(**MirrorPretraining.reference_params, rna_mlp_ratio=ratio)
        model = MirrorPretraining(config, Sizes(features, {"all": 10_234}, 0, "pretraining"))
        classifier = Mirror(MirrorConfig(**Mirror.reference_params), Sizes(768, {"all": 10_234}, 2, "classification"))
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(p.numel() for p in classifier.parameters()) == 36_468_242
    if (features, ratio) == (768, 4.0):
        sides = {"slide": 0, "rna": 0}
        for name, parameter in model.named_parameters():
            for side in sides:
                sides[side] += parameter.numel() * name.startswith(side)
        assert sides == {"slide": 11_092_248, "rna": 39_944_449}


def expected_names() -> set[str]:
    """Section 7.13 written out."""
    pair = ("weight", "bias")
    names = {"logit_scale", "prototypes.weight"}
    for part in ("style_encoder_mlp.fc1", "style_encoder_mlp.fc2", "style_mu", "style_logstd", "style_decoder"):
        names |= {f"{part}.{p}" for p in pair}
    names |= {f"wsi_encoder.{n}" for n in ("cls_token", "mask_token", "retention_gene_embed")}
    common = ("norm", "alignment_head", "retention_embed", "retention_norm", "retention_head")
    wsi = ["pos_layer.proj", "pos_layer.proj1", "pos_layer.proj2", "_fc1.0", *common]
    for layer in ("layer1", "layer2", "retention_blocks.0"):
        wsi += [f"{layer}.norm", f"{layer}.attn.to_out.0"]
        names |= {f"wsi_encoder.{layer}.attn.{n}.weight" for n in ("to_qkv", "res_conv")}
    names |= {f"wsi_encoder.{n}.{p}" for n in wsi for p in pair}
    names |= {f"rna_encoder.{n}" for n in ("gene_embed", "mask_token", "retention_gene_embed")}
    rna = ["embedding.fc1", "embedding.norm", "embedding.fc2", *common]
    for block in ("blocks.0", "blocks.1", "retention_blocks.0"):
        rna += [f"{block}.{n}" for n in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")]
    return names | {f"rna_encoder.{n}.{p}" for n in rna for p in pair}


def test_names_of_the_released_checkpoint():
    model = pretraining(7)
    names = [released_name(name) for name in model.state_dict()]
    assert set(names) == expected_names() and len(names) == len(set(names))
    classifier = Mirror(MirrorConfig(width=96, attention="nystrom", fixed_length=7), SIZES)
    own = {released_name(name) for name in classifier.state_dict()}
    assert own - set(names) == {"head.weight", "head.bias"} and len(set(names) - own) == 50
    default = MirrorPretraining(PretrainingConfig(**{**SMALL, "fixed_length": None, "attention": "full"}), SIZES)
    lacking = set(names) - {released_name(name) for name in default.state_dict()}
    assert lacking == {"wsi_encoder.retention_gene_embed"}


def test_weights_come_over_from_a_released_checkpoint():
    model = pretraining(7)
    released = {f"module.{released_name(name)}": value for name, value in model.state_dict().items()}
    classifier = Mirror(MirrorConfig(width=96, attention="nystrom", fixed_length=7), SIZES)
    found = from_released(released, list(classifier.state_dict()))
    assert not classifier.load_state_dict(found, strict=False).unexpected_keys
    batch = inputs(7)
    with torch.no_grad():
        expected = model.slide(Sequence(batch.features))[0]
        torch.testing.assert_close(classifier.eval().slide(Sequence(batch.features))[0], expected)


def test_shapes_at_full_size():
    with torch.device("meta"):
        model = MirrorPretraining(PretrainingConfig(), Sizes(768, {"all": 30}, 0, "pretraining"))
        first, tokens = model.slide(Sequence(torch.empty(2, 2048, 768)))
    assert first.shape == (2, 768) and tokens.shape == (2, 2048, 768)
