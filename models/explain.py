"""What trained models looked at: attention and attributions of each case, by the model that never saw it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from models.attribution import STEPS, Attribution, Output, class_margin, integrated_gradients, risk
from models.batch import Batch
from models.checkpoint import Checkpoint
from models.data import Cohort, Collator, samples_of
from models.folds import split_digest
from models.mcat import TOKEN
from models.metrics import softmax
from models.model import Model, fixed_length, restored
from models.new_cases import open_new, trained_folds
from models.predict import check_features
from models.registry import CLINICAL, FAMILIES, entry
from models.train import use_device
from pipeline.contracts import layout
from pipeline.contracts.errors import InputError
from pipeline.contracts.explanations import (
    ATTENTION,
    INDEX,
    ExplainedCase,
    genes_file,
    tiles_file,
    write_genes_table,
    write_index,
    write_tiles_table,
)
from pipeline.contracts.features import BagRecord, read_cells, read_summary
from pipeline.contracts.splits import TEST, Splits, read_splits
from pipeline.contracts.training import OK, read_folds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TileMap:
    """What was said of the tiles of one slide at one magnification, by row and column of its lattice.

    Attributes
    ----------
    coords : int64 [tiles, 2], upper-left corner (x, y) in level-0 pixels; cell : int64 [tiles, 2], (column, row)
    size_level0_px : (width, height) of a tile
    attention : name -> float64 [tiles]; sums to 1 over the slides of the case. Empty where the model has none
    attribution : float64 [tiles]
    """

    slide_id: str
    magnification: float
    coords: np.ndarray
    cell: np.ndarray
    size_level0_px: tuple[float, float]
    attention: dict[str, np.ndarray]
    attribution: np.ndarray


Draw = Callable[[TileMap, Path], str]  #: writes a picture and returns "", or why there is none


@dataclass(frozen=True)
class Explanation:
    """One case: `output` names what was explained; genes are those of the checkpoint's selection that the model reads,
    symbol -> (groups, standardised value, attribution), empty without RNA."""

    output: str
    attribution: Attribution
    genes: dict[str, tuple[tuple[str, ...], float, float]]
    tiles: tuple[TileMap, ...]


def explain_cases(
    models_dir: str | Path,
    results: str | Path,
    out: str | Path,
    case_ids: Sequence[str] | None = None,
    steps: int = STEPS,
    device: str = "auto",
    draw: Draw | None = None,
) -> list[ExplainedCase]:
    """Write what the models of an experiment looked at, and return the rows of the index.

    Each case is explained by the model of the fold that held it out. Of a classification, the explained output is the
    logit of the predicted class less the mean of the others; of survival, the risk. Where a model reads single slides
    (reference mode), it is the mean over the case's slides, and attention sums to 1 over all of them.

    Parameters
    ----------
    models_dir : ``results/models/{task}/{experiment}`` of a finished run
    results : the run's results: its splits, features, and expression where genes are read
    out : folder to write, see `pipeline.contracts.explanations`
    case_ids : None for all cases that a fold holds out
    steps : points on the path of `integrated_gradients`
    device : "cpu", "cuda", or "auto" for a GPU where there is one
    draw : makes the picture of a slide; None for none

    Raises
    ------
    InputError
        No trained fold, a model without genes or tiles or without a task, or splits or inputs unlike those of training.
    FormatError
        A damaged file, or a checkpoint that is not the one that the models' index names.
    """
    where = use_device(device, 1)
    checkpoints = {checkpoint.fold: checkpoint for checkpoint in trained_folds(Path(models_dir))}
    first = next(iter(checkpoints.values()))
    _check_explainable(first.experiment.model)
    cohort = open_new(first, Path(results), None)
    splits = read_splits(layout.splits(results))
    held_by = {case_id: fold for fold in range(splits.n_folds) for case_id in splits.cases(fold, TEST)}
    failed = {row.fold: row.reason for row in read_folds(Path(models_dir) / "index.tsv") if row.status != OK}
    wanted = sorted(set(held_by if case_ids is None else case_ids))
    rows = [
        ExplainedCase(case_id, held_by.get(case_id), reason=_no_model(case_id, held_by, failed, splits))
        for case_id in wanted
        if held_by.get(case_id) not in checkpoints
    ]
    for fold, checkpoint in checkpoints.items():
        cases = [case_id for case_id in wanted if held_by.get(case_id) == fold]
        if cases:
            rows += _explain_fold(checkpoint, cohort, splits, cases, Path(out), steps, where, draw)
    write_index(Path(out) / INDEX, rows)
    return sorted(rows, key=lambda row: row.case_id)


def _check_explainable(model: str) -> None:
    if entry(model).task_free or entry(model).needs <= {CLINICAL}:
        why = "learns without a task" if entry(model).task_free else "reads neither genes nor tiles"
        raise InputError(f"model '{model}'", f"it {why}: there is nothing to attribute.", "name another experiment.")


def _no_model(case_id: str, held_by: Mapping[str, int], failed: Mapping[int, str], splits: Splits) -> str:
    if case_id in held_by:
        fold = held_by[case_id]
        return f"fold {fold} was not trained: {failed.get(fold, 'it is not in the index of the models')}"
    if case_id in splits.external:
        return "it is of an external cohort: no single fold holds it out"
    return "no fold holds it out"


def _explain_fold(
    checkpoint: Checkpoint,
    cohort: Cohort,
    splits: Splits,
    case_ids: Sequence[str],
    out: Path,
    steps: int,
    device: torch.device,
    draw: Draw | None,
) -> list[ExplainedCase]:
    check_features(checkpoint, cohort, case_ids)
    if checkpoint.split and checkpoint.split != split_digest(splits, checkpoint.fold):
        raise InputError(
            f"models of experiment '{checkpoint.experiment.name}'",
            f"fold {checkpoint.fold} was trained on other cases than the splits of these results name.",
            "name the results that the models are of, or train them again.",
        )
    model = restored(checkpoint, device).requires_grad_(False)
    rows = []
    for case_id in case_ids:
        row = ExplainedCase(case_id, checkpoint.fold, checkpoint=checkpoint.digest)
        reason = cohort.lacking(case_id, model.needs, model.may_lack)
        if reason:
            rows.append(replace(row, reason=reason))
            continue
        found = explained(model, checkpoint, cohort, case_id, steps, device)
        logger.info("%s: %s, residual %.2g", case_id, found.output, found.attribution.residual)
        files, problems = _write_case(case_id, found, out, draw)
        rows.append(
            replace(
                row,
                output=found.output,
                value=found.attribution.value,
                baseline=found.attribution.baseline,
                residual=found.attribution.residual,
                lacking=cohort.spared(case_id, model.needs, model.may_lack),
                files=tuple(files),
                reason="; ".join(problems),
            )
        )
    return rows


def explained(
    model: Model, checkpoint: Checkpoint, cohort: Cohort, case_id: str, steps: int, device: torch.device
) -> Explanation:
    """Explain one case that has what the model needs, with the restored model of a checkpoint."""
    length = fixed_length(model)
    collate = Collator(cohort, model.needs, checkpoint.selection, model.gene_groups, length, checkpoint.covariates)
    batches = [collate([sample]).to(device) for sample in samples_of(cohort, [case_id], per_slide=length is not None)]
    name, output = chosen_output(model, checkpoint, batches)
    attribution = integrated_gradients(model, batches, output, steps)
    tiles = []
    if batches[0].features is not None:
        named = _names(checkpoint)
        maps = [{named.get(k, k): m[0] / len(batches) for k, m in model.attention_maps(b).items()} for b in batches]
        for number, records in enumerate(cohort.records(case_id)):
            sample = number if length is not None else 0
            batch: Batch | None = batches[sample]
            for depth, record in enumerate(records):
                assert batch is not None
                weights = maps[sample] if depth == 0 else {}
                slide = 0 if length is not None else number
                tiles.append(_tile_map(record, batch, slide, weights, attribution.tiles[sample][depth]))
                batch = batch.coarser
    return Explanation(name, attribution, _genes(checkpoint, batches[0], attribution), tuple(tiles))


@torch.no_grad()
def chosen_output(model: Model, checkpoint: Checkpoint, batches: Sequence[Batch]) -> tuple[str, Output]:
    """The number that is explained, and its name."""
    if checkpoint.intervals is not None:
        return "risk", risk(model, checkpoint.intervals)
    logits = torch.cat([model(batch).logits for batch in batches])
    label = int(softmax(logits).mean(axis=0).argmax())
    return f"margin of {checkpoint.classes[label]}", class_margin(label)


def _names(checkpoint: Checkpoint) -> dict[str, str]:
    """Names of attention maps that the model itself does not know: those of gene families."""
    selection = checkpoint.selection
    if selection is None or checkpoint.experiment.params.get("cut") != FAMILIES:
        return {}
    return {f"{TOKEN}{number}": family for number, family in enumerate(selection.families, start=1)}


def _genes(
    checkpoint: Checkpoint, batch: Batch, attribution: Attribution
) -> dict[str, tuple[tuple[str, ...], float, float]]:
    """Sums over the groups that hold a gene."""
    if checkpoint.selection is None or not bool(batch.has_genes.all()):
        return {}
    found: dict[str, tuple[tuple[str, ...], float, float]] = {}
    for group, shares in attribution.genes.items():
        values = batch.genes[group][0].tolist()
        for gene, value, share in zip(checkpoint.selection.groups[group], values, shares.tolist(), strict=True):
            groups, _, total = found.get(gene, ((), value, 0.0))
            found[gene] = ((*groups, group), value, total + share)
    return found


def _tile_map(
    record: BagRecord, batch: Batch, slide: int, attention: Mapping[str, torch.Tensor], attribution: torch.Tensor
) -> TileMap:
    """The tiles of one slide of a sample; what a model of resampled tiles says of repeats of a tile is added up."""
    assert batch.slide is not None and batch.cell is not None and batch.coords is not None
    rows = (batch.slide[0] == slide).cpu()
    cell = batch.cell[0].cpu()[rows].numpy() + read_cells(record.path)[0].astype(np.int64).min(axis=0)
    _, first, place = np.unique(cell[:, ::-1], axis=0, return_index=True, return_inverse=True)

    def added(values: torch.Tensor) -> np.ndarray:
        return np.bincount(place.ravel(), weights=values.double().cpu()[rows].numpy(), minlength=len(first))

    return TileMap(
        record.slide_id,
        record.magnification,
        batch.coords[0].cpu()[rows].numpy()[first],
        cell[first],
        read_summary(record.path).source.size_level0_px,
        {name: added(weights) for name, weights in attention.items()},
        added(attribution),
    )


def _write_case(case_id: str, found: Explanation, out: Path, draw: Draw | None) -> tuple[list[str], list[str]]:
    """Files written, relative to `out`, and why a picture is missing."""
    files, problems = [], []
    if found.genes:
        files.append(genes_file(case_id))
        rows = [
            {"gene": gene, "groups": ",".join(groups), "value": value, "attribution": share}
            for gene, (groups, value, share) in found.genes.items()
        ]
        write_genes_table(out / files[-1], rows)
    for tiles in found.tiles:
        files.append(tiles_file(case_id, tiles.slide_id, tiles.magnification))
        write_tiles_table(out / files[-1], list(tiles.attention), _tile_rows(tiles))
        if draw is not None:
            picture = tiles_file(case_id, tiles.slide_id, tiles.magnification, "png")
            problem = draw(tiles, out / picture)
            if problem:
                (out / picture).unlink(missing_ok=True)  # one of an earlier run
                problems.append(f"no picture of {tiles.slide_id}: {problem}")
            else:
                files.append(picture)
    return files, list(dict.fromkeys(problems))


def _tile_rows(tiles: TileMap) -> list[dict[str, float]]:
    columns: dict[str, list[float]] = {
        "x": tiles.coords[:, 0].tolist(),
        "y": tiles.coords[:, 1].tolist(),
        "column": tiles.cell[:, 0].tolist(),
        "row": tiles.cell[:, 1].tolist(),
        **{f"{ATTENTION}{name}": weights.tolist() for name, weights in tiles.attention.items()},
        "attribution": tiles.attribution.tolist(),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
