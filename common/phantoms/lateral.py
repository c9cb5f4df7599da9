"""The lateral view of a phantom study: the patient faces the image's left, and both lungs lie upon each other.

Built like the frontal view, with half of the air from each lung, so that what is on one side shows half as strongly.
"""

import numpy as np
from jaxtyping import UInt8

from common.phantoms.canvas import Canvas, Field, Stroke, smooth_path, vessel_trees, wander
from common.phantoms.study import SIGNS, SIZES, Finding, Side, Study


def draw_lateral(study: Study, size: int) -> UInt8[np.ndarray, "size size"]:
    """The lateral radiograph of a study."""
    return _Lateral(study, size).picture()


class _Lateral:
    """The shapes that several structures need, then one method for each structure."""

    def __init__(self, study: Study, size: int):
        self.study, self.body = study, study.body
        canvas = self.canvas = Canvas(study.body, size)
        self.x, self.y = canvas.x, canvas.y
        fat, apex, low = self.body.fat, self.body.apex, self.body.dome
        bust = 0.10 + 0.10 * fat if self.body.female else 0.0
        self.front = canvas.curve(
            [(-1.4, -0.16), (apex - 0.12, -0.18), (apex + 0.05, -0.32), (-0.45, -0.55), (-0.1, -0.71 - 0.06 * fat)],
            [(low - 0.28, -0.75 - 0.08 * fat - bust), (low - 0.1, -0.75 - 0.10 * fat - bust)],
            [(low + 0.05, -0.76 - 0.10 * fat), (1.4, -0.74 - 0.25 * fat)],
        )
        self.back = canvas.curve(
            [(-1.4, 0.24), (apex - 0.1, 0.42), (apex + 0.15, 0.66), (-0.25, 0.79 + 0.04 * fat)],
            [(0.1, 0.81 + 0.05 * fat), (0.5, 0.76 + 0.05 * fat), (1.4, 0.62)],
        )
        share = (self.x - self.front) / (self.back - self.front)
        self.share = np.clip(share, 0, 1)
        self.chord = np.sqrt(4 * self.share * (1 - self.share))

    def picture(self) -> UInt8[np.ndarray, "size size"]:
        study, canvas = self.study, self.canvas
        lungs = {side: self._lung(side) for side in SIGNS}
        both = 0.5 * (lungs["left"] + lungs["right"])
        heart = self._heart()
        air, extra = np.zeros_like(self.x), np.zeros_like(self.x)
        for side, lung in lungs.items():
            fluid, added = self._findings(side)
            air = air + 0.5 * lung * (1 - 0.95 * fluid)
            extra = extra + added * lung
        air = air * (0.35 + 0.65 * self.chord) * (1 - 0.5 * heart)
        haze = np.float32(0.035) * canvas.noise(study.rng("lateral haze"), 14) * both
        attenuation = self._soft_tissue() - np.float32(0.56) * air + np.float32(0.04) * heart + extra + haze
        attenuation += (self._vessels() * (1 - 0.5 * heart) + self._bones()) * (0.2 + 0.8 * both) * (self.chord > 0)
        attenuation += self._spine() - self._trachea() + self._devices()
        return canvas.expose(attenuation, self.body, study.rng("lateral grain"))

    # Anatomy

    def _soft_tissue(self) -> Field:
        """Trunk and neck, with the raised arms in front of the upper chest."""
        canvas, apex = self.canvas, self.body.apex
        depth = canvas.curve([(-1.4, 0.55), (-0.75, 0.78), (-0.4, 0.84), (0.1, 0.86), (0.6, 0.90), (1.4, 0.92)])
        tissue = depth * np.sqrt(self.chord * np.sqrt(self.chord)) * (0.90 + 0.14 * self.body.fat)
        shoulder = 0.22 * canvas.blob(0.10, apex - 0.02, 0.34, 0.20)
        arm = canvas.edge(canvas.ellipse(-0.42, apex - 0.28, 0.72, 0.16, 0.42), 0.5)
        return np.maximum(tissue, np.float32(0.62) * arm) + shoulder * (self.chord > 0)

    def _lung(self, side: Side) -> Field:
        edge, fat = self.canvas.edge, np.float32(self.body.fat)
        top = np.float32(self.body.apex + 0.03) + np.float32(1.1) * (self.x - 0.16) ** 2
        rear, fore = np.clip(self.x + np.float32(0.05), 0, None), np.clip(np.float32(-0.2) - self.x, 0, None)
        dome = np.float32(self.body.height(1.0, side) + 0.6 * rear * np.sqrt(rear) + 0.6 * fore * np.sqrt(fore))
        walls = edge(self.x - self.front - 0.09 - 0.05 * fat, 0.04) * edge(self.back - 0.09 - 0.04 * fat - self.x, 0.04)
        return walls * edge(self.y - top, 0.05) * edge(dome - self.y, 0.022)

    def _heart(self) -> Field:
        """Heart and great vessels, with the arch of the aorta."""
        canvas, body = self.canvas, self.body
        size = 0.26
        for finding in self.study.find("cardiomegaly"):
            size += {"mild": 0.04, "moderate": 0.06, "severe": 0.08}[finding.severity] * finding.strength
        middle = body.dome + 0.10 - 1.15 * size
        heart = canvas.ellipse(-0.47 + 0.85 * size, middle, 1.30 * size, 1.08 * size, 0.75)
        wide = 1 + sum(0.6 * finding.strength for finding in self.study.find("wide mediastinum"))
        root = canvas.ellipse(-0.08, -0.14, 0.20 * wide, 0.32, -0.25)
        arch = np.array([(-0.02, -0.10), (0.0, -0.33), (0.12, -0.42), (0.28, -0.34), (0.38, -0.10), (0.40, 0.3)])
        aorta = canvas.strokes([Stroke(smooth_path(arch), 0.10 + 0.04 * body.aorta, 0.26)], blur=0.02)
        solid = np.float32(0.95) * canvas.edge(heart - 0.05, 0.5) * (0.6 + 0.4 * np.clip(heart, 0, 1))
        return np.maximum(np.maximum(solid, np.float32(0.42) * canvas.edge(root, 0.9)), aorta)

    def _bones(self) -> Field:
        """Ribs of both sides, running down and forward, and the breastbone."""
        spacing = self.body.rib_spacing
        fading = 0.45 + 0.55 * np.abs(2 * self.share - 1)
        ribs = np.zeros_like(self.x)
        for slope, offset in ((0.50, 0.0), (0.56, 0.35)):
            phase = (self.y + np.float32(slope) * (self.x - 0.25 * self.x**2)) / np.float32(spacing) + offset
            for finding in self.study.find("rib fracture"):
                if (finding.side == "left") == (offset > 0):
                    away = np.clip(1 - np.hypot(self.x - 0.2, self.y - 0.05) / 0.12, 0, 1)
                    phase = phase + np.float32(0.5 * finding.strength) * away * (self.x < 0.2)
            away = np.abs(phase - np.round(phase))
            ribs = ribs + self.canvas.edge(0.21 - away, 0.12)
        breastbone = np.exp(-(((self.x - self.front - 0.07) / np.float32(0.018)) ** 2))
        return np.float32(0.06) * ribs * fading + np.float32(0.10) * breastbone

    def _spine(self) -> Field:
        """Vertebral bodies with darker discs and brighter plates, and the arches behind them."""
        axis = self.back - np.float32(0.245)
        period = (self.y + 2) / np.float32(0.128) + np.float32(0.4) * (self.x - axis)
        away = np.abs(period - np.round(period))
        plate = np.exp(-(((away - 0.36) / np.float32(0.06)) ** 2))
        block = self.canvas.edge(0.40 - away, 0.10) + 0.5 * plate
        column = self.canvas.edge(0.078 - np.abs(self.x - axis), 0.025)
        arches = np.exp(-(((self.x - axis - 0.14) / np.float32(0.04)) ** 2)) * (0.5 + self.canvas.edge(0.3 - away, 0.3))
        low = self.canvas.edge(self.y + 0.65, 0.5)
        return (np.float32(0.085) * column * block + np.float32(0.035) * arches + np.float32(0.03) * column) * low

    def _trachea(self) -> Field:
        path = np.array([(-0.02, -1.1), (0.06, -0.6), (0.115, -0.24)])
        end = np.array([(0.115, -0.20), (0.12, -0.17)])
        return self.canvas.strokes([Stroke(path, 0.07, 0.16), Stroke(end, 0.055, 0.12)], blur=0.01)

    def _vessels(self) -> Field:
        canvas, rng = self.canvas, self.study.rng("lateral vessels")
        wet = sum(finding.strength for finding in self.study.find("edema"))
        angles = np.array([-2.6, -2.0, -1.3, -0.6, 0.2, 0.7, 1.1, 1.5, 2.1, 2.6]) + rng.normal(0, 0.1, 10)
        starts = np.repeat([(0.10, -0.08)], 10, 0) + rng.normal(0, 0.02, (10, 2))
        trees = vessel_trees(rng, starts, angles, rng.uniform(0.25, 0.48, 10), 0.024 * (1 + 0.25 * wet), 0.085)
        return canvas.strokes(trees, blur=0.005 + 0.004 * wet) + np.float32(0.16) * canvas.blob(0.10, -0.07, 0.10, 0.14)

    # Findings

    def _findings(self, side: Side) -> tuple[Field, Field]:
        """(share of one lung's air that is replaced, added attenuation)."""
        canvas, body = self.canvas, self.body
        fluid, extra = np.zeros_like(self.x), np.zeros_like(self.x)
        for finding in self.study.findings:
            if not finding.is_on(side):
                continue
            strength = np.float32(finding.strength)
            rng = self.study.rng(f"lateral {finding.name} {side}")
            if finding.name == "pleural effusion":
                fluid = np.maximum(fluid, strength * self._effusion(finding, side))
            elif finding.name in ("opacity", "consolidation", "pneumonia"):
                fluid = np.maximum(fluid, strength * self._airspace(finding, side))
            elif finding.name == "edema":
                grade = {"mild": 0.28, "moderate": 0.40, "severe": 0.55}[finding.severity]
                haze = canvas.blob(0.08, 0.0, 0.32, 0.38) * (1 + 0.2 * canvas.noise(rng, 22))
                fluid = np.maximum(fluid, strength * np.float32(grade) * haze)
            elif finding.name == "nodule":
                _, depth, y = self.study.place(finding, side)
                radius = 0.11 if finding.severity == "large" else 0.05
                extra = extra + np.float32(0.20) * strength * canvas.edge(canvas.ellipse(depth, y, radius, radius), 0.6)
            elif finding.name == "atelectasis":
                points = wander(rng, (0.05, body.height(0.95, side)), float(rng.normal(0.15, 0.15)), 0.28, 0.05)
                extra = extra + np.float32(0.22) * strength * canvas.strokes([Stroke(points, 0.028, 1.0)], blur=0.009)
            elif finding.name in ("pneumothorax", "pleural thickening"):
                depth = (0.10, 0.16, 0.25)[SIZES.index(finding.severity)] if finding.severity else 0.08
                top = np.float32(body.apex + 0.03 + depth) + np.float32(1.1) * (self.x - 0.16) ** 2
                change = -0.05 if finding.name == "pneumothorax" else 0.12
                extra = extra + np.float32(change) * strength * canvas.edge(top - self.y, 0.012)
        return np.clip(fluid, 0, 1), extra

    def _effusion(self, finding: Finding, side: Side) -> Field:
        """Fluid in the low, rear part of the chest, its border rising toward the wall."""
        height = {"small": 0.20, "moderate": 0.46, "large": 0.80}[finding.severity]
        rise = np.clip((self.x - 0.15) / 0.5, 0, 1) ** 2 + 0.5 * np.clip((-0.25 - self.x) / 0.4, 0, 1) ** 2
        border = np.float32(self.body.height(1.0, side) + 0.26 - height) - np.float32(0.14) * rise
        return self.canvas.edge(self.y - border, 0.06)

    def _airspace(self, finding: Finding, side: Side) -> Field:
        canvas = self.canvas
        _, depth, y = self.study.place(finding, side)
        spot, texture = canvas.blob(depth, y, 0.24, 0.17), canvas.noise(self.study.rng("lateral texture"), 18)
        if finding.name == "opacity":
            return np.float32(0.5) * spot * (1 + 0.2 * texture)
        if finding.name == "consolidation":
            return np.float32(0.85) * canvas.edge(spot + 0.05 * texture - 0.38, 0.35)
        return np.float32(0.8) * canvas.edge(texture + 0.3, 1.3) * np.sqrt(spot)

    def _devices(self) -> Field:
        strokes, low = [], self.body.dome
        case = np.zeros_like(self.x)
        for finding in self.study.findings:
            if finding.name == "endotracheal tube":
                tube = np.array([(-0.03, -1.1), (0.045, -0.65), (0.085, -0.42)])
                strokes += [Stroke(tube, 0.036, 0.10), Stroke(tube + np.array([0.018, 0]), 0.009, 0.26)]
            elif finding.name == "central line":
                line = np.array([(-0.02, -1.05), (-0.04, -0.7), (0.0, -0.4), (0.0, -0.05)])
                strokes.append(Stroke(smooth_path(line), 0.016, 0.24))
            elif finding.name == "pacemaker":
                y = self.body.apex + 0.33
                for end in ((-0.02, low - 0.25), (-0.30, low - 0.08)):
                    lead = np.array([(-0.36, y), (-0.15, y - 0.16), (0.0, -0.38), (0.02, -0.1), end])
                    strokes.append(Stroke(smooth_path(lead), 0.011, 0.28))
                case = np.float32(0.45) * self.canvas.edge(self.canvas.ellipse(-0.40, y, 0.035, 0.09, 0.3), 0.3)
            elif finding.name == "ecg leads":
                for y in (-0.3, low - 0.05):
                    wire = np.array([(-0.5, y), (-0.35, y + 0.2), (-0.5, y + 0.6), (-0.6, 1.2)])
                    strokes.append(Stroke(smooth_path(wire), 0.008, 0.22))
        return np.maximum(self.canvas.strokes(strokes, blur=0.002), case) if strokes else case
