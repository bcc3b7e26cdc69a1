"""The tuned-weights file: written by the tuner, read by the sampler.

There are two files under one path of the object store:

    weights.safetensors   the tuned tensors, dense in fp32 or as `codec` says (unitune.codecs), the probe's answers, and
                          under `extra.` what else the method made, fp32 whatever the codec: embeddings;
                          under `super_resolution.` that model's tensors, if they were tuned
    manifest.json         its contents and sha256; written last, so weights without it do not exist

The file has only tensors that a tuning may change. The probe's answer is for the tensors as decoded from the file, so
it proves what is served. A reader takes all other tensors from the base model, so that a refit always replaces the
whole set: otherwise weights of the previous tuning would stay.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from unitune.base_model import SUPER_RESOLUTION_STAGES
from unitune.codecs import tensor_names
from unitune.errors import DataLoss, FailedPrecondition

SCHEMA = 1
PROBE_TUNED = "probe.tuned"  # the denoiser's answer to the probe input with the tuned weights, fp32
PROBE_BASE = "probe.base"  # the same with the base weights
EXTRA = "extra."  # before the names of `Manifest.extras`


def prefix(stage: str) -> str:
    """What begins the names of a super-resolution stage's tensors."""
    return f"{stage}."


def tuned_probe(stage: str) -> str:
    """The extra that is a super-resolution stage's answer with the tuned weights."""
    return f"{stage}.probe.tuned"


def base_probe(stage: str) -> str:
    """The same with the base weights."""
    return f"{stage}.probe.base"


FAST_LORA_TUNED = "fast_lora.probe.tuned"  # an extra: the answer with the tuned weights and the base model's fast LoRA
PROBES = (  # the extras that only prove a refit
    *(probe(stage) for stage in SUPER_RESOLUTION_STAGES for probe in (tuned_probe, base_probe)),
    FAST_LORA_TUNED,
)
PROBE_SEED = 0  # of all probes that are made now
WEIGHTS_FILE = "weights.safetensors"
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """The contents of a weights file. `digest` is the sha256 of its bytes."""

    key: str
    base_model: str
    method: str
    rare_tokens: str
    updates: int
    codec: str  # "none": fp32 values of the tensors; other codecs store a delta to the base model
    probe_seed: int
    tensors: tuple[str, ...]  # by name, whatever their parts are
    digest: str
    size_bytes: int
    codec_error: float = 0.0  # ||y(codec) - y(tuned)|| / ||y(tuned) - y(base)|| of the probe's answers y
    schema: int = SCHEMA
    stopped_after: int = 0  # updates, if the tuning stopped early; else 0
    # `prompt` and `optimized` (imagic), `vectors` (textual_inversion), `nulls` (null_text), and further PROBES.
    extras: tuple[str, ...] = ()
    bound_to: Mapping[str, Any] = field(default_factory=dict)  # settings that an edit with the extras must share

    def to_json(self) -> bytes:
        """The manifest file's bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Manifest":
        """Raises DataLoss when the bytes are no manifest of this schema."""
        try:
            fields = json.loads(data)
            fields["tensors"] = tuple(fields["tensors"])
            fields["extras"] = tuple(fields.get("extras", ()))
            manifest = cls(**fields)
            manifest._refuse_other_types()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataLoss("the weights' manifest cannot be read", reason="WEIGHTS_CORRUPT") from error
        if manifest.schema != SCHEMA:
            raise DataLoss(
                f"the weights' manifest has schema {manifest.schema}, this server reads {SCHEMA}",
                reason="WEIGHTS_CORRUPT",
            )
        return manifest

    def _refuse_other_types(self) -> None:
        """Raises TypeError for a value of a wrong type."""
        kinds: dict[str, type | tuple[type, ...]] = {
            **dict.fromkeys(("updates", "probe_seed", "size_bytes", "schema", "stopped_after"), int),
            "codec_error": (float, int),
            "tensors": tuple,
            "extras": tuple,
            "bound_to": dict,
        }
        for name, value in vars(self).items():
            if not isinstance(value, kinds.get(name, str)):
                raise TypeError(name)
        if not all(isinstance(name, str) for name in (*self.tensors, *self.extras)):
            raise TypeError("tensors")


@dataclass(frozen=True)
class TunedWeights:
    """A weights file, read and checked. `tensors` are as stored: `unitune.codecs.decode` decodes them."""

    manifest: Manifest
    tensors: Mapping[str, np.ndarray]
    probe_tuned: np.ndarray
    probe_base: np.ndarray
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    def tunes(self, stage: str) -> bool:
        """Whether a super-resolution stage was tuned, too."""
        return any(name.startswith(prefix(stage)) for name in self.manifest.tensors)

    def denoiser_tensors(self) -> dict[str, np.ndarray]:
        """The denoiser's tensors, as stored."""
        begins = tuple(prefix(stage) for stage in SUPER_RESOLUTION_STAGES)
        return {name: tensor for name, tensor in self.tensors.items() if not name.startswith(begins)}

    def stage_tensors(self, stage: str) -> dict[str, np.ndarray]:
        """A super-resolution stage's tensors, as stored, by their own names."""
        return {
            name.removeprefix(prefix(stage)): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix(stage))
        }

    def require_method(self, method: str) -> "TunedWeights":
        """These weights. Raises FailedPrecondition (METHOD_MISMATCH) when another method made them."""
        if self.manifest.method != method:
            raise FailedPrecondition(
                f"the weights were made by {self.manifest.method} and cannot be used by {method}",
                reason="METHOD_MISMATCH",
                metadata={"made_by": self.manifest.method, "asked": method},
            )
        return self


