"""Density-peak clustering of tokens by their nearest neighbours (DPC-KNN).

A token's density falls with the distance to its nearest neighbours; its isolation is the distance to the nearest token
of higher density. The tokens whose product of both is highest are the centres, and every token joins its nearest
centre. Of equal densities or scores the earlier token's counts as higher.

Only distances that decide something are ever held: rows of the distance matrix are computed in chunks, and searched a
second time only for tokens that are denser than all their nearest neighbours. Elsewhere the nearest denser token is
among those neighbours. The result is that of the whole matrix.

Source: Du et al. 2016 (DPC-KNN); Zeng et al. 2022 (token clustering, equations 1 to 3); disentangled specification,
section 7 step 3, without its random term in the density.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.layers import full_precision

NEIGHBOURS = 5  # the token itself among them
DISTANCES_PER_CHUNK = 2**22


@dataclass(frozen=True)
class Clusters:
    """`centres` int64 [clusters], tokens in descending order of `scores` [clusters]; `of` int64 [tokens], each token's
    cluster."""

    centres: Tensor
    scores: Tensor
    of: Tensor


@torch.no_grad()
def density_peaks(tokens: Tensor, clusters: int, neighbours: int = NEIGHBOURS) -> Clusters:
    """Cluster tokens [tokens, width] around at most `clusters` centres; no more than there are tokens.

    Distances are Euclidean, divided by the square root of the width.
    """
    tokens = full_precision(tokens) * tokens.shape[1] ** -0.5
    count = len(tokens)
    squares, near, largest = _nearest(tokens, min(neighbours, count))
    density = (-squares.mean(dim=1)).exp()
    rank = torch.empty(count, dtype=torch.int64, device=tokens.device)
    rank[torch.argsort(density, descending=True, stable=True)] = torch.arange(count, device=tokens.device)
    denser = rank[near] < rank[:, None]
    isolation = torch.where(denser, squares, torch.inf).amin(dim=1)
    peaks = torch.nonzero(~denser.any(dim=1)).squeeze(1)
    isolation[peaks] = _to_denser(tokens, rank, peaks).clamp(max=largest)  # the densest of all has none: infinite
    scores = density * isolation.sqrt()
    order = torch.argsort(scores, descending=True, stable=True)[:clusters]
    of = torch.cat([_squared(part, tokens[order]).argmin(dim=1) for part in tokens.split(_rows(len(order)))])
    of[order] = torch.arange(len(order), device=tokens.device)
    return Clusters(order, scores[order], of)


def _nearest(tokens: Tensor, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances to the nearest tokens, and these, [tokens, neighbours] both; a token is its own nearest.

    The third is the largest squared distance of all.
    """
    squares, near, largest = [], [], []
    for rows in torch.arange(len(tokens), device=tokens.device).split(_rows(len(tokens))):
        distance = _squared(tokens[rows], tokens)
        distance[torch.arange(len(rows)), rows] = 0
        found = distance.topk(neighbours, dim=1, largest=False)
        squares.append(found.values)
        near.append(found.indices)
        largest.append(distance.amax())
    return torch.cat(squares), torch.cat(near), torch.stack(largest).amax()


def _to_denser(tokens: Tensor, rank: Tensor, rows: Tensor) -> Tensor:
    """Squared distance from some tokens to the nearest denser one, infinite where there is none."""
    found = []
    for part in rows.split(_rows(len(tokens))):
        distance = _squared(tokens[part], tokens)
        found.append(torch.where(rank < rank[part, None], distance, torch.inf).amin(dim=1))
    return torch.cat(found)


def _squared(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances, [len(first), len(second)]."""
    with torch.autocast(first.device.type, enabled=False):
        squares = torch.addmm(second.square().sum(dim=1), first, second.T, alpha=-2)
    return squares.add_(first.square().sum(dim=1, keepdim=True)).clamp_(min=0)


def _rows(columns: int) -> int:
    return max(1, DISTANCES_PER_CHUNK // columns)
