"""The Slurm profile on a real Slurm, where this machine is a node of one."""

from __future__ import annotations

import shutil
import subprocess

import pytest

SMALL = {"mem_mb": 1500, "runtime": 10}
BIG_RULES = (
    "check_slides", "detect_tissue", "tile_slides", "fit_stains", "embed_tiles", "prepare_expression", "train_model",
    "predict_cases", "build_report",
)  # fmt: skip


def _no_slurm() -> str:
    if shutil.which("sinfo") is None:
        return "no Slurm client on this machine"
    answer = subprocess.run(["sinfo", "--noheader", "--format=%P %t"], capture_output=True, text=True, timeout=20)
    partitions = {line.split()[0].rstrip("*") for line in answer.stdout.splitlines()}
    return "" if {"cpu", "gpu"} <= partitions else "no Slurm with the partitions cpu and gpu answers"


@pytest.mark.full
def test_the_profile_runs_on_a_real_slurm(unrun, tmp_path):
    """As the profile stands, but for what a small node cannot give: memory, CPUs, and a database of accounts."""
    if reason := _no_slurm():
        pytest.skip(reason)
    cohort = unrun.copy(tmp_path / "cohort")
    cohort.edit_config(lambda config: config.update(experiments=config["experiments"][:1]))
    small = [f"{key}={value}" for key, value in SMALL.items()]
    done = cohort.snakemake(
        "--workflow-profile", "workflow/profiles/slurm", "--slurm-no-account", "--slurm-status-command", "squeue",
        "--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "2", "--retries", "0",
        "--default-resources", "slurm_partition=cpu", *small,
        "--set-resources", *(f"{rule}:{key}" for rule in BIG_RULES for key in small),
    )  # fmt: skip
    assert "has been submitted with SLURM jobid" in done.stdout + done.stderr
    assert (cohort.results / "report.html").is_file()
