"""Run the tuner: settings, base model, service, serve."""

import asyncio
import gc
import os
import sys

from tuner_svc.config import TunerConfig
from tuner_svc.model_folder import UnusableBaseModel, check_layout
from unitune import settings, telemetry, tracing
from unitune.certificates import CertificateReader
from unitune.object_store import ObjectStore
from unitune.system_errors import sentence


def main() -> int:
    """Serve until a signal comes; the exit code."""
    config = settings.load(TunerConfig, os.environ, sys.argv[1:])
    telemetry.configure("tuner")
    try:
        certificates = CertificateReader(config.peer_files) if config.peer_files is not None else None
        tracing.configure("tuner", config.traces)
        store = ObjectStore(config.store)
        check_layout(config.base_model)
        # PyTorch takes seconds to load: what is wrong with settings or folder is told before. Its modules stay, so no
        # collection of garbage needs to visit them, neither now nor later.
        gc.disable()
        from tuner_svc.process import loaded, run
        from tuner_svc.torch_thread import TorchThread

        gc.freeze()
        gc.enable()
        thread = TorchThread(config.num_threads())
        model = loaded(config, thread)
    except UnusableBaseModel as error:
        print(f"tuner: UNITUNE_BASE_MODEL: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"tuner: {sentence(error)}", file=sys.stderr)
        return 1
    return asyncio.run(run(config, model, store, thread, certificates))


if __name__ == "__main__":
    sys.exit(main())
