"""The types in sampler_svc/engines/trt_api.py against the bindings of both TensorRTs and of CUDA.

They import without a GPU. TensorRT-RTX is installed for the tests, with its libraries. TensorRT's bindings want three
libraries of 2 GB, but nine functions of them. A stub that exports these lets the true module be imported on any
machine, in a process of its own: every class, member, parameter name and enum is there to be compared. Nothing can be
run so, and nothing is. Those wheels are fetched once into pytest's cache and never installed.
"""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sampler_svc.engines import trt_api
from sampler_svc.engines.trt_library import LIBRARIES, TENSORRT_RTX
from tests.sampler_svc.fake_gpu import FakeCuda
from tests.sampler_svc.rtx import real_rtx

TENSORRT_WHEELS = ("tensorrt_cu13_bindings==11.4.0.106",)
CUDA_WHEELS = ("cuda-bindings==13.5.0", "cuda-pathfinder")
STUBBED = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
STUB = """
#define FACTORY(name) void *name(void) { return 0; }
FACTORY(createInferBuilder_INTERNAL) FACTORY(createInferRefitter_INTERNAL) FACTORY(createInferRuntime_INTERNAL)
FACTORY(createNvOnnxParserRefitter_INTERNAL) FACTORY(createNvOnnxParser_INTERNAL)
FACTORY(getBuilderPluginRegistry) FACTORY(getNvOnnxParserVersion) FACTORY(getPluginRegistry)
FACTORY(initLibNvInferPlugins)
"""
# Prints, for each name asked for: kind, docstring, and the members of an enum.
DESCRIBE = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
found = {"__version__": getattr(module, "__version__", "")}
for path in json.load(sys.stdin):
    value, missing = module, False
    for part in path.split("."):
        missing = missing or not hasattr(value, part)
        value = getattr(value, part, None)
    found[path] = None if missing else {
        "kind": type(value).__name__,
        "doc": str(getattr(value, "__doc__", "") or ""),
        "members": sorted(getattr(value, "__members__", {})),
    }
print(json.dumps(found))
"""
# Members of enums that the code names; found in its text below, so that none is forgotten.
SOURCES = ("engines/tensorrt.py", "build/tensorrt.py", "engines/cuda_device.py")


def wheels(names: tuple[str, ...], cache: Path) -> Path:
    """The wheels of some packages unpacked in a folder of the cache; skips the test where they cannot be fetched."""
    folder = cache / re.sub(r"\W+", "-", names[0])
    if (folder / "complete").exists():
        return folder
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, "--quiet", *names], capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        pytest.skip(f"NOT COMPARED with the true bindings: {', '.join(names)} cannot be fetched ({reason})")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    (folder / "complete").touch()
    return folder


def describe(module: str, paths: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """What a process of its own finds in a module."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", DESCRIBE, module],
        input=json.dumps(paths),
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def protocols() -> dict[str, type]:
    """The classes of trt_api by name, without the two modules."""
    found = {name: item for name, item in vars(trt_api).items() if isinstance(item, type)}
    ours = {name: item for name, item in found.items() if item.__module__ == trt_api.__name__}
    return {name: item for name, item in ours.items() if name not in ("TensorRT", "CudaRuntime")}


def members(protocol: type) -> dict[str, Any]:
    """What a protocol has of its own: methods, properties and plain attributes."""
    hints = dict.fromkeys(vars(protocol).get("__annotations__", {}))
    return {name: item for name, item in vars(protocol).items() if not name.startswith("_")} | {
        name: None for name in hints if not name.startswith("_")
    }


def parameters(function: Any) -> list[str]:
    """The names of a method's parameters without self."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def documented(doc: str, name: str) -> list[list[str]]:
    """The parameter names of each overload that a binding's docstring tells, such as `f(self: T, a: int = 0)`."""
    found = []
    for arguments in re.findall(rf"^(?:\d+\. )?{name}\((.*)\)", doc, re.MULTILINE):
        names = re.findall(r"(?:^|, )(\w+): ", arguments)
        found.append([one for one in names if one != "self"])
    return found


