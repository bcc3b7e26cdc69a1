"""Run the tuner: settings, base model, service, serve."""

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tuner_svc.arrangement import GB
from tuner_svc.base_model import BaseModel, load
from tuner_svc.config import TunerConfig
from tuner_svc.gateways import Gateways
from tuner_svc.model_folder import UnusableBaseModel
from tuner_svc.service import TunerService
from tuner_svc.torch_thread import TorchThread
from unitune import peers, settings, telemetry, tracing
from unitune.certificates import CertificateReader
from unitune.object_store import ObjectStore
from unitune.serving import serve
from unitune.system_errors import sentence


def main() -> int:
    """Serve until a signal comes; the exit code."""
    config = settings.load(TunerConfig, os.environ)
    telemetry.configure("tuner")
    thread = TorchThread(config.num_threads())
    try:
        certificates = CertificateReader(config.peer_files) if config.peer_files is not None else None
        tracing.configure("tuner", config.traces)
        store = ObjectStore(config.store)
        model = thread.submit(_load, config.base_model, int(config.tuning_memory_gb * GB)).result()
    except UnusableBaseModel as error:
        print(f"tuner: UNITUNE_BASE_MODEL: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"tuner: {sentence(error)}", file=sys.stderr)
        return 1
    return asyncio.run(_run(config, model, store, thread, certificates))


async def _run(
    config: TunerConfig,
    model: BaseModel,
    store: ObjectStore,
    thread: TorchThread,
    certificates: CertificateReader | None,
) -> int:
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


if __name__ == "__main__":
    sys.exit(main())
