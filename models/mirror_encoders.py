"""The two encoders of MIRROR: tiles of a slide to a class token and tile tokens, genes to one vector.

Source: MIRROR (IEEE TMI 2025, DOI 10.1109/TMI.2025.3632555); MIRROR specification, sections 7.1 to 7.5 and 7.9. The
pre-training model (`models.mirror_pretraining`) trains them, the classifier (`models.mirror`) uses them, and
`models.mirror_weights` maps their tensors' names to the released ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from models.batch import Batch
from models.full_attention import FullAttention
from models.params import check_choice, check_range
from models.transmil import Encoder, NystromAttention, Places

SLICES = 12  #: pieces of the RNA vector that attend to each other
RNA_EPS = 1e-6
FULL, NYSTROM = ATTENTIONS = ("full", "nystrom")
ENCODER_PARAMS = ("width", "dropout", "rna_mlp_ratio", "attention", "fixed_length")


@dataclass(frozen=True)
class EncoderConfig:
    """What pre-training and classifier must agree on, but for `tiles`.

    Attributes
    ----------
    width : of the tokens and of the RNA vector, a multiple of 48; 768 as published
    dropout : after attention and in the RNA encoder's blocks
    rna_mlp_ratio : hidden width of these blocks over `width`
    attention : "full" by a fused kernel, or "nystrom" (released)
    tiles : drawn anew of each case at every training step, where it has more; evaluation takes them all
    fixed_length : None takes the tiles of a case on their real lattices; a number (released) resamples each slide, as
        one sample, to so many tiles, which are laid in a square
    """

    width: int = 768
    dropout: float = 0.1
    rna_mlp_ratio: float = 4.0
    attention: str = FULL
    tiles: int = 2048
    fixed_length: int | None = None

    def __post_init__(self) -> None:
        check_range("width", self.width, 48, 8192, integer=True)
        check_choice("width", self.width, (self.width // 48 * 48,))
        check_range("dropout", self.dropout, 0, 0.9)
        check_range("rna_mlp_ratio", self.rna_mlp_ratio, 0.1, 64)
        check_choice("attention", self.attention, ATTENTIONS)
        check_range("tiles", self.tiles, 1, 1_000_000, integer=True)
        if self.fixed_length is not None:
            check_range("fixed_length", self.fixed_length, 1, 100_000, integer=True)

    @property
    def attention_class(self) -> type[NystromAttention]:
        return FullAttention if self.attention == FULL else NystromAttention


@dataclass(frozen=True)
class Sequence:
    """Samples with equally many tiles: features [samples, tiles, width].

    On real lattices it is one sample with cell int64 [tiles, 2] (column, row), ordered by slide, row and column, and
    the rows of each slide in `places`. In a square both are None.
    """

    features: Tensor
    cell: Tensor | None = None
    places: Places | None = None


def sequences(batch: Batch, config: EncoderConfig, draw: bool) -> list[Sequence]:
    """The samples of a batch in order, without padding.

    Parameters
    ----------
    draw : take `config.tiles` of the tiles at random where there are more (their order stays), or, with a
        `fixed_length`, put the tiles in random order
    """
    assert batch.features is not None and batch.mask is not None
    if config.fixed_length:
        assert bool(batch.mask.all())
        if not draw:
            return [Sequence(batch.features)]
        order = torch.rand(batch.mask.shape).argsort(dim=1).to(batch.features.device)
        return [Sequence(batch.features.gather(1, order[..., None].expand_as(batch.features)))]
    return [_on_lattices(batch, number, config.tiles if draw else None) for number in range(len(batch))]


def _on_lattices(batch: Batch, number: int, tiles: int | None) -> Sequence:
    assert batch.features is not None and batch.mask is not None
    assert batch.slide is not None and batch.cell is not None
    rows = batch.mask[number].nonzero().squeeze(1)
    if tiles is not None and len(rows) > tiles:
        rows = rows[torch.randperm(len(rows))[:tiles].to(rows.device)]
    slide, cell = batch.slide[number][rows], batch.cell[number][rows]
    wide, high = (int(n) + 1 for n in cell.amax(dim=0))
    order = ((slide * high + cell[:, 1]) * wide + cell[:, 0]).argsort()
    rows, slide, cell = rows[order], slide[order], cell[order]
    ends = torch.unique_consecutive(slide, return_counts=True)[1].cumsum(0).tolist()
    places = [(slice(a, b), cell[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    return Sequence(batch.features[number][rows][None], cell, places)


class SlideEncoder(nn.Module):
    """Projection and TransMIL's trunk: two attention layers without feed-forward, position convolutions between."""

    def __init__(self, features: int, config: EncoderConfig) -> None:
        super().__init__()
        self.project = nn.Linear(features, config.width)
        shared_start = config.fixed_length is not None
        self.trunk = Encoder(
            config.width, config.dropout, shared_start, class_std=0.02, attention=config.attention_class
        )
        self.apply(xavier)

    def forward(
        self, sequence: Sequence, only_class: bool = False, constant: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Class token [samples, width] and tile tokens [samples, tiles, width] (none with `only_class`), normalised.

        Tile tokens in `constant` rows, int64 [rows], may come without a gradient.
        """
        tokens = torch.relu(self.project(sequence.features))
        first, tokens = self.trunk(tokens, sequence.places, only_class, constant)
        return first, tokens[:, : sequence.features.shape[1]]


def xavier(module: nn.Module) -> None:
    """Initialise a linear layer as the slide side does."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Mlp(nn.Module):
    """Linear, GELU, optional LayerNorm, linear; dropout after each."""

    def __init__(self, inner: int, hidden: int, outer: int, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inner, hidden)
        self.norm = nn.LayerNorm(hidden, eps=RNA_EPS) if norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, outer)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.dropout(nn.functional.gelu(self.fc1(values)))
        return self.dropout(self.fc2(self.norm(hidden)))


class SliceAttention(nn.Module):
    """The 12 slices of one vector attend to each other; element c x 12 + h of the result is slice h's (spec 7.5)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        """[samples, width] to the same."""
        q, k, v = self.qkv(vectors).unflatten(1, (3, SLICES, -1)).unbind(1)
        mixed = scaled_dot_product_attention(q, k, v)
        return self.dropout(self.proj(mixed.transpose(1, 2).flatten(1)))


class RnaBlock(nn.Module):
    """Pre-norm attention over slices and MLP."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=RNA_EPS)
        self.attn = SliceAttention(width, config.dropout)
        self.norm2 = nn.LayerNorm(width, eps=RNA_EPS)
        self.mlp = Mlp(width, int(width * config.rna_mlp_ratio), width, config.dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        vectors = vectors + self.attn(self.norm1(vectors))
        return vectors + self.mlp(self.norm2(vectors))


class RnaEncoder(nn.Module):
    """Genes [samples, genes] to R [samples, width], normalised."""

    def __init__(self, genes: int, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.embedding = Mlp(genes, 2 * width, width, norm=True)
        self.gene_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, width), std=0.02))
        self.blocks = nn.Sequential(RnaBlock(config), RnaBlock(config))
        self.norm = nn.LayerNorm(width, eps=RNA_EPS)

    def forward(self, genes: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embedding(genes) + self.gene_embed))


def cell_encoding(cell: Tensor, width: int) -> Tensor:
    """Sines and cosines of column and row, float32 [tiles, width]; wavelengths of 2 pi to 20,000 pi tiles."""
    quarter = width // 4
    rates = torch.exp(torch.arange(quarter, device=cell.device) * (-math.log(10_000) / quarter))
    angles = cell[:, :, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)
