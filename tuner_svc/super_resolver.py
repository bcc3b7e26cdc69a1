"""The super-resolution stages of a cascade in memory, read from a base model's folder."""

import math
from collections.abc import Sequence
from pathlib import Path

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from tuner_svc.channel_scale import with_channel_scales
from tuner_svc.model_folder import (
    CHANNEL_SCALES,
    PRECONDITIONED,
    SCHEDULER_FILE,
    UnusableBaseModel,
    read_object,
    read_schedule,
    super_resolution_stages,
)
from unitune.base_model import SUPER_RESOLUTION_STAGES, SuperResolutionSpec

LOCAL_BLOCKS = ("DownBlock2D", "UpBlock2D", "UNetMidBlock2D", None)  # convolutions alone


class SuperResolver(nn.Module):
    """sample (n, 2 * channels, h, w), timestep int64 (n, 2), encoder_hidden_states (n, tokens, width) -> a picture.

    One super-resolution stage. The sample is the noisy picture, then the upsampled one, noised. A timestep is the
    picture's, then the noise level of the upsampled one. Pictures are in blocks (unitune.diffusion.super_resolution).
    """

    def __init__(self, unet: UNet2DConditionModel, spec: SuperResolutionSpec) -> None:
        """`spec` is without the tensors' layouts, which the export finds."""
        super().__init__()
        self.unet, self.spec = unet, spec

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.unet(sample, timestep[:, 0], encoder_hidden_states, class_labels=timestep[:, 1]).sample


def read_stages(
    folder: Path, unets: Sequence[UNet2DConditionModel], image_side: tuple[int, int], context_width: int
) -> tuple[SuperResolver, ...]:
    """The stages of a folder from their networks, in their order. Raises UnusableBaseModel unless each takes two
    pictures, a noise level and the text, and makes larger pictures than the one before."""
    stages = []
    for name, unet in zip(super_resolution_stages(folder), unets, strict=True):
        spec = _spec_of(folder, name, unet, image_side, context_width)
        config = read_object(folder / name / SCHEDULER_FILE)
        if config.get(CHANNEL_SCALES, False):
            with_channel_scales(unet)
        stages.append(SuperResolver(unet, spec))
        image_side = spec.side
    return tuple(stages)


def _spec_of(
    folder: Path, name: str, unet: UNet2DConditionModel, image_side: tuple[int, int], context_width: int
) -> SuperResolutionSpec:
    config = unet.config
    block = math.isqrt(config.out_channels // 3)
    kinds = (*config.down_block_types, config.mid_block_type, *config.up_block_types)
    is_local = all(kind in LOCAL_BLOCKS for kind in kinds)
    size = config.sample_size
    height, width = (block * side for side in ((size, size) if isinstance(size, int) else size))
    for is_right, wanted in (
        (config.out_channels == 3 * block**2, "out_channels of 3 for each pixel of a square block: 3, 12, 48 ..."),
        (config.in_channels == 2 * config.out_channels, "in_channels of two pictures, twice its out_channels"),
        (config.class_embed_type == "timestep", "class_embed_type timestep, which tells it the noise level"),
        (config.cross_attention_dim == context_width, f"cross_attention_dim {context_width}, the text_encoder's"),
        (config.get("addition_embed_type") in (None, "text"), "addition_embed_type text, or none"),
        (
            height > image_side[0] and width > image_side[1],
            f"a sample_size of more than {image_side[1]}x{image_side[0]} pixels, which it enlarges",
        ),
        (
            is_local or name == SUPER_RESOLUTION_STAGES[0],
            "blocks without attention, DownBlock2D, UNetMidBlock2D and UpBlock2D, so that it can run in tiles",
        ),
    ):
        if not is_right:
            raise UnusableBaseModel(f"{folder / name}: its config must have {wanted}")
    halvings = 2**unet.num_upsamplers  # a network halves and doubles height and width, so that an odd one does not fit
    is_even = height // block % halvings == width // block % halvings == 0
    return SuperResolutionSpec(
        name=name,
        side=(height, width),
        block=block,
        schedule=read_schedule(folder, name),
        tensors={},
        is_preconditioned=bool(read_object(folder / name / SCHEDULER_FILE).get(PRECONDITIONED, False)),
        image_side=image_side,
        step=halvings if is_even else 0,
        is_local=is_local,
    )
