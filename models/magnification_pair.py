"""What couples two magnifications of the same slides: consistency in training, one outcome from two sets of logits.

Source: disentangled specification, sections 6 (last part), 8.2 and 8.3. `linked_consistency` is ours: the released loss
compares attention maps entry by entry, which asks for equal numbers of tiles in an order that has nothing to do with
their places, and is satisfied by any constant diagonal (section 13, rows 7 and 10).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

PARENTS, RELEASED, NONE = CONSISTENCIES = ("parents", "reference", "none")
MEAN, MAX_CONFIDENCE, AVERAGE, SOFTMAX_AVERAGE = COMBINATIONS = (
    "mean", "max_confidence", "average", "softmax_average",
)  # fmt: skip
RELEASED_WEIGHT = 1e4
RELEASED_SIMILARITY_WEIGHT = 1e3


def linked_consistency(fine: Tensor, coarse: Tensor, parent: Tensor, sample: Tensor, samples: int) -> Tensor:
    """The pattern of a signal over the tissue should be the same at both magnifications.

    A coarse tile is compared with the mean of the fine tiles in it: 1 - <A, B> / (|A| |B|) for the matrices
    [linked coarse tiles of a sample, width] of both, each column's mean over the sample taken off. So a signal that is
    the same everywhere gains nothing. The mean over samples with two linked coarse tiles or more; 0 without any.

    Parameters
    ----------
    fine : [fine tiles, width]; coarse : [coarse tiles, width]
    parent : int64 [fine tiles], row of `coarse` that each fine tile lies in, -1 where there is none
    sample : int64 [coarse tiles], 0 to `samples` - 1
    """
    linked = parent >= 0
    children = coarse.new_zeros(len(coarse)).index_add(0, parent[linked], coarse.new_ones(int(linked.sum())))
    total = torch.zeros_like(coarse).index_add(0, parent[linked], fine[linked].to(coarse.dtype))
    kept = children > 0
    whose, first = sample[kept], coarse[kept]
    second = total[kept] / children[kept, None]
    counts = first.new_zeros(samples).index_add(0, whose, torch.ones_like(first[:, 0]))
    first, second = (_centred(values, whose, counts) for values in (first, second))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return a.new_zeros(samples).index_add(0, whose, (a * b).sum(dim=1))

    lengths = (dot(first, first) + 1e-12).sqrt() * (dot(second, second) + 1e-12).sqrt()
    disagreement = 1 - dot(first, second) / lengths
    usable = counts >= 2
    return torch.where(usable, disagreement, 0.0).sum() / usable.sum().clamp(min=1)


def _centred(values: Tensor, whose: Tensor, counts: Tensor) -> Tensor:
    mean = values.new_zeros(len(counts), values.shape[1]).index_add(0, whose, values) / counts.clamp(min=1)[:, None]
    return values - mean[whose]


def released_consistency(coarse: Tensor, fine: Tensor) -> Tensor:
    """10^4 times the unbiased variance over samples of the diagonal of the row-normalised product of attention maps.

    Maps [samples, entries]. A single sample has no variance: 0 (the released code gives no number).
    """
    if len(coarse) == 1:
        return coarse.sum() * 0.0
    return RELEASED_WEIGHT * functional.normalize(coarse @ fine.T, dim=1, eps=1e-12).diagonal().var()


def released_similarity(coarse: Tensor, fine: Tensor) -> Tensor:
    """10^3 / samples times the squared difference of the head-averaged Gram matrices of attention maps.

    Maps [samples, heads, entries]; every row of a Gram matrix has length 1.
    """
    of_coarse, of_fine = (
        functional.normalize(m @ m.transpose(1, 2), dim=2, eps=1e-12).mean(dim=0)
        for m in (coarse.transpose(0, 1), fine.transpose(0, 1))
    )
    return RELEASED_SIMILARITY_WEIGHT * (of_coarse - of_fine).square().sum() / len(coarse)


def combined(coarse: Tensor, fine: Tensor, how: str, kind: str) -> Tensor:
    """One set of logits [samples, outputs] from those of both magnifications.

    ``mean`` averages what the logits stand for: class probabilities, or the hazards of survival. The others are the
    released ones: per sample the logits whose largest softmax probability is larger (the finer on ties), the average
    of logits, and the logarithm of the average softmax probability; for survival they take hazard logits for scores.
    """
    if how == AVERAGE:
        return (coarse + fine) / 2
    if how == MAX_CONFIDENCE:
        sure = [logits.softmax(dim=1).amax(dim=1, keepdim=True) for logits in (coarse, fine)]
        return torch.where(sure[0] > sure[1], coarse, fine)
    if how == SOFTMAX_AVERAGE:
        return ((coarse.softmax(dim=1) + fine.softmax(dim=1)) / 2 + 1e-8).log()
    if kind == "survival":
        happens, passes = (
            torch.logaddexp(functional.logsigmoid(sign * coarse), functional.logsigmoid(sign * fine))
            for sign in (1, -1)
        )
        return happens - passes
    return torch.logaddexp(coarse.log_softmax(dim=1), fine.log_softmax(dim=1)) - math.log(2)
