"""Draw one H&E-like slide: stain amounts of background, stroma, tumour nests and nuclei, then colour."""

from __future__ import annotations

import cv2
import numpy as np

from workflow.simulation.cases import SimulatedCase, SimulatedSlide
from workflow.simulation.stains import BASES, paint

COARSE_UM = 8.0  #: um per pixel at which the shapes of tissue, nests and stroma are laid out

BLUR_UM = 5.0  #: sigma of what is out of focus
FOLD_UM = 55.0


def render_slide(slide: SimulatedSlide, case: SimulatedCase, size: tuple[int, int], seed: int) -> np.ndarray:
    """Render level 0 of a slide.

    Parameters
    ----------
    size : width and height in pixels
    seed : seed of this slide

    Returns
    -------
    uint8 [height, width, RGB]. Nuclear density, size and darkness rise with ``case.tumour``; ``case.tme``
    adds a few lymphocytes to the stroma only.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    um = slide.um_per_px
    coarse = max(8, round(height * um / COARSE_UM)), max(8, round(width * um / COARSE_UM))
    tissue_map = _tissue_shape(rng, coarse) if slide.kind != "blank" else np.full(coarse, -1, np.float32)
    nest_map = _smooth_noise(rng, coarse, 9) + 0.25 * case.tumour + 0.1
    tissue = _enlarge(tissue_map, size) > 0
    nest = _enlarge(nest_map, size) > 0

    h, e = _ground(rng, tissue, nest, um)
    nuclei = _place_nuclei(rng, tissue_map, nest_map, case, um, size)
    h, e = _draw_nuclei(rng, h, e, nuclei, um)
    _draw_lumina(rng, h, e, tissue_map, um)
    h[~tissue], e[~tissue] = 0, 0
    image = paint(cv2.GaussianBlur(h, (0, 0), 0.35 / um), cv2.GaussianBlur(e, (0, 0), 0.35 / um), BASES[case.site])
    if slide.kind == "pen":
        _draw_pen(rng, image, um)
    if slide.kind == "artefacts":
        _draw_fold(image, um, BASES[case.site].white)
        third = width // 3
        image[:, -third:] = cv2.GaussianBlur(image, (0, 0), BLUR_UM / um)[:, -third:]
    if slide.kind == "blurred":
        image = cv2.GaussianBlur(image, (0, 0), BLUR_UM / um)
    return image


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.standard_normal(shape, dtype=np.float32), (0, 0), sigma)
    return (noise - noise.mean()) / (noise.std() + 1e-6)


def _enlarge(coarse: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)


def _tissue_shape(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Positive inside tissue: two or three wavy pieces, at `COARSE_UM` per pixel, off the slide's edge."""
    rows, columns = np.mgrid[0 : 1 : shape[0] * 1j, 0 : 1 : shape[1] * 1j].astype(np.float32)
    wave = 0.10 * _smooth_noise(rng, shape, 10) + 0.03 * _smooth_noise(rng, shape, 3)
    pieces = [(0.45, 0.40, 0.34, 0.36), (0.66, 0.82, 0.24, 0.13)]
    if rng.random() < 0.5:
        pieces.append((0.14, 0.84, 0.09, 0.10))
    flip = rng.random(2) < 0.5
    inside = np.full(shape, -1, np.float32)
    for row, column, half_height, half_width in pieces:
        row, column = (1 - row if flip[0] else row), (1 - column if flip[1] else column)
        distance = np.hypot((rows - row) / half_height, (columns - column) / half_width)
        inside = np.maximum(inside, 1 - distance + wave)
    edge = np.minimum.reduce([rows, 1 - rows, columns, 1 - columns])
    return np.where(edge < 0.02, -1, inside).astype(np.float32)


