"""What a student learns from a frozen teacher: its softened outputs and its subspace features.

Source: disentangled specification 8.5; Hinton et al. 2015 for the temperature. All are means over samples.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

SOFTMAX, HAZARDS = SURVIVAL_FORMS = ("softmax", "hazards")
TEMPERATURE = 2.0


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of class scores [samples, classes]."""
    soft, target = ((x / temperature).log_softmax(dim=1) for x in (student, teacher))
    return temperature**2 * functional.kl_div(soft, target, reduction="batchmean", log_target=True)


def hazard_divergence(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """T^2 times the sum over intervals of the divergence between the hazards sigmoid(logit / T), [samples, bins].

    A softmax over hazard logits, as released, does not change when all of a case's hazards rise together, so it leaves
    out how high the teacher takes the risk to be.
    """
    soft, target = student / temperature, teacher / temperature
    happens = target.sigmoid() * (functional.logsigmoid(target) - functional.logsigmoid(soft))
    passes = (-target).sigmoid() * (functional.logsigmoid(-target) - functional.logsigmoid(-soft))
    return temperature**2 * (happens + passes).sum(dim=1).mean()


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features [samples, width]."""
    return functional.mse_loss(student, teacher)
