"""One picture from the diffusers pipeline with its denoiser on OpenVINO: same model, steps, guidance and noise."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openvino
import torch

from bench.peers.diffusers_edit import DiffusersEdit


class OpenVinoEdit(DiffusersEdit):
    """The pipeline of a folder, its denoiser converted from PyTorch and compiled for the CPU, in fp32."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        unet = self._pipeline.unet
        side, width = unet.config.sample_size, unet.config.cross_attention_dim
        tokens = self._pipeline.tokenizer.model_max_length
        example = {
            "sample": torch.zeros(2, unet.config.in_channels, side, side),
            "timestep": torch.tensor(1),
            "encoder_hidden_states": torch.zeros(2, tokens, width),
        }
        converted = openvino.convert_model(_Denoiser(unet), example_input=example)
        # By default OpenVINO uses bf16 if the CPU has it, which gives another picture.
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self._compiled = openvino.Core().compile_model(converted, "CPU", hints)
        self._pipeline.unet = _Stand(unet, self._compiled)


class _Denoiser(torch.nn.Module):
    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        """The output alone, since a graph returns tensors."""
        output: torch.Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return output


class _Stand(torch.nn.Module):
    """Replaces the UNet: has the attributes that the pipeline reads, and its call."""

    def __init__(self, unet: torch.nn.Module, compiled: openvino.CompiledModel) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            **{name: getattr(unet.config, name) for name in ("in_channels", "sample_size", "time_cond_proj_dim")}
        )
        self.dtype, self.device, self._compiled = torch.float32, torch.device("cpu"), compiled

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor]:
        """As UNet2DConditionModel's with `return_dict` False."""
        inputs = [sample.numpy(), np.asarray(timestep), encoder_hidden_states.numpy()]
        return (torch.from_numpy(self._compiled(inputs)[0].copy()),)
