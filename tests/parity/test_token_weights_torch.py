"""`deer weights --method gradient` against PyTorch: Eq. 9 to 12 with autograd, and alignment by brute force."""

import json

import numpy as np
import pytest

from common.io.jsonl import write_rows
from deer_jax.cli import dispatch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] no pleural eff ##usion ##s heart is en ##larged , . edema mild the a 2 5 cm"
ROWS = [
    {"id": "a", "reference": "The heart is enlarged.", "rollouts": ["Mild  pleural effusions.", "a 🫀, 2.5 cm", ""]},
    {"id": 7, "reference": "no edema", "rollouts": ["Pleural effusion " * 3]},
    {"id": "c", "reference": "edema, mild", "rollouts": ["no edema.", "the edema is mild\nheart épanchement"]},
]


@pytest.fixture(scope="module")
def chexbert(tmp_path_factory):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("chexbert")
    (folder / "vocab.txt").write_text("\n".join(WORDS.split()) + "\n", encoding="utf-8")
    # The archive does not name the number of heads: 64 dimensions a head, as all published BERT models have.
    config = transformers.BertConfig(
        vocab_size=len(WORDS.split()), hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=96, max_position_embeddings=48, attn_implementation="eager",
    )  # fmt: skip
    bert = transformers.BertModel(config, add_pooling_layer=True).eval()
    heads = [torch.nn.Linear(128, 4 if number < 13 else 2) for number in range(14)]
    state = {f"module.bert.{name}": value for name, value in bert.state_dict().items()}
    for number, head in enumerate(heads):
        torch.nn.init.normal_(head.weight, std=0.5)
        torch.nn.init.normal_(head.bias, std=0.5)
        state |= {f"module.linear_heads.{number}.{name}": value for name, value in head.state_dict().items()}
    torch.save({"epoch": 1, "model_state_dict": state}, folder / "chexbert.pth")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(str(folder), do_lower_case=True)
    return folder, bert, heads, tokenizer


def logits_of(bert, heads, embeddings):
    hidden = bert(inputs_embeds=embeddings).last_hidden_state[:, 0]
    return [head(hidden)[0] for head in heads]


def expected_scores(chexbert, text, reference, spans):
    """S_target's gradient by autograd, and the largest of the overlapping tokens for each span."""
    _, bert, heads, tokenizer = chexbert
    words = bert.embeddings.word_embeddings
    read = tokenizer(reference, return_tensors="pt")["input_ids"]
    targets = [number for number, own in enumerate(logits_of(bert, heads, words(read))) if own.argmax() == 1]
    if not targets:
        return np.zeros(len(spans))
    encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    embeddings = words(encoded["input_ids"]).detach().requires_grad_(True)
    found = logits_of(bert, heads, embeddings)
    sum(found[number][1] for number in targets).backward()
    norms = embeddings.grad[0].norm(dim=-1).tolist()
    offsets = encoded["offset_mapping"][0].tolist()
    return np.array(
        [
            max([n for n, (a, b) in zip(norms, offsets, strict=True) if max(a, start) < min(b, end)], default=0.0)
            for start, end in spans
        ]
    )


def test_gradient_weights_are_those_of_autograd(chexbert, real_data, tmp_path):
    write_rows(tmp_path / "rows.jsonl", ROWS)
    options = ["--method", "gradient", "--labeler", str(chexbert[0] / "chexbert.pth")]
    options += ["--tokenizer", str(real_data / "tokenizers" / "qwen2"), "--output", str(tmp_path / "out.jsonl")]
    dispatch(["weights", str(tmp_path / "rows.jsonl"), *options])
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in results] == ["a", 7, "c"]
    some = 0.0
    for row, result in zip(ROWS, results, strict=True):
        for text, rollout in zip(row["rollouts"], result["rollouts"], strict=True):
            assert "".join(rollout["tokens"]) == text or "🫀" in text  # a character of several tokens is in each
            scores = expected_scores(chexbert, text, row["reference"], rollout["spans"])
            np.testing.assert_allclose(rollout["scores"], scores, atol=1e-4)
            np.testing.assert_allclose(rollout["weights"], 1 + scores, atol=1e-4)
            some += scores.sum()
    assert some > 1


def test_with_the_labelers_own_vocabulary_tokens_are_its_tokens(chexbert, tmp_path, capsys):
    write_rows(tmp_path / "rows.jsonl", ROWS[:1])
    path = chexbert[0]
    dispatch(
        ["weights", str(tmp_path / "rows.jsonl"), "--labeler", str(path / "chexbert.pth"), "--tokenizer", str(path)]
    )
    rollout = json.loads(capsys.readouterr().out)["rollouts"][0]
    assert rollout["tokens"] == ["Mild", "pleural", "eff", "usion", "s", "."]
    scores = expected_scores(chexbert, rollout["text"], ROWS[0]["reference"], rollout["spans"])
    np.testing.assert_allclose(rollout["scores"], scores, atol=1e-4)
