"""The PyTorch reference of UniCrossAdapter checked on its own: attention, positions, masks, and the published leak."""

import math

import pytest

torch = pytest.importorskip("torch")
from torch import nn

from launch.bench.torch_unicross import (
    Attention,
    UniCrossAdapter,
    coordinates,
    sincos_positions,
)

WIDTH, EMBED, CHANNELS, VOCABULARY, BATCH, VIEWS, LENGTH = 16, 12, (8, 10, 14), 23, 2, 2, 7
LAST = VOCABULARY - 1


class FakeBlock(nn.Module):
    """A causal text block: each position adds a function of the mean of the positions up to it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        count = torch.arange(1, x.shape[1] + 1)[:, None]
        return x + torch.tanh(self.linear(x.cumsum(1) / count))


class FakeClip(nn.Module):
    """Random layers of CLIP's interface; 32 x 32 images give maps of side 8, 4 and 2."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, 2)
        self.layer1 = nn.Conv2d(4, 6, 1)
        self.layer2 = nn.Conv2d(6, CHANNELS[0], 2, 2)
        self.layer3 = nn.Conv2d(CHANNELS[0], CHANNELS[1], 2, 2)
        self.layer4 = nn.Conv2d(CHANNELS[1], CHANNELS[2], 2, 2)
        self.dense_pool = nn.Conv2d(CHANNELS[2], EMBED, 1)
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(77, WIDTH))
        self.blocks = nn.ModuleList(FakeBlock() for _ in range(6))
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, EMBED))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = UniCrossAdapter(
        FakeClip(), VOCABULARY, channels=CHANNELS, text_width=WIDTH, embed=EMBED, adapter_width=8, adapter_heads=4,
        adapter_ffn=12, width=WIDTH, heads=8, ffn=32, encoder_layers=2, decoder_layers=2,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="module")
def batch():
    """Two texts; the largest id sits at position 1 of both, so that other edits leave the global text's position."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, VIEWS, 3, 32, 32, generator=generator)
    ids = torch.randint(1, LAST - 1, (BATCH, LENGTH), generator=generator)
    ids[:, 1] = LAST
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 2]])
    return images, ids, mask


def run(model, images, ids, mask, **options):
    with torch.no_grad():
        return model(images, ids, mask, **options)


@pytest.mark.parametrize("self_attention", [True, False])
def test_attention_equals_pytorch(self_attention):
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    query = torch.randn(3, 6, 16)
    source = query if self_attention else torch.randn(3, 6, 16)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    real = torch.arange(6) < torch.tensor([[6], [4], [1]])
    expected, _ = theirs(query, source, source, key_padding_mask=~real, attn_mask=~causal)
    torch.testing.assert_close(ours(query, source, real[:, None, None] & causal), expected)
    torch.testing.assert_close(ours(query, source), theirs(query, source, source)[0])


def test_positions_equal_the_formula():
    height, columns, width = 3, 5, 16
    table = sincos_positions(height, columns, width)
    assert table.shape == (height * columns, width)
    quarter = width // 4
    for row in range(height):
        for column in range(columns):
            for channel in range(width):
                coordinate = column if channel < width // 2 else row
                angle = coordinate / 10000 ** (channel % quarter / quarter)
                expected = math.cos(angle) if channel // quarter % 2 else math.sin(angle)
                assert table[row * columns + column, channel].item() == pytest.approx(expected, abs=1e-6)


def test_coordinates_run_along_width_then_height():
    x, y = coordinates(torch.zeros(1, 1, 3, 5))[0]
    torch.testing.assert_close(x, torch.tensor([-1, -0.5, 0, 0.5, 1]).expand(3, 5))
    torch.testing.assert_close(y, torch.tensor([[-1.0], [0], [1]]).expand(3, 5))


def test_shapes(model, batch):
    out = run(model, *batch)
    assert out["logits"].shape == (BATCH, LENGTH, VOCABULARY)
    assert out["memory"].shape == (BATCH, 1 + VIEWS * 16, WIDTH)
    assert len(out["views"]) == VIEWS
    sides = (8, 4, 2)
    for view in out["views"]:
        for stage in range(3):
            assert view["reduced_visual"][stage].shape == view["interacted_visual"][stage].shape == (BATCH, 16, 8)
            assert view["reduced_text"][stage].shape == view["interacted_text"][stage].shape == (BATCH, LENGTH, 8)
            assert view["adapted_visual"][stage].shape == (BATCH, CHANNELS[stage], sides[stage], sides[stage])
            assert view["adapted_text"][stage].shape == (BATCH, LENGTH, WIDTH)
            assert view["projected"][stage].shape == view["modulated"][stage].shape == (BATCH, WIDTH, 4, 4)
        assert view["global_text"].shape == (BATCH, EMBED)
        assert view["fused"].shape == (BATCH, WIDTH, 4, 4)
    torch.testing.assert_close(out["text"], out["views"][0]["text"] + out["views"][1]["text"])


def test_every_parameter_is_used(model, batch):
    """Except the modulation's queries and keys: a softmax over one key is constant."""
    model.zero_grad()
    model(*batch)["logits"].square().sum().backward()
    idle = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()}
    model.zero_grad()
    attention_key_biases = {name for name in idle if name.endswith(".k.bias")}  # they cancel in the softmax
    assert idle - attention_key_biases <= {
        f"fusion.modulate.{scale}.{part}" for scale in range(3) for part in ("q.weight", "q.bias", "k.weight", "k.bias")
    }