def _ground(rng: np.random.Generator, tissue: np.ndarray, nest: np.ndarray, um: float) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin (hundredths) of all but nuclei: fibrous stroma and paler, bluish nests."""
    shape = tissue.shape
    grain = rng.integers(0, 256, shape, dtype=np.uint8)
    fibres = cv2.blur(grain, (max(3, round(18 / um)), max(1, round(1 / um))))
    fibres = _warp(rng, fibres, um)
    speckle = cv2.GaussianBlur(grain, (0, 0), 0.7 / um)
    patchy = _enlarge(_smooth_noise(rng, (max(2, shape[0] // 64), max(2, shape[1] // 64)), 2), shape[::-1])
    h = np.full(shape, 7, np.uint8)
    h[nest] = 26
    h = cv2.add(h, cv2.convertScaleAbs(speckle, alpha=0.14, beta=-12))
    stroma = cv2.convertScaleAbs(fibres, alpha=2.1, beta=-214)
    nests = cv2.convertScaleAbs(speckle, alpha=0.75, beta=-60)
    e = np.where(nest, nests, stroma)
    e = cv2.add(e, np.clip(9 * patchy + 6, 0, 40).astype(np.uint8))
    h[~tissue], e[~tissue] = 0, 0
    return h, e


def _warp(rng: np.random.Generator, fibres: np.ndarray, um: float) -> np.ndarray:
    """Bend horizontal fibres: shift every column up or down by a smooth curve (pixels)."""
    height, width = fibres.shape
    knots = _smooth_noise(rng, (1, max(4, width // 128)), 1.5)
    shift = cv2.resize(knots, (width, 1), interpolation=cv2.INTER_CUBIC)[0] * 30 / um
    rows = (np.arange(height, dtype=np.int32)[:, None] + shift.astype(np.int32)[None, :]) % height
    return np.take_along_axis(fibres, rows, axis=0)


def _draw_lumina(rng: np.random.Generator, h: np.ndarray, e: np.ndarray, tissue_map: np.ndarray, um: float) -> None:
    """Open white gaps and small vessels with red cells into the tissue, in place."""
    rows, columns = np.nonzero(tissue_map > 0.1)
    if rows.size == 0:
        return
    for i in rng.integers(0, rows.size, max(1, rows.size // 360)):
        centre = round(columns[i] * COARSE_UM / um), round(rows[i] * COARSE_UM / um)
        axes = tuple(int(a) for a in rng.uniform(6, 22, 2) / um)
        angle = float(rng.uniform(0, 180))
        is_vessel = rng.random() < 0.4
        if is_vessel:
            cv2.ellipse(e, centre, tuple(a + round(4 / um) for a in axes), angle, 0, 360, 105, -1, cv2.LINE_AA)
        cv2.ellipse(e, centre, axes, angle, 0, 360, 150 if is_vessel else 3, -1, cv2.LINE_AA)
        cv2.ellipse(h, centre, axes, angle, 0, 360, 0, -1, cv2.LINE_AA)


def _place_nuclei(
    rng: np.random.Generator,
    tissue_map: np.ndarray,
    nest_map: np.ndarray,
    case: SimulatedCase,
    um: float,
    size: tuple[int, int],
) -> np.ndarray:
    """Jittered lattice: float [nucleus, (x, y, long and short radius in um, angle in degrees, darkness)]."""
    burden = float(np.tanh(case.tumour / 1.5))
    spacing = 13.0 - 3.0 * burden
    width, height = (side * um for side in size)
    x, y = np.meshgrid(np.arange(0, width, spacing), np.arange(0, height, spacing))
    x = (x + rng.uniform(-0.42, 0.42, x.shape) * spacing).ravel()
    y = (y + rng.uniform(-0.42, 0.42, y.shape) * spacing).ravel()
    row = np.clip((y / COARSE_UM).astype(int), 0, tissue_map.shape[0] - 1)
    column = np.clip((x / COARSE_UM).astype(int), 0, tissue_map.shape[1] - 1)
    in_tissue, in_nest = tissue_map[row, column] > 0.01, nest_map[row, column] > 0
    kept = in_tissue & (rng.random(x.size) < np.where(in_nest, 0.85, 0.22))
    x, y, in_nest = x[kept], y[kept], in_nest[kept]
    n = x.size
    is_lymphocyte = ~in_nest & (rng.random(n) < 0.15 + 0.1 * np.tanh(case.tme))
    radius = np.where(in_nest, 3.7 + 0.9 * burden, 2.6) * np.exp(rng.normal(0, 0.14, n))
    radius[is_lymphocyte] = 2.7
    stretch = np.where(in_nest, rng.uniform(1.0, 1.45, n), rng.uniform(1.6, 2.8, n))
    stretch[is_lymphocyte] = 1.05
    darkness = np.where(in_nest, 92 + 18 * burden, 100) + rng.normal(0, 13, n)
    darkness[is_lymphocyte] = 150
    angle = np.where(in_nest, rng.uniform(0, 180, n), rng.normal(0, 22, n))
    return np.stack([x, y, radius * np.sqrt(stretch), radius / np.sqrt(stretch), angle, darkness], axis=1)


def _draw_nuclei(
    rng: np.random.Generator, h: np.ndarray, e: np.ndarray, nuclei: np.ndarray, um: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw nuclei with a darker rim and chromatin texture; eosin is thinner under them."""
    dye = np.zeros_like(h)
    fixed_point = 4
    scale = 2**fixed_point / um
    for x, y, long, short, angle, darkness in nuclei:
        centre = int(x * scale), int(y * scale)
        axes = int(long * scale), int(short * scale)
        inner = int((long - 0.6) * scale), int((short - 0.6) * scale)
        rim, body = int(min(230, darkness + 28)), int(min(220, max(30, darkness)))
        cv2.ellipse(dye, centre, axes, angle, 0, 360, rim, -1, cv2.LINE_8, fixed_point)
        cv2.ellipse(dye, centre, inner, angle, 0, 360, body, -1, cv2.LINE_8, fixed_point)
    grain = cv2.GaussianBlur(rng.integers(0, 256, h.shape, dtype=np.uint8), (0, 0), 0.6 / um)
    chromatin = cv2.multiply(dye, grain, scale=1 / 128)
    is_nucleus = dye > 0
    return np.maximum(h, chromatin), np.where(is_nucleus, e // 3, e).astype(np.uint8)


def _draw_pen(rng: np.random.Generator, image: np.ndarray, um: float) -> None:
    """Draw a green, slightly translucent marker line across glass and the rim of the tissue, in place."""
    height, width = image.shape[:2]
    t = np.linspace(0, 1, 60)
    x = width * (0.04 + 0.34 * t)
    y = height * (0.10 + 0.07 * np.sin(5 * t + rng.uniform(0, 1)) + 0.16 * t)
    ink = np.zeros((height, width), np.uint8)
    line = np.stack([x, y], axis=1).astype(np.int32).reshape(-1, 1, 2)
    cv2.polylines(ink, [line], False, 255, round(45 / um), cv2.LINE_AA)
    marked = ink > 0
    transmitted = np.array([0.13, 0.58, 0.35])
    image[marked] = (image[marked] * (1 - ink[marked, None] / 255 * (1 - transmitted))).astype(np.uint8)


def _draw_fold(image: np.ndarray, um: float, white: tuple[float, float, float]) -> None:
    """Lay the tissue over itself along a line from the left to beyond the middle, in place: densities double."""
    height, width = image.shape[:2]
    fold = np.zeros((height, width), np.uint8)
    start, stop = (round(0.02 * width), round(0.3 * height)), (round(0.7 * width), round(0.65 * height))
    cv2.line(fold, start, stop, 1, round(FOLD_UM / um))
    doubled = fold > 0
    image[doubled] = np.minimum(image[doubled].astype(np.float32) ** 2 / np.asarray(white, np.float32), 255)
