"""How long does a large expression table take, from gzip TSV to h5ad, and how much memory?

The table is simulated: gamma-Poisson counts, 20,000 genes x 10,000 samples unless asked otherwise. Each work runs in a
process of its own on one thread of numpy, and is compared with what Arrow, the fastest reader at hand, needs for the
file alone: with its own settings, and with larger blocks of text, whichever is faster.

One command, ``python -m benchmarks.expression_table``; one line per figure: name, ours, what it is compared with, and
how many times better ours is. Exit status 1 if a figure is missed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.tile_reading import Figure

MEMORY_GB = 4.0
READS = 2.0  #: times the reader's time that the whole stage may take


def write_table(path: Path, n_genes: int, n_cases: int, seed: int = 0) -> None:
    """A gzip TSV of simulated counts, genes in rows."""
    draw = np.random.default_rng(seed)
    levels = draw.lognormal(4, 2.2, n_genes)
    with gzip.open(path, "wb", compresslevel=1) as handle:
        handle.write("\t".join(["gene", *(f"SIM-{case:05d}" for case in range(n_cases))]).encode() + b"\n")
        for gene, level in enumerate(levels):
            counts = draw.poisson(draw.gamma(2, level / 2, n_cases))
            handle.write("\t".join([f"GENE{gene:05d}", *map(str, counts.tolist())]).encode() + b"\n")


def prepare(path: Path) -> None:
    from pipeline.expression import ExpressionParams, prepare_expression

    with gzip.open(path, "rt") as handle:
        cases = handle.readline().rstrip("\n").split("\t")[1:]
    prepare_expression(path, path.with_name("expression.h5ad"), ExpressionParams(), cases)


def join(path: Path) -> None:
    from pipeline.expression import ExpressionParams
    from pipeline.expression.samples import table_cases

    with gzip.open(path, "rt") as handle:
        cases = handle.readline().rstrip("\n").split("\t")[1:]
    found, _ = table_cases(str(path), ExpressionParams(), cases)
    assert len(found) == len(cases)


def arrow(path: Path) -> None:
    from pyarrow import csv

    csv.read_csv(path, parse_options=csv.ParseOptions(delimiter="\t"))


def arrow_blocks(path: Path) -> None:
    from pyarrow import csv

    options = csv.ReadOptions(block_size=2**26)
    csv.read_csv(path, read_options=options, parse_options=csv.ParseOptions(delimiter="\t"))


WORKS: dict[str, Callable[[Path], None]] = {
    "prepare": prepare, "join": join, "arrow": arrow, "arrow_blocks": arrow_blocks,
}  # fmt: skip


def measured(work: str, path: Path) -> dict[str, float]:
    """CPU and wall seconds of a work without the start of Python, and the process's largest memory in GB."""
    command = [sys.executable, "-m", "benchmarks.expression_table", "--work", work, "--table", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout.splitlines()[-1])


def _work(work: str, path: Path) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    WORKS[work](path)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    print(json.dumps({**seconds, "memory": used}))


def figures(path: Path) -> list[Figure]:
    ours, joined = measured("prepare", path), measured("join", path)
    readers = {name: measured(name, path) for name in ("arrow", "arrow_blocks")}
    found = []
    for kind in ("cpu", "wall"):
        fastest = min(readers.values(), key=lambda reader: reader[kind])[kind]
        unit = f"s {kind}"
        found.append(
            Figure("gzip TSV to h5ad (read, check, normalise, write)", ours[kind], "Arrow", fastest, unit, 1 / READS)
        )
        found.append(Figure("ids for the cohort report", joined[kind], "Arrow", fastest, unit))
    found.append(Figure("gzip TSV to h5ad, largest memory", ours["memory"], "limit", MEMORY_GB, "GB"))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        _work(options.work, options.table)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simulated.tsv.gz"
        write_table(path, options.genes, options.cases)
        print(f"simulated counts: {options.genes} genes x {options.cases} samples, {path.stat().st_size / 1e6:.0f} MB")
        found = figures(path)
    for figure in found:
        print(figure)
    return 0 if all(figure.holds for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