def test_published_mode_leaks_the_next_token(model, batch):
    images, ids, mask = batch
    changed = ids.clone()
    changed[:, 4] = (ids[:, 4] + 3) % (LAST - 1)
    before, after = run(model, images, ids, mask), run(model, images, changed, mask)
    assert (before["logits"][:, :4] - after["logits"][:, :4]).abs().amax(-1).min() > 1e-4
    assert (before["memory"] - after["memory"]).abs().max() > 1e-4


def test_causal_text_adapters_hide_the_next_token_until_the_image_has_seen_it(model, batch):
    images, ids, mask = batch
    changed = ids.clone()
    changed[:, 4] = (ids[:, 4] + 3) % (LAST - 1)
    before = run(model, images, ids, mask, causal=True)["views"][0]["adapted_text"]
    after = run(model, images, changed, mask, causal=True)["views"][0]["adapted_text"]
    torch.testing.assert_close(before[0][:, :4], after[0][:, :4], rtol=0, atol=0)
    assert (before[0][:, 4:] - after[0][:, 4:]).abs().max() > 1e-4
    assert (before[1][:, :4] - after[1][:, :4]).abs().max() > 1e-5


@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_invisible(model, batch, causal):
    images, ids, mask = batch
    changed = torch.where(mask, ids, (ids + 3) % (LAST - 1))
    before = run(model, images, ids, mask, causal=causal)["logits"][mask]
    after = run(model, images, changed, mask, causal=causal)["logits"][mask]
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)
    short = run(model, images[1:], ids[1:, : LENGTH - 2], mask[1:, : LENGTH - 2], causal=causal)["logits"]
    torch.testing.assert_close(short[0], before[LENGTH:], rtol=0, atol=1e-4)


def test_end_overrides_the_largest_id(model, batch):
    view = run(model, *batch)["views"][0]
    same = run(model, *batch, end=torch.tensor([1, 1]))["views"][0]
    other = run(model, *batch, end=torch.tensor([1, 3]))["views"][0]
    torch.testing.assert_close(view["global_text"], same["global_text"], rtol=0, atol=0)
    torch.testing.assert_close(other["global_text"][1], view["text"][1, 3] @ model.clip.text_projection)


def test_bad_inputs_are_refused(model, batch):
    images, ids, mask = batch
    with pytest.raises(ValueError, match="pad on the right"):
        model(images, ids, mask.flip(1))
    with pytest.raises(ValueError, match="77 positions"):
        model(images, ids.repeat(1, 12), mask.repeat(1, 12))
