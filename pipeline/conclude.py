"""The verdict on a run: every slide and fold that failed, and an error unless the user allowed it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.contracts.batches import FAILED, OK, read_batch
from pipeline.contracts.errors import HistoweaveError
from pipeline.contracts.files import read_table, write_table


def conclude(
    slide_indexes: Sequence[str | Path],
    feature_indexes: Iterable[str | Path],
    model_indexes: Iterable[str | Path],
    allow_failed: bool,
    out: str | Path,
) -> list[dict[str, str]]:
    """Write the failures as a table (what, id, stage, reason).

    Raises HistoweaveError that lists them unless they are allowed, and for a list of features that is older than what
    its batches say (a slide that failed once and was embedded later, when an encoder was added).
    """
    _refuse_stale(slide_indexes, feature_indexes)
    failures = _failed_slides(slide_indexes) + _failed_folds(model_indexes)
    if failures and not allow_failed:
        listed = "\n".join(f"  {f['what']} {f['id']} at {f['stage']}: {f['reason']}" for f in failures)
        raise HistoweaveError(
            f"{len(failures)} failed; everything else is finished and stands in the report.\n{listed}\nFix: mend"
            " them and force them with `histoweave clean --stage STAGE --slides ID` (or --stage models) and the command"
            " that it prints, give a reason in the `exclude` column of slides.tsv, or set inputs.allow_failed: true."
        )
    write_table(out, ["what", "id", "stage", "reason"], failures)
    return failures


def _refuse_stale(slide_indexes: Sequence[str | Path], feature_indexes: Iterable[str | Path]) -> None:
    for path in feature_indexes:
        batches = [index for index in slide_indexes if Path(index).is_relative_to(Path(path).parent)]
        embedded = {r.slide_id for index in batches for r in read_batch(index).values() if r.status == OK}
        differ = embedded ^ {row["slide_id"] for row in read_table(path, ["slide_id"])}
        if differ:
            raise HistoweaveError(
                f"{path}: the list of features is older than the features: {', '.join(sorted(differ)[:5])}."
                " Fix: run again with --forcerun index_features."
            )


def _failed_slides(indexes: Iterable[str | Path]) -> list[dict[str, str]]:
    rows = {
        (r.slide_id, r.stage, r.reason) for path in indexes for r in read_batch(path).values() if r.status == FAILED
    }
    return [{"what": "slide", "id": i, "stage": stage, "reason": reason} for i, stage, reason in sorted(rows)]


def _failed_folds(indexes: Iterable[str | Path]) -> list[dict[str, str]]:
    failures = []
    for path in indexes:
        task, experiment = Path(path).parts[-3:-1]
        for row in read_table(path, ["fold", "status", "reason"]):
            if row["status"] == FAILED:
                where = f"{task}/{experiment}/fold{row['fold']}"
                failures.append({"what": "model", "id": where, "stage": "train", "reason": row["reason"]})
    return failures
