"""The fusion model of this project: tumour and microenvironment tokens of slides and genes, either may be missing.

Two subspaces, tumour and microenvironment (TME), have a token each on either side. A gene token is made of the genes of
its subspace, and of gene families where there are any; a slide token is what the query of its subspace finds among all
tiles of the case. Three views of every case are trained in every step: both sides, slides alone, genes alone; the
side that is lacking is a learned token. So the same weights predict with or without RNA, with or without slides.

The ideas are those of the systems beside it, the equations are this project's own:

- subspaces of genes that guide what is looked for among the tiles: Subspace Fusion (MICCAI 2024), `models.subspace`.
  Here by a handful of queries, at a cost linear in tiles, in place of attention from every tile;
- tiles know their surroundings by the means of `models.neighbourhood`, over real lattices of one tile side a step (the
  same in um on all slides of an experiment): shuffled or moved tiles give the same prediction;
- what slides learn from genes by subspace: Disentangled Multi-modal Learning (arXiv 2508.16479), `models.distillation`.
  Here within one model, and by relations: cases that genes call alike should look alike (as in relational knowledge
  distillation, Park et al. 2019, on cosines);
- the views' heads add two linear baselines, of the mean tile and of all genes, to what the tokens say, so that a small
  cohort can fall back on them. On development cohorts a self-normalising network of all genes in their place fitted
  the training cases within a few epochs, before the slides had been learnt.

It has been measured against the others on simulated cases only (``python -m benchmarks.fusion_simulation``), and earns
its place there alone until real paired data is at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batch import Batch, Outputs, Sizes
from models.distillation import hazard_divergence, softened_divergence
from models.layers import SelfNormalisingNetwork, full_precision
from models.mcat import FAMILIES, GeneTokens
from models.model import Model
from models.neighbourhood import Neighbourhood
from models.params import check_choice, check_range

SUBSPACES = ("tumour", "tme")
NETWORK_DROPOUT = 0.1  # inside the networks of genes, as in `models.snn`
GENE_WIDTHS = (64,)  # of the hidden layers between the genes of a subspace and its token


@dataclass(frozen=True)
class SubspaceTokensConfig:
    """Small by default: a few hundred cases must suffice.

    Attributes
    ----------
    width : of all tokens, a multiple of `heads`
    heads : of every attention; each query pools the tiles in so many ways
    hops : how often tiles take the mean of their neighbourhood, 0 to see each tile alone; n hops see n tiles far
    dropout : of tokens
    tile_dropout, gene_dropout : share of the tiles, and of the genes, that a training step does not see
    relation : weight of the relational distillation from genes to slides, per subspace
    agreement : weight of the divergence of either view alone from the view of both
    alone : train the views of slides alone and of genes alone; without them a lacking side is a guess
    """

    width: int = 64
    heads: int = 4
    hops: int = 2
    dropout: float = 0.25
    tile_dropout: float = 0.25
    gene_dropout: float = 0.5
    relation: float = 0.1
    agreement: float = 0.5
    alone: bool = True

    def __post_init__(self) -> None:
        check_range("heads", self.heads, 1, 64, integer=True)
        check_range("width", self.width, 8, 1024, integer=True)
        check_choice("width", self.width, (self.width // self.heads * self.heads,))
        check_range("hops", self.hops, 0, 10, integer=True)
        for key in ("dropout", "tile_dropout", "gene_dropout"):
            check_range(key, getattr(self, key), 0, 0.9)
        check_range("relation", self.relation, 0, 1e3)
        check_range("agreement", self.agreement, 0, 1e3)
        check_choice("alone", self.alone, (True, False))


class RunningStandardisation(nn.Module):
    """Columns at mean 0 and variance 1 by all rows that training has seen so far; as they are before any.

    From [rows, columns] to the same, float32 at least. Rows of one batch do not depend on each other but through the
    stored moments, so a batch of one is no special case.
    """

    mean: Tensor
    square: Tensor
    seen: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns, dtype=torch.float64))
        self.register_buffer("square", torch.ones(columns, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Take these rows into the moments."""
        if len(rows):
            self.seen += len(rows)
            share = len(rows) / self.seen
            self.mean.lerp_(rows.double().mean(dim=0), share)
            self.square.lerp_(rows.double().square().mean(dim=0), share)

    def forward(self, rows: Tensor) -> Tensor:
        if self.training:
            self.update(rows)
        variance = (self.square - self.mean.square()).clamp(min=1e-8)
        rows = full_precision(rows)
        return (rows - self.mean.to(rows)) * variance.rsqrt().to(rows)


