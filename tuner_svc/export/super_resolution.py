"""Exports a super-resolution stage as a graph whose initializers have the tensors' names, like the denoiser's."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
import torch
from torch import Tensor

from tuner_svc.base_model import BaseModel
from tuner_svc.export.check import check_batches, check_refit
from tuner_svc.export.denoiser import match, refer
from tuner_svc.export.graph import EXAMPLES, to_graph
from tuner_svc.export.operators import TRANSLATIONS
from tuner_svc.export.weights import holding, mapped, write_random_weights, write_weights
from tuner_svc.super_resolver import SuperResolver
from unitune.base_model import SuperResolutionSpec


def export_super_resolution(model: BaseModel, resolver: SuperResolver, folder: Path) -> SuperResolutionSpec:
    """Write and check graph and base weights; the specification with each tensor's layout. Raises ExportError."""
    stage, base = resolver.spec, resolver.unet.state_dict()
    path, weights = folder / stage.graph, folder / stage.weights
    places = write_weights(weights, base)
    with TemporaryDirectory(dir=folder, prefix=".scratch-") as scratch:
        write_random_weights(Path(scratch, weights.name), base, seed=0)
        random = holding(resolver, mapped(Path(scratch, weights.name)))
        graph = to_graph(
            random, _example(model, stage, EXAMPLES), "out", translations=TRANSLATIONS, step=stage.step or None
        )
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
    return {
        "sample": torch.randn((batch, 2 * stage.channels, *stage.checked_side), generator=generator),
        "timestep": torch.randint(0, stage.schedule.num_train_timesteps, (batch, 2), generator=generator),
        "encoder_hidden_states": torch.randn((batch, model.context_tokens, model.context_width), generator=generator),
    }
