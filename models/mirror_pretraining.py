"""MIRROR's pre-training: a slide and a gene encoder learn from pairs of slides and RNA, without any label.

Source: MIRROR: Multi-Modal Pathological Self-Supervised Representation Learning via Modality Alignment and Retention
(IEEE TMI 2025, DOI 10.1109/TMI.2025.3632555); MIRROR specification, sections 7 and 8. It is trained once per fold, on
the fold's training cases; `models.mirror` uses its encoders by ``init_from``. Four losses:

- alignment: the class token of a slide must find the RNA of its case in the batch, and the other way (InfoNCE); a batch
  of one cannot be wrong, and its alignment is 0;
- retention: masked tile tokens, and masked coordinates of the RNA vector, are predicted from the others;
- style: a variational code of either modality keeps near the standard normal;
- clusters: both codes of a case are assigned to the same prototypes.

Reference mode is the released code: a sample is one slide, resampled to 2048 tiles in a square, Nyström attention.
(Where it draws tiles anew, here they are thinned or repeated evenly, and put in random order for training.) By default
its defects (specification, section 13) are mended:

- embeddings are normalised after their projection, so that alignment is a cosine (1; `renormalise`);
- retention has fixed targets, which cannot be made easier by making tokens alike (2; `detach_targets`);
- the history records the mean square of the codes and how many prototypes a batch uses, since style and clusters can be
  satisfied by codes that say nothing (3); cluster losses stay in logarithms (4);
- tiles are ordered by slide, row and column; position convolutions see each slide's lattice, the retention decoder real
  columns and rows in the place of a table of 2048 positions, and any number of tiles will do (5);
- attention is exact and fused, and no sample's numbers depend on another's, but for alignment (8);
- genes, scaling and encoders see the training cases of the fold alone (9); validation takes every case and every tile,
  with the same masks in each epoch (10 to 12).

The RNA encoder's attention over slices of one vector (6) is kept as it is, since released weights depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from models.batch import Batch, Outputs, Sizes
from models.layers import full_precision
from models.mirror_encoders import (
    ENCODER_PARAMS,
    NYSTROM,
    RNA_EPS,
    EncoderConfig,
    Mlp,
    RnaBlock,
    RnaEncoder,
    Sequence,
    SlideEncoder,
    cell_encoding,
    sequences,
    xavier,
)
from models.mirror_losses import cluster_divergence, info_nce, masked_error, style_divergence
from models.model import Model
from models.params import check_range

MAX_SCALE = 100.0
FIRST_SCALE = 1 / 0.07


@dataclass(frozen=True)
class PretrainingConfig(EncoderConfig):
    """Hyper-parameters of pre-training; the others are those of `models.mirror_encoders.EncoderConfig`.

    Attributes
    ----------
    mask_slide, mask_rna : share of tiles, and of the RNA vector's coordinates, that are masked
    style_hidden, style_width, latent : widths of the style branch
    prototypes : cluster centres; the released code wants `width` of them at least
    align, retain_slide, retain_rna, style, cluster : weights of the losses
    renormalise : embeddings are normalised after projection too
    detach_targets : no gradient through what retention has to predict
    gather : alignment against the samples of all processes of a `torch.distributed` group
    """

    mask_slide: float = 0.75
    mask_rna: float = 0.75
    style_hidden: int = 512
    style_width: int = 256
    latent: int = 128
    prototypes: int = 3000
    align: float = 0.5
    retain_slide: float = 0.15
    retain_rna: float = 0.15
    style: float = 0.1
    cluster: float = 0.1
    renormalise: bool = True
    detach_targets: bool = True
    gather: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("mask_slide", "mask_rna"):
            check_range(key, getattr(self, key), 0, 1)
        for key in ("style_hidden", "style_width", "latent", "prototypes"):
            check_range(key, getattr(self, key), 1, 1_000_000, integer=True)
        for key in ("align", "retain_slide", "retain_rna", "style", "cluster"):
            check_range(key, getattr(self, key), 0, 1e6)


def random_mask(shape: Rows[int], share: float, device: torch.device) -> Tensor:
    """float32 [samples, count], 1 where masked: all but the ``int(count (1 - share))`` smallest of random numbers."""
    rank = torch.rand(*shape).argsort(dim=1).argsort(dim=1)
    return (rank >= int(shape[1] * (1 - share))).float().to(device)


class TransLayer(nn.Module):
    """x + attention(norm(x)), without feed-forward."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        shared_start = config.fixed_length is not None
        self.attention = config.attention_class(config.width, config.dropout, shared_start)

    def forward(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """[samples, tokens, width] to the same, or to these `rows` of it."""
        return (tokens if rows is None else tokens[:, rows]) + self.attention(self.norm(tokens), rows)


class SlideRetention(nn.Module):
    """Predicts tile tokens from the class token, unmasked tokens and positions."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = None
        if config.fixed_length:
            table = torch.empty(1, 1 + config.fixed_length, width)
            self.position = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.layer = TransLayer(config)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, width)
        self.apply(xavier)

    def forward(
        self, first: Tensor, tokens: Tensor, mask: Tensor, cell: Tensor | None, rows: Tensor | None = None
    ) -> Tensor:
        """Class token [samples, width], tokens [samples, tiles, width] and mask [samples, tiles] to predictions of
        the tokens, or of these `rows` of them."""
        if rows is None:
            rows = torch.arange(tokens.shape[1], device=tokens.device)
        first, seen = self.embed(first), self.embed(tokens[mask == 0])  # masked tokens are not even read
        tokens = self.mask_token.to(seen).expand_as(tokens).masked_scatter(mask[..., None] == 0, seen)
        if cell is not None:
            tokens = tokens + cell_encoding(cell, tokens.shape[2]).to(tokens)
        everything = torch.cat([first[:, None], tokens], dim=1)
        if self.position is not None:
            everything = everything + self.position
        return self.head(self.norm(self.layer(everything, 1 + rows)))


class RnaRetention(nn.Module):
    """Predicts the RNA vector from its unmasked coordinates."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1) * 0.02)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, width), std=0.02))
        self.layer = RnaBlock(config)
        self.norm = nn.LayerNorm(width, eps=RNA_EPS)
        self.head = nn.Linear(width, width)
        with torch.no_grad():
            for linear in (self.layer.attn.proj, self.layer.mlp.fc2):
                linear.weight /= math.sqrt(2)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """[samples, width] and mask of the same shape to predictions of the same shape."""
        vectors = self.embed(vectors)
        vectors = torch.where(mask.bool(), self.mask_token.to(vectors), vectors)
        return self.head(self.norm(self.layer(vectors + self.position)))


class Style(nn.Module):
    """A variational code of an embedding and its scores at the prototypes; one for both modalities."""

    def __init__(self, config: PretrainingConfig) -> None:
        super().__init__()
        self.mlp = Mlp(config.width, config.style_hidden, config.style_width)
        self.mean = nn.Linear(config.style_width, config.latent)
        self.log_variance = nn.Linear(config.style_width, config.latent)
        self.decoder = nn.Linear(config.latent, config.width)
        self.prototypes = nn.Linear(config.width, config.prototypes, bias=False)
        nn.init.orthogonal_(self.prototypes.weight)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-variance [samples, latent] of the code, and scores [samples, prototypes] of a draw of it."""
        hidden = self.mlp(embedding)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        noise = torch.randn(mean.shape).to(mean)
        return mean, log_variance, self.scores(mean + (log_variance / 2).exp() * noise)

    def scores(self, code: Tensor) -> Tensor:
        return self.prototypes(self.decoder(code))


class MirrorPretraining(Model):
    """Both encoders with what they are trained by. Its only outputs are losses."""

    name = "mirror-pretraining"
    needs = frozenset({"slides", "genes"})
    gene_groups = ("all",)
    Config = PretrainingConfig
    shared_params = ENCODER_PARAMS
    defaults: ClassVar = {"epochs": 100, "batch_size": 16, "lr": 2e-5, "weight_decay": 0.0, "patience": 0}
    reference_params: ClassVar = {
        "fixed_length": 2048, "attention": NYSTROM, "renormalise": False, "detach_targets": False,
    }  # fmt: skip
    presets: ClassVar = {
        "no-retention": {"retain_slide": 0.0, "retain_rna": 0.0},
        "no-clusters": {"style": 0.0, "cluster": 0.0},
        "alignment-only": {"retain_slide": 0.0, "retain_rna": 0.0, "style": 0.0, "cluster": 0.0},
    }

    def __init__(self, config: PretrainingConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.slide = SlideEncoder(sizes.features, config)
        self.slide_alignment = nn.Linear(config.width, config.width)
        self.slide_retention = SlideRetention(config)
        self.slide_alignment.apply(xavier)
        self.rna = RnaEncoder(sizes.genes["all"], config)
        self.rna_alignment = nn.Linear(config.width, config.width)
        self.rna_retention = RnaRetention(config)
        self.style = Style(config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def forward(self, batch: Batch) -> Outputs:
        if self.training:
            with torch.no_grad():
                self.style.prototypes.weight.copy_(normalize(self.style.prototypes.weight, dim=1))
        read = sequences(batch, self.config, draw=self.training)
        masks = [random_mask(s.features.shape[:2], self.config.mask_slide, s.features.device) for s in read]
        encoded = [self.slide(s, constant=self._unlearnt(mask)) for s, mask in zip(read, masks, strict=True)]
        slides = torch.cat([first for first, _ in encoded])
        rna = self.rna(batch.genes["all"])
        parts = {
            "retain_slide": self.slide_loss(read, encoded, masks),
            "retain_rna": self.rna_loss(rna),
            **self.pair_losses(slides, rna),
        }
        logged = {name: parts.pop(name) for name in ("style_mean_square", "prototypes_used")}
        losses = {name: getattr(self.config, name) * part for name, part in parts.items()}
        logged["logit_scale"] = self.logit_scale.exp()
        return Outputs(slides.new_zeros(len(batch), 0), losses, logged=logged)

    def aligned(self, slides: Tensor, rna: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [samples, width] as alignment compares them."""
        pair = self.slide_alignment(normalize(slides, dim=1)), self.rna_alignment(normalize(rna, dim=1))
        if self.config.renormalise:
            return normalize(full_precision(pair[0]), dim=1), normalize(full_precision(pair[1]), dim=1)
        return full_precision(pair[0]), full_precision(pair[1])

    def pair_losses(self, slides: Tensor, rna: Tensor) -> dict[str, Tensor]:
        """Alignment, style and clusters of the pairs, before their weights, and what is recorded of them."""
        aligned = self.aligned(slides, rna)
        codes = [[full_precision(part) for part in self.style(embedding)] for embedding in (slides, rna)]
        (mean_w, variance_w, scores_w), (mean_r, variance_r, scores_r) = codes
        used = torch.cat([scores_w, scores_r]).argmax(dim=1).unique()
        with torch.autocast(slides.device.type, enabled=False):
            return {
                "align": info_nce(*aligned, self.logit_scale.exp(), self.config.gather),
                "style": style_divergence(mean_w, variance_w) + style_divergence(mean_r, variance_r),
                "cluster": cluster_divergence(scores_w, scores_r),
                "style_mean_square": torch.cat([mean_w, mean_r]).square().mean(),
                "prototypes_used": torch.tensor(float(len(used))),
            }

    def _unlearnt(self, mask: Tensor) -> Tensor | None:
        """Tiles whose tokens are a target and nothing else; of several samples beside each other, none."""
        return mask[0].nonzero().squeeze(1) if self.config.detach_targets and len(mask) == 1 else None

    def slide_loss(self, read: Rows[Sequence], encoded: Rows[tuple[Tensor, Tensor]], masks: Rows[Tensor]) -> Tensor:
        """Retention of tile tokens, over all masked tiles of the batch."""
        total, count = [], 0.0
        for sequence, (first, tokens), mask in zip(read, encoded, masks, strict=True):
            rows = mask.any(dim=0).nonzero().squeeze(1)  # of one sample the masked tiles: others need no prediction
            prediction = full_precision(self.slide_retention(first, tokens, mask, sequence.cell, rows))
            masked = float(mask.sum())
            total.append(masked * masked_error(prediction, self._target(tokens)[:, rows], mask[:, rows]))
            count += masked
        return torch.stack(total).sum() / max(count, 1.0)

    def rna_loss(self, rna: Tensor) -> Tensor:
        mask = random_mask(rna.shape, self.config.mask_rna, rna.device)
        return masked_error(full_precision(self.rna_retention(rna, mask)), self._target(rna), mask)

    def _target(self, tokens: Tensor) -> Tensor:
        return full_precision(tokens.detach() if self.config.detach_targets else tokens)

    def constrain(self) -> None:
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(MAX_SCALE))
