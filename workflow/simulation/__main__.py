"""Command line: ``python -m workflow.simulation demo/data --slide-root data/slides``."""

from __future__ import annotations

import argparse
import logging

from workflow.simulation.cases import SimulationParams
from workflow.simulation.cohort import simulate_cohort


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m workflow.simulation", description=__doc__)
    parser.add_argument("out_dir", help="folder to write slides.tsv, cases.tsv, rna.tsv.gz and slides/ to")
    parser.add_argument("--patients", type=int, default=SimulationParams.patients)
    parser.add_argument("--seed", type=int, default=SimulationParams.seed)
    parser.add_argument("--size", type=int, default=SimulationParams.size_px, help="mean slide side in pixels")
    parser.add_argument("--genes", type=int, default=SimulationParams.genes)
    parser.add_argument("--slide-root", default="", help="prefix of slide paths in slides.tsv (default OUT_DIR/slides)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    params = SimulationParams(options.patients, options.seed, options.size, options.genes)
    written = simulate_cohort(options.out_dir, params, options.slide_root)
    state = "written" if written else "is up to date"
    print(f"{options.out_dir}: simulated cohort of {options.patients} patients {state}")


if __name__ == "__main__":
    main()
