"""OpenAI's CLIP with a ResNet in plain PyTorch, by the published architecture and with its names.

The independent side of the parity tests and of `medreport bench unicross --peer`.
"""

import math

import torch
from torch import nn
from torch.nn import functional


class TorchBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a residual; strides are average pools."""

    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.pool = nn.AvgPool2d(stride)
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != 4 * planes:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes))

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.pool(functional.relu(self.bn2(self.conv2(y))))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(self.pool(x)))


class TorchAttentionPool(nn.Module):
    """Attention over the positions of the last map: of their mean (`forward`), or of each of them (`dense`)."""

    def __init__(self, grid, width, heads, embed_dim):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width))
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.c_proj = nn.Linear(width, embed_dim)

    def attend(self, queries, keys):
        """Of [positions B width] to such."""
        out, _ = functional.multi_head_attention_forward(
            queries, keys, keys, queries.shape[-1], self.heads, None,
            torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]), None, None, False, 0.0,
            self.c_proj.weight, self.c_proj.bias, need_weights=False, use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight, k_proj_weight=self.k_proj.weight, v_proj_weight=self.v_proj.weight,
        )  # fmt: skip
        return out

    def forward(self, x):
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.positional_embedding[:, None]
        return self.attend(x[:1], x)[0]

    def dense(self, x):
        """Every position of a map [B width h w] attends to all; without the mean token."""
        batch, width, height, columns = x.shape
        grid = math.isqrt(len(self.positional_embedding) - 1)
        positions = self.positional_embedding[1:].T.reshape(1, width, grid, grid)
        if (height, columns) != (grid, grid):
            positions = functional.interpolate(positions, (height, columns), mode="bicubic", antialias=True)
        x = (x + positions).flatten(2).permute(2, 0, 1)
        return self.attend(x, x).permute(1, 2, 0).reshape(batch, -1, height, columns)


class TorchResNet(nn.Module):
    """The image side: NCHW images to embeddings."""

    def __init__(self, config):
        super().__init__()
        width = config.vision_width
        for number, (inputs, outputs) in enumerate([(3, width // 2), (width // 2, width // 2), (width // 2, width)], 1):
            stride = 2 if number == 1 else 1
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(outputs))
        inputs = width
        for stage, blocks in enumerate(config.vision_layers):
            planes = width * 2**stage
            first = TorchBottleneck(inputs, planes, 2 if stage else 1)
            rest = [TorchBottleneck(4 * planes, planes, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *rest))
            inputs = 4 * planes
        self.attnpool = TorchAttentionPool(config.image_size // 32, inputs, inputs // 64, config.embed_dim)

    def stem(self, x):
        """Images to the input of layer1."""
        for number in (1, 2, 3):
            conv, norm = self.get_submodule(f"conv{number}"), self.get_submodule(f"bn{number}")
            x = functional.relu(norm(conv(x)))
        return functional.avg_pool2d(x, 2)

    def forward(self, x):
        x = self.stem(x)
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
        return self.attnpool(x)


class TorchTextBlock(nn.Module):
    """A causal pre-norm layer with QuickGELU, on [T B D]."""

    def __init__(self, width, heads, length):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.attn_mask: torch.Tensor
        self.register_buffer("attn_mask", torch.full((length, length), -torch.inf).triu(1), persistent=False)

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.attn_mask[: len(x), : len(x)])[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class TorchClip(nn.Module):
    """Both sides; `config` has the sizes of `common.models.clip.ClipConfig`."""

    def __init__(self, config):
        super().__init__()
        self.visual = TorchResNet(config)
        blocks = (
            TorchTextBlock(config.text_width, config.text_heads, config.context_length)
            for _ in range(config.text_layers)
        )
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(*blocks)})
        self.token_embedding = nn.Embedding(config.vocab_size, config.text_width)
        self.positional_embedding = nn.Parameter(torch.randn(config.context_length, config.text_width))
        self.ln_final = nn.LayerNorm(config.text_width)
        self.text_projection = nn.Parameter(torch.randn(config.text_width, config.embed_dim) / config.text_width**0.5)
        self.logit_scale = nn.Parameter(torch.tensor(3.25))
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(getattr(config, name, config.image_size)))

    def embed(self, ids):
        """Tokens [B T] to the input of the blocks [T B D]."""
        return (self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]).transpose(0, 1)

    def forward(self, images, ids):
        x = self.ln_final(self.transformer["resblocks"](self.embed(ids)).transpose(0, 1))
        return self.visual(images), x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection
