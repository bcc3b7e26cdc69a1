"""Exports super-resolution as a graph whose initializers have the tensors' names, like the denoiser's."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
import torch
from torch import Tensor

from tuner_svc.base_model import BaseModel, SuperResolver
from tuner_svc.export.check import check_batches, check_refit
from tuner_svc.export.denoiser import match, refer
from tuner_svc.export.graph import EXAMPLES, to_graph
from tuner_svc.export.operators import TRANSLATIONS
from tuner_svc.export.weights import holding, mapped, write_random_weights, write_weights
from unitune.base_model import SuperResolutionSpec
from unitune.graph_files import SUPER_RESOLUTION_GRAPH


def export_super_resolution(
    model: BaseModel, resolver: SuperResolver, stage: SuperResolutionSpec, folder: Path
) -> SuperResolutionSpec:
    """Write and check graph and base weights; the specification with each tensor's layout. Raises ExportError."""
    path, weights, base = folder / SUPER_RESOLUTION_GRAPH, folder / stage.weights, resolver.unet.state_dict()
    places = write_weights(weights, base)
    step = stage.side_of((model.size_step, model.size_step))[0] // stage.block or None
    with TemporaryDirectory(dir=folder, prefix=".scratch-") as scratch:
        write_random_weights(Path(scratch, weights.name), base, seed=0)
        random = holding(resolver, mapped(Path(scratch, weights.name)))
        graph = to_graph(random, _example(model, stage, EXAMPLES), "out", translations=TRANSLATIONS, step=step)
        matches = match({name: tensor.numpy() for name, tensor in random.unet.state_dict().items()}, graph)
        refer(matches, places, weights)
        ir.save(graph, path)
    questions = [_example(model, stage, batch) for batch in check_batches(weights.stat().st_size)]
    with TemporaryDirectory(dir=folder, prefix=".scratch-") as scratch:
        check_refit(path, resolver, weights, questions, Path(scratch))
    return replace(stage, tensors={name: found.spec for name, found in matches.items()})


def _example(model: BaseModel, stage: SuperResolutionSpec, batch: int) -> dict[str, Tensor]:
    """Random input."""
    generator = torch.Generator().manual_seed(batch)
    channels, height, width = stage.blocks
    return {
        "sample": torch.randn((batch, 2 * channels, height, width), generator=generator),
        "timestep": torch.randint(0, stage.schedule.num_train_timesteps, (batch, 2), generator=generator),
        "encoder_hidden_states": torch.randn((batch, model.context_tokens, model.context_width), generator=generator),
    }
