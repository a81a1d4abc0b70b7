"""What trained models looked at: attention maps, and attributions of genes and tiles, case by case."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.contracts import layout
from pipeline.contracts.errors import HistoweaveError
from pipeline.contracts.slides import read_slide_facts
from pipeline.overlays import PICTURE_PX, draw_values, write_picture
from pipeline.slide import open_checked

if TYPE_CHECKING:
    from models.explain import TileMap

HELP = "which genes and tiles trained models looked at"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=Path, required=True, help="results/models/{task}/{experiment} of the run")
    parser.add_argument("--results", type=Path, default=Path("results"), help="results of the run (default: results)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; index.tsv in it lists the files")
    parser.add_argument("--case", nargs="+", help="cases to explain (default: all that a fold holds out)")
    parser.add_argument("--steps", type=int, default=32, help="points on the path of the attribution (default: 32)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run(options: argparse.Namespace) -> int:
    from models.explain import explain_cases

    rows = explain_cases(
        options.models, options.results, options.out, options.case, options.steps, options.device,
        picture_of(options.results),
    )  # fmt: skip
    explained = [row for row in rows if row.files]
    for row in rows:
        if row.reason:
            print(f"{row.case_id}: {'' if row.files else 'not explained: '}{row.reason}")
    print(f"{len(explained)} of {len(rows)} cases explained; {options.out / 'index.tsv'} lists the files.")
    return 0 if explained and (not options.case or len(explained) == len(rows)) else 1


def picture_of(results: Path) -> Callable[[TileMap, Path], str]:
    """What draws the tiles of a slide on its thumbnail: the first attention map, or attributions where there is none.

    It returns why there is no picture, or an empty string.
    """

    def draw(tiles: TileMap, path: Path) -> str:
        facts_path = layout.slide_facts(results, tiles.slide_id)
        try:
            facts = read_slide_facts(facts_path)
            with open_checked(facts) as slide:
                longest_um = max(side * um for side, um in zip(slide.dimensions, slide.um_per_px, strict=True))
                rgb, _ = slide.thumbnail(longest_um / PICTURE_PX)
        except FileNotFoundError as error:
            return f"{error.filename or error} is not there"
        except (HistoweaveError, OSError) as error:
            return str(error)
        attention = next(iter(tiles.attention), None)
        values = tiles.attribution if attention is None else tiles.attention[attention]
        title = "attribution" if attention is None else f"attention: {attention}"
        places = tiles.coords, tiles.size_level0_px
        write_picture(path, draw_values(rgb, facts.dimensions, *places, values, title, attention is None))
        return ""

    return draw
