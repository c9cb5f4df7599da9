"""The frontal view of a phantom study, as the attenuation that the rays meet on their way through.

The patient faces the reader: the patient's left is on the image's right. Body, air, heart and bones are sums and
products of soft shapes in the coordinates of `phantom_canvas`; findings change the same shapes (fluid replaces air,
a pneumothorax adds it and takes the vessels away) rather than being painted on top.
"""

import numpy as np
from jaxtyping import UInt8

from common.phantoms.canvas import Field, Stroke, smooth_path, smooth_step, vessel_trees
from common.phantoms.findings import Chest, draw_findings, fracture
from common.phantoms.study import LEFT_DOME_LOWER, SIGNS, Finding, Study


def draw_frontal(study: Study, size: int) -> UInt8[np.ndarray, "size size"]:
    """The frontal radiograph of a study."""
    return _Frontal(study, size).picture()


class _Frontal(Chest):
    """One method for each structure, in the frame of the chest."""

    def picture(self) -> UInt8[np.ndarray, "size size"]:
        study = self.study
        centre = self._mediastinum()
        lung = self._lungs()
        air = lung * (0.42 + 0.58 * self.chord)
        fluid, extra, rim = draw_findings(self)
        open_lung = lung * (1 - np.float32(0.75) * centre)
        air = air * (1 - 0.86 * centre) * (1 - 0.95 * fluid)
        vessels = self._vessels(open_lung * (1 - rim) * (1 - fluid))
        haze = np.float32(0.035) * self.canvas.noise(study.rng("haze"), 14) * lung
        attenuation = self._soft_tissue() - np.float32(0.60) * air + vessels + extra * open_lung + haze
        attenuation += np.float32(0.07) * centre - np.float32(0.06) * rim * lung
        attenuation += self._bones(fluid) + self._abdomen(lung)
        attenuation += self._devices()
        return self.canvas.expose(attenuation, self.body, study.rng("grain"))

    # Anatomy

    def _lungs(self) -> Field:
        edge = self.canvas.edge
        inner = np.where(self.x > 0, 0.10, 0.09).astype(np.float32)
        sides = edge(self.cage - self.out, 0.025) * edge(self.out - inner, 0.03)
        return sides * edge(self.y - self.top, 0.035) * edge(self.dome - self.y, 0.022)

    def _soft_tissue(self) -> Field:
        """Trunk, neck, shoulders and arms, with breasts and fat."""
        body, canvas, fat = self.body, self.canvas, np.float32(self.body.fat)
        flank = body.chest + 0.10 + 0.13 * body.fat
        neck, shoulder = 0.22 + 0.06 * body.fat, body.apex - 0.02
        outline = canvas.curve(
            [(-1.4, neck), (shoulder - 0.14, neck + 0.02), (shoulder - 0.03, 0.60), (shoulder + 0.10, 1.0)],
            [(-0.35, 1.04), (-0.12, flank + 0.06), (0.3, flank), (1.4, flank + 0.05 * body.fat)],
        )
        depth = canvas.curve([(-1.4, 0.42), (-0.8, 0.55), (-0.45, 0.72), (0.0, 0.86), (0.5, 0.92), (1.4, 0.98)])
        across = np.clip(1 - (self.out / outline) ** 2, 0, 1)
        trunk = depth * np.sqrt(across)
        arm_axis = np.float32(flank + 0.30) + np.float32(0.10) * (self.y - 0.2)
        arm = np.sqrt(np.clip(1 - ((self.out - arm_axis) / np.float32(0.20)) ** 2, 0, 1))
        arm = arm * canvas.edge(self.y - np.float32(shoulder + 0.06), 0.3)
        tissue = np.maximum(trunk, np.float32(0.52) * arm)
        tissue = tissue * (0.88 + 0.15 * fat)
        breast_y, strength = (body.dome - 0.16 + 0.06 * body.fat), (0.14 if body.female else 0.03)
        for sign in SIGNS.values():
            bowl = canvas.ellipse(sign * 0.43, breast_y, 0.29 + 0.05 * body.fat, 0.27 + 0.06 * body.fat)
            soft = np.sqrt(np.clip(bowl, 0, 1)) * canvas.edge(self.y - np.float32(breast_y - 0.12), 0.5)
            tissue += np.float32(strength) * soft * (across > 0)
        return tissue

    def _mediastinum(self) -> Field:
        """Heart, great vessels and aorta: 1 where they fill the way of the rays."""
        canvas, body = self.canvas, self.body
        ratio = body.heart
        for finding in self.study.find("cardiomegaly"):
            grade = {"mild": 0.08, "moderate": 0.12, "severe": 0.17}[finding.severity]
            ratio = max(ratio, 0.46) + grade * (0.75 if finding.certainty == "uncertain" else 1.0)
        wide = 1 + sum(0.9 * finding.strength for finding in self.study.find("wide mediastinum"))
        half = ratio * body.chest  # half the heart's width
        middle, centre = 0.32 * half, body.dome + 0.03 - 0.72 * np.sqrt(0.32 * half)
        tall = np.sqrt(0.31 * half)
        heart = canvas.ellipse(middle, centre, 1.06 * half, 0.82 * tall, 0.60 * tall / half)
        atrium = canvas.ellipse(middle - 0.50 * half, centre + 0.02, 0.50 * half, 0.66 * tall, -0.1)
        band = canvas.curve(
            [(-1.4, 0.13), (-0.75, 0.115), (-0.35, 0.105 * wide), (-0.1, 0.12 * wide), (0.15, 0.13), (1.4, 0.12)]
        )
        column = canvas.edge(band - np.abs(self.x - np.float32(0.012)), 0.035)
        knob = canvas.ellipse(0.075 + 0.025 * body.aorta, -0.27, (0.085 + 0.03 * body.aorta) * wide, 0.095)
        trunk = canvas.ellipse(0.10, -0.10, 0.085, 0.13)
        filled = np.float32(0.80) * column
        for inside, soft in ((heart, 0.22), (atrium, 0.35), (knob, 0.6), (trunk, 0.8)):
            solid = canvas.edge(inside - np.float32(0.4 * soft), soft)
            filled = np.maximum(filled, np.float32(0.88) * solid * (0.72 + 0.28 * np.clip(inside, 0, 1)))
        return filled * canvas.edge(self.y - np.float32(body.apex - 0.25), 0.4)

    def _bones(self, fluid: Field) -> Field:
        """Ribs, as bands along curves that the phase counts; spine; collar bones; shoulder blades."""
        canvas, body = self.canvas, self.body
        spacing, tilt = np.float32(body.rib_spacing), np.float32(body.rib_tilt / 2)
        phase = (self.y - np.float32(body.apex + 0.02)) / spacing + np.float32(0.15) * self.x
        back = phase - tilt / spacing * (1 - self.chord)
        front = phase - tilt / spacing * (1 + np.float32(0.9) * self.chord)
        broken = fracture(self, back)
        cage = canvas.edge(self.cage + 0.005 - self.out, 0.03) * canvas.edge(self.y - self.top + 0.06, 0.1)
        cage = cage * canvas.edge(np.float32(body.dome + 0.5) - self.y, 0.3)
        back_band = _band(back + broken, 0.22, canvas.pixel / body.rib_spacing)
        front_band = _band(front, 0.24, canvas.pixel / body.rib_spacing)
        wall = 1.25 - 0.25 * self.chord
        bones = np.float32(0.115) * back_band * wall * canvas.edge(self.out - 0.05, 0.08)
        bones += np.float32(0.075) * front_band * canvas.edge(self.out - 0.30, 0.22) * wall
        bones = bones * cage * (0.25 + 0.75 * canvas.edge(self.dome - self.y, 0.05)) * (1 - np.float32(0.6) * fluid)
        # Vertebrae: a column with darker discs, pedicles and a brighter edge.
        bodies = (self.y + 2) / np.float32(0.125)
        disc = 0.78 + 0.22 * _band(bodies, 0.36, canvas.pixel / 0.125)
        column = canvas.edge(0.080 + 0.015 * self.y - self.out, 0.045)
        bones += np.float32(0.07) * column * disc
        bones += np.float32(0.04) * np.exp(-((self.out / 0.022) ** 2)) * _band(bodies + 0.3, 0.2, 0.1)
        return bones + canvas.strokes(self._airways() + self._shoulders(), blur=0.01)

    def _shoulders(self) -> list[Stroke]:
        """Collar bones, shoulder blades and arm bones."""
        rng, body = self.study.rng("shoulders"), self.body
        tilt, y = rng.normal(0, 0.02), body.apex + 0.16
        strokes = []
        for sign in SIGNS.values():
            lift = y + sign * tilt
            collar = np.array([(0.07, 0.06), (0.16, 0.035), (0.30, 0.015), (0.45, -0.05), (0.62, -0.10), (0.80, -0.10)])
            blade = np.array([(0.74, 0.02), (0.68, 0.20), (0.66, 0.40), (0.70, 0.58)])
            outer = np.array([(0.90, 0.06), (0.85, 0.30), (0.78, 0.48), (0.70, 0.58)])
            arm = np.array([(0.90, -0.02), (0.93, 0.2), (0.99, 0.7), (1.05, 1.6)])
            for points, width, value in ((blade, 0.024, 0.08), (outer, 0.04, 0.09), (arm, 0.13, 0.15)):
                strokes.append(Stroke(points * (sign, 1) + (0, lift), width, value))
            strokes.append(Stroke(collar * (sign, 1) + (0, lift), 0.058, 0.17))
        return strokes

    def _abdomen(self, lung: Field) -> Field:
        """The organs below the diaphragm, with the stomach's bubble under the left dome."""
        canvas, rng = self.canvas, self.study.rng("abdomen")
        below = canvas.edge(self.y - self.dome, 0.03) * (1 - lung)
        x, y = rng.uniform(0.28, 0.42), self.body.dome + LEFT_DOME_LOWER + rng.uniform(0.10, 0.16)
        bubble = canvas.ellipse(x, y, rng.uniform(0.08, 0.17), rng.uniform(0.045, 0.08), rng.normal(0, 0.3))
        bowel = np.clip(canvas.noise(rng, 9) - 0.8, 0, 1) * canvas.edge(self.y - np.float32(self.body.dome + 0.3), 0.3)
        level = canvas.edge(np.float32(y + rng.uniform(0.0, 0.08)) - self.y, 0.012)  # of the fluid below the gas
        uneven = bubble + 0.3 * canvas.noise(rng, 20)
        gas = np.float32(rng.uniform(0.0, 0.35)) * canvas.edge(uneven, 0.9) * level + np.float32(0.10) * bowel
        return below * (np.float32(0.07) - gas)

    def _airways(self) -> list[Stroke]:
        """The trachea, which parts into two main bronchi at the carina."""
        lean = self.study.rng("airways").normal(0.0, 0.008)
        path = np.array([(0.0, -1.1), (lean, -0.6), (-0.012 + lean, -0.24)])
        strokes = [Stroke(path, 0.078, -0.19)]
        for sign, reach in ((-1, 0.12), (1, 0.17)):
            points = np.array([(-0.012, -0.25), (sign * 0.06, -0.17), (sign * reach, -0.08 if sign < 0 else -0.10)])
            strokes.append(Stroke(points, 0.045, -0.09))
        return strokes

    def _vessels(self, lung: Field) -> Field:
        """Vessels that leave both hila and branch; wider and hazier in oedema."""
        canvas, rng = self.canvas, self.study.rng("vessels")
        wet = sum(finding.strength for finding in self.study.find("edema"))
        angles = np.array([-1.25, -0.8, -0.35, 0.1, 0.5, 0.85, 1.2])
        starts = np.repeat([(-0.145, -0.06), (0.165, -0.10)], len(angles), 0)
        angles = np.concatenate([np.pi - angles, angles]) + rng.normal(0, 0.13, len(starts))
        lengths = rng.uniform(0.42, 0.62, len(starts))
        strokes = vessel_trees(rng, starts, angles, lengths, 0.028 * (1 + 0.25 * wet), 0.11)
        layer = canvas.strokes(strokes, blur=0.004 + 0.004 * wet)
        for sign, y in ((-1, -0.05), (1, -0.09)):
            layer = layer + np.float32(0.15) * canvas.blob(sign * 0.16, y, 0.06, 0.11, sign * -0.25)
        return layer * lung

    def _marker(self) -> Stroke:
        """The letter L on the patient's left, beside the neck."""
        rng = self.study.rng("marker")
        x, y, turn = rng.uniform(0.62, 0.80), rng.uniform(-0.93, -0.86), rng.normal(0, 0.12)
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        letter = np.array([(0.0, -0.045), (0.0, 0.035), (0.045, 0.035)]) @ rotation
        return Stroke(letter + np.array([x, y]), 0.014, 0.9)

    # Devices

    def _devices(self) -> Field:
        """Devices and the side marker."""
        strokes, solid = [self._marker()], np.zeros_like(self.x)
        for finding in self.study.findings:
            if finding.is_device:
                lines, plates = self._device(finding)
                strokes += lines
                for x, y, rx, ry, value in plates:
                    shape = self.canvas.edge(self.canvas.ellipse(x, y, rx, ry, 0.3), 0.25)
                    solid = np.maximum(solid, np.float32(value) * shape)
        return np.maximum(self.canvas.strokes(strokes), solid)

    def _device(self, finding: Finding) -> tuple[list[Stroke], list[tuple[float, float, float, float, float]]]:
        """Its tubes and wires, and its plates as (x, y, radius, radius, attenuation)."""
        rng, low, sign = self.study.rng(finding.name), self.body.dome, SIGNS.get(finding.side, 1)
        if finding.name == "endotracheal tube":
            tip = float(rng.uniform(-0.46, -0.36))
            tube = np.array([(0.015, -1.1), (0.01, -0.7), (-0.004, tip)])
            return [Stroke(tube, 0.042, 0.11), Stroke(tube - (0.018, 0), 0.009, 0.28)], []
        if finding.name == "central line":
            start = [(sign * 0.19, -1.05), (sign * 0.17, -0.85), (sign * 0.11, -0.66)]
            crossing = [(0.0, -0.50)] if sign > 0 else []
            vein = [(-0.085, -0.40), (-0.10, -0.22), (-0.095, float(rng.uniform(-0.1, 0.04)))]
            return [Stroke(smooth_path(np.array(start + crossing + vein)), 0.016, 0.26)], []
        if finding.name == "pacemaker":
            x, y = sign * float(rng.uniform(0.44, 0.52)), self.body.apex + float(rng.uniform(0.30, 0.36))
            pocket = [(x - sign * 0.05, y), (sign * 0.2, y - 0.10), (-0.07, -0.42), (-0.10, -0.08)]
            ends = ([(-0.07, low - 0.22)], [(0.02, low - 0.1), (0.26, low - 0.09)])
            leads = [Stroke(smooth_path(np.array(pocket + end)), 0.011, 0.30) for end in ends]
            return leads, [(x, y, 0.105, 0.085, 0.5)]
        wires, spots = [], []
        for side, height in ((-1, -0.30), (1, -0.34), (1, low - 0.02)):
            x, y = side * float(rng.uniform(0.36, 0.54)), height + float(rng.normal(0, 0.03))
            end = (side * float(rng.uniform(0.9, 1.1)), y + float(rng.uniform(0.5, 0.8)))
            wire = np.array([(x, y), (x + side * 0.1, y + 0.12), (side * 0.62, y + 0.35), end])
            wires.append(Stroke(smooth_path(wire), 0.009, 0.26))
            spots.append((x, y, 0.030, 0.030, 0.24))
        return wires, spots


def _band(phase: Field, half_width: float, soft: float) -> Field:
    """Bands of a half width (in periods) around whole phases; brighter at their edges, like tubes of bone."""
    away = np.abs(phase - np.round(phase))
    soft = max(soft, 0.09)
    band = smooth_step((np.float32(half_width) - away) / np.float32(soft) + np.float32(0.5))
    rim = np.exp(-(((away - np.float32(half_width * 0.8)) / np.float32(0.08)) ** 2))
    return band * (0.8 + 0.35 * rim)
