"""Kaplan-Meier curves of cases grouped by predicted risk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lifelines import KaplanMeierFitter
from lifelines.statistics import logrank_test

from pipeline.report.figures import COLOURS, INK, MUTED, Picture, drawing, png

GROUPS = ("lower risk", "higher risk")


@dataclass(frozen=True)
class RiskGroups:
    """Cases split at the median predicted risk of their own fold, since risks of two models share no scale.

    `higher` is bool [cases]; ties with the median go to the lower group. `p_value` is the log-rank test's
    between the groups, NaN where one of them is empty.
    """

    time: np.ndarray
    event: np.ndarray
    higher: np.ndarray
    p_value: float


def split_by_risk(time: np.ndarray, event: np.ndarray, risk: np.ndarray, fold: np.ndarray) -> RiskGroups:
    """Group held-out cases by risk.

    Parameters
    ----------
    time, event, risk, fold : [cases]; higher `risk` means an earlier event is expected
    """
    higher = np.zeros(len(time), dtype=bool)
    for k in np.unique(fold):
        mine = fold == k
        higher[mine] = risk[mine] > np.median(risk[mine])
    p_value = float("nan")
    if higher.any() and not higher.all():
        p_value = float(logrank_test(time[higher], time[~higher], event[higher], event[~higher]).p_value)
    return RiskGroups(time, event.astype(bool), higher, p_value)


def kaplan_meier(title: str, groups: RiskGroups, time_unit: str) -> Picture:
    """Picture: both curves with 95 % bands, censoring marks and the numbers at risk below."""
    with drawing(4.6, 3.7, 2, 1, height_ratios=[5, 1]) as (figure, axes):
        upper, lower = axes[0, 0], axes[1, 0]
        end = float(groups.time.max())
        ticks = [t for t in upper.xaxis.get_major_locator().tick_values(0, end) if 0 <= t <= end]
        for row, (name, member) in enumerate(zip(GROUPS, (~groups.higher, groups.higher), strict=True)):
            if not member.any():
                continue
            colour = COLOURS[row]
            fitter = KaplanMeierFitter(label=f"{name} (n = {member.sum()})")
            fitter.fit(groups.time[member], groups.event[member])
            fitter.plot_survival_function(ax=upper, ci_alpha=0.12, color=colour, show_censors=True,
                                          censor_styles={"ms": 4, "marker": "|"})  # fmt: skip
            for t in ticks:
                lower.text(t, -row, str(int((groups.time[member] >= t).sum())), ha="center", va="center", fontsize=8)
            lower.text(-0.05, -row, name, ha="right", va="center", fontsize=8, color=colour,
                       transform=lower.get_yaxis_transform())  # fmt: skip
        upper.set(title=title, ylim=(0, 1.02), xlim=(0, end * 1.02), xlabel="", ylabel="share without event")
        upper.set_xticks(ticks)
        upper.legend(loc="lower left", frameon=True, framealpha=0.85, edgecolor="none", borderpad=0.3)
        if np.isfinite(groups.p_value):
            text = f"log-rank p = {groups.p_value:.2g}"
            upper.text(0.98, 0.97, text, transform=upper.transAxes, ha="right", va="top", fontsize=8, color=INK)
        lower.set(xlim=upper.get_xlim(), ylim=(-1.6, 0.6), xlabel=f"time ({time_unit}); above: number at risk")
        lower.set_yticks([])
        lower.set_xticks([])
        lower.xaxis.label.set_color(MUTED)
        lower.spines[["left", "bottom"]].set_visible(False)
        return png(figure)
