"""Random CLIPs, and the weights of `launch.bench.torch_unicross` as our trees."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import unflatten_dict
from safetensors.torch import save_file

from common.models.clip_weights import load_clip


def with_random_norms(model):
    """The model in evaluation mode with random normalisations, BatchNorm's statistics included."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.2, 1.5)
        elif isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight, mean=1.0, std=0.2)
            torch.nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, torch.nn.MultiheadAttention):
            torch.nn.init.normal_(module.in_proj_bias, std=0.2)
            torch.nn.init.normal_(module.out_proj.bias, std=0.2)
    return model.eval().requires_grad_(False)


def randomised(reference, vocabulary, directory):
    """Draw the parameters outside CLIP anew; our trainable and frozen trees with them. Writes CLIP to `directory`."""
    for parameter in own_parameters(reference).values():
        torch.nn.init.normal_(parameter, std=0.15)
    trainable = ours_from({name: tensor.detach().numpy() for name, tensor in own_parameters(reference).items()})
    stored = {name: tensor.contiguous() for name, tensor in reference.clip.clip.state_dict().items()}
    save_file(stored, directory / "open_clip_model.safetensors")
    _, params = load_clip(directory)
    return trainable, {"clip": params, "report_embedding": params["text"]["token_embedding"][:vocabulary]}


def own_parameters(reference):
    return {name: tensor for name, tensor in reference.named_parameters() if not name.startswith("clip.")}


def ours_from(theirs):
    """Arrays by PyTorch's names as our tree: parameters, or gradients."""
    tree = {}

    def linear(path, name):
        tree[f"{path}/kernel"], tree[f"{path}/bias"] = theirs[f"{name}.weight"].T, theirs[f"{name}.bias"]

    def norm(path, name):
        tree[f"{path}/scale"], tree[f"{path}/bias"] = theirs[f"{name}.weight"], theirs[f"{name}.bias"]

    def attention(path, name):
        for part in ("q", "k", "v", "out"):
            linear(f"{path}/{part}_proj", f"{name}.{part}")

    def feed_forward(path, name):
        linear(f"{path}/up", f"{name}.up")
        linear(f"{path}/down", f"{name}.down")

    def conv(path, name, transposed=False):
        kernel = theirs[f"{name}.weight"]
        tree[f"{path}/kernel"] = kernel.transpose((2, 3, 0, 1) if transposed else (2, 3, 1, 0))  # stored [in out h w]

    def affine(path, name):
        tree[f"{path}/scale"], tree[f"{path}/bias"] = theirs[f"{name}.scale"], theirs[f"{name}.bias"]

    for k in range(3):
        path, name = f"adapter{k}", f"adapters.{k}"
        conv(f"{path}/reduce_visual", f"{name}.reduce_visual", transposed=k == 2)
        conv(f"{path}/recover_visual", f"{name}.recover_visual", transposed=k < 2)
        linear(f"{path}/reduce_text", f"{name}.reduce_text")
        linear(f"{path}/recover_text", f"{name}.recover_text")
        for modality in ("visual", "text"):
            own = f"{path}/{modality}"
            if k:
                norm(f"{path}/residual_{modality}", f"{name}.{modality}.residual_norm")
            attention(f"{own}/self_attention", f"{name}.{modality}.self_attention")
            attention(f"{own}/cross_attention", f"{name}.{modality}.cross_attention")
            feed_forward(f"{own}/feed_forward", f"{name}.{modality}.ffn")
            for number, part in enumerate(("self_norm", "cross_norm", "ffn_norm"), 1):
                norm(f"{own}/norm{number}", f"{name}.{modality}.{part}")
        conv(f"fusion/project{k}", f"fusion.project.{k}", transposed=k == 2)
        affine(f"fusion/affine{k}", f"fusion.project_affine.{k}")
        attention(f"fusion/modulate{k}", f"fusion.modulate.{k}")
    linear("fusion/text", "fusion.text")
    for layer, after, name in (
        ("merge", "merged", "merge"),
        ("place", "placed", "locate"),
        ("smooth", "smoothed", "refine"),
    ):
        conv(f"fusion/{layer}", f"fusion.{name}")
        affine(f"fusion/{after}", f"fusion.{name}_affine")
    linear("vision/project", "encoder.embed")
    norm("vision/norm_in", "encoder.embed_norm")
    tree["vision/class_token"] = theirs["encoder.class_token"]
    norm("vision/norm", "encoder.norm")
    norm("decoder/norm", "decoder.norm")
    stacks = {}
    for name, path, norms in (
        ("encoder", "vision/encoder/layers", ("self_norm", "ffn_norm")),
        ("decoder", "decoder/layers", ("self_norm", "cross_norm", "ffn_norm")),
    ):
        for layer in range(depth(theirs, name)):
            before, tree = tree, {}
            for number, part in enumerate(norms, 1):
                norm(f"{path}/norm{number}", f"{name}.layers.{layer}.{part}")
            attention(f"{path}/attention", f"{name}.layers.{layer}.self_attention")
            if name == "decoder":
                attention(f"{path}/cross_attention", f"{name}.layers.{layer}.cross_attention")
            feed_forward(f"{path}/feed_forward", f"{name}.layers.{layer}.ffn")
            for leaf, value in tree.items():
                stacks.setdefault(leaf, []).append(value)
            tree = before
    tree |= {leaf: np.stack(values) for leaf, values in stacks.items()}
    tree["logits/kernel"], tree["logits/bias"] = theirs["logits.weight"], theirs["logits.bias"]
    return jax.tree.map(jnp.asarray, unflatten_dict(tree, sep="/"))


def depth(theirs, name):
    """Layers of the encoder or the decoder."""
    return len({key.split(".")[2] for key in theirs if key.startswith(f"{name}.layers.")})
