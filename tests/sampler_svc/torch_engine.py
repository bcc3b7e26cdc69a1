"""The reference engine: the same denoiser in torch, refitted in place. It holds the contract to a second backend."""

from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from sampler_svc.engines.engine import Engine, EngineSpec, Tensors


class TorchEngine(Engine):
    """The UNet of a diffusers folder, eager, fp32."""

    def __init__(self, base_model: Path, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._unet = UNet2DConditionModel.from_pretrained(base_model, subfolder="unet").eval()

    def close(self) -> None:
        self.weights = None

    @torch.no_grad()
    def _write(self, tensors: Tensors) -> None:
        for name, parameter in self._unet.state_dict().items():
            parameter.copy_(torch.tensor(tensors[name]))

    @torch.no_grad()
    def _compute(self, latents: np.ndarray, timesteps: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        answer = self._unet(torch.tensor(latents), torch.tensor(timesteps), torch.tensor(contexts))
        return answer.sample.numpy()
