"""Stain normalisation, in CPU time: the fit against spams, repainting against staintools and torchstain.

Run as ``OMP_NUM_THREADS=1 python -m benchmarks.stain``. One line per figure, as in `benchmarks.tile_reading`; exit
status 1 if a figure is missed. torchstain (not among the requirements) is timed where it is installed, for information.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import openslide
import spams
from PIL import Image
from staintools import StainNormalizer

from benchmarks.generated_slide import tissue
from benchmarks.tile_reading import REAL, TILE_PX, Figure, cpu_seconds, fastest, one_core
from pipeline.contracts.stains import StainColours, colours_from
from pipeline.stain_fit import estimate_white, fit_native, pool_pixels
from pipeline.stain_separation import classify_pixels, optical_density
from pipeline.stain_transfer import BUILTIN_TARGET, StainTransfer

FIELDS = REAL.parents[1] / "he-patches"
FIT_PIXELS = 50_000
SLIDE_TILES = 2000
PEER_TILES = 20  # staintools' time for a slide is extrapolated from these
SPAMS_STEPS = 5000  # until its dictionary stands still
NOISE = 2.0  # grey levels (standard deviation): no two tiles of a slide are equal
WHITE = np.full(3, 255.0)


def real_tiles(path: Path) -> list[np.ndarray]:
    """The whole tiles of a slide's level 0 that tissue fills by half or more, uint8 [TILE_PX, TILE_PX, 3]."""
    with openslide.OpenSlide(path) as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    height, width = pixels.shape[:2]
    corners = [(x, y) for y in range(0, height - TILE_PX, TILE_PX) for x in range(0, width - TILE_PX, TILE_PX)]
    tiles = (np.ascontiguousarray(pixels[y : y + TILE_PX, x : x + TILE_PX]) for x, y in corners)
    return [tile for tile in tiles if classify_pixels(tile, WHITE).stained.mean() >= 0.5]


