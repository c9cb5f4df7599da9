"""What the rules call unreachable is what sampling never reaches."""

from dataclasses import replace

import numpy as np
import pytest

import retsta_jax.corpus.findings as findings
import retsta_jax.corpus.fundus as studies
import retsta_jax.corpus.remarks as remarks
import retsta_jax.corpus.wording as wording
from retsta_jax.cli import dispatch
from retsta_jax.corpus.fundus import sample_study, unreachable_terms
from retsta_jax.corpus.styles import styles_of
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.matching import find_terms
from retsta_jax.terminology.terms import QUALIFIERS, Term, Terminology
from retsta_jax.terminology_command import corpus_errors, read_table

PLACES = (
    Term("optic_disc", "anatomy", zh="视盘", en="optic disc"),
    Term("macula", "anatomy", zh="黄斑", en="macula"),
    Term("nasal", "location", zh="鼻侧", en="nasal"),
    Term("right_eye", "location", zh="右眼", en="right eye", abbreviations_en=("OD",)),
    Term("mild", "severity", zh="轻度", en="mild"),
    Term("normal_macula", "normal", zh="黄斑未见异常", en="normal macula", synonyms_zh=("黄斑正常",)),
)


@pytest.fixture
def table(monkeypatch):
    """The shipped terms, those of PLACES, one that sampling cannot reach, and one that only another one could bring."""
    shipped = [term for term in load_terminology().terms if term.id not in {other.id for other in PLACES}]
    stranded = {"silicone_oil": 0, "post_vitrectomy": 0, "scleral_buckle": 0}
    terms = [replace(term, frequency=stranded.get(term.id, term.frequency)) for term in shipped]
    terms = Terminology((*terms, *PLACES))
    caches = [
        findings._term_order,
        studies._cumulative_frequency,
        studies._deniable,
        studies._normal_structures,
        remarks._mentionable,
    ]
    for cache in caches:
        cache.cache_clear()
    for used in (findings, remarks, studies, wording):
        monkeypatch.setattr(used, "load_terminology", lambda: terms)
    yield terms
    for cache in caches:
        cache.cache_clear()


def test_rules_and_sampling_agree(table):
    unreachable = {term.id for term in unreachable_terms(table.terms)}
    assert unreachable == {"silicone_oil", "scleral_buckle"}
    missing = {term.id for term in table.terms if term.kind not in QUALIFIERS}
    for index in range(20_000):
        missing -= {finding.term for finding in sample_study(np.random.default_rng([3, index])).findings}
        if missing == unreachable:
            break
    assert missing == unreachable


@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_place_and_degree_is_mentioned_and_states_nothing(table, language):
    style = replace(styles_of(language)[0], remarks=1.0)
    wanted = {term.id for term in table.terms if not term.states} - {"right_eye"}
    assert wanted
    for index in range(2000):
        rng = np.random.default_rng([4, index])
        study = sample_study(rng)
        found = find_terms(wording.original_report(study, language, rng, 0.0, style), table, language)
        assert {match.term for match in found if table.by_id[match.term].states} == {f.term for f in study.findings}
        wanted -= {match.term for match in found}
        if not wanted:
            break
    assert not wanted


def test_what_is_there_is_not_denied_under_a_broader_name(monkeypatch, table):
    """Every other term made a kind of retinal detachment, which is denied often."""
    terms = [
        replace(term, broader="retinal_detachment", keys=frozenset({term.id}), related=())
        if term.kind == "sign" and term.id != "retinal_detachment"
        else term
        for term in table.terms
    ]
    kinds = {term.id for term in terms if term.broader == "retinal_detachment"}
    for used in (findings, studies):
        monkeypatch.setattr(used, "load_terminology", lambda: Terminology(tuple(terms)))
    denied_somewhere = False
    for index in range(1500):
        study = sample_study(np.random.default_rng([5, index]))
        for eye in study.eyes:
            present = {finding.term for finding in study.of_eye(eye) if finding.status != "absent"}
            denied = {finding.term for finding in study.of_eye(eye) if finding.status == "absent"}
            denied_somewhere |= "retinal_detachment" in denied
            assert not ("retinal_detachment" in denied and present & kinds)
    assert denied_somewhere


def test_a_related_term_that_its_only_companion_excludes_is_unreachable():
    main = Term("a", "diagnosis", frequency=1, keys=frozenset({"a", "k"}), related=("b", "c"))
    excluded, beside = (Term(id, "procedure", keys=frozenset({id, key})) for id, key in (("b", "k"), ("c", "c")))
    assert unreachable_terms([main, excluded, beside]) == [excluded]


def test_the_check_of_the_shipped_terminology_says_what_the_corpus_cannot_reach(tmp_path, monkeypatch, capsys):
    rows = [
        "id\tkind\tzh\ten",
        "no_abnormality\tnormal\t未见明显异常\tno obvious abnormality",
        "x\tprocedure\t术\tsurgery",
    ]
    file = tmp_path / "terms.tsv"
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert dispatch(["terminology", "check", str(file)]) == 0
    assert "line 3: the generated corpus never mentions x" in corpus_errors(read_table(file))[-1]
    assert corpus_errors(read_table(file))[0].startswith("no term has the id ungradable")
    monkeypatch.setattr("retsta_jax.terminology_command.SHIPPED", file)
    assert dispatch(["terminology", "check"]) == 2
    assert "never mentions x" in capsys.readouterr().out
