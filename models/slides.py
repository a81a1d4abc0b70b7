"""The tiles of a batch without padding, slide by slide: spatial layers work per slide, pooling is per sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.batch import Batch
from models.deformable import DeformableAttention, Points


@dataclass(frozen=True)
class Slides:
    """The tiles of a batch without padding: features [tiles, width], cell [tiles, 2] (column, row), `sample`
    [tiles].

    `lengths` is the number of tiles of each slide in order, `owner` the sample of each slide, `tiles` the
    number of tiles of each sample.
    """

    features: Tensor
    cell: Tensor
    sample: Tensor
    lengths: list[int]
    owner: list[int]
    tiles: list[int]

    def attended(
        self, attention: DeformableAttention, queries: Tensor, sources: Tensor, keep_weights: bool = False
    ) -> tuple[Tensor, list[Points]]:
        """Deformable attention within each slide: [tiles, width], and where the keys of each slide were sampled."""
        parts = [part.split(self.lengths) for part in (queries, sources, self.cell)]
        results = [attention(q, s, c, keep_weights) for q, s, c in zip(*parts, strict=True)]
        return torch.cat([tokens for tokens, _ in results]), [points for _, points in results]

    def mean(self, tokens: Tensor) -> Tensor:
        """Mean over the tiles of each sample: [tiles, width] to [samples, width]."""
        return torch.stack([sample.mean(dim=0) for sample in tokens.split(self.tiles)])


def unpadded(batch: Batch, fixed_length: int | None) -> Slides:
    """Strip the padding. With a fixed length, tile n of a slide is put at column n mod S, row n div S."""
    assert batch.features is not None and batch.mask is not None
    assert batch.slide is not None and batch.cell is not None
    sample = torch.arange(len(batch), device=batch.mask.device)[:, None].expand_as(batch.mask)[batch.mask]
    cell = batch.cell[batch.mask]
    if fixed_length:
        number = torch.arange(batch.mask.shape[1], device=cell.device).expand_as(batch.mask)[batch.mask]
        side = math.isqrt(fixed_length)
        cell = torch.stack([number % side, number // side], dim=1)
    place = torch.stack([sample, batch.slide[batch.mask]], dim=1)
    slides, lengths = torch.unique_consecutive(place, dim=0, return_counts=True)
    return Slides(
        batch.features[batch.mask],
        cell,
        sample,
        lengths.tolist(),
        slides[:, 0].tolist(),
        batch.mask.sum(dim=1).tolist(),
    )
