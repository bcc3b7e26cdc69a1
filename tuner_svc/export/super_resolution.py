"""Exports super-resolution as a graph whose initializers have the tensors' names, like the denoiser's."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tuner_svc.base_model import BaseModel, SuperResolver
from tuner_svc.export.check import CHECK_BATCHES, check_refit
from tuner_svc.export.denoiser import match, randomised, store
from tuner_svc.export.graph import EXAMPLES, to_graph
from tuner_svc.export.operators import TRANSLATIONS
from unitune.base_model import SUPER_RESOLUTION_GRAPH, SuperResolutionSpec


def export_super_resolution(
    model: BaseModel, resolver: SuperResolver, stage: SuperResolutionSpec, folder: Path
) -> SuperResolutionSpec:
    """Write and check graph and base weights; the specification with each tensor's layout. Raises ExportError."""
    other, path = randomised(resolver), folder / SUPER_RESOLUTION_GRAPH
    step = stage.side_of((model.size_step, model.size_step))[0] // stage.block or None
    graph = to_graph(other, _example(model, stage, EXAMPLES), "out", translations=TRANSLATIONS, step=step)
    matches = match({name: tensor.numpy() for name, tensor in other.unet.state_dict().items()}, graph)
    base = {name: tensor.cpu().contiguous() for name, tensor in resolver.unet.state_dict().items()}
    store(graph, matches, {name: tensor.numpy() for name, tensor in base.items()}, path)
    tensors = {name: found.spec for name, found in matches.items()}
    for batch in CHECK_BATCHES:
        check_refit(path, resolver, other, tensors, _example(model, stage, batch))
    save_file(base, folder / stage.weights)
    return replace(stage, tensors=tensors)


def _example(model: BaseModel, stage: SuperResolutionSpec, batch: int) -> dict[str, Tensor]:
    """Random input."""
    generator = torch.Generator().manual_seed(batch)
    channels, height, width = stage.blocks
    return {
        "sample": torch.randn((batch, 2 * channels, height, width), generator=generator),
        "timestep": torch.randint(0, stage.schedule.num_train_timesteps, (batch, 2), generator=generator),
        "encoder_hidden_states": torch.randn((batch, model.context_tokens, model.context_width), generator=generator),
    }
