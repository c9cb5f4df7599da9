"""The frame of a chest seen from the front, and how each finding shows in it.

A finding takes the place of air (fluid, filled lung), adds to what the rays meet (a nodule, a plate of collapsed
lung), frees a rim of lung from its vessels (a pneumothorax) or moves a rib (a fracture). The heart is drawn with the
anatomy in `phantom_frontal`.
"""

import numpy as np

from common.phantoms.canvas import Canvas, Field, Stroke, wander
from common.phantoms.study import LEFT_DOME_LOWER, SIGNS, SIZES, Finding, Side, Study

# Radii of what fills part of a lobe.
RADII = {"upper lobe": (0.22, 0.19), "middle lobe": (0.20, 0.13), "lingula": (0.18, 0.14), "lower lobe": (0.22, 0.18)}


class Chest:
    """The shapes that several structures need: rib cage, apices, diaphragm.

    out: distance from the midline. cage: the rib cage's half width at a pixel's height. chord: the depth of the cage
    behind a pixel, 0 at the wall to 1. top, dome: y of the lung's apex and of the diaphragm at a pixel's x.
    """

    def __init__(self, study: Study, size: int):
        self.study, self.body = study, study.body
        canvas = self.canvas = Canvas(study.body, size)
        self.x, self.y, self.out = canvas.x, canvas.y, np.abs(canvas.x)
        body = self.body
        # The half width of the rib cage grows from the apex downward; `chord` is the depth of lung behind a pixel.
        share = np.clip((self.y - np.float32(body.apex - 0.03)) / np.float32(0.95), 0, 1)
        self.cage = np.float32(body.chest) * np.sqrt(1 - (1 - share) * (1 - share) ** 2) + np.float32(1e-3)
        self.chord = np.sqrt(np.clip(1 - (self.out / self.cage) ** 2, 0, 1))
        self.top = np.float32(body.apex) + np.float32(1.6) * (self.out - 0.29) ** 2
        self.dome = self._diaphragm()

    def _diaphragm(self) -> Field:
        """y of the diaphragm under each pixel's x: two domes with costophrenic angles."""
        body, left = self.body, self.x > 0
        lowered = np.where(left, LEFT_DOME_LOWER, 0.0) - 0.05 * sum(
            np.where(left == (side == "left"), finding.strength, 0.0)
            for finding in self.study.find("atelectasis")
            for side in SIGNS
            if finding.is_on(side)
        )
        t = (self.out - 0.34) / np.float32(body.chest - 0.34)
        outer, inner = np.clip(t, 0, None), np.clip(-t, 0, None)
        fall = 0.26 * outer**2 * np.sqrt(outer) + 0.05 * inner**2
        return (np.float32(body.dome) + lowered + fall).astype(np.float32)

    def side(self, side: Side) -> Field:
        """1 on the patient's left or right, 0 on the other."""
        return self.canvas.edge(self.x * np.float32(SIGNS[side]), 0.04)


def draw_findings(chest: Chest) -> tuple[Field, Field, Field]:
    """(share of the air that fluid replaces, added attenuation, share of the lung without vessels)."""
    fluid, extra, rim = (np.zeros_like(chest.x) for _ in range(3))
    for finding in chest.study.findings:
        for side in SIGNS:
            if not finding.is_on(side):
                continue
            if finding.name in FILLING:
                share = FILLING[finding.name](chest, finding, side)
                fluid = 1 - (1 - fluid) * (1 - np.float32(finding.strength) * np.clip(share, 0, 1))
            elif finding.name == "pneumothorax":
                gone, line = _pneumothorax(chest, finding, side)
                rim, extra = np.maximum(rim, gone), extra + line
            elif finding.name in ADDING:
                extra = extra + np.float32(finding.strength) * ADDING[finding.name](chest, finding, side)
    return fluid, extra, rim