def noisy(tiles: list[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """`count` tiles: `tiles` over and over with noise that never repeats, the first time without."""
    rng = np.random.default_rng(0)
    for index in range(count):
        tile = tiles[index % len(tiles)]
        if index >= len(tiles):
            tile = np.clip(np.rint(tile + rng.normal(0, NOISE, tile.shape)), 0, 255).astype(np.uint8)
        yield tile


def fit_figures(name: str, fields: list[np.ndarray]) -> list[Figure]:
    """Time of a fit from `FIT_PIXELS` pixels of `fields`, and how far it is from spams run to its end."""
    white, _ = estimate_white(np.concatenate([field.reshape(-1, 3) for field in fields])[:, None])
    pixels, _ = pool_pixels(fields, white, FIT_PIXELS, 0)
    (seconds,) = fastest(lambda: cpu_seconds(fit_native, pixels, white, "vahadane"))
    label = f"{name}: Vahadane fit from {len(pixels)} pixels"
    return [
        Figure(label, seconds, "limit", 0.2, "CPU-s"),
        Figure(f"{label}, from spams", spams_angle(pixels, white), "limit", 2.0, "degrees"),
    ]


def spams_angle(pixels: np.ndarray, white: np.ndarray) -> float:
    """Largest angle (degrees) between a stain of ours and spams' for pixels uint8 [pixels, 3]."""
    learnt = spams.trainDL(
        X=np.asfortranarray(optical_density(pixels, white).T), K=2, lambda1=0.1, mode=2, modeD=0, posAlpha=True,
        posD=True, verbose=False, iter=SPAMS_STEPS, numThreads=1,
    ).T  # fmt: skip
    theirs = learnt / np.sqrt((learnt**2).sum(axis=1, keepdims=True))
    theirs = theirs if theirs[0, 0] > theirs[1, 0] else theirs[::-1]
    cosines = (fit_native(pixels, white, "vahadane").matrix * theirs).sum(axis=1)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


class Given:
    """An extractor for staintools that knows the matrix."""

    def __init__(self, colours: StainColours) -> None:
        self._matrix = np.array(colours.matrix)

    def get_stain_matrix(self, image: np.ndarray) -> np.ndarray:
        return self._matrix


def staintools_transform(source: StainColours) -> Callable[[np.ndarray], np.ndarray]:
    """Its transform with both matrices given: concentrations, their percentile in the tile, and painting."""
    normaliser = StainNormalizer("vahadane")
    normaliser.extractor = Given(source)
    normaliser.stain_matrix_target = np.array(BUILTIN_TARGET.matrix)
    normaliser.maxC_target = np.array([BUILTIN_TARGET.concentrations])
    return normaliser.transform


def torchstain_transform(target: np.ndarray) -> Callable[[np.ndarray], object] | None:
    """torchstain's Macenko (torch backend), which fits each tile anew; None where it is not installed."""
    if importlib.util.find_spec("torchstain") is None:
        return None
    import torch
    from torchstain import normalizers

    torch.set_num_threads(1)

    def tensor(tile: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(tile).permute(2, 0, 1).float()

    normaliser = normalizers.MacenkoNormalizer(backend="torch")
    normaliser.fit(tensor(target))
    return lambda tile: normaliser.normalize(I=tensor(tile), stains=False)


def apply_figures(name: str, tiles: list[np.ndarray], slide_tiles: int) -> list[Figure]:
    """One tile by a transfer of its own, a slide of `slide_tiles` tiles by one transfer, and torchstain beside."""
    white, _ = estimate_white(np.concatenate(tiles))
    pixels, _ = pool_pixels(tiles, white, FIT_PIXELS, 0)
    found = fit_native(pixels, white, "vahadane")
    source = colours_from(found.matrix, found.concentrations, white)
    theirs, chosen = staintools_transform(source), tiles[:: -(-len(tiles) // PEER_TILES)]

    def one_by_one() -> float:
        return sum(cpu_seconds(lambda t: StainTransfer(source, BUILTIN_TARGET)(t), tile) for tile in chosen)

    def peer() -> float:
        return sum(cpu_seconds(theirs, tile.copy()) for tile in chosen)

    def whole_slide() -> float:
        transfer = StainTransfer(source, BUILTIN_TARGET)
        return sum(cpu_seconds(transfer, tile) for tile in noisy(tiles, slide_tiles))

    ours, other = (seconds / len(chosen) * 1e3 for seconds in fastest(one_by_one, peer))
    (slide,) = fastest(whole_slide)
    label = f"{name}: slide of {slide_tiles} tiles, staintools extrapolated from {len(chosen)}"
    figures = [
        Figure(f"{name}: repainting one {TILE_PX}-px tile", ours, "staintools", other, "CPU-ms", 15.0),
        Figure(label, slide, "staintools", other * slide_tiles / 1e3, "CPU-s", 50.0),
        Figure(f"{name}: largest difference", largest_difference(chosen, pixels), "limit", 1.0, "levels"),
    ]
    torchstain = torchstain_transform(tiles[0])
    if torchstain:
        (seconds,) = fastest(lambda: sum(cpu_seconds(torchstain, tile) for tile in chosen))
        macenko = seconds / len(chosen) * 1e3
        figures.append(Figure(f"{name}: one tile, Macenko fit included", ours, "torchstain", macenko, "CPU-ms", 0.0))
    return figures


def largest_difference(tiles: list[np.ndarray], pixels: np.ndarray) -> float:
    """Grey levels between ours and staintools', which knows no white but 255 and takes percentiles tile by tile."""
    found, worst = fit_native(pixels, WHITE, "vahadane"), 0
    for tile in tiles:
        tile = np.maximum(tile, 1)
        normaliser = staintools_transform(colours_from(found.matrix, found.concentrations, WHITE))
        theirs = normaliser(tile.copy())
        strengths = tile_percentiles(tile, found.matrix)
        ours = StainTransfer(colours_from(found.matrix, strengths, WHITE), BUILTIN_TARGET)(tile)
        worst = max(worst, int(cv2.absdiff(ours, theirs).max()))
    return float(worst)


def tile_percentiles(tile: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    from staintools.miscellaneous.get_concentrations import get_concentrations

    return np.percentile(get_concentrations(tile.copy(), matrix), 99, axis=0)


def run(real: Path, fields: Path, slide_tiles: int = SLIDE_TILES) -> list[Figure]:
    """All figures; those of the real slide and fields are left out where they are absent."""
    rng = np.random.default_rng(0)
    generated = [tissue(rng) for _ in range(40)]
    figures = fit_figures("generated", generated) + apply_figures("generated", generated, slide_tiles)
    if real.exists():
        tiles = real_tiles(real)
        figures += fit_figures(real.stem, tiles) + apply_figures(real.stem, tiles, slide_tiles)
    angles = {path.name: _field_angle(path) for path in sorted(fields.glob("*")) if path.suffix in (".png", ".tif")}
    known = {name: angle for name, angle in angles.items() if angle is not None}
    if known:
        name = f"{len(known)} real fields: Vahadane fit, the farthest from spams"
        figures.append(Figure(name, max(known.values()), "limit", 2.0, "degrees"))
    return figures


def _field_angle(path: Path) -> float | None:
    """`spams_angle` of a field; None where ink or glass leave fewer pixels than a fit takes."""
    with Image.open(path) as image:
        field = np.asarray(image.convert("RGB"))
    white, _ = estimate_white(field)
    pixels, _ = pool_pixels([field], white, FIT_PIXELS, 0)
    return spams_angle(pixels, white) if len(pixels) >= 500 else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stain", description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, default=REAL, help="CMU-1-Small-Region.svs, left out where absent")
    parser.add_argument("--fields", type=Path, default=FIELDS, help="folder of H&E fields, left out where absent")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    with one_core():  # spams starts a thread per processor
        figures = run(options.real, options.fields)
    for figure in figures:
        print(figure)
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
