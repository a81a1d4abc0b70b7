"""Disentangled student: two magnifications of tiles alone, taught by a teacher that also saw the genes.

Source: Disentangled Multi-modal Learning of Histology and Transcriptomics for Cancer Characterization
(arXiv 2508.16479, IEEE TMI, DOI 10.1109/TMI.2026.3669968); disentangled specification, sections 5, 7 and 8. Its three
stages are three experiments: a teacher (`models.disentangled_teacher`); a student alone; and a student whose
`init_from` names both, which starts from that student's weights and learns from the frozen teacher. `init_from` may
also name the teacher only. Prediction needs no genes; training cases without genes learn from their labels only.

Reference mode is the released code: a sample is one slide, resampled to 2500 tiles in a 50 x 50 square, and the two
merged tokens are taken in the order of their clusters' scores. By default its defects (specification, section 13) are
mended:

- a sample is a case with all its slides, each on its own lattice of real tile positions (row 7);
- the number of clusters is a number, not a share of the tiles (row 8);
- each subspace has a slot of its own that chooses among the merged tokens and passes through the same kind of layer as
  the teacher's features, so that the slot of a subspace always meets that subspace's feature (row 8);
- probabilities or hazards of the two magnifications are averaged (row 16), and hazards are distilled as hazards;
- weights of the distillation losses are what they say (row 17).

In either mode the density has no random term (row 9): equal densities are ordered by tile. The released code computes
the similarity of attention (8.3) in distillation too, but leaves it out of the loss; here it counts where asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.batch import Batch, Outputs, Sizes
from models.deformable import CORNER, HALF_PIXEL, DeformableAttention
from models.density_peaks import density_peaks
from models.disentangled_teacher import MAGNIFICATIONS, SUBSPACES, WIDTH, check_layout, global_parents
from models.distillation import (
    HAZARDS,
    SOFTMAX,
    SURVIVAL_FORMS,
    feature_distance,
    hazard_divergence,
    softened_divergence,
)
from models.layers import full_precision
from models.magnification_pair import (
    COMBINATIONS,
    CONSISTENCIES,
    MAX_CONFIDENCE,
    MEAN,
    NONE,
    PARENTS,
    RELEASED,
    combined,
    linked_consistency,
    released_similarity,
)
from models.model import Model
from models.params import check_choice, check_range
from models.position_bias import EXACT, METHODS, TABULATED
from models.slides import Slides, unpadded

SUBSPACE, CLUSTER = SLOTS = ("subspace", "cluster")


@dataclass(frozen=True)
class StudentConfig:
    """Hyper-parameters of the student.

    Attributes
    ----------
    attention_dropout : of the attention weights
    clusters : tokens that the tiles of a case are merged into, where it has so many
    slots : what the classifier reads, one slot per "subspace", or the tokens of the two first "cluster"s (released)
    distil_logits, distil_features : weights of the two losses against a teacher, at each magnification
    distil_survival : how hazard logits are compared, as "hazards" or by "softmax" (released)
    consistency, consistency_weight : between magnifications, as in the teacher; "reference" is the released
        similarity of attention
    combination, convention, position_bias, fixed_length : as in the teacher
    """

    attention_dropout: float = 0.1
    clusters: int = 8
    slots: str = SUBSPACE
    distil_logits: float = 0.01
    distil_features: float = 0.01
    distil_survival: str = HAZARDS
    consistency: str = NONE
    consistency_weight: float = 0.1
    combination: str = MEAN
    convention: str = HALF_PIXEL
    position_bias: str = TABULATED
    fixed_length: int | None = None

    def __post_init__(self) -> None:
        check_range("attention_dropout", self.attention_dropout, 0, 0.9)
        check_range("clusters", self.clusters, 2, 4096, integer=True)
        check_choice("slots", self.slots, SLOTS)
        check_range("distil_logits", self.distil_logits, 0, 1e6)
        check_range("distil_features", self.distil_features, 0, 1e6)
        check_choice("distil_survival", self.distil_survival, SURVIVAL_FORMS)
        check_choice("consistency", self.consistency, CONSISTENCIES)
        check_range("consistency_weight", self.consistency_weight, 0, 1e6)
        check_choice("combination", self.combination, COMBINATIONS)
        check_choice("position_bias", self.position_bias, METHODS)
        check_layout(self.fixed_length, self.convention, self.consistency)


class TokenMerging(nn.Module):
    """Tiles of a sample to a few merged tokens, each the importance-weighted mean of a cluster (section 7).

    Clusters are found without gradient; it flows through the tokens and their importance.
    """

    def __init__(self, clusters: int) -> None:
        super().__init__()
        self.clusters = clusters
        self.norm = nn.LayerNorm(WIDTH)
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, tokens: Tensor, slides: Slides) -> list[Tensor]:
        """Per sample [clusters, 128] in descending order of the clusters' scores; fewer where there are fewer tiles."""
        tokens = self.norm(tokens)
        score = self.score(tokens).squeeze(1).to(tokens.dtype)
        parts = zip(tokens.split(slides.tiles), score.split(slides.tiles), strict=True)
        return [self.merged(*part) for part in parts]

    def merged(self, tokens: Tensor, score: Tensor) -> Tensor:
        of = density_peaks(tokens.detach(), self.clusters).of
        count = int(of.amax()) + 1
        # exp(score) without overflow: relative to the largest score of the cluster
        top = score.detach().new_full((count,), -torch.inf).scatter_reduce(0, of, score.detach(), "amax")
        importance = (score - top[of]).exp()
        total = importance.new_zeros(count).index_add(0, of, importance) + 1e-6 * (-top).exp()
        merged = tokens.new_zeros(count, WIDTH).index_add(0, of, importance[:, None] * tokens)
        return merged / total[:, None]


