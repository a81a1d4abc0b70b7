"""Has the fold ledger been changed since the folds were made from it?"""

from __future__ import annotations

from pathlib import Path

from pipeline.contracts.errors import InputError
from pipeline.contracts.splits import EXTERNAL, read_splits


def check_ledger(ledger: str | Path, splits: str | Path) -> None:
    """Raise InputError when `splits` (of a finished run) disagrees with the user's ledger, or the ledger is gone.

    Snakemake cannot see it: the first run writes the ledger itself, so the ledger is no input of the rule.
    """
    ledger, splits = Path(ledger), Path(splits)
    if not splits.exists():
        return
    fix = "to use the ledger as it is now, run `histoweave clean --stage splits`, then the workflow again."
    if not ledger.exists():
        raise InputError(str(ledger), f"the ledger is gone, but {splits} was made from it.", f"restore it; or, {fix}")
    if ledger.stat().st_mtime_ns <= splits.stat().st_mtime_ns:
        return
    now = read_splits(ledger).roles()
    made = read_splits(splits).roles()
    changed = [case for case, roles in made.items() if EXTERNAL not in roles.values() and now.get(case) != roles]
    if changed:
        shown = ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")
        raise InputError(str(ledger), f"{len(changed)} cases have other folds than in {splits} ({shown}).", fix)
