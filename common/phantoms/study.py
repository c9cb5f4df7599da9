"""What a phantom study shows: a body, the findings in it and why it was taken, drawn from priors.

Findings go together as they do in patients (a large heart with oedema and effusions, a broken rib with a
pneumothorax), and what could not be seen or told apart never meets: air and fluid on one side, a lower lobe opacity
inside a large effusion, oedema with another cause of hazy lungs.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

Side = Literal["left", "right", "both", "none"]
Certainty = Literal["certain", "uncertain"]
Scanner = Literal["first", "second"]  # the machine: images of the second are darker, with half the contrast

SIGNS: dict[Side, int] = {"left": 1, "right": -1}  # of x in a frontal image: the patient's left is on its right
LEFT_DOME_LOWER = 0.05
NORMAL_SHARE = 0.27
UNCERTAIN_SHARE = 0.16
UNCERTAIN_STRENGTH = 0.6  # how strongly an uncertain finding is drawn

LOBES: dict[Side, tuple[str, ...]] = {
    "right": ("upper lobe", "middle lobe", "lower lobe"),
    "left": ("upper lobe", "lingula", "lower lobe"),
}
# Where lobes and zones are: distance from the midline, depth from the front (half widths of either view), height as a
# share of the lung from apex to dome, and how far these vary.
SITES: dict[str, tuple[float, float, float, float]] = {
    "upper lobe": (0.36, -0.05, 0.32, 0.025),
    "middle lobe": (0.34, -0.22, 0.80, 0.025),
    "lingula": (0.43, -0.26, 0.78, 0.025),
    "lower lobe": (0.42, 0.34, 0.93, 0.025),
    "upper": (0.40, 0.12, 0.30, 0.07),
    "mid": (0.46, 0.05, 0.54, 0.07),
    "lower": (0.53, 0.32, 0.80, 0.05),
}
ZONES = ("upper", "mid", "lower")
SIZES = ("small", "moderate", "large")
GRADES = ("mild", "moderate", "severe")
DEVICES = ("endotracheal tube", "central line", "pacemaker", "ecg leads")
AIRSPACE = ("opacity", "consolidation", "pneumonia")
# Prior weight of each finding as the first of a study.
PRIORS: dict[str, float] = {
    "cardiomegaly": 0.17,
    "pleural effusion": 0.17,
    "opacity": 0.09,
    "consolidation": 0.07,
    "pneumonia": 0.08,
    "nodule": 0.09,
    "atelectasis": 0.10,
    "edema": 0.06,
    "pneumothorax": 0.07,
    "pleural thickening": 0.04,
    "rib fracture": 0.05,
    "wide mediastinum": 0.03,
}
# What a finding brings along, and how often.
COMPANIONS: dict[str, tuple[tuple[str, float], ...]] = {
    "cardiomegaly": (("edema", 0.22), ("pleural effusion", 0.25)),
    "edema": (("cardiomegaly", 0.6), ("pleural effusion", 0.5)),
    "pleural effusion": (("atelectasis", 0.3), ("cardiomegaly", 0.2)),
    "pneumonia": (("pleural effusion", 0.2),),
    "consolidation": (("pleural effusion", 0.15),),
    "pneumothorax": (("rib fracture", 0.25),),
    "rib fracture": (("pneumothorax", 0.25), ("pleural effusion", 0.1)),
    "nodule": (("pleural thickening", 0.08),),
}
INDICATIONS: dict[str, tuple[str, ...]] = {
    "shortness of breath": ("edema", "pleural effusion", "pneumothorax", "cardiomegaly"),
    "chest pain": ("pneumothorax", "rib fracture", "wide mediastinum"),
    "cough": ("pneumonia", "consolidation", "opacity", "nodule"),
    "fever": ("pneumonia", "consolidation", "opacity"),
    "fall": ("rib fracture", "pneumothorax"),
    "preoperative evaluation": (),
    "weight loss": ("nodule", "pleural thickening"),
    "leg swelling": ("cardiomegaly", "edema"),
    "follow-up": DEVICES,
    "routine examination": (),
    "hypoxia": ("edema", "atelectasis", "consolidation"),
    "weakness": (),
}

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Finding:
    """Something abnormal, or a device. side is the patient's; site is a lobe or a zone; severity may be ""."""

    name: str
    side: Side = "none"
    site: str = ""
    severity: str = ""
    certainty: Certainty = "certain"

    @property
    def is_device(self) -> bool:
        return self.name in DEVICES

    @property
    def strength(self) -> float:
        """How strongly it is drawn: uncertain findings are fainter."""
        return 1.0 if self.certainty == "certain" else UNCERTAIN_STRENGTH

    def is_on(self, side: Side) -> bool:
        return self.side in (side, "both")

    def __str__(self) -> str:
        side = "bilateral" if self.side == "both" else self.side if self.side != "none" else ""
        words = [self.severity, side, self.site, self.name, "?" if self.certainty == "uncertain" else ""]
        return " ".join(word for word in words if word).replace(" ?", "?")