class TileTokens(nn.Module):
    """Tiles with their surroundings: one linear layer of a tile's projection and the means of 1, 2, ... hops around it.

    From features [tiles, width of the encoder] to [tiles, width].
    """

    def __init__(self, features: int, config: SubspaceTokensConfig) -> None:
        super().__init__()
        self.project = nn.Linear(features, config.width)
        self.mix = nn.Linear((1 + config.hops) * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.hops = config.hops

    def forward(self, features: Tensor, around: Neighbourhood | None) -> Tensor:
        reach = [functional.gelu(self.project(features))]
        for _ in range(self.hops):
            assert around is not None
            reach.append(around.mean(reach[-1]))
        return functional.gelu(self.mix(self.dropout(torch.cat(reach, dim=1))))


class GeneSide(nn.Module):
    """A token of each subspace: its genes through a self-normalising network, and what it takes of gene families.

    From genes [samples, genes] by group to [samples, 2, width], tumour first.
    """

    def __init__(self, sizes: Sizes, config: SubspaceTokensConfig) -> None:
        super().__init__()
        widths = (*GENE_WIDTHS, config.width)
        self.subspaces = nn.ModuleList(
            SelfNormalisingNetwork(sizes.genes[name], widths, NETWORK_DROPOUT) for name in SUBSPACES
        )
        self.families: GeneTokens | None = None
        if sizes.families:
            self.families = GeneTokens(sizes, 1, FAMILIES, config.width, NETWORK_DROPOUT)
            self.choose = nn.MultiheadAttention(config.width, config.heads, batch_first=True)

    def forward(self, genes: dict[str, Tensor]) -> Tensor:
        tokens = torch.stack([net(genes[name]) for net, name in zip(self.subspaces, SUBSPACES, strict=True)], dim=1)
        if self.families is not None:
            pathways = self.families(genes["all"])
            tokens = tokens + self.choose(tokens, pathways, pathways, need_weights=False)[0]
        return tokens


class SlideSide(nn.Module):
    """A token of each subspace: what its query, moved by the gene token of that subspace, pools from a case's tiles."""

    def __init__(self, config: SubspaceTokensConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query = nn.Parameter(0.02 * torch.randn(len(SUBSPACES), width))
        self.guide = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.guide.weight)  # genes guide nothing until they have learnt to
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def queries(self, genes: Tensor) -> Tensor:
        """[samples, heads, 2, width / heads] from gene tokens [samples, 2, width]."""
        return self._split(self.query + self.guide(genes))

    def forward(self, tiles: Tensor, mask: Tensor, genes: Tensor) -> Tensor:
        """Slide tokens [samples, 2, width] of tiles [samples, tiles, width] where mask; every sample needs a tile."""
        key, value = self._split(self.key(tiles)), self._split(self.value(tiles))
        found = functional.scaled_dot_product_attention(self.queries(genes), key, value, mask[:, None, None])
        return found.transpose(1, 2).flatten(2)

    def attention(self, tiles: Tensor, mask: Tensor, genes: Tensor) -> Tensor:
        """The weights [samples, 2, heads, tiles], which sum to 1 over tiles."""
        key = self._split(self.key(tiles))
        scores = self.queries(genes) @ key.transpose(2, 3) * key.shape[-1] ** -0.5
        return scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1).transpose(1, 2)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


@dataclass(frozen=True)
class Sides:
    """What is known of each sample before the sides meet.

    Attributes
    ----------
    tiles : [samples, tiles, width]; zeros where there is no tile
    mask : bool [samples, tiles], the tiles to look at; of a sample without slides its first, empty place
    mean : [samples, features], standardised mean of the tiles; zeros without slides
    genes : [samples, 2, width], gene tokens; the learned ones without genes
    all_genes : [samples, genes], all genes over the root of their number; zeros without genes
    """

    tiles: Tensor
    mask: Tensor
    mean: Tensor
    genes: Tensor
    all_genes: Tensor


