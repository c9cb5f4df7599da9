"""Tools to draw a radiograph: a grid of anatomical coordinates, soft edges, strokes, noise and the exposure.

Everything is given in units of half the image width, so that a study looks the same at every size. Small images are
drawn larger and averaged down, and strokes are drawn at twice the size again: what is thin stays thin.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageDraw

from common.phantoms.study import Body

Field = Float32[np.ndarray, "side side"]
DRAWN_AT_LEAST = 176  # pixels, or twice the size asked for if that is less: the time grows with the square


@dataclass(frozen=True)
class Stroke:
    """A line through points (x, y), of a width, with the attenuation it adds."""

    points: Float[np.ndarray, "points 2"]
    width: float
    value: float


class Canvas:
    """x (to the image's right) and y (down) of every pixel in the patient's frame, -1 to 1 over the image."""

    def __init__(self, body: Body, size: int):
        self.size = size
        self.side = max(size, min(2 * size, DRAWN_AT_LEAST))
        self.pixel = 2 / self.side
        across = (np.arange(self.side, dtype=np.float32) + 0.5) * self.pixel - 1
        turn = np.array([[np.cos(body.angle), np.sin(body.angle)], [-np.sin(body.angle), np.cos(body.angle)]])
        self._turn = turn / body.scale
        self._shift = np.array(body.shift)
        u, v = across - np.float32(body.shift[0]), (across - np.float32(body.shift[1]))[:, None]
        (a, b), (c, d) = self._turn.astype(np.float32)
        self.x: Field = a * u + b * v
        self.y: Field = c * u + d * v

    def edge(self, distance: Field, width: float) -> Field:
        """0 to 1 as the signed distance passes 0, over the width (at least a pixel)."""
        width = max(width, 1.5 * self.pixel)
        return smooth_step(distance * np.float32(1 / width) + np.float32(0.5))

    def blob(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Field:
        """A soft spot: 1 at the centre, falling off over the radii."""
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return np.exp(-(((cos * dx + sin * dy) / np.float32(rx)) ** 2) - ((cos * dy - sin * dx) / np.float32(ry)) ** 2)

    def ellipse(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Field:
        """1 at the centre of an ellipse, 0 on it, negative outside."""
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return 1 - ((cos * dx + sin * dy) / np.float32(rx)) ** 2 - ((cos * dy - sin * dx) / np.float32(ry)) ** 2

    def curve(self, *points: Sequence[tuple[float, float]]) -> Field:
        """A smooth function of y through (y, value), as a field."""
        positions, values = np.concatenate([np.array(part) for part in points]).T
        grid = np.linspace(-1.5, 1.5, 301)
        kernel = np.hanning(27) / np.hanning(27).sum()
        coarse = np.convolve(np.pad(np.interp(grid, positions, values), 13, mode="edge"), kernel, mode="valid")
        table = np.interp(np.linspace(-1.5, 1.5, 1501), grid, coarse).astype(np.float32)
        return table.take(((self.y + np.float32(1.5)) * np.float32(500)).astype(np.int32), mode="clip")

    def strokes(self, strokes: Sequence[Stroke], blur: float = 0.0) -> Field:
        """All strokes as one layer; where they cross, the later one counts. blur: a standard deviation."""
        side = 2 * self.side
        image = Image.new("F", (side, side))
        draw = ImageDraw.Draw(image)
        points = np.concatenate([stroke.points for stroke in strokes]) @ np.linalg.inv(self._turn).T
        flat, start = ((points + self._shift + 1) * (side / 2)).ravel().tolist(), 0
        for stroke in strokes:
            end = start + stroke.points.size
            draw.line(flat[start:end], fill=stroke.value, width=max(1, round(stroke.width * side / 2)))
            start = end
        layer = np.asarray(image.reduce(2))
        return blurred(layer, blur / self.pixel) if blur else layer

    def noise(self, rng: np.random.Generator, cells: int) -> Field:
        """Smooth noise of unit variance, made of `cells` x `cells` random numbers: the same at every size."""
        lattice = rng.standard_normal((cells, cells), dtype=np.float32)
        return np.asarray(Image.fromarray(lattice).resize((self.side, self.side), Image.Resampling.BICUBIC))

    def expose(self, attenuation: Field, body: Body, rng: np.random.Generator) -> UInt8[np.ndarray, "size size"]:
        """The picture of what the rays met: slight blur, grain, the film's S-shaped curve, reduction to size."""
        image = blurred(attenuation, 0.0035 / self.pixel)
        grain = rng.standard_normal(image.shape, dtype=np.float32)
        image = image + np.float32(0.009 * self.side / DRAWN_AT_LEAST) * grain
        level = (image - np.float32(0.52 + body.exposure)) * np.float32(3.6 * body.contrast)
        picture = 255 / (1 + np.exp(-level))
        picture = np.clip((picture - 20) * np.float32(1.1), 0, 255)
        if self.size != self.side:
            picture = np.asarray(Image.fromarray(picture).resize((self.size, self.size), Image.Resampling.BOX))
        return np.round(picture).astype(np.uint8)


def smooth_step(t: Field) -> Field:
    """0 below 0, 1 above 1, a cubic between; changes t."""
    np.clip(t, 0, 1, out=t)
    square = t * t
    t *= -2
    t += 3
    return np.multiply(square, t, out=t)


def blurred(field: Field, deviation: float) -> Field:
    """Gaussian blur, separable; the deviation is in pixels, and less than a third of one changes nothing."""
    if deviation < 0.35:
        return field
    kernel = np.exp(-0.5 * (np.arange(int(np.ceil(2.5 * deviation)) + 1) / deviation) ** 2).astype(np.float32)
    return _blurred_rows(_blurred_rows(field, kernel).T, kernel).T


def _blurred_rows(field: Field, kernel: Float32[np.ndarray, " taps"]) -> Field:
    """Mean of each row and its neighbours, weighted by distance; rows beyond the border do not count."""
    total, weight = kernel[0] * field, np.full((len(field), 1), kernel[0])
    for shift in range(1, len(kernel)):
        total[shift:] += kernel[shift] * field[:-shift]
        total[:-shift] += kernel[shift] * field[shift:]
        weight[shift:] += kernel[shift]
        weight[:-shift] += kernel[shift]
    return total / weight


def wander(
    rng: np.random.Generator, start: Sequence[float], angle: float, length: float, bend: float, steps: int = 7
) -> Float[np.ndarray, "points 2"]:
    """Points of a curve that leaves `start` at an angle and bends at random as it goes."""
    turns = angle + np.cumsum(rng.normal(0, bend, steps))
    moves = np.stack([np.cos(turns), np.sin(turns)], 1) * (length / steps)
    return np.concatenate([[start], np.asarray(start) + np.cumsum(moves, 0)])


def vessel_trees(
    rng: np.random.Generator,
    starts: Float[np.ndarray, "vessels 2"],
    angles: Float[np.ndarray, " vessels"],
    lengths: Float[np.ndarray, " vessels"],
    width: float,
    value: float,
) -> list[Stroke]:
    """Vessels and two generations of branches, ever thinner and fainter; the faintest come first."""
    trees: list[Stroke] = []
    for forks in ([1, 3, 4], [1, 4], [0]):
        turns = angles[:, None] + np.cumsum(rng.normal(0, 0.10, (len(angles), 6)), 1)
        moves = np.stack([np.cos(turns), np.sin(turns)], -1) * (lengths / 6)[:, None, None]
        paths = starts[:, None] + np.cumsum(moves, 1)
        trees += [Stroke(path, width, value) for path in np.concatenate([starts[:, None], paths], 1)]
        sides = np.array([0.55, -0.5, 0.45])[: len(forks)] * rng.choice((-1, 1), (len(angles), 1))
        angles = (turns[:, forks] + sides * rng.uniform(0.7, 1.4, sides.shape)).ravel()
        lengths = (lengths[:, None] * rng.uniform(0.4, 0.65, sides.shape)).ravel()
        starts = paths[:, forks].reshape(-1, 2)
        width, value = 0.6 * width, 0.75 * value
    return trees[::-1]


def smooth_path(points: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "more 2"]:
    """A smooth curve along the points, with the same ends (Chaikin's cutting of corners, three times)."""
    for _ in range(3):
        near, far = 0.75 * points[:-1] + 0.25 * points[1:], 0.25 * points[:-1] + 0.75 * points[1:]
        points = np.concatenate([points[:1], np.stack([near, far], 1).reshape(-1, 2), points[-1:]])
    return points
