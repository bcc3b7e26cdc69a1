"""Run the gateway: settings -> state and store -> services -> serve."""

import asyncio
import os
import sys

from gateway.config import GatewayConfig
from gateway.gateway import Gateway
from unitune import serving, settings, telemetry, tracing
from unitune.certificates import CertificateReader
from unitune.system_errors import sentence


async def run(config: GatewayConfig) -> int:
    """Serve until SIGTERM or SIGINT; the program's exit code."""
    try:
        credentials = CertificateReader(config.tls_files).server_credentials() if config.tls_files else None
        gateway = await Gateway.open(config)
    except OSError as error:
        print(f"gateway: {sentence(error)}", file=sys.stderr)
        return 1
    try:
        return await serving.serve(
            "gateway",
            config.address,
            gateway.register,
            health_address=config.health_address,
            on_drain=gateway.drain,
            max_receive_bytes=serving.PUBLIC_REQUEST_BYTES,
            connection_age_s=config.connection_age_s,
            reflection=config.reflection,
            door=gateway.access,
            credentials=credentials,
            metrics_address=config.metrics_address,
            not_serving=gateway.not_serving,
        )
    finally:
        await gateway.close()


def main() -> int:
    """The program's exit code."""
    config = settings.load(GatewayConfig, os.environ, sys.argv[1:])
    telemetry.configure("gateway")
    try:
        tracing.configure("gateway", config.traces)
    except OSError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    return asyncio.run(run(config))


if __name__ == "__main__":
    sys.exit(main())
