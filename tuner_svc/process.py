"""The tuner's process: base model, service, serve. It loads PyTorch, which takes seconds."""

from dataclasses import replace
from pathlib import Path

import torch

from tuner_svc.arrangement import GB
from tuner_svc.base_model import BaseModel, load
from tuner_svc.config import TunerConfig
from tuner_svc.gateways import Gateways
from tuner_svc.service import TunerService
from tuner_svc.torch_thread import TorchThread
from unitune import peers
from unitune.certificates import CertificateReader
from unitune.object_store import ObjectStore
from unitune.serving import serve


def loaded(config: TunerConfig, thread: TorchThread) -> BaseModel:
    """The base model. Raises UnusableBaseModel."""
    return thread.submit(_load, config.base_model, int(config.tuning_memory_gb * GB)).result()


async def run(
    config: TunerConfig,
    model: BaseModel,
    store: ObjectStore,
    thread: TorchThread,
    certificates: CertificateReader | None,
) -> int:
    """Serve until a signal comes; the exit code."""
    gateways = Gateways(config.gateways(), certificates)
    service = TunerService(model, store, gateways, config.weights_codec, thread, checkpoint_s=config.checkpoint_s)
    try:
        return await serve(
            "tuner",
            config.address,
            lambda server: [],  # nobody calls a tuner, but for its health
            health_address=config.health_address,
            on_listening=service.begin,
            on_drain=service.drain,
            reflection=config.reflection,
            **peers.served_by(certificates),
            metrics_address=config.metrics_address,
        )
    finally:
        await service.close()


def _load(base_model: Path, tuning_bytes: int) -> BaseModel:
    return replace(load(base_model, "cuda" if torch.cuda.is_available() else "cpu"), tuning_bytes=tuning_bytes)
