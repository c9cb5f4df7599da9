"""Prompts fit the model, keep what a report needs, say what they leave out, and hold nothing of the test split."""

import re
from dataclasses import replace

import pytest

from common.data.records import ReportPair
from common.errors import UserError
from common.metrics.baselines import nearest_reports, similarities
from retsta_jax.baselines.few_shot import (
    ENGLISH,
    Reference,
    choose_shots,
    kept_parts,
    make_references,
    needed_terms,
    own_name,
    prompt_text,
)
from retsta_jax.baselines.shortening import LONGER_THAN, _removable, farthest_shots, fit_prompts, least
from retsta_jax.corpus.pairs import make_splits
from retsta_jax.data import Splits
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.matching import find_terms
from retsta_jax.terminology.terms import Terminology

TERMS = load_terminology()


def count(text):
    """Words and single characters of others, as a tokenizer that needs no file."""
    return len(re.findall(r"[a-z]+|\S|\n", text, re.IGNORECASE))


@pytest.fixture(scope="module")
def splits():
    return Splits(**make_splits(60, 6, 12, seed=3, language="both"))


@pytest.fixture(scope="module")
def references(splits):
    return make_references(["zh", "en", "en"], splits, "fundus", TERMS, 5, 0)


def ids_of(kept):
    return {term.id for term in kept.terms}


def whole_size(references, pair):
    (prompt,), _ = fit_prompts([pair], references, count, None, [])
    return count(prompt_text(references[pair.language], prompt))


def test_a_prompt_has_instruction_terms_examples_and_report_in_the_reports_language(splits, references):
    prompts, quarantine = fit_prompts(splits.test, references, count, None, splits.train)
    assert not quarantine
    for prompt in prompts:
        reference, text = references[prompt.pair.language], prompt_text(references[prompt.pair.language], prompt)
        assert text.startswith(reference.wording.instruction)
        assert text.endswith(f"\n{prompt.pair.source}\n{reference.wording.standard}\n")
        for term in TERMS.terms:
            assert f"\n{own_name(term, prompt.pair.language)}" in text
        starts = [text.index(f"{shot.source}\n{reference.wording.standard}\n{shot.target}") for shot in reference.shots]
        assert starts == sorted(starts)
        chinese = sum("一" <= character <= "鿿" for character in text) / len(text)
        assert chinese > 0.5 if prompt.pair.language == "zh" else chinese == 0


def test_all_prompts_of_a_language_begin_alike(splits, references):
    prompts, _ = fit_prompts(splits.test, references, count, None, splits.train)
    for language in ("zh", "en"):
        own = [prompt for prompt in prompts if prompt.pair.language == language]
        texts = [prompt_text(references[language], prompt) for prompt in own]
        ends = [text.removesuffix(f"{prompt.pair.source}\n{references[language].wording.standard}\n")
                for text, prompt in zip(texts, own, strict=True)]  # fmt: skip
        assert len(set(ends)) == 1


def test_no_prompt_holds_a_report_of_validation_or_test(splits):
    test = splits.test[0]
    copies = [ReportPair("copy", test.source, "x", test.language), ReportPair("same", "y", test.target, test.language)]
    leaking = splits._replace(train=[*copies, *[pair for pair in splits.train if pair.language == test.language][:5]])
    for seed in range(20):
        shots = choose_shots(leaking, test.language, 5, seed)
        assert {shot.id for shot in shots} == {pair.id for pair in leaking.train[2:]}
    with pytest.raises(UserError, match=r"^--shots 6: the training split has 5 reports in (Chinese|English) whose"):
        choose_shots(leaking, test.language, 6, 0)
    prompts, _ = fit_prompts(
        splits.test, make_references(["zh", "en"], splits, "fundus", TERMS, 5, 0), count, None, splits.train
    )
    held_out = {pair.target for pair in (*splits.validation, *splits.test)}
    references = make_references(["zh", "en"], splits, "fundus", TERMS, 5, 0)
    for prompt in prompts:
        text = prompt_text(references[prompt.pair.language], prompt)
        assert not [target for target in held_out if target in text]
        assert not [pair.id for pair in splits.test if pair.source in text and pair.source not in prompt.pair.source]