class SubspaceSlots(nn.Module):
    """One slot per subspace: a learned query chooses among a sample's merged tokens; linear layer and tanh follow."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(len(SUBSPACES), WIDTH))
        self.pool = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in SUBSPACES)

    def forward(self, samples: list[Tensor]) -> Tensor:
        """Merged tokens of each sample [clusters, 128] to features [samples, 2 x 128], tumour first."""
        chosen = torch.stack([(self.query @ t.T * WIDTH**-0.5).softmax(dim=1) @ t for t in samples])
        return torch.cat([torch.tanh(pool(chosen[:, k])) for k, pool in enumerate(self.pool)], dim=1)


def first_tokens(samples: list[Tensor]) -> Tensor:
    """The two first tokens of each sample, [samples, 2 x 128]; the only one twice where there is one."""
    return torch.stack([torch.cat([t[0], t[min(1, len(t) - 1)]]) for t in samples])


@dataclass(frozen=True)
class Branch:
    """What one magnification gives: `features` [samples, 256], `logits` [samples, outputs], tile `tokens` [tiles, 128],
    and the attention `maps` [samples, heads, entries] where they were asked for."""

    features: Tensor
    logits: Tensor
    tokens: Tensor
    maps: Tensor | None


class StudentEncoder(nn.Module):
    """One magnification: tiles look among themselves, are merged, and fill the slots that the classifier reads."""

    def __init__(self, features: int, outputs: int, config: StudentConfig) -> None:
        super().__init__()
        self.project = nn.Linear(features, WIDTH)
        self.norm_tokens = nn.LayerNorm(WIDTH)
        self.attention = DeformableAttention(WIDTH, config.attention_dropout, config.convention, config.position_bias)
        self.merging = TokenMerging(config.clusters)
        self.slots = SubspaceSlots() if config.slots == SUBSPACE else None
        self.head = nn.Linear(2 * WIDTH, outputs)

    def forward(self, slides: Slides, keep_maps: bool = False) -> Branch:
        tiles = torch.relu(self.project(slides.features))
        normed = self.norm_tokens(tiles)
        attended, points = slides.attended(self.attention, normed, normed, keep_maps)
        tokens = tiles + attended
        merged = self.merging(tokens, slides)
        features = self.slots(merged) if self.slots is not None else first_tokens(merged)
        maps = None
        if keep_maps:
            maps = torch.stack([p.weights.flatten(1) for p in points if p.weights is not None])
        return Branch(features, self.head(features), tokens, maps)


class DisentangledStudent(Model):
    """Slides only; `init_from` gives it first weights, a teacher, or both."""

    name = "disentangled-student"
    needs = frozenset({"slides"})
    magnifications = 2
    Config = StudentConfig
    defaults: ClassVar = {"epochs": 10, "batch_size": 8, "lr": 2e-4, "weight_decay": 0.01, "patience": 0}
    defaults_when_started: ClassVar = {"lr": 1e-4}
    warmup_epochs = 1
    decoupled_decay = True
    reference_params: ClassVar = {
        "fixed_length": 2500, "convention": CORNER, "clusters": 2, "slots": CLUSTER, "distil_survival": SOFTMAX,
        "combination": MAX_CONFIDENCE, "position_bias": EXACT,
    }  # fmt: skip
    presets: ClassVar = {
        "logits-only": {"distil_logits": 1.0, "distil_features": 0.0},
        "features-only": {"distil_logits": 0.0, "distil_features": 1.0},
        "2-clusters": {"clusters": 2},
        "32-clusters": {"clusters": 32},
        "consistent": {"consistency": PARENTS},
        "similar-attention": {"consistency": RELEASED, "consistency_weight": 1.0},
    }

    def __init__(self, config: StudentConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.kind = sizes.kind
        self.coarse = StudentEncoder(sizes.features, sizes.outputs, config)
        self.fine = StudentEncoder(sizes.features, sizes.outputs, config)

    def forward(self, batch: Batch) -> Outputs:
        assert batch.coarser is not None
        config = self.config
        keep_maps = self.training and config.consistency == RELEASED
        pair = (batch.coarser, batch)
        slides = {name: unpadded(b, config.fixed_length) for name, b in zip(MAGNIFICATIONS, pair, strict=True)}
        branches = {name: getattr(self, name)(slides[name], keep_maps) for name in MAGNIFICATIONS}
        logits = tuple(branches[name].logits for name in MAGNIFICATIONS)
        losses = {}
        if self.training:
            losses = {**self.consistency(batch, slides["coarse"], branches), **self.distillation(batch, branches)}
        hidden = {name: branches[name].features for name in MAGNIFICATIONS}
        return Outputs(combined(*logits, config.combination, self.kind), losses, hidden, logits)

    def consistency(self, batch: Batch, coarse: Slides, branches: dict[str, Branch]) -> dict[str, Tensor]:
        """The weighted consistency between magnifications."""
        first, second = (branches[name] for name in MAGNIFICATIONS)
        if self.config.consistency == NONE:
            return {}
        if self.config.consistency == RELEASED:
            assert first.maps is not None and second.maps is not None
            loss = released_similarity(full_precision(first.maps), full_precision(second.maps))
        else:
            tokens = full_precision(second.tokens), full_precision(first.tokens)
            loss = linked_consistency(*tokens, global_parents(batch, coarse), coarse.sample, len(batch))
        return {"consistency": self.config.consistency_weight * loss}

    def distillation(self, batch: Batch, branches: dict[str, Branch]) -> dict[str, Tensor]:
        """The weighted losses against the teacher, over the samples that it could judge."""
        if batch.taught is None:
            return {}
        config, taught = self.config, batch.taught
        softmax = self.kind != "survival" or config.distil_survival == SOFTMAX
        divergence = softened_divergence if softmax else hazard_divergence
        losses = {}
        for name, branch in branches.items():
            outputs = {"logits": full_precision(branch.logits), "features": full_precision(branch.features)}
            for what, loss in (("logits", divergence), ("features", feature_distance)):
                weight = getattr(config, f"distil_{what}")
                if weight and bool(taught.any()):
                    value = loss(outputs[what][taught], batch.lesson[f"{name}_{what}"][taught])
                    losses[f"distil_{name}_{what}"] = weight * value
        return losses