class SubspaceTokens(Model):
    """Tokens of two subspaces from two sides, a linear head on them and on their products, and two linear baselines."""

    name = "subspace-tokens"
    needs = frozenset({"slides", "genes"})
    may_lack = frozenset({"slides", "genes"})
    gene_groups = (*SUBSPACES, "all")
    Config = SubspaceTokensConfig
    defaults: ClassVar = {"epochs": 40, "batch_size": 16, "lr": 5e-4, "weight_decay": 0.05, "patience": 10}
    decoupled_decay = True
    presets: ClassVar = {
        "no-relation": {"relation": 0.0},
        "no-neighbourhood": {"hops": 0},
        "both-sides": {"alone": False, "relation": 0.0, "agreement": 0.0},
    }

    def __init__(self, config: SubspaceTokensConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.kind = sizes.kind
        width, outputs = config.width, sizes.outputs
        self.tile_scale = RunningStandardisation(sizes.features)
        self.mean_scale = RunningStandardisation(sizes.features)
        self.tile_tokens = TileTokens(sizes.features, config)
        self.slide_side = SlideSide(config)
        self.gene_side = GeneSide(sizes, config)
        self.no_slides = nn.Parameter(torch.zeros(len(SUBSPACES), width))
        self.no_genes = nn.Parameter(torch.zeros(len(SUBSPACES), width))
        both = len(SUBSPACES) * width
        self.factors = nn.ModuleList(nn.Linear(both, width) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * both + width, outputs)
        self.slide_head = nn.Linear(sizes.features, outputs, bias=False)
        self.gene_head = nn.Linear(sizes.genes["all"], outputs, bias=False)
        for head in (self.slide_head, self.gene_head):
            nn.init.zeros_(head.weight)
        self.relate = nn.Linear(width, width)

    def forward(self, batch: Batch) -> Outputs:
        sides, has_slides, has_genes = self.sides(batch), batch.has_slides, batch.has_genes
        neither = torch.zeros_like(has_slides)
        logits, _ = self.view(sides, has_slides, has_genes)
        if not self.training:
            return Outputs(logits)
        slides, found = self.view(sides, has_slides, neither)
        genes, _ = self.view(sides, neither, has_genes)
        pairs = has_slides & has_genes
        losses = {}
        if self.config.alone and self.config.agreement and bool(pairs.any()):
            divergence = hazard_divergence if self.kind == "survival" else softened_divergence
            target = full_precision(logits[pairs].detach())
            alone = [divergence(full_precision(view[pairs]), target) for view in (slides, genes)]
            losses["agreement"] = self.config.agreement * torch.stack(alone).mean()
        if self.config.relation:
            related = relation(self.relate(found)[pairs], sides.genes[pairs].detach())
            losses["relation"] = self.config.relation * related
        return Outputs(logits, losses, branches=(logits, slides, genes) if self.config.alone else ())

    def view(self, sides: Sides, slides: Tensor, genes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [samples, outputs] of samples seen through `slides` and `genes`, bool [samples] each, and their slide
        tokens [samples, 2, width].

        logits = W [s; g; (A s) * (B g)] + b, and W_s mean + W_g all where that side is seen; s and g are the tokens of
        both subspaces one after the other, * is element by element.
        """
        on_slides, on_genes = slides[:, None, None], genes[:, None, None]
        gene = torch.where(on_genes, sides.genes, self.no_genes)
        found = torch.where(on_slides, self.slide_side(sides.tiles, sides.mask, gene), self.no_slides)
        s, g = found.flatten(1), gene.flatten(1)
        product = self.factors[0](s) * self.factors[1](g)
        logits = self.head(self.dropout(torch.cat([s, g, product], dim=1)))
        logits = logits + slides[:, None] * self.slide_head(self.dropout(sides.mean))
        return logits + genes[:, None] * self.gene_head(sides.all_genes), found

    def sides(self, batch: Batch) -> Sides:
        """Both sides of every sample, computed once for all views."""
        here = len(batch), len(SUBSPACES), self.config.width
        if batch.genes:
            seen = {
                name: functional.dropout(x, self.config.gene_dropout, self.training) for name, x in batch.genes.items()
            }
            genes = torch.where(batch.has_genes[:, None, None], self.gene_side(seen), self.no_genes)
            everything = seen["all"].masked_fill(~batch.has_genes[:, None], 0.0) * self.gene_head.in_features**-0.5
        else:
            genes = self.no_genes.expand(here)
            everything = self.no_genes.new_zeros(len(batch), self.gene_head.in_features)
        if batch.features is None or batch.mask is None:
            tiles = self.no_slides.new_zeros(len(batch), 1, self.config.width)
            mean = self.no_slides.new_zeros(len(batch), self.slide_head.in_features)
            return Sides(tiles, tiles.new_ones(len(batch), 1, dtype=torch.bool), mean, genes, everything)
        tiles = self.tiles(batch, batch.features, batch.mask)
        return Sides(tiles, self.looked_at(batch.mask), self.mean(batch, batch.features, batch.mask), genes, everything)

    def tiles(self, batch: Batch, features: Tensor, mask: Tensor) -> Tensor:
        """Tile tokens [samples, tiles, width]."""
        around = None
        if self.config.hops:
            assert batch.slide is not None and batch.cell is not None
            sample = torch.arange(len(batch), device=mask.device)[:, None].expand_as(mask)[mask]
            slide = batch.slide[mask]
            number = sample * (int(slide.amax()) + 1 if len(slide) else 1) + slide
            around = Neighbourhood.of(number, batch.cell[mask])
        tokens = self.tile_tokens(self.tile_scale(features[mask]), around)
        return tokens.new_zeros(*mask.shape, tokens.shape[-1]).masked_scatter(mask[..., None], tokens)

    def looked_at(self, mask: Tensor) -> Tensor:
        """The mask less the tiles that are not seen in this step; at least one place of every sample stays."""
        if self.training and self.config.tile_dropout:
            chance = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, -1)
            mask = mask & ((chance > self.config.tile_dropout) | (chance == chance.amax(dim=1, keepdim=True)))
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        return mask | (first & ~mask.any(dim=1, keepdim=True))

    def mean(self, batch: Batch, features: Tensor, mask: Tensor) -> Tensor:
        """Standardised means of the tiles over the root of their width [samples, features]; zeros without slides."""
        total = features.masked_fill(~mask[..., None], 0.0).sum(dim=1)
        mean = total / mask.sum(dim=1, keepdim=True).clamp(min=1)
        scaled = torch.zeros_like(mean).masked_scatter(
            batch.has_slides[:, None], self.mean_scale(mean[batch.has_slides]).to(mean)
        )
        return scaled * features.shape[-1] ** -0.5

    @torch.no_grad()
    def attention(self, batch: Batch) -> Tensor:
        """Where the queries look, [samples, 2, heads, tiles]: tumour first, summing to 1 over the tiles of a sample."""
        sides = self.sides(batch)
        return self.slide_side.attention(sides.tiles, sides.mask, sides.genes)

    def attention_maps(self, batch: Batch) -> dict[str, Tensor]:
        """Where the query of each subspace looks, the mean over heads."""
        if batch.mask is None:
            return {}
        weights = self.attention(batch).mean(dim=2).masked_fill(~batch.mask[:, None], 0.0)
        return dict(zip(SUBSPACES, weights.unbind(dim=1), strict=True))


def relation(slides: Tensor, genes: Tensor) -> Tensor:
    """Mean squared difference between how alike samples look and how alike genes call them, over pairs of samples and
    over subspaces; alike is the cosine of tokens less their mean over the samples.

    Parameters
    ----------
    slides, genes : [samples, subspaces, width]; fewer than 3 samples have nothing to compare: 0
    """
    if len(slides) < 3:
        return slides.sum() * 0.0
    alike = []
    for tokens in (slides, genes):
        centred = full_precision(tokens.transpose(0, 1))
        unit = functional.normalize(centred - centred.mean(dim=1, keepdim=True), dim=-1, eps=1e-6)
        alike.append(unit @ unit.transpose(1, 2))
    others = ~torch.eye(len(slides), dtype=torch.bool, device=slides.device)
    return (alike[0] - alike[1])[:, others].square().mean()
