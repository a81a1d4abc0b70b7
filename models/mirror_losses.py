"""Losses of task-free pre-training: alignment, retention, style and clusters (MIRROR specification, section 8)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from models.gathering import gathered, processes


def info_nce(first: Tensor, second: Tensor, scale: Tensor | float, gather: bool = False) -> Tensor:
    """Row i of `first` must find row i of `second` among all rows, and the other way: mean of both cross-entropies.

    A batch of one has nothing to choose from: 0, without gradient. With `gather`, the rows of every process are
    candidates, and the mean over processes of the returned values, and of their gradients, are those of one process
    with all rows.

    Parameters
    ----------
    first, second : [samples, width], normalised by the caller where cosines are wanted
    scale : inverse temperature
    """
    everyone, partners, start, share = first, second, 0, 1.0
    if gather:
        (everyone, start), (partners, _) = gathered(first), gathered(second)
        share = processes() * len(first) / len(everyone)
    own = torch.arange(start, start + len(first), device=first.device)
    there, back = (cross_entropy(scale * a @ b.T, own) for a, b in ((first, partners), (second, everyone)))
    return share * (there + back) / 2


def masked_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over what is masked: `mask` is 1 there, of the tensors' shape or without their last dimension.

    0 where nothing is masked.
    """
    error = (prediction - target).square()
    if mask.ndim < error.ndim:
        error = error.mean(dim=-1)
    return (mask * error).sum() / mask.sum().clamp(min=1)


def style_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)), summed over the latent width, mean over samples; 0 only at the prior."""
    return (log_variance.exp() + mean.square() - 1 - log_variance).sum(dim=1).mean() / 2


def cluster_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Symmetric KL divergence of the softmax of two rows of scores [samples, prototypes], mean over samples.

    In logarithms throughout: the released softmax-then-log is the same until a probability underflows.
    """
    p, q = log_softmax(first, dim=1), log_softmax(second, dim=1)
    there, back = (kl_div(a, b, reduction="batchmean", log_target=True) for a, b in ((p, q), (q, p)))
    return (there + back) / 2