def _effusion(chest: Chest, finding: Finding, side: Side) -> Field:
    """Fluid that fills the chest from below, its border rising toward the wall."""
    rng, body = chest.study.rng(f"effusion {side}"), chest.body
    height = {"small": 0.15, "moderate": 0.42, "large": 0.80}[finding.severity] * float(rng.uniform(0.9, 1.1))
    low = body.dome + (LEFT_DOME_LOWER if side == "left" else 0.0) + 0.20
    t = np.clip((chest.out - 0.2) / np.float32(body.chest - 0.2), 0, 1)
    border = np.float32(low - height) - np.float32(0.17) * t * t**2 + np.float32(0.05)
    return chest.side(side) * chest.canvas.edge(chest.y - border, 0.06)


def _pneumothorax(chest: Chest, finding: Finding, side: Side) -> tuple[Field, Field]:
    """Air between the lung and the wall, widest at the apex, and the thin line of the lung's edge."""
    canvas, body, extent = chest.canvas, chest.body, SIZES.index(finding.severity)
    depth = (0.13, 0.21, 0.34)[extent]
    reach = (0.75, 1.2, 1.9)[extent]
    fading = np.clip(1 - (chest.y - np.float32(body.apex)) / np.float32(reach), 0, 1)
    inside = np.minimum(
        chest.cage - chest.out - np.float32(0.75 * depth) * fading, chest.y - chest.top - depth * fading
    )
    shown = chest.side(side) * canvas.edge(chest.dome - chest.y, 0.03)
    air = np.float32(finding.strength) * canvas.edge(-inside, 0.01) * (fading > 0) * shown
    line = np.exp(-((inside / np.float32(max(0.008, canvas.pixel))) ** 2)) * shown * (chest.cage > chest.out)
    squeezed = canvas.edge(inside, 0.02) * shown * (chest.out > 0.1) * (chest.out < chest.cage)
    strength = np.float32(finding.strength * min(1.0, 0.008 / canvas.pixel))
    return air, strength * 0.13 * line * (fading > 0.08) + np.float32(
        0.02 * (1 + 2 * extent) * finding.strength
    ) * squeezed


def _airspace(chest: Chest, finding: Finding, side: Side) -> Field:
    """Haze (opacity), a dense lobe (consolidation), or patches (pneumonia) in a lobe."""
    canvas, rng = chest.canvas, chest.study.rng(f"airspace {finding.name}")
    (rx, ry), (away, _, y) = RADII[finding.site], chest.study.place(finding, side)
    size = float(rng.uniform(0.85, 1.2))
    spot = canvas.blob(SIGNS[side] * away, y, rx * size, ry * size, float(rng.normal(0, 0.3)))
    if finding.site == "upper lobe" and side == "right":  # the minor fissure below it
        spot = spot * canvas.edge(np.float32(chest.body.height(0.52, side)) - chest.y, 0.05)
    texture = canvas.noise(rng, 18)
    if finding.name == "opacity":
        return np.float32(0.42) * spot * (1 + 0.2 * texture)
    if finding.name == "consolidation":
        solid = canvas.edge(spot + 0.05 * texture - 0.38, 0.35)
        return np.float32(0.80) * solid
    return np.float32(0.72) * canvas.edge(texture + 0.3, 1.3) * np.sqrt(spot)


def _nodule(chest: Chest, finding: Finding, side: Side) -> Field:
    canvas, rng = chest.canvas, chest.study.rng("nodule")
    away, _, y = chest.study.place(finding, side)
    radius = float(rng.uniform(0.09, 0.125) if finding.severity == "large" else rng.uniform(0.04, 0.06))
    ball = canvas.ellipse(
        SIGNS[side] * away, y, radius, radius * float(rng.uniform(0.85, 1.0)), float(rng.uniform(0, 3))
    )
    lobed = ball + 0.12 * canvas.noise(rng, 28)
    return np.float32(0.23) * canvas.edge(lobed - 0.15, 0.6)