def test_shots_are_drawn_by_the_seed_within_a_language(splits):
    drawn = [tuple(shot.id for shot in choose_shots(splits, "zh", 5, seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5
    by_id = {pair.id: pair for pair in splits.train}
    assert all(by_id[id_].language == "zh" for ids in drawn for id_ in ids)
    assert choose_shots(splits, "en", 0, 0) == ()


def test_needed_are_the_terms_found_all_broader_ones_and_the_related(splits):
    needed = needed_terms("OD: mild NPDR", TERMS, "en")
    assert needed[:4] == ("mild_npdr", "npdr", "diabetic_retinopathy", "retinopathy")
    needed = set(needed)
    assert {"mild_npdr", "npdr", "diabetic_retinopathy", "retinopathy", *TERMS.by_id["mild_npdr"].related} <= needed
    assert "drusen" not in needed
    for pair in splits.test:
        found = {match.term for match in find_terms(pair.source, TERMS, pair.language)}
        assert found == set(needed_terms(pair.source, TERMS, pair.language)[: len(found)])


@pytest.mark.parametrize("share", [0.999, 0.7, 0.4, 0.2, 0.1, 0.06, 0.03, 0.01])
def test_a_shortened_prompt_fits_keeps_what_is_needed_and_loses_no_more_than_it_must(splits, references, share):
    for pair in splits.test:
        reference = references[pair.language]
        limit = int(share * whole_size(references, pair))
        prompts, quarantine = fit_prompts([pair], references, count, limit, splits.train)
        if quarantine:
            assert whole_size({pair.language: replace(reference, shots=(), terms=())}, pair) > limit
            assert quarantine.entries == [(pair.id, LONGER_THAN)]
            continue
        (prompt,) = prompts
        assert prompts == fit_prompts([pair], references, count, limit, splits.train)[0]
        needed, kept = needed_terms(pair.source, TERMS, pair.language), kept_parts(reference, prompt)
        assert prompt.needed == needed
        assert count(prompt_text(reference, prompt)) <= limit
        assert count(prompt_text(reference, replace(prompt, left_out=prompt.left_out - 1))) > limit
        # In this order: terms that are not needed, other names, examples, terms that are needed.
        if kept.shots:
            assert set(needed) <= ids_of(kept)
        spare = [term.id for term in reference.terms if term.id not in needed]
        kept_spare = [id_ for id_ in spare if id_ in ids_of(kept)]
        assert kept_spare == spare[: len(kept_spare)]
        kept_needed = [id_ for id_ in needed if id_ in ids_of(kept)]
        assert tuple(kept_needed) == needed[: len(kept_needed)]
        if kept_spare:
            assert not kept.bare
        named = {term.id for term in reference.terms if term.id in kept_needed and term.synonyms(pair.language)}
        assert kept.bare <= named
        if kept.bare != named:
            assert kept.shots == reference.shots


def test_each_step_makes_a_prompt_shorter(splits, references):
    pair = splits.test[0]
    reference = references[pair.language]
    (prompt,), _ = fit_prompts([pair], references, count, whole_size(references, pair) - 1, splits.train)
    steps = len(_removable(reference, prompt))
    sizes = [count(prompt_text(reference, replace(prompt, left_out=step))) for step in range(steps + 1)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == steps + 1
    assert sizes[-1] == whole_size({pair.language: replace(reference, shots=(), terms=())}, pair)


@pytest.mark.parametrize("last", range(7))
def test_the_least_number_of_steps_is_found_from_any_guess(last):
    for answer in range(last + 1):
        for guess in range(last + 1):
            asked = []
            assert least(lambda n, a=answer, s=asked: s.append(n) or n >= a, last, guess) == answer
            assert set(asked) <= set(range(last + 1))


def test_examples_go_the_least_like_first(splits):
    shots = tuple(
        ReportPair(id_, source, "t", "en")
        for id_, source in (("far", "macular hole"), ("near", "drusen of the left eye"), ("middle", "left eye normal"))
    )
    reference = Reference(ENGLISH, "en", (), shots, lambda report: ())
    (order,) = farthest_shots(reference, ["drusen of the left eye."], [*shots, *splits.train])
    assert [shots[index].id for index in order] == ["far", "middle", "near"]
    pair = ReportPair("x", "drusen of the left eye.", "t", "en")
    for kept, names in ((3, ["far", "near", "middle"]), (2, ["near", "middle"]), (1, ["near"]), (0, [])):
        limit = whole_size({"en": replace(reference, shots=tuple(s for s in shots if s.id in names))}, pair)
        (prompt,), _ = fit_prompts([pair], {"en": reference}, count, limit, [*shots, *splits.train])
        assert [shot.id for shot in kept_parts(reference, prompt).shots] == names
        assert len(names) == kept


def test_similarities_are_those_by_which_the_nearest_report_is_chosen(splits):
    train = [pair for pair in splits.train if pair.language == "en"]
    sources, asked = [pair.source for pair in train], [pair.source for pair in splits.test if pair.language == "en"]
    rows = similarities(sources, sources[::-1], asked, language="en")
    nearest = nearest_reports(sources, [pair.id for pair in train], asked, language="en")
    for row, id_ in zip(rows, nearest, strict=True):
        assert max(row) == row[::-1][[pair.id for pair in train].index(id_)]


def test_without_a_terminology_no_term_is_named_and_one_of_another_language_is_refused(splits):
    without = make_references(["en"], splits, "fundus", None, 1, 0)["en"]
    (prompt,), _ = fit_prompts(splits.test[:1], {"en": without, "zh": without}, count, None, [])
    assert without.wording.terms not in prompt_text(without, prompt)
    chinese = Terminology(tuple(replace(term, en="") for term in TERMS.terms), ("zh",))
    with pytest.raises(UserError, match="the terminology has no names in English, the language of some reports"):
        make_references(["zh", "en"], splits, "fundus", chinese, 1, 0)
    some = Terminology((replace(TERMS.terms[0], en=""), *TERMS.terms[1:]))
    assert len(make_references(["en"], splits, "fundus", some, 1, 0)["en"].terms) == len(TERMS.terms) - 1


def test_the_reference_of_open_i_are_the_codes_of_its_training_split():
    train = [
        ReportPair("1", "FINDINGS: a", "Opacity/lung/base/left\nCardiomegaly"),
        ReportPair("2", "FINDINGS: b", "Cardiomegaly\nGranuloma/lung"),
    ]
    splits = Splits(train, [], [ReportPair("t", "FINDINGS: cardiomegaly, no granuloma.", "Cardiomegaly/severe")])
    reference = make_references(["en"], splits, "openi", TERMS, 2, 0)["en"]
    assert [term.id for term in reference.terms] == ["Cardiomegaly", "Granuloma/lung", "Opacity/lung/base/left"]
    assert reference.needed(splits.test[0].source) == ("Cardiomegaly", "Granuloma/lung")
    size = whole_size({"en": reference}, splits.test[0])
    (prompt,), _ = fit_prompts(splits.test, {"en": reference}, count, size - 1, train)
    assert ids_of(kept_parts(reference, prompt)) == {"Cardiomegaly", "Granuloma/lung"}
