"""Disentangled teacher: tumour and microenvironment genes look at the tiles of two magnifications.

Source: Disentangled Multi-modal Learning of Histology and Transcriptomics for Cancer Characterization
(arXiv 2508.16479, IEEE TMI, DOI 10.1109/TMI.2026.3669968); disentangled specification, sections 5, 6, 8 and 9. The
student of `models.disentangled_student` learns from it. Reference mode is the released code: a sample is one slide,
resampled to 2500 tiles in a 50 x 50 square. By default its defects (specification, section 13) are mended:

- a sample is a case with all its slides, each on its own lattice of real tile positions (row 7);
- each tile asks with [tile ; gene] instead of the same gene vector everywhere, and reads several gene tokens instead of
  one, with which attention is a constant (row 6);
- consistency follows the links from tiles to those of the coarser magnification they lie in, weighs a tenth of the task
  and holds for any batch (rows 7 and 10; see `models.magnification_pair`);
- gradients in conflict are projected, not reflected (row 4), and survival confidence is the C-index of the batch;
- probabilities or hazards of the two magnifications are averaged (row 16).

In either mode consistency is 0, not undefined, for a batch of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.batch import Batch, Outputs, Sizes, Targets
from models.coordination import (
    CONCORDANCE,
    CONFIDENCES,
    COORDINATIONS,
    INTERVAL,
    NONE,
    PROJECTION,
    REFLECTION,
    confidences,
    coordinated,
)
from models.deformable import CONVENTIONS, CORNER, HALF_PIXEL, DeformableAttention
from models.layers import PairLinear, SelfNormalisingNetwork, full_precision
from models.magnification_pair import (
    COMBINATIONS,
    CONSISTENCIES,
    MAX_CONFIDENCE,
    MEAN,
    PARENTS,
    RELEASED,
    combined,
    linked_consistency,
    released_consistency,
)
from models.model import Model
from models.params import check_choice, check_range, check_square
from models.position_bias import EXACT, METHODS, TABULATED
from models.slides import Slides, unpadded
from pipeline.contracts.errors import InputError

WIDTH, HEADS = 128, 8
FUSED, GENE = QUERIES = ("fused", "gene")
SUBSPACES = ("tumour", "tme")
MAGNIFICATIONS = ("coarse", "fine")


@dataclass(frozen=True)
class HistologyTeacherConfig:
    """Hyper-parameters of the teacher without genes.

    Attributes
    ----------
    attention_dropout : of all attention weights
    consistency : between magnifications, along the links to "parents", as in the "reference" (with a fixed_length), or
        "none"
    consistency_weight : of each subspace's consistency beside the task's loss
    coordination : of gradients by "projection", "reflection" (the released code) or "none"
    confidence : which subspace survival trusts: by "concordance" in the batch, or by the true "interval" (released)
    combination : of the two magnifications, see `models.magnification_pair.combined`
    convention, position_bias, fixed_length : as in the subspace model
    """

    attention_dropout: float = 0.1
    consistency: str = PARENTS
    consistency_weight: float = 0.1
    coordination: str = PROJECTION
    confidence: str = CONCORDANCE
    combination: str = MEAN
    convention: str = HALF_PIXEL
    position_bias: str = TABULATED
    fixed_length: int | None = None

    def __post_init__(self) -> None:
        check_range("attention_dropout", self.attention_dropout, 0, 0.9)
        check_choice("consistency", self.consistency, CONSISTENCIES)
        check_range("consistency_weight", self.consistency_weight, 0, 1e6)
        check_choice("coordination", self.coordination, COORDINATIONS)
        check_choice("confidence", self.confidence, CONFIDENCES)
        check_choice("combination", self.combination, COMBINATIONS)
        check_choice("position_bias", self.position_bias, METHODS)
        check_layout(self.fixed_length, self.convention, self.consistency)


@dataclass(frozen=True)
class TeacherConfig(HistologyTeacherConfig):
    """Hyper-parameters of the teacher; the others are those of `HistologyTeacherConfig`.

    Attributes
    ----------
    dropout : of the gene encoders
    query : what asks at each tile, the tile and the genes "fused", or the "gene" embedding alone (released)
    gene_tokens : how many vectors represent each subspace's genes; 1 in the released code
    """

    dropout: float = 0.1
    query: str = FUSED
    gene_tokens: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("dropout", self.dropout, 0, 0.9)
        check_choice("query", self.query, QUERIES)
        check_range("gene_tokens", self.gene_tokens, 1, 64, integer=True)


def check_layout(fixed_length: int | None, convention: str, consistency: str) -> None:
    """What reproduces the released square of tiles belongs together. Raises InputError."""
    check_choice("convention", convention, CONVENTIONS)
    where = "config.yaml experiments params"
    if fixed_length is not None:
        check_square("fixed_length", fixed_length)
        if consistency == PARENTS:
            problem = "consistency 'parents' needs real tile positions, not a fixed_length."
            raise InputError(where, problem, "use reference or none.")
    elif convention == CORNER or consistency == RELEASED:
        value = "convention 'corner'" if convention == CORNER else "consistency 'reference'"
        raise InputError(where, f"{value} needs a fixed_length.", "leave it out, or set reference: true.")


class GeneEncoder(nn.Module):
    """Genes of one subspace to vectors [samples, tokens, 128]; the first is the self-normalising embedding."""

    def __init__(self, genes: int, tokens: int, dropout: float) -> None:
        super().__init__()
        self.embed = SelfNormalisingNetwork(genes, dropout=dropout)
        self.more = nn.Linear(WIDTH, (tokens - 1) * WIDTH) if tokens > 1 else None

    def forward(self, genes: Tensor) -> Tensor:
        first = self.embed(genes)
        more = [self.more(first).unflatten(1, (-1, WIDTH))] if self.more is not None else []
        return torch.cat([first[:, None], *more], dim=1)


class Injection(nn.Module):
    """Tiles read the gene tokens of their sample and are pooled: [tiles, 128] to [samples, 128], in (-1, 1).

    Without genes only the pooling is left.
    """

    def __init__(self, dropout: float, genes: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout, batch_first=True) if genes else None
        self.pool = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor, genes: Tensor | None, slides: Slides) -> Tensor:
        if self.attention is not None and genes is not None:
            queries, keys = self.norm(tokens).split(slides.tiles), self.norm(genes)
            read = [
                self.attention(q[None], k[None], k[None], need_weights=False)[0][0]
                for q, k in zip(queries, keys, strict=True)
            ]
            tokens = tokens + torch.cat(read)
        return torch.tanh(self.pool(slides.mean(self.norm(tokens))))


@dataclass(frozen=True)
class Branch:
    """What one magnification gives: `features` f [samples, 128] and tile `tokens` X [tiles, 128] of each subspace,
    `logits` [samples, outputs], and attention `maps` [samples, entries] where they were asked for."""

    features: dict[str, Tensor]
    tokens: dict[str, Tensor]
    logits: Tensor
    maps: dict[str, Tensor]


class TeacherEncoder(nn.Module):
    """One magnification: two deformable attentions, each asking for one subspace, their fusion, and a classifier."""

    def __init__(self, features: int, outputs: int, config: HistologyTeacherConfig) -> None:
        super().__init__()
        genes = isinstance(config, TeacherConfig)
        dropout = config.attention_dropout
        self.project = nn.Linear(features, WIDTH)
        if isinstance(config, TeacherConfig) and config.query == FUSED:
            self.query = nn.ModuleDict({u: PairLinear(WIDTH, WIDTH, WIDTH) for u in SUBSPACES})
        else:
            self.query = nn.ModuleDict()
        self.norm_tokens = nn.LayerNorm(WIDTH)
        self.attention = nn.ModuleDict(
            {u: DeformableAttention(WIDTH, dropout, config.convention, config.position_bias) for u in SUBSPACES}
        )
        self.fusion = nn.Linear(2 * WIDTH, WIDTH)
        self.injection = nn.ModuleDict({u: Injection(dropout, genes) for u in SUBSPACES})
        self.norm_branch = nn.LayerNorm(WIDTH)
        self.pool = nn.ModuleDict({u: nn.Linear(WIDTH, WIDTH) for u in SUBSPACES})
        self.head = nn.Linear(2 * WIDTH, outputs)

    def forward(self, slides: Slides, genes: dict[str, Tensor], keep_maps: bool) -> Branch:
        """`genes` are tokens [samples, tokens, 128] of each subspace; empty for the teacher without genes."""
        tiles = torch.relu(self.project(slides.features))
        sources = self.norm_tokens(tiles)
        tokens, maps = {}, {}
        for u in SUBSPACES:
            query = self._query(u, tiles, genes, slides)
            attended, points = slides.attended(self.attention[u], self.norm_tokens(query), sources, keep_maps)
            tokens[u] = query + attended
            if keep_maps:
                maps[u] = torch.stack([p.weights.flatten() for p in points if p.weights is not None])
        fused = self.norm_tokens(self.fusion(torch.cat([tokens[u] for u in SUBSPACES], dim=1)))
        features = {}
        for u in SUBSPACES:
            keys = self.norm_tokens(genes[u]) if genes else None
            pooled = self.injection[u](fused, keys, slides)
            features[u] = torch.tanh(self.pool[u](self.norm_branch(pooled)))
        return Branch(features, tokens, self.head(torch.cat([features[u] for u in SUBSPACES], dim=1)), maps)

    def _query(self, subspace: str, tiles: Tensor, genes: dict[str, Tensor], slides: Slides) -> Tensor:
        if not genes:
            return tiles
        gene = genes[subspace][:, 0]
        return self.query[subspace](tiles, gene, slides.sample) if self.query else gene[slides.sample]


class HistologyTeacher(Model):
    """The teacher with tiles in the place of genes: the published ablation without RNA."""

    name = "disentangled-histology"
    needs = frozenset({"slides"})
    magnifications = 2
    Config = HistologyTeacherConfig
    defaults: ClassVar = {"epochs": 10, "batch_size": 8, "lr": 2e-4, "weight_decay": 0.01, "patience": 0}
    warmup_epochs = 1
    decoupled_decay = True
    presets: ClassVar = {
        "no-consistency": {"consistency": "none"},
        "no-coordination": {"coordination": "none"},
        "plain": {"consistency": "none", "coordination": "none"},
    }

    def __init__(self, config: HistologyTeacherConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.kind = sizes.kind
        self.genes = self.gene_encoders(sizes)
        self.coarse = TeacherEncoder(sizes.features, sizes.outputs, config)
        self.fine = TeacherEncoder(sizes.features, sizes.outputs, config)

    def gene_encoders(self, sizes: Sizes) -> nn.ModuleDict:
        return nn.ModuleDict()

    def forward(self, batch: Batch) -> Outputs:
        assert batch.coarser is not None
        config = self.config
        genes = {u: encoder(batch.genes[u]) for u, encoder in self.genes.items()}
        pair = (batch.coarser, batch)
        keep_maps = self.training and config.consistency == RELEASED
        slides = {name: unpadded(b, config.fixed_length) for name, b in zip(MAGNIFICATIONS, pair, strict=True)}
        branches = {name: getattr(self, name)(slides[name], genes, keep_maps) for name in MAGNIFICATIONS}
        logits = tuple(branches[name].logits for name in MAGNIFICATIONS)
        hidden = {f"{name}_{u}": branches[name].features[u] for name in MAGNIFICATIONS for u in SUBSPACES}
        losses = self.consistency(batch, slides["coarse"], branches) if self.training else {}
        return Outputs(combined(*logits, config.combination, self.kind), losses, hidden, logits)

    def consistency(self, batch: Batch, coarse: Slides, branches: dict[str, Branch]) -> dict[str, Tensor]:
        """The weighted consistency of each subspace between magnifications."""
        losses = {}
        for u in SUBSPACES:
            first, second = (branches[name] for name in MAGNIFICATIONS)
            if self.config.consistency == RELEASED:
                losses[u] = released_consistency(full_precision(first.maps[u]), full_precision(second.maps[u]))
            elif self.config.consistency == PARENTS:
                parent = global_parents(batch, coarse)
                tokens = full_precision(second.tokens[u]), full_precision(first.tokens[u])
                losses[u] = linked_consistency(*tokens, parent, coarse.sample, len(batch))
        return {f"consistency_{u}": self.config.consistency_weight * loss for u, loss in losses.items()}

    def edit_gradients(self, outputs: Outputs, targets: Targets) -> None:
        """Confidence-guided coordination on the gradient of each magnification's classifier weight."""
        for name in MAGNIFICATIONS:
            head = getattr(self, name).head
            if self.config.coordination == NONE or head.weight.grad is None:
                continue
            features = [full_precision(outputs.hidden[f"{name}_{u}"].detach()) for u in SUBSPACES]
            weight, bias = head.weight.detach(), head.bias.detach()
            sure = confidences(weight, bias, *features, targets, self.config.confidence)
            if sure is not None:
                head.weight.grad.copy_(coordinated(head.weight.grad, *sure, self.config.coordination))

    def lesson(self, batch: Batch) -> dict[str, Tensor]:
        """Logits and features of both magnifications, [samples, ...]."""
        outputs = self(batch)
        lesson = {f"{name}_logits": logits for name, logits in zip(MAGNIFICATIONS, outputs.branches, strict=True)}
        for name in MAGNIFICATIONS:
            lesson[f"{name}_features"] = torch.cat([outputs.hidden[f"{name}_{u}"] for u in SUBSPACES], dim=1)
        return lesson


