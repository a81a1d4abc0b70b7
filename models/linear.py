"""Genes alone, linear and regularised: logistic regression or Cox regression, fitted exactly.

The minimiser of a ridge-penalised loss lies in the span of the training cases, so the fit is done in the coordinates of
the singular vectors: as many unknowns as cases, however many genes there are, and the same solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from models.batch import Batch, Outputs, Sizes, Targets
from models.model import Model
from models.params import check_range
from models.survival import Intervals, breslow
from pipeline.contracts.tasks import CLASSIFICATION

STRENGTHS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STRENGTH = 0.2


@dataclass(frozen=True)
class LinearConfig:
    """Ridge penalty and class balance.

    Attributes
    ----------
    strength : the penalty is ``strength x columns / 2 x |weights|^2`` beside the summed loss of the training cases,
        so one number suits any number of standardised genes. None chooses it from 0.02 to 5 by the loss of the fold's
        validation cases
    balanced : weight classes by the inverse of their frequency among training cases
    """

    strength: float | None = None
    balanced: bool = True

    def __post_init__(self) -> None:
        if self.strength is not None:
            check_range("strength", self.strength, 1e-9, 1e9)


class Linear(Model):
    """logits = genes W' + b; for survival one output, the log relative hazard, with Breslow's baseline hazard."""

    name = "linear"
    needs = frozenset({"genes"})
    gene_groups: ClassVar[tuple[str, ...]] = ("all",)
    Config: ClassVar[type] = LinearConfig
    defaults: ClassVar = {"epochs": 1, "batch_size": 1, "lr": 1.0, "weight_decay": 0.0, "patience": 0}
    fits_itself = True

    weight: Tensor
    bias: Tensor
    baseline_time: Tensor
    baseline_hazard: Tensor

    def __init__(self, config: LinearConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.kind = sizes.kind
        outputs = sizes.outputs if sizes.kind == CLASSIFICATION else 1
        self.weight = nn.Parameter(torch.zeros(outputs, self.width(sizes), dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=torch.float64))
        for name in ("baseline_time", "baseline_hazard"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))

    @staticmethod
    def width(sizes: Sizes) -> int:
        """Number of columns that `columns` will give."""
        return sizes.genes["all"]

    def columns(self, batch: Batch) -> Tensor:
        """What the model is linear in, float64 [samples, columns], standardised on training cases."""
        return batch.genes["all"].double()

    def forward(self, batch: Batch) -> Outputs:
        return Outputs(self.columns(batch) @ self.weight.T + self.bias)

    def outcome(self, logits: Tensor, intervals: Intervals) -> tuple[Tensor, Tensor]:
        """Risk = log relative hazard; survival = exp(-H_0(t) exp(risk)) at the end of each interval."""
        risk = logits.squeeze(1)
        steps = torch.searchsorted(self.baseline_time, torch.tensor(intervals.ends).to(risk), right=True)
        cumulative = torch.cat([self.baseline_hazard.new_zeros(1), self.baseline_hazard])[steps]
        return risk, torch.exp(-cumulative[None, :] * risk.exp()[:, None])

    def fit(
        self, batch: Batch, targets: Targets, validation: tuple[Batch, Targets] | None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Fit on the training cases, once per strength. Returns a history row per fit, and notes."""
        notes: list[str] = []
        strengths: tuple[float, ...] = STRENGTHS
        if self.config.strength is not None:
            strengths = (self.config.strength,)
        elif validation is None:
            strengths = (STRENGTH,)
            notes.append(f"strength {STRENGTH:g}: there is no validation case to choose it by")
        training = RowSpace(self.columns(batch).cpu().numpy())
        rows: list[dict[str, Any]] = []
        losses, states = [], []
        for strength in strengths:
            self._fit_once(training, targets, strength)
            loss = self._loss(batch, targets)
            val_loss = None if validation is None else self._loss(*validation)
            rows.append({"strength": strength, "training_loss": loss, "val_loss": val_loss})
            losses.append(loss if val_loss is None else val_loss)
            states.append({key: value.clone() for key, value in self.state_dict().items()})
        best = int(np.argmin(losses))
        for number, row in enumerate(rows):
            row["best"] = int(number == best)
        self.load_state_dict(states[best])
        if len(strengths) > 1:
            notes.append(f"strength {strengths[best]:g} chosen by the validation loss")
        return rows, notes

    def _fit_once(self, training: RowSpace, targets: Targets, strength: float) -> None:
        penalty = strength * len(training.centre)
        if self.kind == CLASSIFICATION:
            assert targets.label is not None
            codes = targets.label.cpu().numpy()
            scores, bias = fit_logistic(training.scores, codes, penalty, len(self.bias), self.config.balanced)
            weight = scores @ training.directions
            self.take(weight, bias - weight @ training.centre)
        else:
            time, event = outcome_of(targets)
            beta = fit_cox(training.scores, time, event, penalty)
            weight = (beta @ training.directions)[None, :]
            self.take(weight, -weight @ training.centre)
            self.take_baseline(training.scores @ beta, time, event)

    def take(self, weight: np.ndarray, bias: np.ndarray) -> None:
        """Set the weights [outputs, columns] and biases [outputs]."""
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(weight))
            self.bias.copy_(torch.from_numpy(bias))

    def take_baseline(self, risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> None:
        """Set the baseline hazard by the risks [cases] of the training cases."""
        times, hazard = breslow(risk, time, event)
        self.baseline_time = torch.from_numpy(times).to(self.weight)
        self.baseline_hazard = torch.from_numpy(hazard).to(self.weight)

    @torch.no_grad()
    def _loss(self, batch: Batch, targets: Targets) -> float:
        """Mean cross-entropy, or the negative log partial likelihood per event (0 without an event)."""
        logits = self(batch).logits
        if self.kind == CLASSIFICATION:
            assert targets.label is not None
            return float(nn.functional.cross_entropy(logits, targets.label))
        time, event = outcome_of(targets)
        return cox_loss(logits.squeeze(1).cpu().numpy(), time, event) / max(1, int(event.sum()))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """The baseline has a step per event time of its fold, so take its length from the state."""
        for name in ("baseline_time", "baseline_hazard"):
            if prefix + name in state:
                setattr(self, name, torch.empty_like(state[prefix + name]))
        super()._load_from_state_dict(state, prefix, *rest)


def outcome_of(targets: Targets) -> tuple[np.ndarray, np.ndarray]:
    assert targets.time is not None and targets.event is not None
    return targets.time.cpu().numpy(), targets.event.cpu().numpy()


class RowSpace:
    """The training cases in the coordinates of their singular vectors.

    Attributes
    ----------
    centre : float64 [columns], the mean that was taken off
    scores : float64 [cases, rank]; directions : float64 [rank, columns]; their product is the centred data
    """

    def __init__(self, columns: np.ndarray) -> None:
        self.centre = columns.mean(axis=0)
        left, scale, right = np.linalg.svd(columns - self.centre, full_matrices=False)
        kept = scale > 1e-10 * scale.max(initial=1e-300)
        self.scores, self.directions = left[:, kept] * scale[kept], right[kept]


def fit_logistic(
    x: np.ndarray, codes: np.ndarray, penalty: float, classes: int, balanced: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression minimising summed loss + penalty / 2 x |W|^2, intercept free.

    Parameters
    ----------
    x : [cases, columns]; codes : int [cases], every class present

    Returns
    -------
    weight [classes, columns], bias [classes]; with two classes the first one's row is zero
    """
    model = LogisticRegression(
        C=1 / penalty, class_weight="balanced" if balanced else None, tol=1e-8, max_iter=10_000
    ).fit(x, codes)
    if classes == 2:
        return np.vstack([np.zeros_like(model.coef_), model.coef_]), np.array([0.0, model.intercept_[0]])
    return model.coef_, model.intercept_


class RiskSets:
    """Who was still at risk at each event time; what the partial likelihood needs of the outcomes.

    Attributes
    ----------
    event : float64 [cases]
    members : bool [event times, cases]; deaths : int [event times], events at each time (ties after Breslow)
    """

    def __init__(self, time: np.ndarray, event: np.ndarray) -> None:
        times = np.unique(time[event == 1])
        self.event = (event == 1).astype(float)
        self.members = time[None, :] >= times[:, None]
        self.deaths = ((time[None, :] == times[:, None]) & (event == 1)).sum(axis=1)
        self._latest_first = np.argsort(-time, kind="stable")
        self._size = self.members.sum(axis=1)

    def log_hazard(self, risk: np.ndarray) -> np.ndarray:
        """Log of the summed relative hazards of those at risk, float64 [event times]."""
        return np.logaddexp.accumulate(risk[self._latest_first])[self._size - 1]

    def loss(self, risk: np.ndarray) -> float:
        """Negative log partial likelihood, summed over events."""
        return float(self.deaths @ self.log_hazard(risk) - self.event @ risk) if len(self.deaths) else 0.0

    def shares(self, risk: np.ndarray) -> np.ndarray:
        """Each case's part of the hazard at each event time, [event times, cases]; rows sum to 1."""
        exponent = np.minimum(risk[None, :] - self.log_hazard(risk)[:, None], 0.0)
        return np.where(self.members, np.exp(exponent), 0.0)


def cox_loss(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    """Negative log partial likelihood, ties after Breslow, summed over events; 0 without one."""
    return RiskSets(time, event).loss(risk)


def fit_cox(x: np.ndarray, time: np.ndarray, event: np.ndarray, penalty: float, steps: int = 200) -> np.ndarray:
    """Cox regression minimising the negative log partial likelihood (Breslow ties) + penalty / 2 x |beta|^2.

    Newton's method, with steps halved until the loss falls; the loss is strictly convex, so there is one minimum.

    Parameters
    ----------
    x : [cases, columns]; time, event : [cases], with at least one event

    Returns
    -------
    beta : float64 [columns]
    """
    sets = RiskSets(time, event)
    beta = np.zeros(x.shape[1])

    def loss(beta: np.ndarray) -> float:
        return sets.loss(x @ beta) + penalty / 2 * float(beta @ beta)

    current = loss(beta)
    for _ in range(steps):
        share = sets.shares(x @ beta)
        expected = sets.deaths @ share
        gradient = x.T @ (expected - sets.event) + penalty * beta
        if np.abs(gradient).max(initial=0.0) <= 1e-9 * max(1.0, penalty):
            break
        mean = share @ x
        curvature = (x.T * expected) @ x - mean.T @ (mean * sets.deaths[:, None])
        step = np.linalg.solve(curvature + penalty * np.eye(len(beta)), gradient)
        size = 1.0
        while (proposed := loss(beta - size * step)) > current and size > 1e-10:
            size /= 2
        if size <= 1e-10:
            break
        beta, current = beta - size * step, proposed
    return beta
