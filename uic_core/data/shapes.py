"""Draw the demo's objects: a class is an outline filled with a texture; everything else is random.

Colours, position, scale, tilt, phase, stretch, waviness, light and background are drawn per image. So colour carries
no information: a network has to see texture (early layers) and outline (later ones). Brightness and contrast vary
little; otherwise a network that labels its own images would sort them by contrast first, and sometimes stop there.
Images are drawn with numpy at SUPERSAMPLING times the size and averaged: antialiased, and the same bytes each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating[Any]]

SUPERSAMPLING = 2
_TAU = 2 * np.pi
_TILT = np.deg2rad(18)
"""Largest tilt: upright stripes stay upright, slanted ones slanted. A flip never changes the class."""


def _polygon(x: Plane, y: Plane, radius: float, corners: int, turn: float) -> Plane:
    """Signed field of a regular polygon with its corners at `radius`; positive inside."""
    step = _TAU / corners
    angle = np.mod(np.arctan2(x, -y) + turn, step) - step / 2
    return np.asarray(radius * np.cos(step / 2) - np.hypot(x, y) * np.cos(angle), np.float32)


def _star(x: Plane, y: Plane) -> Plane:
    angle = np.abs(np.mod(np.arctan2(x, -y), _TAU / 5) - _TAU / 10) / (_TAU / 10)
    return np.asarray(0.42 + 0.58 * angle - np.hypot(x, y), np.float32)


def _cross(x: Plane, y: Plane) -> Plane:
    across, along = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
    return np.asarray(np.minimum(0.34 - across, 0.95 - along))


def _crescent(x: Plane, y: Plane) -> Plane:
    return np.asarray(np.minimum(1 - np.hypot(x, y), np.hypot(x - 0.55, y) - 0.72))


def _hourglass(x: Plane, y: Plane) -> Plane:
    return np.asarray(np.minimum(0.15 + 0.75 * abs(y) - abs(x), 0.95 - abs(y)))


# Each outline maps object coordinates (x right, y down, the object fills [-1, 1]) to a field, positive inside.
OUTLINES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "disc": lambda x, y: 1 - np.hypot(x, y),
    "square": lambda x, y: 0.85 - np.maximum(abs(x), abs(y)),
    "triangle": lambda x, y: _polygon(x, y - 0.2, 1.15, 3, 0.0),
    "star": _star,
    "ring": lambda x, y: 0.28 - abs(np.hypot(x, y) - 0.72),
    "cross": _cross,
    "crescent": _crescent,
    "hourglass": _hourglass,
}


def _blotches(u: Plane, v: Plane) -> Plane:
    # Waves in eleven directions: no lattice, no main direction, yet a pure function of the coordinates.
    total = np.zeros_like(u)
    for wave in range(11):
        angle = np.pi * wave / 11
        total += np.sin(0.8 * _TAU * (u * np.cos(angle) + v * np.sin(angle)) + 2.4 * wave * wave)
    return total


def _zigzag(u: Plane, v: Plane) -> Plane:
    return np.asarray(np.sin(_TAU * (v + 1.8 * abs(np.mod(0.7 * u, 1) - 0.5))))


def _dots(u: Plane, v: Plane) -> Plane:
    row = np.floor(v)
    x, y = np.mod(u + 0.5 * np.mod(row, 2), 1) - 0.5, v - row - 0.5
    return np.asarray(0.33 - np.hypot(x, y))


def _grid(u: Plane, v: Plane) -> Plane:
    return np.asarray(0.13 - np.minimum(abs(np.mod(u, 1) - 0.5), abs(np.mod(v, 1) - 0.5)))


def _bricks(u: Plane, v: Plane) -> Plane:
    row = np.floor(v)
    x, y = np.mod(0.55 * u + 0.5 * np.mod(row, 2), 1), v - row
    return np.asarray(0.12 - np.minimum(np.minimum(x, 1 - x) / 0.55, np.minimum(y, 1 - y)))


# Each texture maps coordinates, in units of its period, to a field whose sign picks one of the object's two colours.
# The number is its usual period in object radii: an untrained network first distinguishes fine from coarse.
TEXTURES: dict[str, tuple[Callable[[Plane, Plane], Plane], float]] = {
    "rows": (lambda u, v: np.sin(_TAU * v), 0.26),
    "columns": (lambda u, v: np.sin(_TAU * u), 0.44),
    "checks": (lambda u, v: np.sin(np.pi * u) * np.sin(np.pi * v), 0.6),
    "dots": (_dots, 0.34),
    "rings": (lambda u, v: np.sin(_TAU * np.hypot(u, v)), 0.28),
    "slants": (lambda u, v: np.sin(_TAU * 0.75 * (u + v)), 0.38),
    "blotches": (_blotches, 0.6),
    "grid": (_grid, 0.24),
    "zigzag": (_zigzag, 0.5),
    "bricks": (_bricks, 0.44),
}

KINDS = len(OUTLINES) * len(TEXTURES)
"""Number of distinguishable classes."""


def kind(number: int) -> tuple[str, str]:
    """Return (outline, texture) of class `number` in 0…KINDS-1; every pair occurs once, neighbours differ in both."""
    assert 0 <= number < KINDS
    lap, texture = divmod(number, len(TEXTURES))
    return list(OUTLINES)[(texture + 3 * lap) % len(OUTLINES)], list(TEXTURES)[texture]


@dataclass(frozen=True)
class Thing:
    """One object of class `number`: centre (x, y) and radius in pixels, and its contrast (0…1)."""

    number: int
    x: float
    y: float
    radius: float
    contrast: float = 1.0


def draw(
    random: np.random.Generator, width: int, height: int, things: list[Thing], hint: float = 0.0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw a scene; later things cover earlier ones.

    Args:
        random: the source of all randomness.
        hint: how strongly the background shows the first thing's texture, like a habitat; 0: not at all.

    Returns:
        (image, covers): uint8 [height, width, 3], and bool [n, height, width]: where each thing is, even where a
        later one covers it.
    """
    sample = np.arange(max(width, height) * SUPERSAMPLING, dtype=np.float32) / SUPERSAMPLING + 0.5 / SUPERSAMPLING
    x, y = np.meshgrid(sample[: width * SUPERSAMPLING], sample[: height * SUPERSAMPLING])
    canvas = _background(random, x, y)
    covers = np.zeros((len(things), height, width), np.bool_)
    for number, thing in enumerate(things):
        inside, pattern, rim = _thing(random, thing, x, y)
        if number == 0 and hint:
            canvas += (hint * (pattern - 0.5))[..., None]
        dark, light = _colours(random, thing.contrast)
        paint = dark + (light - dark) * pattern[..., None]
        paint = np.where(rim[..., None], (dark if random.random() < 0.5 else light), paint)
        canvas = np.where(inside[..., None], paint, canvas)
        covers[number] = _shrink(inside.astype(np.float32)) >= 0.5
    canvas *= 1 + 0.15 * _slope(random, x, y)[..., None]
    image = _shrink(canvas)
    image += random.normal(0, random.uniform(0.01, 0.035), image.shape).astype(np.float32)
    return np.asarray(np.clip(image, 0, 1) * 255 + 0.5, np.uint8), covers