def pack(
    tensors: Mapping[str, np.ndarray],
    *,
    probe_tuned: np.ndarray,
    probe_base: np.ndarray,
    key: str,
    base_model: str,
    method: str,
    rare_tokens: str,
    updates: int,
    probe_seed: int,
    codec: str = "none",
    codec_error: float = 0.0,
    extras: Mapping[str, np.ndarray] | None = None,
    stopped_after: int = 0,
    bound_to: Mapping[str, Any] | None = None,
) -> tuple[bytes, Manifest]:
    """A weights file of encoded tensors, and its manifest. The same input gives the same bytes.

    If a method changes no tensor of the denoiser, the probe's answers are empty arrays.
    """
    stored = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    probe = {PROBE_TUNED: np.ascontiguousarray(probe_tuned), PROBE_BASE: np.ascontiguousarray(probe_base)}
    extra = {EXTRA + name: np.ascontiguousarray(tensor) for name, tensor in sorted((extras or {}).items())}
    data = save({**stored, **probe, **extra})
    manifest = Manifest(
        key=key,
        base_model=base_model,
        method=method,
        rare_tokens=rare_tokens,
        updates=updates,
        codec=codec,
        probe_seed=probe_seed,
        tensors=tuple(sorted(tensor_names(stored))),
        digest=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        codec_error=codec_error,
        stopped_after=stopped_after,
        extras=tuple(name.removeprefix(EXTRA) for name in extra),
        bound_to=dict(bound_to or {}),
    )
    return data, manifest


def unpack(data: bytes, manifest: Manifest) -> TunedWeights:
    """Read a weights file, and check it against its manifest.

    Raises DataLoss (WEIGHTS_CORRUPT) when the bytes do not have the digest, or the tensors are not the promised ones.
    """
    if hashlib.sha256(data).hexdigest() != manifest.digest:
        raise DataLoss("the stored weights do not have the digest of their manifest", reason="WEIGHTS_CORRUPT")
    tensors = load(data)
    try:
        probe_tuned, probe_base = tensors.pop(PROBE_TUNED), tensors.pop(PROBE_BASE)
    except KeyError as error:
        raise DataLoss("the stored weights carry no probe", reason="WEIGHTS_CORRUPT") from error
    extras = {name.removeprefix(EXTRA): tensors.pop(name) for name in list(tensors) if name.startswith(EXTRA)}
    if (tensor_names(tensors), set(extras)) != (set(manifest.tensors), set(manifest.extras)):
        raise DataLoss("the stored weights are not the tensors of their manifest", reason="WEIGHTS_CORRUPT")
    return TunedWeights(manifest, tensors, probe_tuned, probe_base, extras)


def probe_input(
    seed: int, channels: int, side: tuple[int, int], context: tuple[int, int], *, has_noise_level: bool = False
) -> dict[str, np.ndarray]:
    """The denoiser input that proves a refit: two latents, a low and a high timestep, two contexts.

    `side` is (height, width) of the latent, `context` is (rows, width) of a prompt's conditioning; with
    `has_noise_level` each timestep has a noise level beside it, as for super-resolution. The draws are float32 and the
    same on every machine (PCG64).
    """
    rng = np.random.default_rng(seed)
    timesteps = [[200, 100], [800, 400]] if has_noise_level else [200, 800]
    return {
        "sample": rng.standard_normal((2, channels, *side), dtype=np.float32),
        "timestep": np.array(timesteps, dtype=np.int64),
        "encoder_hidden_states": rng.standard_normal((2, *context), dtype=np.float32),
    }
