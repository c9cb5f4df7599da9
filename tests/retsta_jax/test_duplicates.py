"""Near-duplicates: against brute force, what must never be removed, and inputs at the edges."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from common.errors import UserError
from retsta_jax.labelling.duplicates import DuplicateConfig, deduplicate, normalized
from retsta_jax.labelling.minhash import band_keys, ngram_sets, permutations
from tests.corpus import make_pairs

THOROUGH = DuplicateConfig(bands=128, rows=2)  # finds every pair of these tests: 1 - (1 - 0.8^2)^128


def jaccard(one: str, other: str, n: int = 3) -> float:
    """By Python's own sets."""
    sets = [{text[i : i + n] for i in range(max(len(text) - n + 1, 1))} for text in map(normalized, (one, other))]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def greedy(reports, threshold, n=3):
    """{id of a removed report: id of the first one that stays and is similar}, comparing all with all."""
    staying, removed = [], {}
    for id_, text, states in reports:
        for other_id, other, other_states in staying:
            if states == other_states and jaccard(text, other, n) >= threshold:
                removed[id_] = other_id
                break
        else:
            staying.append((id_, text, states))
    return removed


def edited_texts(count, seed, alphabet="abcdef", length=24):
    """A few texts and many copies of copies with one to five characters changed, so that similarities are of all sizes
    and chains lead from one text to quite another.
    """
    random = np.random.default_rng(seed)
    texts = ["".join(random.choice(list(alphabet), length)) for _ in range(3)]
    while len(texts) < count:
        text = list(texts[random.integers(len(texts))])
        for index in random.integers(len(text), size=random.integers(1, 6)):
            text[index] = str(random.choice(list(alphabet)))
        texts.append("".join(text[: random.integers(1, length)] if random.random() < 0.1 else text))
    return [(number, text, int(random.integers(2))) for number, text in enumerate(texts)]


