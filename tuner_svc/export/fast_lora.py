"""Writes a base model's fast LoRA as the sampler adds it, and the base model's answer with it (unitune.base_model).

The answer is PyTorch's, so that it proves what an engine with these weights answers.
"""

from pathlib import Path

from tuner_svc.base_model import BaseModel
from tuner_svc.fast_lora import FastLora
from tuner_svc.probe import probe_answer
from unitune.tensor_file import write_tensors
from unitune.weights import FAST_LORA_PROBE, PROBE_SEED


def export_fast_lora(model: BaseModel, lora: FastLora, folder: Path) -> None:
    """Write the file."""
    answer = probe_answer(model, lora.added_to(model.tensors()), PROBE_SEED)
    stored = {**lora.stored(), FAST_LORA_PROBE: answer}
    kinds = {name: (array.dtype, array.shape) for name, array in stored.items()}
    write_tensors(folder / lora.spec.weights, kinds, lambda name: stored[name])
