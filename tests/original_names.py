"""A diffusers pipeline's tensors under the names that single files have (CompVis, OpenCLIP), written for the tests.

It goes the other way than `tuner_svc.single_file.convert`, and shares nothing with it.
"""

import re

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def original_tensors(pipeline: Pipeline, *, is_open_clip: bool = False) -> dict[str, Tensor]:
    """All tensors of the three parts, as a whole model's file has them."""
    unet = {f"model.diffusion_model.{name}": tensor for name, tensor in original_unet(pipeline).items()}
    vae = {f"first_stage_model.{name}": tensor for name, tensor in original_vae(pipeline).items()}
    if isinstance(pipeline, StableDiffusionXLPipeline):
        second = _open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
        text = _clip(pipeline, "conditioner.embedders.0.transformer.text_model.") | second
    else:
        text = _open_clip(pipeline.text_encoder, "cond_stage_model.model.") if is_open_clip else _clip(pipeline)
    return {name: tensor.contiguous() for name, tensor in (unet | vae | text).items()}


def original_unet(pipeline: Pipeline) -> dict[str, Tensor]:
    """The denoiser's tensors."""
    layers = pipeline.unet.config.layers_per_block
    attentive = {name.split(".")[1] for name in pipeline.unet.state_dict() if re.match(r"up_blocks\.\d+\.att", name)}
    return {_unet_name(name, layers, attentive): tensor for name, tensor in pipeline.unet.state_dict().items()}


def _unet_name(name: str, layers: int, attentive: set[str]) -> str:
    module, _, kind = name.rpartition(".")
    if module in _UNET:
        return f"{_UNET[module]}.{kind}"
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", module):
        way, block, what, layer, rest = found.groups()
        number = int(block) * (layers + 1) + int(layer)
        place = f"input_blocks.{number + 1}" if way == "down" else f"output_blocks.{number}"
        return f"{place}.0.{_RESNET[rest]}.{kind}" if what == "resnets" else f"{place}.1.{rest}.{kind}"
    if found := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", module):
        return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op.{kind}"
    if found := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", module):
        return f"output_blocks.{int(found[1]) * (layers + 1) + layers}.{2 if found[1] in attentive else 1}.conv.{kind}"
    found = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", module)
    assert found is not None, name
    what, number, rest = found.groups()
    if what == "attentions":
        return f"middle_block.1.{rest}.{kind}"
    return f"middle_block.{2 * int(number)}.{_RESNET[rest]}.{kind}"


def original_vae(pipeline: Pipeline) -> dict[str, Tensor]:
    """The autoencoder's tensors. Its attention is of 1x1 convolutions there."""
    blocks = len(pipeline.vae.config.block_out_channels)
    tensors = {}
    for name, tensor in pipeline.vae.state_dict().items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets", lambda found: f"up.{blocks - 1 - int(found[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{blocks - 1 - int(found[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", new)
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if found := re.match(r"(\w+)\.mid_block\.attentions\.0\.(.*)\.(weight|bias)", new):
            new = f"{found[1]}.mid.attn_1.{_VAE_ATTENTION[found[2]]}.{found[3]}"
            if tensor.dim() == 2:
                tensor = tensor[:, :, None, None]
        tensors[new] = tensor
    return tensors


def _clip(pipeline: Pipeline, begin: str = "cond_stage_model.transformer.text_model.") -> dict[str, Tensor]:
    tensors = {
        begin + name.removeprefix("text_model."): tensor for name, tensor in pipeline.text_encoder.state_dict().items()
    }
    positions = pipeline.text_encoder.config.max_position_embeddings
    return {**tensors, f"{begin}embeddings.position_ids": torch.arange(positions)[None]}


def _open_clip(encoder: CLIPTextModel | CLIPTextModelWithProjection, begin: str) -> dict[str, Tensor]:
    found = {name.removeprefix("text_model."): one for name, one in encoder.state_dict().items()}
    projection = found.get("text_projection.weight", torch.zeros(2 * (encoder.config.hidden_size,)))
    tensors = {
        "positional_embedding": found["embeddings.position_embedding.weight"],
        "token_embedding.weight": found["embeddings.token_embedding.weight"],
        "ln_final.weight": found["final_layer_norm.weight"],
        "ln_final.bias": found["final_layer_norm.bias"],
        "text_projection": projection.T,  # OpenCLIP multiplies by it from the right
        "logit_scale": torch.zeros(()),
    }
    for name, tensor in found.items():
        if match := re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name):
            layer, module, kind = match.groups()
            place = f"transformer.resblocks.{layer}"
            if module in _OPEN_CLIP:
                tensors[f"{place}.{_OPEN_CLIP[module]}.{kind}"] = tensor
            elif module.endswith("q_proj"):
                three = [found[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
                tensors[f"{place}.attn.in_proj_{kind}"] = torch.cat(three)
    return {begin + name: tensor for name, tensor in tensors.items()}
