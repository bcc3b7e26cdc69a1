"""The message about the base model of tuner and sampler. The gateway compares both and passes it on."""

from unitune.base_model import BaseModelSpec
from unitune.options import put_words
from unitune.v1 import server_pb2


def base_model_info(
    spec: BaseModelSpec,
    *,
    has_clip_filter: bool = False,
    has_clipseg: bool = False,
    has_content_filter: bool = False,
    has_known_pictures: bool = False,
) -> server_pb2.BaseModel:
    """The message; the size of a super-resolution stage that there is not is 0."""
    height, width = spec.image_side
    told = server_pb2.BaseModel(
        name=spec.name,
        digest=spec.digest,
        width=width,
        height=height,
        vocabulary=spec.vocabulary,
        has_clip_filter=has_clip_filter,
        has_clipseg=has_clipseg,
        has_content_filter=has_content_filter,
        has_known_pictures=has_known_pictures,
        size_step=spec.size_step,
        fast_steps=spec.preset.method_preset("unitune").fast_steps,
    )
    for stage in spec.super_resolution:
        for name, side in zip(("height", "width"), stage.side, strict=True):
            setattr(told, f"{stage.name}_{name}", side)
    if (lora := spec.fast_lora) is not None:
        told.fast_lora = lora.distilled
        names = ("scheduler", "num_inference_steps", "guidance_scale", "timestep_spacing")
        put_words(told.fast_lora_defaults, {name: value for name in names if (value := getattr(lora, name))})
    return told
