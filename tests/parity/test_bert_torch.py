"""BERT and CheXbert's heads against transformers' PyTorch model with random weights: logits, gradients, tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from common.clinical.labeler import encode, label_texts, load_labeler
from common.metrics.clinical import FINDINGS
from common.models.bert import Bert, chexbert_logits, word_embeddings
from common.models.bert_weights import load_classifier, load_encoder, save_classifier

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] no pleural eff ##usion ##s heart is en ##larged , . edema mild the a 2 5 cm lungs"
)
VOCABULARY = WORDS.split()
TEXTS = [
    "No pleural effusion. The heart is enlarged.",
    "  Mild\n\nedema ,\tno  PLEURAL effusions",
    "",
    " \n ",
    "the lungs . " * 40,  # longer than the window
    "2.5 cm pneumatocele",
]
WINDOW = 64


class PublishedChexbert(torch.nn.Module):
    """The module whose state dict is published (bert_labeler in the authors' code), in evaluation mode."""

    def __init__(self, config):
        super().__init__()
        self.bert = transformers.BertModel(config)
        self.linear_heads = torch.nn.ModuleList([torch.nn.Linear(config.hidden_size, 4) for _ in range(13)])
        self.linear_heads.append(torch.nn.Linear(config.hidden_size, 2))

    def forward(self, mask, **inputs):
        hidden = self.bert(attention_mask=mask, **inputs)[0][:, 0]
        return [head(hidden) for head in self.linear_heads]


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96,
        max_position_embeddings=WINDOW, attn_implementation="eager",
    )  # fmt: skip
    model = PublishedChexbert(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name.endswith("LayerNorm.weight")), std=0.1)
    return model


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert-base-uncased")
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return directory


def save_archive(model, file, position_ids: bool):
    """What the authors' training saves of a model under DataParallel, by old transformers with `position_ids`."""
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items() if "position_ids" not in name}
    if position_ids:
        state["module.bert.embeddings.position_ids"] = torch.arange(WINDOW)[None]
    torch.save({"epoch": 7, "model_state_dict": state, "optimizer_state_dict": {"state": {}}}, file)


@pytest.fixture(scope="module", params=[True, False], ids=["with position_ids", "without"])
def labeler(request, published, vocabulary, tmp_path_factory):
    file = tmp_path_factory.mktemp("chexbert") / "chexbert.pth"
    save_archive(published, file, request.param)
    return load_labeler(file, vocabulary)


def random_batch(lengths=(33, 2, 17, 33, 50), width=50):
    ids = np.random.default_rng(0).integers(5, len(VOCABULARY), (len(lengths), width))
    mask = np.arange(width) < np.array(lengths)[:, None]
    return np.where(mask, ids, 0), mask


def positive_logits(logits):
    """Logits of class 1 of some labels, weighted so that no two labels could be exchanged."""
    return sum((number + 1) * logits[number][:, 1].sum() for number in range(14))


def test_logits(published, labeler):
    ids, mask = random_batch()
    with torch.no_grad():
        expected = published(torch.tensor(mask).long(), input_ids=torch.tensor(ids))
    found = jax.jit(chexbert_logits, static_argnums=0)(
        labeler.config, labeler.params, word_embeddings(labeler.params, ids), mask
    )
    assert found.shape == (len(ids), 14, 4)
    for number, logits in enumerate(expected):
        np.testing.assert_allclose(found[:, number, : logits.shape[1]], logits, atol=TOLERANCE, rtol=0)
    assert np.all(np.asarray(found[:, 13, 2:]) == -np.inf)
    assert labeler.config.labels == FINDINGS


def test_gradients_with_respect_to_input_embeddings(published, labeler):
    ids, mask = random_batch()
    words = published.bert.embeddings.word_embeddings(torch.tensor(ids)).detach().requires_grad_()
    positive_logits(published(torch.tensor(mask).long(), inputs_embeds=words)).backward()

    def total(words):
        logits = chexbert_logits(labeler.config, labeler.params, words, mask)
        return positive_logits(jnp.moveaxis(logits, 1, 0))

    found = jax.jit(jax.grad(total))(word_embeddings(labeler.params, ids))
    assert float(jnp.abs(found).max()) > 0.1
    np.testing.assert_allclose(found, words.grad, atol=TOLERANCE, rtol=0)
    assert np.all(np.asarray(found)[~mask] == 0)


def test_labels_of_texts_are_those_of_the_published_procedure(published, labeler, vocabulary):
    """Tokens by transformers' tokenizer, cut as in the authors' bert_tokenizer.py; each text alone, unpadded."""
    tokenizer = transformers.BertTokenizer(str(vocabulary / "vocab.txt"))
    result = label_texts(labeler, TEXTS, batch_size=2)
    encoded = encode(labeler, TEXTS)
    for row, text in enumerate(TEXTS):
        ids = tokenizer(" ".join(text.split()))["input_ids"]
        ids = [*ids[: WINDOW - 1], tokenizer.sep_token_id] if len(ids) > WINDOW else ids
        assert encoded.ids[row] == ids
        with torch.no_grad():
            logits = published(torch.ones(1, len(ids)).long(), input_ids=torch.tensor([ids]))
        assert result.classes[row].tolist() == [int(values.argmax()) for values in logits]
        for number, values in enumerate(logits):
            np.testing.assert_allclose(result.logits[row, number, : values.shape[1]], values[0], atol=TOLERANCE)
    assert encoded.ids[2] == encoded.ids[3] == [2, 3]
    assert encoded.cut == [False, False, False, False, True, False]
    assert result.cut == 1


def test_hidden_states_of_hub_directories_in_each_layout(published, tmp_path):
    ids, mask = random_batch()
    with torch.no_grad():
        expected = published.bert(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long())[0]
    published.bert.save_pretrained(tmp_path / "plain")
    state = {f"bert.{name}": tensor for name, tensor in published.bert.state_dict().items()}
    state = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in state.items()}
    state = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in state.items()}
    state["cls.predictions.bias"] = torch.zeros(len(VOCABULARY))  # as google-bert/bert-base-uncased has them
    for name in ("gamma", "archive"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes((tmp_path / "plain" / "config.json").read_bytes())
    save_file({name: tensor.numpy() for name, tensor in state.items()}, tmp_path / "gamma" / "model.safetensors")
    torch.save(state, tmp_path / "archive" / "pytorch_model.bin")
    for name in ("plain", "gamma", "archive"):
        config, params = load_encoder(tmp_path / name)
        words = params["embeddings"]["word_embeddings"][ids]
        found = jax.jit(Bert(config).apply)({"params": params}, words, mask)
        np.testing.assert_allclose(np.asarray(found)[mask], expected.numpy()[mask], atol=TOLERANCE)


def test_a_saved_classifier_is_the_same_again_and_one_that_transformers_reads(labeler, tmp_path):
    save_classifier(tmp_path, labeler.config, labeler.params)
    config, params = load_classifier(tmp_path)
    assert config == labeler.config
    jax.tree.map(np.testing.assert_array_equal, params, labeler.params)
    model = transformers.BertModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids, mask = random_batch()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long())[0]
    found = jax.jit(Bert(config.encoder).apply)({"params": params["bert"]}, word_embeddings(params, ids), mask)
    np.testing.assert_allclose(np.asarray(found)[mask], expected.numpy()[mask], atol=TOLERANCE)
