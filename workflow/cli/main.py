"""The command `histoweave`: what is not a DAG. Stages themselves run through Snakemake."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline.contracts.errors import HistoweaveError
from workflow.cli import apply_genes, clean, doctor, explain, export_features, import_features, init, predict


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns its exit status; a `HistoweaveError` is printed without a traceback, status 1."""
    parser = argparse.ArgumentParser(prog="histoweave", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (init, doctor, clean, apply_genes, predict, explain, export_features, import_features):
        # no module can be called `import`
        name = module.__name__.rpartition(".")[2].removesuffix("_features").replace("_", "-")
        command = commands.add_parser(name, description=module.__doc__, help=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except HistoweaveError as error:
        print(f"histoweave {options.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