class DisentangledTeacher(HistologyTeacher):
    """One gene encoder per subspace, shared by both magnifications; tiles and classifiers of their own for each."""

    name = "disentangled-teacher"
    needs = frozenset({"slides", "genes"})
    gene_groups = SUBSPACES
    Config = TeacherConfig
    reference_params: ClassVar = {
        "fixed_length": 2500, "convention": CORNER, "query": GENE, "gene_tokens": 1, "consistency": RELEASED,
        "consistency_weight": 1.0, "coordination": REFLECTION, "confidence": INTERVAL,
        "combination": MAX_CONFIDENCE, "position_bias": EXACT,
    }  # fmt: skip
    presets: ClassVar = {**HistologyTeacher.presets, "gene-query": {"query": GENE, "gene_tokens": 1}}

    def gene_encoders(self, sizes: Sizes) -> nn.ModuleDict:
        config = self.config
        assert isinstance(config, TeacherConfig)
        return nn.ModuleDict({u: GeneEncoder(sizes.genes[u], config.gene_tokens, config.dropout) for u in SUBSPACES})


def global_parents(batch: Batch, coarse: Slides) -> Tensor:
    """Row of `coarse` that each fine tile of a batch lies in, int64 [fine tiles without padding]; -1 for none."""
    assert batch.parent is not None and batch.mask is not None
    first = torch.tensor([0, *coarse.tiles[:-1]], device=batch.parent.device).cumsum(0)
    return torch.where(batch.parent >= 0, batch.parent + first[:, None], -1)[batch.mask]
