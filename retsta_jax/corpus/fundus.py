"""Random fundus studies that are clinically plausible.

An eye has a main finding, drawn by frequency, signs that accompany it, sometimes an incidental
finding, and findings that were looked for and not seen. Terms that exclude each other (two grades of retinopathy, a
finding and its own kind) never meet in one eye, and nothing is denied that belongs to what is there.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from retsta_jax.corpus.findings import EYES, SEVERITIES, SITE_GROUPS, Eye, Finding, FundusStudy, order_findings
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import QUALIFIERS, Term

# Findings that turn up beside anything.
INCIDENTAL = (
    "media_opacity",
    "vitreous_opacity",
    "posterior_vitreous_detachment",
    "asteroid_hyalosis",
    "tessellated_fundus",
    "peripapillary_atrophy",
    "retinal_arteriosclerosis",
    "epiretinal_membrane",
    "myelinated_nerve_fibres",
    "lattice_degeneration",
    "pseudophakia",
    "laser_scars",
)
# Diseases of infants, whose eyes have none of these.
INFANTILE = (
    "retinopathy_of_prematurity",
    *(f"rop_stage_{stage}" for stage in range(1, 6)),
    *(f"rop_zone_{zone}" for zone in range(1, 4)),
    "aggressive_rop",
    "rop_plus",
    "rop_pre_plus",
    "retinoblastoma",
)
# What reports deny most often.
OFTEN_DENIED = (
    "retinal_haemorrhage",
    "hard_exudates",
    "retinal_detachment",
    "retinal_break",
    "macular_oedema",
    "macular_hole",
    "epiretinal_membrane",
    "diabetic_retinopathy",
    "retinal_neovascularisation",
    "optic_disc_oedema",
    "vitreous_haemorrhage",
    "drusen",
)
NORMAL, UNGRADABLE = "no_abnormality", "ungradable"
NAMED_TERMS = tuple(dict.fromkeys((NORMAL, UNGRADABLE, *INFANTILE, *INCIDENTAL, *OFTEN_DENIED)))
MAX_FINDINGS = 5  # per eye

Choice = TypeVar("Choice")


def sample_study(rng: np.random.Generator) -> FundusStudy:
    """A study of one or both eyes, 1 to MAX_FINDINGS findings an eye, clinically consistent."""
    draw = rng.random()
    first = _sample_eye(rng)
    if draw < 0.2:
        return FundusStudy(_on_eye(first, choose(rng, EYES)))
    if draw < 0.4:
        second = first
    elif draw < 0.65:
        second = _some(rng, first)
    else:
        second = _sample_eye(rng)
    right, left = (first, second) if rng.random() < 0.5 else (second, first)
    return FundusStudy(_on_eye(right, "right") + _on_eye(left, "left"))


def choose(rng: np.random.Generator, items: Sequence[Choice]) -> Choice:
    """One of the items, each equally likely (numpy's `choice` would turn them into numpy types)."""
    return items[int(rng.integers(len(items)))]


def _on_eye(findings: Sequence[Finding], eye: Eye) -> tuple[Finding, ...]:
    return order_findings(replace(finding, eye=eye) for finding in findings)


def _some(rng: np.random.Generator, findings: Sequence[Finding]) -> list[Finding]:
    kept = [finding for finding in findings if rng.random() < 0.6]
    return kept or [findings[0]]


def _sample_eye(rng: np.random.Generator) -> list[Finding]:
    """Findings of one eye, main finding first; their `eye` is a placeholder."""
    draw = rng.random()
    if draw < 0.02:
        return [Finding("right", UNGRADABLE)]
    terms: list[Term] = []
    if draw < 0.16:
        findings = _normal_eye(rng)
    else:
        terms.append(_main_term(rng))
        for related in rng.permutation(len(terms[0].related))[: int(rng.choice((0, 1, 1, 2, 2)))]:
            _add(terms, terms[0].related[related])
        if rng.random() < 0.2 and terms[0].id not in INFANTILE:
            _add(terms, choose(rng, INCIDENTAL))
        findings = [_describe(rng, term) for term in terms]
    for _ in range(int(rng.choice((0, 0, 0, 1, 1, 2)))):
        denied = choose(rng, OFTEN_DENIED) if rng.random() < 0.8 else choose(rng, _deniable())
        if len(terms) < MAX_FINDINGS - 1 and not any(_belong_together(denied, term) for term in terms):
            terms.append(load_terminology().by_id[denied])
            findings.append(Finding("right", denied, "absent"))
    return findings


def _normal_eye(rng: np.random.Generator) -> list[Finding]:
    """That nothing is abnormal, or that some structures are not, where the terminology has such terms."""
    structures = _normal_structures()
    if not structures or rng.random() < 0.7:
        return [Finding("right", NORMAL)]
    chosen = rng.permutation(len(structures))[: int(rng.integers(1, 4))]
    return [Finding("right", structures[index]) for index in chosen]


def _add(terms: list[Term], id: str) -> None:
    term = load_terminology().by_id[id]
    if not any(exclude(term, other) for other in terms):
        terms.append(term)


def _belong_together(id: str, term: Term) -> bool:
    other = load_terminology().by_id[id]
    return bool(other.keys & term.keys) or id in term.related or term.id in other.related or id in _broader(term)


def exclude(one: Term, other: Term) -> bool:
    """Whether two findings are not both there in one eye: they share a key, or one is a kind of the other."""
    return bool(one.keys & other.keys) or one.id in _broader(other) or other.id in _broader(one)


@functools.lru_cache(maxsize=4096)
def _broader(term: Term) -> frozenset[str]:
    """The ids of the more general terms, which hold wherever the term does."""
    found: list[str] = []
    while term.broader:
        found.append(term.broader)
        term = load_terminology().by_id[term.broader]
    return frozenset(found)


def _describe(rng: np.random.Generator, term: Term) -> Finding:
    """A present or suspected finding with the modifiers that its term allows."""
    finding = Finding("right", term.id)
    if term.kind in ("diagnosis", "sign") and rng.random() < 0.14:
        finding = replace(finding, status="suspected")
    if "severity" in term.modifiers and rng.random() < 0.6:
        finding = replace(finding, severity=choose(rng, SEVERITIES))
    sites = [site for group in sorted(term.modifiers) for site in SITE_GROUPS.get(group, ())]
    if sites and rng.random() < 0.45:
        finding = replace(finding, site=choose(rng, sites))
    if "ratio" in term.modifiers and rng.random() < 0.7:
        finding = replace(finding, ratio=int(rng.integers(5, 10)))
    return finding


def _main_term(rng: np.random.Generator) -> Term:
    cumulative = _cumulative_frequency()
    return load_terminology().terms[int(np.searchsorted(cumulative, rng.integers(cumulative[-1]), side="right"))]


@functools.cache
def _cumulative_frequency() -> np.ndarray:
    return np.cumsum([term.frequency for term in load_terminology().terms])


@functools.cache
def _deniable() -> tuple[str, ...]:
    return tuple(term.id for term in load_terminology().terms if _is_deniable(term))


def _is_deniable(term: Term) -> bool:
    return term.kind in ("diagnosis", "sign")


@functools.cache
def _normal_structures() -> tuple[str, ...]:
    terms = load_terminology().terms
    return tuple(term.id for term in terms if term.kind == "normal" and term.id != NORMAL)


def unreachable_terms(terms: Sequence[Term]) -> list[Term]:
    """The terms that no report of the corpus would ever mention, by the rules of this module.

    A report states main findings, what goes along with them, incidental findings and what is normal, it denies
    diagnoses and signs, and its remarks name places and degrees that state nothing (`wording.py`).
    """
    main = [term for term in terms if term.frequency]
    reached = {NORMAL, UNGRADABLE} | {term.id for term in main} | set(OFTEN_DENIED)
    reached |= {other for term in main for other in _beside(term, terms)}
    return [
        term
        for term in terms
        if term.id not in reached and term.kind not in ("normal", *QUALIFIERS) and not _is_deniable(term)
    ]


def _beside(main: Term, terms: Iterable[Term]) -> set[str]:
    """The ids of what may stand beside a main finding: related or incidental, and not excluded by it."""
    beside = {*main.related, *(() if main.id in INFANTILE else INCIDENTAL)}
    return {term.id for term in terms if term.id in beside and not exclude(term, main)}