@pytest.fixture(scope="module")
def cache(request: pytest.FixtureRequest) -> Path:
    """Where wheels are kept between runs."""
    return request.config.cache.mkdir("wheels")


@dataclass(frozen=True)
class Bindings:
    """The bindings of one TensorRT: module, the environment in which they import, and what they need not have."""

    module: str
    environment: dict[str, str]
    version: str
    absent: tuple[str, ...] = ()

    def has(self, path: str) -> bool:
        """Whether it must have a class, member or enum, by its dotted name."""
        return not any(path == name or path.startswith(f"{name}.") for name in self.absent)


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def bindings(request: pytest.FixtureRequest) -> Bindings:
    """Those of one of the two libraries."""
    if request.param == "tensorrt":
        environment = request.getfixturevalue("tensorrt_environment")
        return Bindings("tensorrt_bindings", environment, "11.4.", trt_api.ONLY_RTX)
    return Bindings(TENSORRT_RTX.module, {"PYTHONPATH": str(Path(real_rtx().__file__).parents[1])}, "1.7.")


@pytest.fixture(scope="module")
def tensorrt_environment(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """In which the true bindings import: their wheel's folder, and the stub in place of TensorRT's libraries."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("NOT COMPARED with the true bindings: there is no C compiler for the stub")
    bindings = wheels(TENSORRT_WHEELS, cache)
    libraries = tmp_path_factory.mktemp("stub")
    (libraries / "stub.c").write_text(STUB)
    for library in STUBBED:
        name = f"lib{library}.so.11"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", name, "stub.c"]
        subprocess.run(command, cwd=libraries, check=True, capture_output=True)
    return {"PYTHONPATH": str(bindings), "LD_LIBRARY_PATH": str(libraries)}


@pytest.fixture(scope="module")
def cuda_environment(cache: Path) -> dict[str, str]:
    """In which the true bindings of CUDA's runtime import; that runtime is inside them."""
    return {"PYTHONPATH": str(wheels(CUDA_WHEELS, cache))}


def test_every_member_of_tensorrt_that_we_use_is_there(bindings: Bindings) -> None:
    """Classes, properties and methods by name; the parameters of each method by name and order, in some overload."""
    wanted = {f"{name}.{member}": item for name, one in protocols().items() for member, item in members(one).items()}
    paths = [path for path in (*protocols(), *wanted) if bindings.has(path)]

    found = describe(bindings.module, [*protocols(), *wanted], bindings.environment)

    assert found["__version__"].startswith(bindings.version)
    assert len(paths) > 50
    assert [] == [path for path in paths if found[path] is None]
    assert [] == [path for path in (*protocols(), *wanted) if not bindings.has(path) and found[path] is not None]
    for path, item in wanted.items():
        if path not in paths:
            continue
        if item is None or isinstance(item, property):
            assert found[path]["kind"] == "property", path
            continue
        overloads = documented(found[path]["doc"], path.rpartition(".")[2])
        assert any(parameters(item) == names[: len(parameters(item))] for names in overloads), (path, overloads)


def test_every_constructor_takes_what_we_give(bindings: Bindings) -> None:
    """Logger, Builder, OnnxParser, Runtime, Refitter and Weights, by parameter name and order."""
    wanted = {name: item for name, item in members(trt_api.TensorRT).items() if inspect.isfunction(item)}

    found = describe(bindings.module, [f"{name}.__init__" for name in wanted], bindings.environment)

    assert {"Builder", "Logger", "OnnxParser", "Refitter", "Runtime", "Weights"} == wanted.keys()
    for name, item in wanted.items():
        overloads = documented(found[f"{name}.__init__"]["doc"], "__init__")
        assert parameters(item) in overloads, (name, overloads)


def named_in_code(owner: str) -> set[str]:
    """Dotted names below `trt.` or `cudaX.` that our code uses, such as BuilderFlag.TF32."""
    text = "\n".join((Path(trt_api.__file__).parent.parent / source).read_text() for source in SOURCES)
    text = text.replace("self._trt.", "trt.")
    flags = {f"BuilderFlag.{flag}" for library in LIBRARIES.values() for flag in library.flags}
    return flags | set(re.findall(rf"\b{owner}\.((?:[A-Z]\w+\.)*[A-Z]\w+\.[A-Z][A-Z0-9_]+)\b", text))


def test_every_enum_member_that_we_name_is_there(bindings: Bindings) -> None:
    """Flags, locations, types and strategies, as the code and the table of libraries spell them."""
    used = named_in_code("trt")

    found = describe(bindings.module, sorted(used), bindings.environment)

    assert {name for name, item in members(trt_api.TensorRT).items() if item is None} == {
        path.partition(".")[0] for path in used
    }
    assert {path for path in used if found[path] is None} == {path for path in used if not bindings.has(path)}


def test_the_true_weights_are_a_view_by_address(bindings: Bindings) -> None:
    """`Weights(type, address, count)` is the form that we use, and tells its number of values and dtype."""
    ask = f"import {bindings.module} as t; w = t.Weights(t.DataType.HALF, 4096, 10); print(w.size, w.dtype, w.nbytes)"

    done = subprocess.run(
        [sys.executable, "-P", "-c", ask], env=os.environ | bindings.environment, capture_output=True, text=True
    )

    assert done.stdout.split() == ["10", "DataType.HALF", "20"], done.stderr


def test_every_function_of_cuda_that_we_use_is_there(cuda_environment: dict[str, str]) -> None:
    """By name, with as many parameters in the same order, and the constants; and the fake has no others."""
    wanted = {name: item for name, item in members(trt_api.CudaRuntime).items() if inspect.isfunction(item)}
    kinds = [f"cudaMemcpyKind.{kind}" for kind in FakeCuda.cudaMemcpyKind.__members__]
    modes = [f"cudaStreamCaptureMode.{mode}" for mode in FakeCuda.cudaStreamCaptureMode.__members__]

    found = describe("cuda.bindings.runtime", [*wanted, *kinds, *modes, "cudaStreamNonBlocking"], cuda_environment)

    assert [] == [path for path, item in found.items() if item is None]
    for name, item in wanted.items():
        (signature,) = re.findall(rf"^{name}\((.*)\)", found[name]["doc"], re.MULTILINE)
        names = [re.split(r"[ ]", part.partition(":")[0].strip())[-1] for part in signature.split(",") if part.strip()]
        assert parameters(item) == names, name
    code = (Path(trt_api.__file__).parent / "cuda_device.py").read_text()
    assert (
        set(re.findall(r'_call\("(\w+)"', code)) | {"cudaFree", "cudaFreeHost", "cudaGetErrorString"} == wanted.keys()
    )


OPEN = """
import json, sys
import cuda.bindings.runtime as cuda
from sampler_svc.engines.cuda_device import CudaError, Device
error, _ = cuda.cudaGetDeviceCount()
try:
    Device(cuda).close()
except CudaError as failure:
    print(json.dumps([int(error), str(failure)]))
else:
    print(json.dumps([int(error), ""]))
"""


def test_the_true_runtimes_error_becomes_ours(cuda_environment: dict[str, str]) -> None:
    """Our device object on the true runtime: without a GPU and driver it says so, with one it opens."""
    path = os.pathsep.join([cuda_environment["PYTHONPATH"], str(Path(trt_api.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-P", "-c", OPEN], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    error, told = json.loads(done.stdout)
    assert (error == 0) == (told == "")
    assert error == 0 or re.search(r"cudaGetDeviceCount: (CUDA driver|no CUDA-capable)", told), told
