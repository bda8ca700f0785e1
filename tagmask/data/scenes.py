"""The demo's scenes: textured objects of six classes on textured grounds, drawn with numpy alone.

The scenes hold the trap that weak labels fall into in real photos: boats are nearly always on water, and water
nearly never without a boat, so a classifier may learn the water.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
Rng = np.random.Generator
Parts = list[tuple[Array, Array]]

TRAP_CLASS, TRAP_GROUND = "boat", "water"
TRAP = 0.95
EMPTY = 0.05
VISIBLE = 0.55


def scene(rng: Rng, height: int, width: int) -> tuple[Array, Array]:
    """Draw one scene: image uint8 (H,W,3) and labels uint8 (H,W), 0 ground, i+1 for ``CLASSES[i]``.

    One to three classes with one or two objects each, or none in one scene of twenty. At least 55 % of every object
    that is in the picture stays visible.
    """
    names: list[str] = []
    if rng.random() >= EMPTY:
        count = rng.choice([1, 2, 3], p=[0.45, 0.4, 0.15])
        names = [str(n) for n in rng.choice(list(OBJECTS), size=count, replace=False)]
    ground = _pick_ground(rng, TRAP_CLASS in names)
    image = GROUNDS[ground](rng, height, width)
    owner = np.full((height, width), -1)
    labels = np.zeros((height, width), dtype=np.uint8)
    areas: list[int] = []
    for name in names:
        for _ in range(int(rng.integers(1, 3))):
            drawn = _place_object(rng, name, owner, areas, height, width)
            if drawn is None:
                continue
            alpha, colour = drawn
            image = image * (1 - 0.35 * _shadow(alpha))[..., None]
            image = image * (1 - alpha[..., None]) + colour * alpha[..., None]
            solid = alpha >= 0.5
            owner[solid], labels[solid] = len(areas), 1 + list(OBJECTS).index(name)
            areas.append(int(solid.sum()))
    return _expose(rng, image), labels


def _pick_ground(rng: Rng, trap: bool) -> str:
    others = [name for name in GROUNDS if name != TRAP_GROUND]
    on_trap = rng.random() < (TRAP if trap else 1 - TRAP)
    return TRAP_GROUND if on_trap else others[int(rng.integers(len(others)))]


def _place_object(
    rng: Rng, name: str, owner: Array, areas: Sequence[int], height: int, width: int
) -> tuple[Array, Array] | None:
    """Alpha (H,W) and colour (H,W,3) of an object at a random place that hides no other too much, or None."""
    for _ in range(20):
        radius = rng.uniform(0.14, 0.32) * min(height, width)
        x, y = rng.uniform(0.12, 0.88, size=2) * (width, height)
        alpha, colour = _draw(rng, name, radius, x, y, height, width)
        solid = alpha >= 0.5
        left = np.bincount(owner[~solid & (owner >= 0)], minlength=len(areas))
        if solid.sum() >= 0.006 * height * width and all(n >= VISIBLE * area for n, area in zip(left, areas)):
            return alpha, colour
    return None


def _draw(rng: Rng, name: str, radius: float, x: float, y: float, height: int, width: int) -> tuple[Array, Array]:
    paint, tilt = OBJECTS[name]
    angle = rng.uniform(-tilt, tilt)
    mirror = -1 if rng.random() < 0.5 else 1
    # Two by two points a pixel, averaged: smooth edges.
    ys, xs = np.mgrid[0 : 2 * height, 0 : 2 * width] / 2 + 0.25
    reach = 1.5 * radius
    top, bottom = max(0, int(y - reach)), min(height, int(y + reach) + 1)
    left, right = max(0, int(x - reach)), min(width, int(x + reach) + 1)
    inside = np.s_[2 * top : 2 * bottom, 2 * left : 2 * right]
    dx, dy = (xs[inside] - x) / radius, (ys[inside] - y) / radius
    u = mirror * (np.cos(angle) * dx + np.sin(angle) * dy)
    v = -np.sin(angle) * dx + np.cos(angle) * dy
    cover, paint_colour = np.zeros(u.shape, dtype=bool), np.zeros((*u.shape, 3))
    for shape, colour in paint(rng, u, v):
        cover |= shape
        paint_colour = np.where(shape[..., None], colour, paint_colour)
    alpha, colour = np.zeros((height, width)), np.zeros((height, width, 3))
    share = _halve(cover.astype(float))
    alpha[top:bottom, left:right] = share
    colour[top:bottom, left:right] = _halve(paint_colour * cover[..., None]) / np.maximum(share, 1e-9)[..., None]
    return alpha, colour


def _halve(values: Array) -> Array:
    return (values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]) / 4


def _shadow(alpha: Array) -> Array:
    moved = np.zeros_like(alpha)
    moved[4:, 3:] = alpha[:-4, :-3]
    for axis in (0, 1):
        moved = np.stack([np.roll(moved, k, axis) for k in range(-2, 3)]).mean(0)
    return moved


def _expose(rng: Rng, image: Array) -> Array:
    """Uneven light, a colour cast and sensor noise; to uint8."""
    height, width = image.shape[:2]
    light = rng.uniform(0.85, 1.1) + 0.3 * (smooth_noise(rng, height, width, 64) - 0.5)
    image = image * light[..., None] * rng.uniform(0.94, 1.06, size=3)
    image = image + rng.normal(0, 0.015, size=image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def smooth_noise(rng: Rng, height: int, width: int, cell: float, stretch: float = 1.0) -> Array:
    """Random values in [0,1] on a grid of ``cell`` pixels (``stretch`` times as wide), joined smoothly, (H,W)."""
    ys, xs = np.arange(height) / cell, np.arange(width) / (cell * stretch)
    grid = rng.random((int(ys[-1]) + 2, int(xs[-1]) + 2))
    y0, x0 = ys.astype(int), xs.astype(int)
    fy, fx = (t * t * (3 - 2 * t) for t in (ys - y0, xs - x0))
    fy, fx = fy[:, None], fx[None, :]
    upper = grid[y0][:, x0] * (1 - fx) + grid[y0][:, x0 + 1] * fx
    lower = grid[y0 + 1][:, x0] * (1 - fx) + grid[y0 + 1][:, x0 + 1] * fx
    return upper * (1 - fy) + lower * fy


def _mix(low: Sequence[float] | Array, high: Sequence[float] | Array, t: Array) -> Array:
    return np.asarray(low) + (np.asarray(high) - np.asarray(low)) * np.clip(t, 0, 1)[..., None]


def _vary(rng: Rng, colour: Sequence[float], amount: float = 0.06) -> Array:
    return np.clip(np.asarray(colour) + rng.uniform(-amount, amount, size=3), 0, 1)


def _water(rng: Rng, h: int, w: int) -> Array:
    swell = smooth_noise(rng, h, w, 7, 4)
    waves = 0.5 + 0.5 * np.sin(np.arange(h)[:, None] * rng.uniform(0.5, 0.8) + 9 * swell)
    body = _mix(_vary(rng, (0.05, 0.28, 0.45)), _vary(rng, (0.16, 0.5, 0.66)), smooth_noise(rng, h, w, 40))
    return _mix((0, 0, 0), (0.3, 0.34, 0.34), waves**4) + body


def _grass(rng: Rng, h: int, w: int) -> Array:
    blades = 0.6 * smooth_noise(rng, h, w, 5, 0.4) + 0.4 * rng.random((h, w))
    base = _mix(_vary(rng, (0.2, 0.36, 0.08)), _vary(rng, (0.5, 0.68, 0.25)), blades)
    return base * (0.8 + 0.4 * smooth_noise(rng, h, w, 30))[..., None]


def _sand(rng: Rng, h: int, w: int) -> Array:
    dunes = smooth_noise(rng, h, w, 22, 3)
    grain = rng.random((h, w))
    return _mix(_vary(rng, (0.68, 0.55, 0.36)), _vary(rng, (0.9, 0.8, 0.6)), 0.65 * dunes + 0.35 * grain)


def _paving(rng: Rng, h: int, w: int) -> Array:
    side = int(rng.integers(16, 30))
    y, x = np.mgrid[:h, :w] + int(rng.integers(side))
    x = x + (y // side % 2) * (side // 2)
    tones = rng.random((h // side + 4, w // side + 4))[y // side, x // side]
    stone = _mix(_vary(rng, (0.42, 0.42, 0.44)), _vary(rng, (0.66, 0.65, 0.63)), 0.6 * tones + 0.4 * rng.random((h, w)))
    joint = (y % side < 2) | (x % side < 2)
    return np.where(joint[..., None], 0.25, stone)


def _snow(rng: Rng, h: int, w: int) -> Array:
    drifts = 0.7 * smooth_noise(rng, h, w, 30, 2) + 0.3 * smooth_noise(rng, h, w, 4)
    return _mix(_vary(rng, (0.7, 0.78, 0.88), 0.03), (0.97, 0.97, 0.98), drifts)


def _boat(rng: Rng, u: Array, v: Array) -> Parts:
    wood, stripe = _vary(rng, (0.45, 0.24, 0.1)), _vary(rng, (0.8, 0.15, 0.12), 0.12)
    hull = (v > 0.3) & (v < 0.75) & (np.abs(u) < 0.98 - 0.75 * (v - 0.3))
    planks = _mix(wood * 0.55, wood * 1.35, 0.5 + 0.5 * np.sin(v * 42))
    mast = (np.abs(u) < 0.035) & (v > -0.98) & (v < 0.35)
    right = (u > 0.06) & (v < 0.2) & (u < 0.06 + 0.68 * (v + 0.95))
    left = (u < -0.06) & (v < 0.2) & (-u < 0.06 + 0.5 * (v + 0.65))
    bands = np.where((np.sin(v * 16) > 0.2)[..., None], stripe, (0.96, 0.95, 0.9))
    return [(mast, np.array((0.3, 0.2, 0.12))), (right, bands), (left, bands * 0.9), (hull, planks)]


def _ball(rng: Rng, u: Array, v: Array) -> Parts:
    r = np.hypot(u, v) / 0.78
    paints = np.array([(0.9, 0.15, 0.15), (0.98, 0.85, 0.1), (0.1, 0.35, 0.85), (0.97, 0.97, 0.97)])
    rng.shuffle(paints)
    around = np.arctan2(v + 0.2, u + 0.15) / (2 * np.pi) + rng.random()
    colour = paints[(np.floor(around * 6).astype(int) % 6) % 4]
    light = 0.55 + 0.5 * np.sqrt(np.clip(1 - r**2, 0, 1)) + 0.25 * np.exp(-((u + 0.3) ** 2 + (v + 0.35) ** 2) / 0.04)
    return [(r < 1, np.clip(colour * light[..., None], 0, 1))]


def _tree(rng: Rng, u: Array, v: Array) -> Parts:
    needles = _vary(rng, (0.08, 0.3, 0.17), 0.04)
    speckle = rng.random(u.shape) * 0.6 + 0.4 * (0.5 + 0.5 * np.sin(u * 35 + v * 23))
    leaves = _mix(needles * 0.35, needles * 1.9, speckle)
    trunk = (np.abs(u) < 0.13) & (v > 0.5) & (v < 0.98)
    bark = _mix((0.2, 0.12, 0.06), (0.45, 0.3, 0.18), 0.5 + 0.5 * np.sin(u * 60))
    tiers = [(v > top) & (v < top + tall) & (np.abs(u) < (v - top) * slope) for top, tall, slope in TIERS]
    return [(trunk, bark), (tiers[2], leaves * 0.85), (tiers[1], leaves), (tiers[0], leaves * 1.15)]


TIERS = ((-0.98, 0.6, 0.75), (-0.62, 0.72, 0.85), (-0.2, 0.8, 0.9))


def _mushroom(rng: Rng, u: Array, v: Array) -> Parts:
    red = _vary(rng, (0.78, 0.1, 0.08), 0.1)
    stem = (np.abs(u) < 0.2 + 0.12 * np.clip(v, 0, 1) ** 2) & (v > -0.05) & (v < 0.9)
    gills = _mix((0.75, 0.68, 0.55), (0.97, 0.93, 0.82), 0.5 + 0.5 * np.sin(u * 30))
    cap = ((u / 0.92) ** 2 + ((v - 0.1) / 0.9) ** 2 < 1) & (v < 0.1)
    shade = red * (1.1 - 0.45 * np.clip((v + 0.8) / 0.9, 0, 1))[..., None]
    parts = [(stem, gills), (cap, shade)]
    for x, y, size in (
        (0, -0.5, 0.13),
        (-0.45, -0.3, 0.12),
        (0.45, -0.32, 0.12),
        (-0.15, -0.12, 0.1),
        (0.7, -0.06, 0.09),
    ):
        spot = np.hypot(u - x - rng.uniform(-0.08, 0.08), (v - y) * 1.2) < size * rng.uniform(0.8, 1.2)
        parts.append((spot & cap, np.array((0.97, 0.95, 0.9))))
    return parts


def _house(rng: Rng, u: Array, v: Array) -> Parts:
    brick = _vary(rng, (0.66, 0.3, 0.2))
    wall = (np.abs(u) < 0.72) & (v > -0.2) & (v < 0.85)
    row = np.floor(v * 9)
    joint = (v * 9 % 1 < 0.2) | ((u * 5 + 0.5 * (row % 2)) % 1 < 0.12)
    bricks = np.where(joint[..., None], (0.8, 0.76, 0.7), brick * (0.8 + 0.4 * rng.random(u.shape))[..., None])
    roof = (v > -0.95) & (v <= -0.2) & (np.abs(u) < 0.08 + 1.15 * (v + 0.95))
    slate = _mix((0.2, 0.2, 0.26), (0.4, 0.4, 0.5), 0.5 + 0.5 * np.sin(v * 50 + 2 * np.cos(u * 25)))
    door = (np.abs(u + 0.3) < 0.15) & (v > 0.3) & (v < 0.85)
    window = (np.abs(u - 0.3) < 0.19) & (np.abs(v - 0.2) < 0.17)
    frame = window & ((np.abs(u - 0.3) < 0.03) | (np.abs(v - 0.2) < 0.03))
    glass, paint = np.array((0.98, 0.86, 0.45)), _vary(rng, (0.15, 0.35, 0.3), 0.12)
    return [(wall, bricks), (roof, slate), (door, paint), (window, glass), (frame, np.array((0.95, 0.95, 0.95)))]


def _butterfly(rng: Rng, u: Array, v: Array) -> Parts:
    tint = _vary(rng, [(0.5, 0.2, 0.8), (0.15, 0.3, 0.9), (0.85, 0.3, 0.7)][int(rng.integers(3))])
    a = np.abs(u)
    upper = ((a - 0.5) / 0.48) ** 2 + ((v + 0.35) / 0.46 + 0.35 * (a - 0.5)) ** 2
    lower = ((a - 0.4) / 0.36) ** 2 + ((v - 0.38) / 0.42) ** 2
    radial = np.minimum(upper, lower)
    veins = 0.5 + 0.5 * np.cos(14 * np.arctan2(v, a))
    wing = np.where((radial > 0.72)[..., None], (0.06, 0.05, 0.1), _mix(tint, np.minimum(tint * 1.7, 1), veins))
    eyes = (np.hypot(a - 0.58, v + 0.42) < 0.12) | (np.hypot(a - 0.42, v - 0.42) < 0.1)
    body = (a < 0.07) & (np.abs(v) < 0.62)
    return [(radial < 1, wing), (eyes, np.array((1.0, 0.9, 0.4))), (body, np.array((0.1, 0.08, 0.08)))]


GROUNDS: dict[str, Callable[[Rng, int, int], Array]] = {
    "water": _water,
    "grass": _grass,
    "sand": _sand,
    "paving": _paving,
    "snow": _snow,
}
OBJECTS: dict[str, tuple[Callable[[Rng, Array, Array], Parts], float]] = {
    "ball": (_ball, np.pi),
    "boat": (_boat, 0.2),
    "butterfly": (_butterfly, np.pi),
    "house": (_house, 0.12),
    "mushroom": (_mushroom, 0.35),
    "tree": (_tree, 0.15),
}
"""How each class is painted, as parts (where, colour) from back to front, and the largest tilt in radians."""
CLASSES = list(OBJECTS)
