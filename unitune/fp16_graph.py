"""The denoiser in 16-bit floats, for engines on a GPU: written by `tuner_svc.export --fp16` into a graphs folder.

    fp16/fp16.json                  this specification
    fp16/denoiser.onnx (+ .data)    fp16 within; inputs, output and tensor names are those of the fp32 graph
    fp16/self_test.safetensors      PyTorch's answers for the self-test, in fp32 with base weights and two random sets

A random set changes every tensor by much, so an engine that gives its answer has replaced all of them. The probe cannot
show that: in a real tuning most tensors change by less than fp16 rounds. Both sides draw the sets from a seed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unitune.base_model import TensorSpec

SCHEMA = 1
FP16_FOLDER = "fp16"
FP16_FILE = "fp16.json"
SELF_TEST_FILE = "self_test.safetensors"
SELF_TEST_SEEDS = {"first": 1, "second": 2}  # name of a random set, and what it is drawn from
SELF_TEST_PROBE_SEED = 0  # of the question, `unitune.weights.probe_input`; a base model's own probe asks the same


@dataclass(frozen=True)
class Fp16Spec:
    """The fp16 graph of a base model."""

    base_model: str  # digest
    tensors: Mapping[str, TensorSpec]  # layouts in this graph, which may differ from the fp32 graph's
    noise: Mapping[str, float]  # set of weights to ||fp16 answer - fp32 answer|| / ||fp32 answer||, both PyTorch's
    files: Mapping[str, str]  # file name to sha256
    schema: int = SCHEMA

    def save(self, folder: Path) -> None:
        """Write fp16.json into a folder."""
        (folder / FP16_FILE).write_text(json.dumps(asdict(self), indent=1, sort_keys=True))

    @classmethod
    def load(cls, folder: Path) -> "Fp16Spec":
        """Read fp16.json of a folder. Raises OSError, or ValueError for another schema or what is no specification."""
        fields: dict[str, Any] = json.loads((folder / FP16_FILE).read_text())
        if fields.get("schema") != SCHEMA:
            raise ValueError(f"{folder / FP16_FILE} has schema {fields.get('schema')}, this program reads {SCHEMA}")
        try:
            fields["tensors"] = {
                name: TensorSpec(tuple(t["shape"]), t["dtype"], t["layout"], tuple(t["graph_shape"]))
                for name, t in fields["tensors"].items()
            }
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / FP16_FILE} is no specification of an fp16 graph") from error

    @property
    def rounding(self) -> float:
        """What fp16 makes of the base model's answer, as a share of it."""
        return self.noise["base"]


def self_test_tensors(seed: int, tensors: Mapping[str, TensorSpec]) -> dict[str, np.ndarray]:
    """A random set of weights, float32 but exact in fp16: every tensor unlike any other's, no bias zero.

    Matrices and kernels are scaled by their fan-in, so that a network of them neither dies out nor overflows.
    """
    rng = np.random.default_rng(seed)
    drawn = {}
    for name in sorted(tensors):
        shape = tensors[name].shape
        values = rng.standard_normal(shape)
        if len(shape) > 1:
            values *= np.prod(shape[1:]) ** -0.5
        else:
            values = 0.3 * values + (1.0 if name.endswith("weight") else 0.0)
        drawn[name] = values.astype(np.float16).astype(np.float32)
    return drawn