def _thing(
    random: np.random.Generator, thing: Thing, x: Plane, y: Plane
) -> tuple[NDArray[np.bool_], Plane, NDArray[np.bool_]]:
    """Return where a thing is, its pattern (0 or 1) on the whole canvas, and where its rim is."""
    outline, texture = kind(thing.number)
    tilt, stretch = random.uniform(-_TILT, _TILT), random.uniform(0.86, 1.16)
    cos, sin = np.float32(np.cos(tilt) / thing.radius), np.float32(np.sin(tilt) / thing.radius)
    dx, dy = x - np.float32(thing.x), y - np.float32(thing.y)
    # Waviness makes two objects of a class differ.
    phases, bend = random.uniform(0, _TAU, 2), random.uniform(0, 0.05)
    a = (cos * dx + sin * dy) * np.float32(stretch)
    b = (cos * dy - sin * dx) / np.float32(stretch)
    a, b = a + bend * np.sin(3 * b + phases[0]), b + bend * np.sin(3 * a + phases[1])
    field = OUTLINES[outline](np.asarray(a, np.float32), np.asarray(b, np.float32))
    rule, period = TEXTURES[texture]
    period *= random.uniform(0.88, 1.12)
    u, v = a / period, b / period
    if texture != "rings":  # rings stay around the object's centre
        u, v = u + random.random(), v + random.random()
    pattern = np.asarray(rule(np.asarray(u, np.float32), np.asarray(v, np.float32)) > 0, np.float32)
    return field > 0, pattern, (field > 0) & (field < 0.05)


def _colours(random: np.random.Generator, contrast: float) -> tuple[Plane, Plane]:
    """Return a dark and a light colour (by mean brightness, which Sobel sees) of random hues, in random order."""
    middle, gap = random.uniform(0.46, 0.54), 0.5 * contrast * random.uniform(0.95, 1.05)
    pair = [_colour(random, middle - gap / 2), _colour(random, middle + gap / 2)]
    return (pair[0], pair[1]) if random.random() < 0.5 else (pair[1], pair[0])


def _colour(random: np.random.Generator, brightness: float) -> Plane:
    """Return a random hue of a given mean brightness: float32 [3]."""
    hue = random.uniform(-1, 1, 3)
    colour = brightness + random.uniform(0.05, 0.25) * (hue - hue.mean())
    return np.asarray(np.clip(colour, 0, 1), np.float32)


def _background(random: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Return a gradient between two similar colours: [height, width, 3]."""
    first, second = _colour(random, random.uniform(0.44, 0.56)), _colour(random, random.uniform(0.44, 0.56))
    return np.asarray(first + (second - first) * (0.5 + 0.5 * _slope(random, x, y)[..., None]), np.float32)


def _slope(random: np.random.Generator, x: Plane, y: Plane) -> Plane:
    """Return a smooth field in [-1, 1] that rises in a random direction."""
    angle, phase = random.uniform(0, _TAU, 2)
    length = np.hypot(x.max(), y.max())
    return np.asarray(np.sin((x * np.cos(angle) + y * np.sin(angle)) * (np.pi / length) + phase), np.float32)


def _shrink(canvas: Plane) -> Plane:
    """Average every SUPERSAMPLING² block: [H, W, …] to [H/s, W/s, …]."""
    height, width = canvas.shape[0] // SUPERSAMPLING, canvas.shape[1] // SUPERSAMPLING
    blocks = canvas.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, *canvas.shape[2:])
    return np.asarray(blocks.mean(axis=(1, 3)), np.float32)
