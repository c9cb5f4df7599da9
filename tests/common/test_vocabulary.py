"""Merged vocabularies: thresholds of their own, one order, and reserved names that no report can write."""

import itertools
import random
from collections import Counter

import pytest

from common.data.cleaning import r2gen_clean_iu, r2gen_clean_mimic
from common.data.tokenizers import WordTokenizer, build_word_tokenizer, load_tokenizer, save_words
from common.data.vocabulary import Corpus, merged_vocabulary
from common.errors import UserError

IU = ["the heart is normal .", "the heart is large .", "no effusion in the heart ."]
MIMIC = ["lung volumes are low ."] * 9 + ["lung volumes are low . effusion ."] + ["no effusion ."] * 8


def test_a_word_must_be_frequent_in_one_corpus_and_counts_are_not_added_up():
    words = merged_vocabulary(Corpus(IU, 3), Corpus(MIMIC, 10)).words
    assert words == (".", "are", "heart", "low", "lung", "the", "volumes")
    assert Counter(" ".join(IU + MIMIC).split())["effusion"] == 10


def test_the_vocabulary_depends_on_neither_the_order_of_reports_nor_of_corpora():
    expected = merged_vocabulary(Corpus(IU, 3), Corpus(MIMIC, 10))
    generator = random.Random(0)
    for _ in range(5):
        shuffled = [Corpus(generator.sample(IU, len(IU)), 3), Corpus(generator.sample(MIMIC, len(MIMIC)), 10)]
        for corpora in itertools.permutations(shuffled):
            assert merged_vocabulary(*corpora) == expected


def test_one_corpus_merged_with_nothing_is_its_own_vocabulary(tmp_path):
    tokenizer = merged_vocabulary(Corpus(iter(IU), 2))
    assert tokenizer == build_word_tokenizer(IU, 2)
    save_words(tmp_path / "words.json", tokenizer)
    assert load_tokenizer(tmp_path / "words.json") == tokenizer


@pytest.mark.parametrize("reserved", WordTokenizer.RESERVED)
def test_a_reserved_name_written_in_reports_is_an_unknown_word(tmp_path, reserved):
    report = f"the heart {reserved} is normal"
    tokenizer = merged_vocabulary(Corpus([report] * 20, 3), Corpus([report] * 20, 10))
    assert tokenizer.words == ("heart", "is", "normal", "the")
    ids = tokenizer.encode(report)
    assert ids == [7, 4, tokenizer.unk_id, 5, 6]
    assert not {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id} & set(ids)
    save_words(tmp_path / "words.json", tokenizer)
    assert load_tokenizer(tmp_path / "words.json") == tokenizer


@pytest.mark.parametrize("clean", [r2gen_clean_iu, r2gen_clean_mimic])
def test_the_names_of_other_code_bases_are_words_like_any_other(clean):
    texts = [clean("The <end> of <start>. [PAD] <s>.")] * 3
    tokenizer = merged_vocabulary(Corpus(texts, 3))
    assert tokenizer.words == (".", "end", "of", "pad", "s", "start", "the")
    assert min(tokenizer.encode(texts[0])) >= len(WordTokenizer.RESERVED)
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


def test_a_corpus_without_frequent_words_is_an_error():
    with pytest.raises(UserError, match="no word occurs 10 times"):
        merged_vocabulary(Corpus(IU, 3), Corpus(IU, 10))
