"""Writes a base model's fast LoRA as the sampler adds it, and the base model's answers with it and without.

The answers are PyTorch's, so that they prove what an engine with these weights answers.
"""

from pathlib import Path

from tuner_svc.base_model import BaseModel
from tuner_svc.fast_lora import FastLora
from tuner_svc.probe import probe_answer
from unitune.tensor_file import write_tensors
from unitune.weights import PROBE_BASE, PROBE_SEED, PROBE_TUNED


def export_fast_lora(model: BaseModel, lora: FastLora, folder: Path) -> None:
    """Write the file."""
    stored = {
        **lora.stored(),
        PROBE_TUNED: probe_answer(model, lora.added_to(model.tensors()), PROBE_SEED),
        PROBE_BASE: probe_answer(model, {}, PROBE_SEED),
    }
    kinds = {name: (array.dtype, array.shape) for name, array in stored.items()}
    write_tensors(folder / lora.spec.weights, kinds, lambda name: stored[name])
