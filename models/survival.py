"""Survival in intervals and in continuous time: edges, risk, Breslow's baseline, comparable pairs (arrays only)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.contracts.errors import HistoweaveError

TIED_RISK = 1e-8


class NoComparablePairError(HistoweaveError):
    """The concordance index is undefined: no two cases can be ordered in time."""


@dataclass(frozen=True)
class Intervals:
    """Survival intervals of one fold.

    `edges` are the inner edges (bins - 1, strictly increasing, in the task's unit): interval k is [edge k, edge k + 1),
    open at both ends. `last` is the longest training time, at which the last interval's survival is reported.
    """

    edges: tuple[float, ...]
    last: float

    def __len__(self) -> int:
        return len(self.edges) + 1

    @property
    def ends(self) -> tuple[float, ...]:
        """The time at which each interval's survival probability holds; `last` for the open one."""
        return (*self.edges, max(self.last, *self.edges) if self.edges else self.last)

    def of(self, time: np.ndarray) -> np.ndarray:
        """Interval of each time, int64 [cases]; a time on an edge belongs to the later interval."""
        return np.searchsorted(np.asarray(self.edges, dtype=float), time, side="right").astype(np.int64)


def fit_intervals(time: np.ndarray, event: np.ndarray, bins: int) -> Intervals:
    """Edges at the quantiles of the times of the cases with an event (of training), so that events spread evenly.

    With fewer distinct event times than `bins`, or tied quantiles, there are fewer intervals: each holds an event.
    """
    times = np.sort(np.asarray(time, dtype=float)[np.asarray(event) == 1])
    bins = min(bins, len(np.unique(times)))
    edges = np.unique(np.quantile(times, np.arange(1, bins) / bins)) if bins > 1 else np.empty(0)
    kept: list[float] = []
    for edge in edges:
        if ((times >= max(kept, default=-np.inf)) & (times < edge)).any():
            kept.append(float(edge))
    return Intervals(tuple(kept), float(np.max(time)))


def survival_of_hazards(logits: Tensor) -> Tensor:
    """S_k = prod_{j <= k} (1 - sigmoid(logit_j)), the probability to outlive interval k. [samples, bins] both."""
    return torch.nn.functional.logsigmoid(-logits).cumsum(dim=1).exp()


def risk_of_survival(survival: Tensor) -> Tensor:
    """Risk = minus the sum of the survival probabilities, [samples]; higher means an earlier event."""
    return -survival.sum(dim=1)


def breslow(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Breslow's estimate of the cumulative baseline hazard of a Cox model.

    Parameters
    ----------
    risk : [cases] linear predictor; time : [cases]; event : [cases] 1 = event

    Returns
    -------
    times : distinct event times, ascending
    hazard : cumulative baseline hazard just after each of them
    """
    times = np.unique(time[event == 1])
    weight = np.exp(risk)
    at_risk = np.array([weight[time >= t].sum() for t in times])
    events = np.array([((time == t) & (event == 1)).sum() for t in times])
    return times, np.cumsum(events / at_risk)


def comparable(time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """bool [cases, cases]: entry (i, j) is True where i is known to have had its event before j.

    Either t_i < t_j and i has the event, or the times are equal and only i has it (subspace specification 10).
    """
    time, event = np.asarray(time, dtype=float), np.asarray(event) == 1
    earlier = time[:, None] < time[None, :]
    tied = (time[:, None] == time[None, :]) & ~event[None, :]
    return event[:, None] & (earlier | tied)


def concordant(risk: np.ndarray) -> np.ndarray:
    """float64 [cases, cases]: 1 where risk_i > risk_j, 0.5 where they differ by less than 1e-8, else 0."""
    difference = np.asarray(risk, dtype=float)[:, None] - np.asarray(risk, dtype=float)[None, :]
    return np.where(np.abs(difference) < TIED_RISK, 0.5, (difference > 0).astype(float))


def concordance(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    """Harrell's C-index of cases whose risks are on one scale (subspace specification 10).

    Raises
    ------
    NoComparablePairError
        No pair is comparable: all censored, or the only events have the latest time.
    """
    pairs = comparable(time, event)
    if not pairs.any():
        raise NoComparablePairError(
            f"the C-index is undefined: none of the {len(time)} cases is known to have had its event before another."
        )
    return float((concordant(risk) * pairs).sum() / pairs.sum())