def _atelectasis(chest: Chest, finding: Finding, side: Side) -> Field:
    """One or two plates of collapsed lung above the diaphragm."""
    rng, strokes = chest.study.rng(f"atelectasis {side}"), []
    for index in range(int(rng.integers(1, 3))):
        y = chest.body.height(0.90 - 0.09 * index, side) + float(rng.normal(0, 0.015))
        x, length = float(rng.uniform(0.24, 0.32)), float(rng.uniform(0.20, 0.30))
        points = wander(rng, (x, y), float(rng.normal(-0.12, 0.18)), length, 0.05)
        strokes.append(Stroke(points * (SIGNS[side], 1), float(rng.uniform(0.022, 0.034)), 0.26))
    base = chest.canvas.blob(SIGNS[side] * 0.4, chest.body.height(1.0, side), 0.25, 0.12)
    return chest.canvas.strokes(strokes, blur=0.009) + np.float32(0.09) * base


def _thickening(chest: Chest, finding: Finding, side: Side) -> Field:
    """A cap of thickened pleura at the apex that runs down the wall."""
    fading = np.clip(1 - (chest.y - np.float32(chest.body.apex)) / np.float32(0.9), 0, 1)
    uneven = 0.012 * chest.canvas.noise(chest.study.rng("thickening"), 20)
    inside = np.minimum(chest.cage - chest.out - 0.075 * fading, chest.y - chest.top - 0.10 * fading) + uneven
    return np.float32(0.24) * chest.canvas.edge(-inside, 0.03) * (fading > 0) * chest.side(side)


def _edema(chest: Chest, finding: Finding, side: Side) -> Field:
    """Haze around the hilum and the base, with short lines at the wall (Kerley B)."""
    canvas, rng, sign = chest.canvas, chest.study.rng(f"edema {side}"), SIGNS[side]
    grade = {"mild": 0.28, "moderate": 0.40, "severe": 0.55}[finding.severity]
    haze = canvas.blob(sign * 0.24, 0.02, 0.23, 0.34, sign * -0.2) + 0.5 * canvas.blob(sign * 0.36, 0.3, 0.3, 0.2)
    strokes = []
    for index in range(5):
        end = chest.body.chest - float(rng.uniform(0.03, 0.05))
        y = chest.body.height(0.78 + 0.055 * index, side)
        strokes.append(Stroke(np.array([(sign * (end - 0.09), y + 0.01), (sign * end, y)]), 0.009, 0.35))
    uneven = 1 + 0.22 * canvas.noise(rng, 22)
    return np.float32(grade) * haze * uneven + canvas.strokes(strokes, blur=0.003)


def fracture(chest: Chest, phase: Field) -> Field:
    """How far the ribs' phase is off: outward of the break one rib has slipped down, with a gap at the break."""
    shift = np.zeros_like(chest.x)
    for finding in chest.study.find("rib fracture"):
        rng = chest.study.rng("fracture")
        rib, share = int(rng.integers(3, 7)), float(rng.uniform(0.68, 0.84))
        away = chest.x * np.float32(SIGNS[finding.side]) / np.float32(chest.body.chest) - np.float32(share)
        near = np.clip(1 - np.abs(phase - rib) / 0.75, 0, 1) * chest.side(finding.side)
        gap = np.exp(-((away / np.float32(0.018)) ** 2))
        slip = chest.canvas.edge(away, 0.012) * chest.canvas.edge(0.16 - away, 0.12)
        shift = shift - np.float32(finding.strength) * near * (0.5 * gap + 0.36 * slip)
    return shift


# Findings that take the place of air (the share of it), and findings that add to what the rays meet.
FILLING = {
    "pleural effusion": _effusion,
    "opacity": _airspace,
    "consolidation": _airspace,
    "pneumonia": _airspace,
    "edema": _edema,
}
ADDING = {
    "nodule": _nodule,
    "atelectasis": _atelectasis,
    "pleural thickening": _thickening,
}