@dataclass(frozen=True)
class Body:
    """A patient and how he or she stood. Lengths in half image widths, from the image centre, y downward."""

    female: bool
    fat: float  # 0 thin to 1 obese
    apex: float  # y of the lung apices
    dome: float  # y of the right diaphragm's dome
    chest: float  # half the widest inner width of the rib cage
    heart: float  # cardiothoracic ratio
    rib_spacing: float
    rib_tilt: float
    aorta: float  # 0 small to 1 large and tortuous
    angle: float  # radians
    scale: float
    shift: tuple[float, float]
    exposure: float
    contrast: float

    def height(self, share: float, side: Side) -> float:
        """y at a share of the way from the lung's apex (0) to the dome of its diaphragm (1)."""
        return self.apex + share * (self.dome + (LEFT_DOME_LOWER if side == "left" else 0.0) - self.apex)


@dataclass(frozen=True)
class Study:
    """All that the images and the report of a phantom are made from."""

    seed: int
    index: int
    body: Body
    findings: tuple[Finding, ...]
    indication: str

    def on(self, scanner: Scanner) -> "Study":
        """The same study, taken with another machine."""
        if scanner == "first":
            return self
        body = self.body
        return replace(self, body=replace(body, contrast=0.5 * body.contrast, exposure=body.exposure + 0.15))

    def without(self, finding: Finding) -> "Study":
        """The same patient without that finding; everything else is drawn as before."""
        return replace(self, findings=tuple(other for other in self.findings if other != finding))

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator of its own for each thing drawn, so that no finding changes how another one looks."""
        return np.random.default_rng([self.seed, self.index, zlib.crc32(purpose.encode())])

    def place(self, finding: Finding, side: Side) -> tuple[float, float, float]:
        """(distance from the midline, depth, y) of a finding in a lobe or zone, the same in both views."""
        across, depth, share, spread = SITES[finding.site]
        moves = self.rng(f"place of {finding.name}").uniform(-1, 1, 3) * spread
        return across + moves[0], depth + moves[1], self.body.height(share, side) + moves[2]

    def find(self, *names: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.name in names]


def sample_study(seed: int, index: int) -> Study:
    """Study `index` of a seed, the same whatever else was sampled. Seeds and indices are 0 or more."""
    rng = np.random.default_rng([seed, index, zlib.crc32(b"study")])
    body = _sample_body(rng)
    findings = _sample_findings(rng)
    return Study(seed, index, body, findings, _sample_indication(rng, findings))


def choose(rng: np.random.Generator, items: Sequence[Choice]) -> Choice:
    """One of the items, each equally likely."""
    return items[int(rng.integers(len(items)))]


def _sample_body(rng: np.random.Generator) -> Body:
    fat = float(rng.beta(2, 3))
    return Body(
        female=bool(rng.random() < 0.5),
        fat=fat,
        apex=float(rng.uniform(-0.80, -0.70)),
        dome=float(rng.uniform(0.42, 0.58)) - 0.08 * fat,
        chest=float(rng.uniform(0.71, 0.79)),
        heart=float(rng.uniform(0.40, 0.49)),
        rib_spacing=float(rng.uniform(0.125, 0.15)),
        rib_tilt=float(rng.uniform(0.46, 0.62)),
        aorta=float(rng.random()),
        angle=float(np.clip(rng.normal(0, 0.02), -0.05, 0.05)),
        scale=float(rng.uniform(0.94, 1.05)),
        shift=(float(np.clip(rng.normal(0, 0.025), -0.06, 0.06)), float(np.clip(rng.normal(0, 0.025), -0.06, 0.06))),
        exposure=float(np.clip(rng.normal(0, 0.035), -0.08, 0.08)),
        contrast=float(rng.uniform(0.88, 1.12)),
    )


def _sample_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
    if rng.random() < NORMAL_SHARE:
        return ()
    findings: list[Finding] = []
    if rng.random() < 0.94:
        names = list(PRIORS)
        weights = np.array(list(PRIORS.values()))
        main = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        wanted = [main, *(name for name, share in COMPANIONS.get(main, ()) if rng.random() < share)]
        if rng.random() < 0.15:
            wanted.append(choose(rng, names))
        for name in wanted:
            finding = _describe(rng, name)
            if len(findings) < 3 and not any(_exclude(finding, other) for other in findings):
                findings.append(finding)
    if not findings or (len(findings) < 3 and rng.random() < 0.2):
        findings.append(_sample_device(rng, findings))
    return tuple(findings)


def _describe(rng: np.random.Generator, name: str) -> Finding:
    """A finding of that name with a side, a site, a severity and a certainty."""
    side: Side = "right" if rng.random() < 0.52 else "left"
    site = severity = ""
    if name in AIRSPACE:
        site = choose(rng, LOBES[side])
    elif name == "nodule":
        site = choose(rng, ZONES)
        severity = "large" if rng.random() < 0.3 else "small"
    elif name in ("pleural effusion", "atelectasis", "rib fracture", "pneumothorax", "pleural thickening"):
        if name in ("pleural effusion", "atelectasis") and rng.random() < 0.3:
            side = "both"
        if name in ("pleural effusion", "pneumothorax"):
            severity = SIZES[int(rng.choice(3, p=(0.45, 0.37, 0.18)))]
            severity = "moderate" if side == "both" and severity == "large" else severity
    else:
        side = "both" if name == "edema" else "none"
        if name in ("cardiomegaly", "edema"):
            severity = GRADES[int(rng.choice(3, p=(0.4, 0.38, 0.22)))]
    # Nobody hedges about what is large.
    hedged = rng.random() < UNCERTAIN_SHARE and severity not in ("large", "severe")
    return Finding(name, side, site, severity, "uncertain" if hedged else "certain")


def _sample_device(rng: np.random.Generator, findings: Sequence[Finding]) -> Finding:
    names = {finding.name for finding in findings}
    sick = names & {"edema", "consolidation", "pneumonia", "pneumothorax"}
    device = DEVICES[int(rng.choice(4, p=(0.4, 0.3, 0.1, 0.2) if sick else (0.1, 0.35, 0.35, 0.2)))]
    side: Side = "none"
    if device == "pacemaker":
        side = "left" if rng.random() < 0.85 else "right"
    elif device == "central line":
        side = "right" if rng.random() < 0.75 else "left"
    return Finding(device, side)


def _exclude(one: Finding, other: Finding) -> bool:
    """Whether two findings cannot be shown in one study."""
    names = {one.name, other.name}
    if one.name == other.name or names <= set(AIRSPACE):
        return True
    if "edema" in names:
        return bool(names & {*AIRSPACE, "pneumothorax", "atelectasis", "nodule"})
    sides = {one.side, other.side}
    if "both" not in sides and one.side != other.side:
        return False
    if "pneumothorax" in names:
        return bool(names - {"pneumothorax", "rib fracture", "cardiomegaly", "wide mediastinum"})
    if "pleural effusion" in names:
        effusion, partner = (one, other) if one.name == "pleural effusion" else (other, one)
        hidden = partner.name == "atelectasis" or partner.site.startswith(("lower", "middle", "lingula"))
        # Below a small effusion the lung can be seen; a moderate one leaves the upper zones; a large one hides all.
        return effusion.severity != "small" and (hidden or effusion.severity == "large")
    low = {one.site, other.site} & {"lower lobe", "lower", "middle lobe", "lingula"}
    return "atelectasis" in names and bool(low)


def _sample_indication(rng: np.random.Generator, findings: Sequence[Finding]) -> str:
    """The reason for the study: mostly chance, somewhat more often one that fits what is there."""
    names = {finding.name for finding in findings}
    weights = np.array([1.6 if names & set(fitting) else 1.0 for fitting in INDICATIONS.values()])
    return list(INDICATIONS)[int(rng.choice(len(weights), p=weights / weights.sum()))]
