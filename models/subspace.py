"""Knowledge-driven subspace fusion: tumour and microenvironment streams of genes and tiles.

Source: Knowledge-driven Subspace Fusion and Gradient Coordination for Multi-modal Learning (MICCAI 2024,
arXiv 2406.13979); subspace specification, sections 5 to 9. By default the defects of its section 13 are
mended: a sample is a case with all its slides, each on its own lattice of real tile positions; in reference
mode a sample is one slide, resampled to 2500 tiles in a 50 x 50 square, with the released Ge-Con and
CG-Coord.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import Batch, Outputs, Sizes, Targets
from models.coordination import COORDINATIONS, NONE, confidences, coordinated, gecon, gecon_reference
from models.deformable import CONVENTIONS, CORNER, HALF_PIXEL, DeformableAttention, Points
from models.layers import PairLinear, SelfNormalisingNetwork
from models.model import Model
from models.params import check_choice, check_range, check_square
from models.position_bias import EXACT, METHODS, TABULATED
from models.slides import Slides, unpadded
from pipeline.contracts.errors import InputError

WIDTH = 128
COMMON_SIDE = 12  # of the square on which the sampling points of differently sized slides are compared
GECON = {"definition": gecon, "reference": gecon_reference, "none": None}


@dataclass(frozen=True)
class SubspaceConfig:
    """Hyper-parameters of the subspace model.

    Attributes
    ----------
    dropout, attention_dropout : of the gene encoders and of the attention weights
    alpha : weight of the tumour stream's Ge-Con loss; the microenvironment's has 1 - alpha
    gecon : "definition" compares samples; "reference" repeats the released mix of samples and groups; "none"
    gecon_points : compare "absolute" sampling points, as published, or "offsets" from their resting places
    coordination : CG-Coord by "projection" (the paper), "reflection" (the released code) or "none"
    convention : see `models.deformable`; "corner" only together with `fixed_length`
    position_bias : "tabulated" within a bound, or "exact" at ten times the cost, see `models.position_bias`
    fixed_length : None takes every tile of a case at its real place; a square number resamples each slide, as
        one sample, to so many tiles in a square without regard to their places
    """

    dropout: float = 0.1
    attention_dropout: float = 0.1
    alpha: float = 0.5
    gecon: str = "definition"
    gecon_points: str = "absolute"
    coordination: str = "projection"
    convention: str = HALF_PIXEL
    position_bias: str = TABULATED
    fixed_length: int | None = None

    def __post_init__(self) -> None:
        check_range("dropout", self.dropout, 0, 0.9)
        check_range("attention_dropout", self.attention_dropout, 0, 0.9)
        check_range("alpha", self.alpha, 0, 1)
        check_choice("gecon", self.gecon, GECON)
        check_choice("gecon_points", self.gecon_points, ("absolute", "offsets"))
        check_choice("coordination", self.coordination, COORDINATIONS)
        check_choice("convention", self.convention, CONVENTIONS)
        check_choice("position_bias", self.position_bias, METHODS)
        if self.fixed_length is not None:
            check_square("fixed_length", self.fixed_length)
        elif self.convention == CORNER:
            where = "config.yaml experiments params"
            raise InputError(where, "convention 'corner' needs a fixed_length.", "use half_pixel.")


@dataclass(frozen=True)
class StreamOutput:
    """`embedding` z [samples, 128]; `genes` o [samples, 128]; `points` of every slide in order."""

    embedding: Tensor
    genes: Tensor
    points: list[Points]


class Stream(nn.Module):
    """One subspace: genes steer, through a teacher token per tile, where attention looks among the tiles."""

    def __init__(self, features: int, genes: int, config: SubspaceConfig) -> None:
        super().__init__()
        self.genes = SelfNormalisingNetwork(genes, dropout=config.dropout)
        self.project = nn.Linear(features, WIDTH)
        self.teacher = PairLinear(WIDTH, WIDTH, WIDTH)
        self.norm_tokens = nn.LayerNorm(WIDTH)
        self.attention = DeformableAttention(WIDTH, config.attention_dropout, config.convention, config.position_bias)
        self.norm_pooled = nn.LayerNorm(WIDTH)
        self.pool = nn.Linear(WIDTH, WIDTH)
        self.final = nn.Linear(WIDTH, WIDTH)

    def forward(self, slides: Slides, genes: Tensor) -> StreamOutput:
        gene = self.genes(genes)  # [samples, 128]
        tiles = torch.relu(self.project(slides.features))  # [tiles, 128]
        teacher = self.teacher(tiles, gene, slides.sample)
        queries, sources = self.norm_tokens(teacher), self.norm_tokens(tiles)
        attended, points = slides.attended(self.attention, queries, sources)
        mean = slides.mean(self.norm_pooled(teacher + attended))
        return StreamOutput(self.final(torch.tanh(self.pool(mean))), gene, points)


class Subspace(Model):
    """Two streams without shared weights, one linear classifier on both embeddings."""

    name = "subspace"
    needs = frozenset({"slides", "genes"})
    gene_groups = ("tumour", "tme")
    Config = SubspaceConfig
    defaults: ClassVar = {"epochs": 20, "batch_size": 8, "lr": 2e-4, "weight_decay": 0.01, "patience": 10}
    defaults_by_kind: ClassVar = {"survival": {"weight_decay": 0.1}}
    reference_params: ClassVar = {
        "fixed_length": 2500, "convention": "corner", "gecon": "reference", "coordination": "reflection",
        "position_bias": EXACT,
    }  # fmt: skip
    presets: ClassVar = {
        "no-consistency": {"gecon": "none"},
        "no-coordination": {"coordination": NONE},
        "plain": {"gecon": "none", "coordination": NONE},
        **{f"alpha-{alpha}": {"alpha": alpha} for alpha in (0.1, 0.3, 0.7, 0.9)},
    }

    def __init__(self, config: SubspaceConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.tumour = Stream(sizes.features, sizes.genes["tumour"], config)
        self.tme = Stream(sizes.features, sizes.genes["tme"], config)
        self.head = nn.Linear(2 * WIDTH, sizes.outputs)

    def forward(self, batch: Batch) -> Outputs:
        slides = unpadded(batch, self.config.fixed_length)
        tumour, tme = (getattr(self, group)(slides, batch.genes[group]) for group in self.gene_groups)
        logits = self.head(torch.cat([tumour.embedding, tme.embedding], dim=1))
        hidden = {"tumour": tumour.embedding, "tme": tme.embedding}
        return Outputs(logits, self.consistency(slides, tumour, tme) if self.training else {}, hidden)

    def consistency(self, slides: Slides, tumour: StreamOutput, tme: StreamOutput) -> dict[str, Tensor]:
        """The weighted Ge-Con loss of each stream."""
        loss = GECON[self.config.gecon]
        if loss is None:
            return {}
        weights = {"tumour": self.config.alpha, "tme": 1 - self.config.alpha}
        streams = {"tumour": tumour, "tme": tme}
        return {
            f"gecon_{group}": weights[group] * loss(stream.genes.float(), self.points(slides, stream))
            for group, stream in streams.items()
        }

    def points(self, slides: Slides, stream: StreamOutput) -> Tensor:
        """Sampling points of each sample for Ge-Con, [samples, groups, coordinates].

        Slides differ in size, so their offsets are brought to a common square by averaging over the coarse
        points that have tiles, and averaged over the slides of a case. A 48 x 48 lattice comes through
        unchanged.
        """
        absolute = self.config.gecon_points == "absolute"
        if self.config.fixed_length:  # every slide is a sample of the same size
            return torch.stack([(p.place if absolute else p.offset).flatten(1) for p in stream.points]).float()
        samples: list[list[Tensor]] = [[] for _ in slides.tiles]
        for owner, points in zip(slides.owner, stream.points, strict=True):
            samples[owner].append(common_offsets(points))
        offsets = torch.stack([torch.stack(sample).mean(dim=0) for sample in samples])
        if absolute:
            steps = torch.arange(COMMON_SIDE, device=offsets.device, dtype=offsets.dtype)
            row, column = torch.meshgrid(steps, steps, indexing="ij")
            offsets = offsets + torch.stack([column, row])
        return offsets.flatten(2)

    def edit_gradients(self, outputs: Outputs, targets: Targets) -> None:
        """CG-Coord on the gradient of the classifier's weight, before the optimiser's step."""
        gradient = self.head.weight.grad
        if self.config.coordination == NONE or gradient is None:
            return
        tumour, tme = (outputs.hidden[group].detach().float() for group in self.gene_groups)
        sure = confidences(self.head.weight.detach(), self.head.bias.detach(), tumour, tme, targets)
        if sure is not None:
            gradient.copy_(coordinated(gradient, *sure, self.config.coordination))


def common_offsets(points: Points) -> Tensor:
    """Offsets of one slide on the common square, [groups, 2, 12, 12]; 0 where no coarse point has tiles."""
    valid = points.valid.to(points.offset.dtype)[None, None]
    total = functional.adaptive_avg_pool2d((points.offset * valid).float(), COMMON_SIDE)
    share = functional.adaptive_avg_pool2d(valid.float(), COMMON_SIDE)
    return torch.where(share > 0, total / share.clamp(min=1e-12), 0.0)
