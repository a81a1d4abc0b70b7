"""What couples the two subspaces in training: gene-guided consistency and confidence-guided gradient
coordination.

Source: Knowledge-driven Subspace Fusion and Gradient Coordination (MICCAI 2024, arXiv 2406.13979), as set out
in the subspace specification, sections 6 and 8. The reference variants repeat the authors' released code,
faults included.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.batch import Targets
from models.gathering import gathered, gathered_targets
from models.survival import NoComparablePairError, concordance, risk_of_survival, survival_of_hazards

PROJECTION, REFLECTION, NONE = COORDINATIONS = ("projection", "reflection", "none")
CONCORDANCE, INTERVAL = CONFIDENCES = ("concordance", "interval")


def gecon(genes: Tensor, points: Tensor) -> Tensor:
    """Ge-Con: samples should be as alike in where they look as in their gene embeddings.

    (1 / n) sum of (S_o - S_v)^2, where S_o is the row-normalised Gram matrix of the gene embeddings and S_v
    the mean over groups of those of the sampling points. A single sample has nothing to agree with: 0.

    Parameters
    ----------
    genes : [samples, width]; points : [samples, groups, coordinates]
    """
    if len(genes) == 1:
        return genes.sum() * 0.0
    by_group = points.transpose(0, 1)
    return _consistency(genes, by_group)


def gecon_reference(genes: Tensor, points: Tensor) -> Tensor:
    """Ge-Con as released: sampling points of a sample's groups are mistaken for those of other samples (section 6)."""
    if len(genes) == 1:
        return genes.sum() * 0.0
    samples, groups, coordinates = points.shape
    return _consistency(genes, points.reshape(groups, samples, coordinates))


def _consistency(genes: Tensor, points: Tensor) -> Tensor:
    of_points = _alike(points).mean(dim=0)
    return (_alike(genes) - of_points).square().sum() / len(genes)


def _alike(values: Tensor) -> Tensor:
    """Gram matrix [..., n, n] of [..., n, columns], each row at length 1 (0 for a row of zeros)."""
    return functional.normalize(values @ values.transpose(-1, -2), dim=-1, eps=1e-12)


@torch.no_grad()
def confidences(
    weight: Tensor, bias: Tensor, tumour: Tensor, tme: Tensor, targets: Targets, survival: str = CONCORDANCE
) -> tuple[float, float] | None:
    """How sure each subspace alone is of the truth, over the mini-batch.

    Each subspace decodes with its half of the classifier and half of the bias. Confidence is the summed
    probability of the true class, or for survival the C-index of the batch; None when no pair of the batch is
    comparable. With several processes the mini-batch is that of all of them, so that all take the same decision.

    Parameters
    ----------
    weight : [outputs, 2 width], tumour half first; bias : [outputs]; tumour, tme : [samples, width]
    survival : "concordance", or "interval": the softmax over the hazard logits at the true interval, as released for
        the disentangled system
    """
    tumour, tme = (gathered(rows)[0] for rows in (tumour, tme))
    targets = gathered_targets(targets)
    width = tumour.shape[1]
    decoded = [tumour @ weight[:, :width].T + bias / 2, tme @ weight[:, width:].T + bias / 2]
    truth = targets.interval if targets.label is None and survival == INTERVAL else targets.label
    if truth is not None:
        first, second = (d.softmax(dim=1).gather(1, truth[:, None]).sum() for d in decoded)
        return float(first), float(second)
    assert targets.time is not None and targets.event is not None
    time, event = targets.time.cpu().numpy(), targets.event.cpu().numpy()
    try:
        first_c, second_c = (
            concordance(risk_of_survival(survival_of_hazards(d)).cpu().numpy(), time, event) for d in decoded
        )
    except NoComparablePairError:
        return None
    return first_c, second_c


@torch.no_grad()
def coordinated(gradient: Tensor, tumour: float, tme: float, mode: str = PROJECTION) -> Tensor:
    """The classifier's gradient after resolving conflicts between the subspaces, row by row.

    Where the halves of a row point against each other, the half of the less confident subspace loses its
    component along the other (`projection`), or is mirrored as in the released code (`reflection`). Equal
    confidence changes nothing.

    Parameters
    ----------
    gradient : [outputs, 2 width], tumour half first
    tumour, tme : confidence of each subspace
    """
    if mode == NONE or tumour == tme:
        return gradient.clone()
    first, second = gradient.chunk(2, dim=1)
    weak, strong = (first, second) if tumour < tme else (second, first)
    along = (weak * strong).sum(dim=1, keepdim=True)
    length = strong.square().sum(dim=1, keepdim=True)
    parallel = torch.where(along < 0, along / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0) * strong
    changed = weak - parallel
    if mode == REFLECTION:
        mirrored = weak - 2 * parallel
        scaled = changed.norm(dim=1, keepdim=True) * functional.normalize(mirrored, dim=1)
        changed = torch.where(along < 0, scaled, weak)
    return torch.cat([changed, second] if tumour < tme else [first, changed], dim=1)
