"""The real TensorRT-RTX, of which builder and parser need no GPU."""

import platform
import sys
from typing import Any

import pytest

from sampler_svc.engines.engine import BackendMissing
from sampler_svc.engines.trt_library import TENSORRT_RTX, import_module


def real_rtx() -> Any:
    """The module. Skips the test where NVIDIA has no wheel; where `make test` installs it, its absence is a failure."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("NOT PARSED by NVIDIA's parser: TensorRT-RTX is installed for tests on Linux x86-64 only")
    try:
        return import_module(TENSORRT_RTX)
    except BackendMissing as error:
        pytest.fail(f"{error}; or: pip install -c constraints.txt 'unitune[dev]'")