def corpus(count):
    """Reports of the embedded corpus, with half of what they state."""
    return [
        (pair.id, pair.source, pair.target[: len(pair.target) // 2])
        for pair in make_pairs(count, seed=3, language="both")
    ]


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_same_rows_as_comparing_all_with_all(seed, n):
    reports = edited_texts(300, seed)
    found = deduplicate(reports, DuplicateConfig(0.7, n, THOROUGH.bands, THOROUGH.rows))
    assert {row.id: row.stays for row in found.removed} == greedy(reports, 0.7, n)
    plain = greedy([(id_, text, None) for id_, text, _ in reports], 0.7, n)
    assert found.plain_text.removed == len(plain)
    assert found.plain_text.different == sum(reports[id_][2] != reports[stays][2] for id_, stays in plain.items())
    assert found.plain_text.different > 0


@pytest.mark.parametrize("reports", [edited_texts(600, 9), corpus(3000)], ids=["edited", "corpus"])
def test_what_is_removed_is_similar_to_a_row_that_stays_and_states_the_same(reports):
    found = deduplicate(reports, DuplicateConfig(0.6))
    assert {row.kind for row in found.removed} == {"exact", "near"}
    by_id = {id_: (text, states) for id_, text, states in reports}
    order = {id_: number for number, (id_, _, _) in enumerate(reports)}
    removed = {row.id for row in found.removed}
    assert len(removed) == len(found.removed)
    for row in found.removed:
        (text, states), (kept, kept_states) = by_id[row.id], by_id[row.stays]
        assert row.stays not in removed
        assert order[row.stays] < order[row.id]
        assert states == kept_states
        assert row.similarity == jaccard(text, kept) >= 0.6
        assert (row.kind == "exact") == (normalized(text) == normalized(kept))
    for example in found.plain_text.examples:
        assert by_id[example.id][1] != by_id[example.stays][1]
        assert example.similarity == jaccard(by_id[example.id][0], by_id[example.stays][0]) >= 0.6
    assert len({example.stays for example in found.plain_text.examples}) == len(found.plain_text.examples) > 0


def test_the_far_end_of_a_chain_stays():
    one, between, other = "abcdefghijklmnop", "abcdefghijklmnXY", "UVcdefghijklmnXY"
    assert min(jaccard(one, between), jaccard(between, other)) > 0.7 > jaccard(one, other)
    chain = [("a", one, 0), ("b", between, 0), ("c", other, 0)]
    found = deduplicate(chain, DuplicateConfig(0.7, bands=128, rows=2))
    assert [(row.id, row.stays) for row in found.removed] == [("b", "a")]


def test_reports_that_differ_in_eye_or_severity_stay_where_plain_text_would_remove_them():
    rest = "视网膜血管走行可，黄斑中心凹反光存在，后极部见散在点状出血及硬性渗出，视盘边界清，颜色正常"
    reports = [
        (
            f"{eye}{severity}",
            f"{eye}眼：{severity}度非增生型糖尿病视网膜病变，{rest}。",
            frozenset({("npdr", eye, severity)}),
        )
        for eye, severity in (("右", "轻"), ("左", "轻"), ("右", "重"))
    ]
    _, left, severe = reports
    copy = ("copy", severe[1].replace("，", ", ").replace("。", " ."), severe[2])
    near = ("near", left[1] + "建议复查", left[2])
    found = deduplicate([*reports, copy, near])
    removed = [(row.id, row.stays, row.kind) for row in found.removed]
    assert removed == [("copy", "右重", "exact"), ("near", "左轻", "near")]
    plain = found.plain_text
    assert (plain.removed, plain.different, plain.states_lost) == (4, 4, 2)
    assert [(row.id, row.stays) for row in plain.examples] == [("左轻", "右轻")]


def test_width_punctuation_case_and_space_make_no_difference_but_numbers_signs_and_words_do():
    same = [
        "右眼：C/D 0.8，黄斑水肿；OCT 未见异常。",
        "右眼:C/D 0.8,黄斑水肿 ; oct未见异常",
        "右眼　Ｃ／Ｄ ０．８、（黄斑水肿）。\nＯＣＴ未见异常！",
    ]
    assert len({normalized(text) for text in same}) == 1
    found = deduplicate([(number, text, 0) for number, text in enumerate(same)])
    assert [(row.id, row.stays, row.similarity, row.kind) for row in found.removed] == [
        (1, 0, 1.0, "exact"),
        (2, 0, 1.0, "exact"),
    ]
    for one, other in (
        ("C/D 0.8", "C/D 08"), ("2.5 mm", "25 mm"), ("荧光(+)", "荧光(-)"), ("黄斑水肿？", "黄斑水肿。"),
        ("1, 2", "12"), ("no edema", "noedema"), ("-3.00D", "3.00D"), ("<20%", ">20%"),
    ):  # fmt: skip
        assert normalized(one) != normalized(other)
    assert normalized("Drusen, no edema.") == normalized(" drusen;no  edema") == "drusen no edema"
    assert normalized(" ，。\x00\n") == ""


def test_pairs_are_found_as_often_as_theory_says():
    """Pairs of sets of 60 n-grams of which 48 are shared by both: similarity 2/3, found with 1 - (1 - s^rows)^bands."""
    random = np.random.default_rng(0)
    config = DuplicateConfig(threshold=2 / 3, ngram=1, bands=8, rows=4)
    pairs = 1500
    reports = []
    for pair in range(pairs):
        letters = [chr(0x4E00 + int(letter)) for letter in random.choice(9000, 72, replace=False)]
        reports += [(2 * pair, "".join(letters[:60]), pair), (2 * pair + 1, "".join(letters[12:]), pair)]
    found = deduplicate(reports, config)
    assert {row.similarity for row in found.removed} == {48 / 72}
    expected = 1 - (1 - (2 / 3) ** 4) ** 8
    deviation = (expected * (1 - expected) / pairs) ** 0.5
    assert abs(len(found.removed) / pairs - expected) < 4 * deviation


def test_signatures_are_those_of_datasketch():
    peer = pytest.importorskip("datasketch", reason="datasketch is not installed (make dev)")
    texts = [text for _, text, _ in edited_texts(50, 1)]
    sets = ngram_sets(texts, 3)
    keys = band_keys(sets, bands=64, rows=1)
    signatures = []
    for first, last in zip(sets.starts[:-1], sets.starts[1:], strict=True):
        signature = peer.MinHash(64, scheme="affine32", permutations=np.array(permutations(64)), hashfunc=int)
        signature.update_batch(sets.hashes[sets.members[first:last]])
        signatures.append(signature.hashvalues)
    for index, column in enumerate(np.array(signatures).T):
        _, by_peer = np.unique(column, return_inverse=True)
        _, by_key = np.unique(keys[index], return_inverse=True)
        assert (
            len({*zip(by_peer.tolist(), by_key.tolist(), strict=True)}) == len({*by_peer.tolist()}) == by_key.max() + 1
        )


def test_other_reports_change_nothing_wherever_they_stand():
    random = np.random.default_rng(5)
    reports = edited_texts(300, 5)
    others = [(f"other {n}", "".join(map(chr, random.integers(0x4E00, 0x9000, 30))), n % 2) for n in range(1500)]
    alone = deduplicate(reports, THOROUGH)
    indices = np.sort(random.choice(len(reports) + len(others), len(reports), replace=False))
    mixed = [others.pop() for _ in range(len(others))]
    for index, report in zip(indices, reports, strict=True):
        mixed.insert(int(index), report)
    assert len(alone.removed) > 20
    assert deduplicate(mixed, THOROUGH) == alone


def test_blocks_and_chunks_change_nothing(monkeypatch):
    reports = edited_texts(500, 6)
    whole = deduplicate(reports, THOROUGH)
    for module, name, value in (
        ("greedy", "BLOCK", 7),
        ("greedy", "CHUNK", 5),
        ("minhash", "CHUNK", 600),
        ("minhash", "SLICE", 50),
    ):
        monkeypatch.setattr(f"retsta_jax.labelling.{module}.{name}", value)
    assert deduplicate(reports, THOROUGH) == whole


def test_same_result_in_every_process():
    program = (
        "import json; from tests.retsta_jax.test_duplicates import edited_texts;"
        "from retsta_jax.labelling.duplicates import *;"
        "print(json.dumps(deduplicate((i, t, frozenset({'a', 'bc', str(s)})) for i, t, s in edited_texts(300, 2))))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert json.loads(printed.pop())[0]


def test_empty_and_short_texts():
    texts = ["", " 。", "右", "右。", "左", "\ud800", "右眼", "ab", "AB", "ba"]
    found = deduplicate([(number, text, 0) for number, text in enumerate(texts)], DuplicateConfig(0.3))
    assert [(row.id, row.stays, row.kind) for row in found.removed] == [
        (1, 0, "exact"),
        (3, 2, "exact"),
        (8, 7, "exact"),
    ]
    assert deduplicate([]) == ((), (0, 0, 0, ()))
    assert deduplicate([("only", "", 0)]) == ((), (0, 0, 0, ()))


def test_one_giant_group_and_one_text_a_hundred_thousand_times():
    same = deduplicate((number, "双眼底未见明显异常。", 0) for number in range(100_000))
    assert len(same.removed) == 99_999
    assert {(row.stays, row.kind) for row in same.removed} == {(0, "exact")}
    text = (
        "双眼底未见明显异常，视盘边界清，颜色正常，血管走行可，黄斑中心凹反光存在，未见出血及渗出，建议复查，不适随诊"
    )
    reports = ((number, f"{text}{number:05d}", number % 3) for number in range(20_000))
    giant = deduplicate(reports, DuplicateConfig(bands=40, rows=4))
    assert len(giant.removed) == 20_000 - 3
    assert {row.stays for row in giant.removed} == {0, 1, 2}
    assert giant.plain_text[:3] == (19_999, 19_999 - 6_666, 2)


def test_a_long_text_and_its_near_copy():
    text = "".join(map(chr, np.random.default_rng(0).integers(0x4E00, 0x9000, 70_000)))
    found = deduplicate([("one", text, 0), ("other", text[100:], 0), ("short", text[:30], 0)])
    assert [(row.id, row.stays) for row in found.removed] == [("other", "one")]


@pytest.mark.parametrize("config", [{"threshold": 0.0}, {"threshold": 1.5}, {"ngram": 0}, {"bands": 0}, {"rows": 0}])
def test_config_out_of_bounds(config):
    with pytest.raises(UserError, match=f"{next(iter(config))} must be"):
        deduplicate([(1, "a", 0)], DuplicateConfig(**config))
