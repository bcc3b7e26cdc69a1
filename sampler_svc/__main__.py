"""Run the sampler: settings -> model -> service -> serve."""

import asyncio
import logging
import os
import sys

from sampler_svc.config import SamplerConfig
from sampler_svc.engines.engine import BackendMissing
from sampler_svc.engines.folder import UnusableEngine
from sampler_svc.model import Model
from sampler_svc.service import SamplerService
from unitune import peers, telemetry, tracing
from unitune.certificates import CertificateReader
from unitune.errors import DataLoss
from unitune.free_memory import map_large_blocks
from unitune.object_store import ObjectStore
from unitune.serving import serve
from unitune.settings import load
from unitune.system_errors import sentence


def main() -> int:
    """The program; its exit code."""
    map_large_blocks()
    config = load(SamplerConfig, os.environ, sys.argv[1:])
    telemetry.configure("sampler")
    try:
        certificates = CertificateReader(config.peer_files) if config.peer_files is not None else None
        tracing.configure("sampler", config.traces)
        store = ObjectStore(config.store)
        model = Model.open(
            config.engine,
            threads=config.threads,
            backend=config.backend,
            refit_mode=config.refit_mode,
            clipseg=config.clipseg,
            content_filter=config.content_filter,
        )
    except (BackendMissing, UnusableEngine, DataLoss, OSError) as error:
        print(f"sampler: {sentence(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 1
    kept_bytes = config.kept_weights_bytes()
    service = SamplerService(model, store, kept_bytes=kept_bytes)
    telemetry.event(logging.getLogger(__name__), "engine loaded", engine=model.engine, size_bytes=kept_bytes)
    return asyncio.run(_serve(config, service, certificates))


async def _serve(config: SamplerConfig, service: SamplerService, certificates: CertificateReader | None) -> int:
    try:
        return await serve(
            "sampler",
            config.address,
            service.register,
            health_address=config.health_address,
            on_drain=service.drain,
            reflection=config.reflection,
            **peers.served_by(certificates),
            metrics_address=config.metrics_address,
        )
    finally:
        await service.close()


if __name__ == "__main__":
    sys.exit(main())
