"""The rules of the house that no linter knows: who may import what, fresh generated code, pages that tell the truth."""

import ast
import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from google.protobuf.descriptor import Descriptor
from google.rpc import status_pb2

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gateway", "sampler_svc", "stickerbook", "tuner_svc", "unitune", "unitune_client")
TRAINING = ("diffusers", "onnx", "onnx_ir", "onnxscript", "torch", "transformers")
RUNTIMES = ("cuda", "onnxruntime", "tensorrt", "tensorrt_rtx_bindings")
# Not part of the product: what git does not carry, and others' files.
NOT_OURS = {".git", ".venv", "build", "dist", "out", "third_party", "work"}


def source_files(*packages: str) -> Iterator[Path]:
    """Every hand-written module of the packages."""
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "v1" not in path.relative_to(ROOT).parts:
                yield path


@cache
def imported_modules(path: Path) -> tuple[str, ...]:
    """Dotted names that a file imports anywhere, also inside functions; `from a import b` counts as `a.b`."""
    package, found = path.relative_to(ROOT).parent.parts, list[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            found += (".".join((*base, *filter(None, [node.module]), alias.name)) for alias in node.names)
    return tuple(found)


def tops(path: Path) -> set[str]:
    """Top-level names that a file imports."""
    return {name.partition(".")[0] for name in imported_modules(path)}


def text_files() -> Iterator[Path]:
    """Every file of the product that a person wrote."""
    suffixes = {".md", ".proto", ".py", ".pyi", ".toml", ".txt", ".yaml"}
    for top in sorted(ROOT.iterdir()):
        if top.name in NOT_OURS or (top.name.startswith(".") and top.name != ".ci"):
            continue
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if (
                "node_modules" not in path.parts
                and path.is_file()
                and (path.suffix in suffixes or path.name in {"Dockerfile", "Makefile", "run"})
            ):
                yield path


def documents() -> list[Path]:
    """Every page written for readers."""
    return [path for path in text_files() if path.suffix == ".md"]


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module of this repository as a program."""
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_generated_code_is_fresh() -> None:
    """unitune/v1, unitune_client/options.py and configs.py are what is made of protos/, byte for byte."""
    done = run_module("protos.generate", "--check")

    assert 0 == done.returncode, done.stderr


def test_a_change_that_an_older_client_would_notice_is_found(tmp_path: Path) -> None:
    """The contract is compatible with that of the last release, and a field that is renumbered is told."""
    buf = str(Path(sys.executable).with_name("buf"))
    command = [buf, "breaking", "protos", "--against", "protos/released.binpb"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert 0 == done.returncode, done.stdout + done.stderr

    for name in ("protos", "third_party"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    changed = tmp_path / "protos" / "unitune" / "v1" / "server.proto"
    changed.write_text(changed.read_text().replace("int64 upload_bytes = 1;", "int64 upload_bytes = 99;"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert 0 != done.returncode and "upload_bytes" in done.stdout


def test_the_page_of_options_is_fresh() -> None:
    """docs/options.md is what protos/options_page.py makes of the contract, and tells every option that is declared."""
    page = (ROOT / "docs" / "options.md").read_text()
    done = run_module("protos.options_page", "--check")

    assert 0 == done.returncode, done.stderr
    assert (
        "| `guidance_scale` | | 0 to 64 |" in page
        and "| `mask_blur` | `mask.blur` | 0 to 256 |" in page
        and "| `class_noun` | | 1 to 64 visible characters | dreambooth |" in page
    )


def test_vendored_protos_are_those_of_the_installed_wheel() -> None:
    """third_party/googleapis describes the same messages as the modules that are imported at run time."""
    vendored = ROOT / "third_party" / "googleapis"
    wheel = Path(status_pb2.__file__).parents[2]

    paths = [path.relative_to(vendored) for path in vendored.rglob("*.proto")]

    assert len(paths) == 6
    assert [] == [path for path in paths if (wheel / path).read_bytes() != (vendored / path).read_bytes()]


def test_a_runtime_is_imported_only_where_engines_are_made() -> None:
    """onnxruntime, tensorrt and cuda appear in the sampler's engines and in the tuner's export checks."""
    allowed = {
        *ROOT.glob("sampler_svc/engines/*.py"),
        *ROOT.glob("tuner_svc/export/*.py"),
    }

    wrong = [path for path in source_files(*PACKAGES) if path not in allowed and tops(path) & set(RUNTIMES)]

    assert [] == wrong


def test_torch_is_imported_only_by_the_tuner_and_stickerbook() -> None:
    """No file elsewhere imports torch or its company, not even inside a function."""
    others = [package for package in PACKAGES if package not in ("tuner_svc", "stickerbook")]

    wrong = [path for path in source_files(*others) if tops(path) & set(TRAINING)]

    assert [] == wrong


def test_the_mathematics_of_diffusion_imports_only_numpy() -> None:
    """unitune/diffusion imports the standard library, numpy and itself."""
    allowed = {*sys.stdlib_module_names, "numpy"}

    wrong = [
        (path.name, name)
        for path in source_files("unitune/diffusion")
        for name in imported_modules(path)
        if name.partition(".")[0] not in allowed and not name.startswith("unitune.diffusion")
    ]

    assert [] == wrong


def test_the_client_takes_only_the_contract_from_unitune() -> None:
    """unitune_client imports unitune.v1 and what needs no array library, and nothing else of unitune."""
    allowed = (
        "v1",
        "call_context",
        "errors",
        "system_errors",
        "drain",
        "image_pieces",
        "options",
        "picture_file",
        "picture_header",
        "png_text",
        "__version__",
    )
    wrong = [
        (path.name, name)
        for path in source_files("unitune_client")
        for name in imported_modules(path)
        if name.startswith("unitune.") and name.split(".")[1] not in allowed
    ]

    assert [] == wrong


# Of the contract, by protos/generate.py and protos/options_page.py.
GENERATED = (
    ROOT / "docs" / "options.md",
    ROOT / "unitune_client" / "configs.py",
    ROOT / "unitune_client" / "options.py",
)


def test_a_range_is_said_once() -> None:
    """The upper end of guidance_scale stands in one file, the contract; what is generated from that does not count."""
    said = (
        r"(guidance|GUIDANCE)\w*[\W\d]{1,12}\b64\b",
        r"guidance_scale = \d+ \[[^]]*lte: 64",
        r"\b0(\.0)? to 64\b|\b0\.0, 64\.0",
    )
    end = re.compile("|".join(said))
    own = [path for path in text_files() if path.relative_to(ROOT).parts[0] not in ("tests", "bench")]

    saying = [path for path in own if "_pb2" not in path.name and end.search(path.read_text())]

    assert [ROOT / "protos" / "unitune" / "v1" / "edit.proto"] == [path for path in saying if path not in GENERATED]


def test_messages_stop_at_the_edge_of_a_service() -> None:
    """Tuning and sampling take and give dataclasses; only the modules of the edge know grpc or unitune.v1."""
    edge = {"__main__.py", "gateways.py", "service.py", "wire.py"}

    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in source_files("sampler_svc", "tuner_svc")
        if not (path.name in edge and path.parent.parent == ROOT)
        for name in imported_modules(path)
        if name.partition(".")[0] in ("grpc", "grpc_status", "google") or name.startswith("unitune.v1")
    ]

    assert [] == wrong


BLOCKED_IMPORT = '''
import importlib, sys
blocked = set(sys.argv[2].split(","))
class Without:
    """A finder that does not find what is blocked, just as if it were not installed."""
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
for module in sys.argv[1].split(","):
    importlib.import_module(module)
'''


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("sampler_svc,sampler_svc.service,sampler_svc.__main__", (*TRAINING, "click", "rich", "tuner_svc", "gateway")),
        ("tuner_svc,tuner_svc.process,tuner_svc.__main__", (*RUNTIMES, "sampler_svc", "gateway")),
        ("gateway,gateway.service,gateway.__main__", (*TRAINING, *RUNTIMES, "tokenizers", "tuner_svc", "sampler_svc")),
        (
            "unitune_client,unitune_client.cli.main",
            (
                *(*TRAINING, *RUNTIMES, "grpc_health", "grpc_reflection", "numpy", "obstore", "opentelemetry"),
                *("prometheus_client", "safetensors", "tokenizers"),
            ),
        ),
    ],
    ids=lambda value: value.partition(",")[0] if isinstance(value, str) else "",
)
def test_a_program_imports_without_the_other_extras(modules: str, absent: tuple[str, ...]) -> None:
    """Each image installs its own extra alone, and what that leaves out is not missed."""
    command = [sys.executable, "-c", BLOCKED_IMPORT, modules, ",".join(absent)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert 0 == done.returncode, done.stderr


def test_every_model_is_loaded_from_safetensors() -> None:
    """Each from_pretrained says use_safetensors=True, or diffusers and transformers would unpickle (r10)."""
    wrong, found = [], 0
    for path in source_files(*PACKAGES, "bench"):
        tree = ast.parse(path.read_text())
        safe = {  # dictionaries of keywords that hold it
            target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and "'use_safetensors': True" in ast.unparse(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained")):
                continue
            found += 1
            named = {keyword.arg or ast.unparse(keyword.value): ast.unparse(keyword.value) for keyword in node.keywords}
            is_safe = named.get("use_safetensors") == "True" or safe & named.keys()
            if not is_safe and "Tokenizer" not in ast.unparse(node.func):  # a tokenizer has no weights
                wrong.append(f"{path.name}:{node.lineno}")

    assert found > 10 and [] == wrong


def test_nothing_unpickles() -> None:
    """Weights and state are safetensors, JSON and SQLite: a file from elsewhere cannot run code."""
    wrong = []
    for path in source_files(*PACKAGES):
        if tops(path) & {"cloudpickle", "dill", "joblib", "pickle", "shelve"}:
            wrong.append(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
                wrong.append(path)
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                wrong.append(path)

    assert [] == wrong


def test_no_module_hides_its_noun() -> None:
    """No module is called utils, common, helpers, manager or misc."""
    vague = {"common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}

    assert [] == [path for path in source_files(*PACKAGES, "bench", "tests") if path.stem in vague]


def class_names(*packages: str) -> Iterator[tuple[str, Path]]:
    """(name, file) of every class of the packages, nested ones too."""
    for path in source_files(*packages):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield node.name, path


def mirrors_of_messages() -> set[str]:
    """Classes of the SDK that have the name of a message and nothing but its fields: they are that message for callers.

    The position in a stream, `sequence` and `create_time`, is in the event around a message.
    """
    from unitune.v1 import edit_pb2, image_pb2, server_pb2, tuning_pb2
    from unitune_client import events

    messages: dict[str, list[set[str]]] = {}

    def note(message: Descriptor) -> None:
        messages.setdefault(message.name, []).append(set(message.fields_by_name))
        for nested in message.nested_types:
            note(nested)

    for module in (edit_pb2, image_pb2, server_pb2, tuning_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            note(message)
    fields = {
        name: {field.name for field in dataclasses.fields(kind)} - {"sequence", "create_time"}
        for name, kind in vars(events).items()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }
    return {name for name, own in fields.items() if own and any(own <= theirs for theirs in messages.get(name, []))}


def test_no_two_classes_share_a_name() -> None:
    """A class's name means one thing in the whole product.

    Classes generated from the contract do not count. The SDK's do not where they mirror the message of their name. The
    types of TensorRT and CUDA have the names of those libraries.
    """
    foreign = ROOT / "sampler_svc" / "engines" / "trt_api.py"
    sdk = {ROOT / "unitune_client" / "events.py", ROOT / "unitune_client" / "configs.py"}
    mirrors = mirrors_of_messages()
    files: dict[str, list[str]] = {}
    for name, path in class_names(*PACKAGES):
        if path != foreign and not (path in sdk and name in mirrors):
            files.setdefault(name, []).append(str(path.relative_to(ROOT)))

    assert {"BaseModel", "EditedImage", "Scores", "TuningConfig"} <= mirrors
    assert {} == {name: paths for name, paths in files.items() if len(paths) > 1}


def test_nothing_is_left_for_later() -> None:
    """No file carries a note about work that is not done."""
    note = re.compile("|".join(rf"\b{word}\b" for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X")))

    assert [] == [path for path in text_files() if note.search(path.read_text())]


def test_every_test_says_what_it_tests() -> None:
    """Each test function has a docstring of one sentence about behaviour."""
    wrong = [
        f"{path.name}:{node.lineno} {node.name}"
        for path in source_files("tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        if not ast.get_docstring(node)
    ]

    assert [] == wrong


# A word in a document is a path if it begins with a folder of ours or ends like one of our files.
PATH_SUFFIX = re.compile(r"\.(md|proto|py|toml|txt|yaml)$")
MADE_LATER = ("out/", "work/", ".venv/")


def named_paths(document: Path) -> Iterator[str]:
    """What a document names as a file or folder: links, and words in backticks that look like a path."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target and not target.startswith("mailto:"):
            yield target
    tops = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in NOT_OURS}
    for word in re.findall(r"`([^`\s]+)`", text):
        if word.startswith(MADE_LATER) or re.search(r"[<>{}=:$,]|^/|^~|^-", word):
            continue
        if PATH_SUFFIX.search(word) or ("/" in word and word.partition("/")[0] in tops):
            yield word.rstrip("/")


def is_there(name: str, document: Path) -> bool:
    """Whether a path exists seen from the document, the root or an include path; a bare name may be anywhere."""
    folders = [document.parent, ROOT, ROOT / "protos", ROOT / "third_party" / "googleapis"]
    if any(any(folder.glob(name)) if "*" in name else (folder / name).exists() for folder in folders):
        return True
    return "/" not in name and any(path.name == name for path in text_files())


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_names_files_that_exist(document: Path) -> None:
    """Every path in a page leads somewhere."""
    assert [] == sorted({name for name in named_paths(document) if not is_there(name, document)})


def test_every_promise_has_its_test() -> None:
    """Each test that docs/guarantees.md names is there; `::test_...` alone is of the file named before it."""
    named, file = [], ""
    for path, test in re.findall(
        r"`(tests/[\w/]+\.py)?(?:::(test_\w+))?`", (ROOT / "docs" / "guarantees.md").read_text()
    ):
        file = path or file
        named.append((file, test))

    assert len(named) > 100
    missing = [(path, test) for path, test in named if test and f"def {test}(" not in (ROOT / path).read_text()]
    assert [] == missing + [path for path, _ in named if not (ROOT / path).is_file()]


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_names_verbs_that_make_knows(document: Path) -> None:
    """Every `make VERB` in a page is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    named = set(re.findall(r"(?:`|^\s*\$? ?)make ([a-z][a-z0-9-]*)", document.read_text(), re.MULTILINE))

    assert set() == named - targets


def manifests() -> list[dict]:
    """Every Kubernetes object of k8s/base."""
    paths = [path for path in sorted((ROOT / "k8s" / "base").glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [found for path in paths for found in yaml.safe_load_all(path.read_text()) if found]


def pods() -> Iterator[tuple[str, dict]]:
    """(name, pod specification) of every workload of k8s/base."""
    for found in manifests():
        if found["kind"] == "Deployment":
            yield found["metadata"]["name"], found["spec"]["template"]["spec"]


def containers() -> Iterator[tuple[str, dict]]:
    """(name, container) of every container of k8s/base that serves."""
    for name, pod in pods():
        for container in pod["containers"]:
            yield name, container


def test_manifests_set_only_known_settings() -> None:
    """Manifests and Dockerfiles name settings that the programs read; a wrong name would stop the start."""
    from unitune.settings import NAMES

    images = [path.read_text() for path in ROOT.glob("*/Dockerfile")]
    in_images = {name for text in images for name in re.findall(r"\b(UNITUNE_\w+)=", text)}
    for overlay in (ROOT / "k8s").glob("*/*.yaml"):
        in_images |= set(re.findall(r"\b(UNITUNE_\w+)$", overlay.read_text(), re.MULTILINE))
    in_manifests = {variable["name"] for _, container in containers() for variable in container.get("env", [])}

    assert set() == {name for name in in_images | in_manifests if name.startswith("UNITUNE_")} - NAMES


def test_what_a_cluster_listens_on_is_protected_or_not_by_name() -> None:
    """With the settings of k8s/base, and those of k8s/tls over them, each program finds what it needs to start. The
    certificates there are of the names that the services expect of one another."""
    from gateway.config import GatewayConfig
    from sampler_svc.config import SamplerConfig
    from tuner_svc.config import TunerConfig
    from unitune import peers, settings

    kinds = {"gateway": GatewayConfig, "tuner": TunerConfig, "sampler": SamplerConfig}
    for name, container in containers():
        base = {variable["name"]: variable["value"] for variable in container["env"]}
        settings.load(kinds[name], base)
        with pytest.raises(settings.BadSetting, match="UNITUNE_INSECURE=no-tls"):
            settings.load(kinds[name], base | {"UNITUNE_INSECURE": ""})
        patches = yaml.safe_load_all((ROOT / "k8s" / "tls" / f"{name}.yaml").read_text())
        (patch,) = (found for found in patches if found["kind"] == "Deployment")
        (patched,) = patch["spec"]["template"]["spec"]["containers"]
        loaded = settings.load(kinds[name], base | {one["name"]: one["value"] for one in patched["env"]})
        assert loaded.peer_files is not None and not loaded.insecure

    found = yaml.safe_load_all((ROOT / "k8s" / "tls" / "certificates.yaml").read_text())
    names = {one["metadata"]["name"]: one["spec"].get("dnsNames") for one in found}
    for service, expected in (("gateway", peers.GATEWAY), ("tuner", peers.TUNER), ("sampler", peers.SAMPLER)):
        assert [expected] == names[f"{service}-peer"]


def test_manifests_probe_the_health_port_by_number() -> None:
    """Startup, readiness and liveness are gRPC probes of the port that UNITUNE_HEALTH_ADDRESS opens."""
    from unitune.serving import LIVENESS, READINESS

    for name, container in containers():
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        port = int(environment["UNITUNE_HEALTH_ADDRESS"].rpartition(":")[2])

        assert {"port": port, "service": READINESS} == container["readinessProbe"]["grpc"], name
        assert {"port": port, "service": READINESS} == container["startupProbe"]["grpc"], name
        assert {"port": port, "service": LIVENESS} == container["livenessProbe"]["grpc"], name


def test_the_kubelet_waits_until_a_program_has_ended_by_itself() -> None:
    """Every pod's grace is the one number, which is more than the drain and the time to leave together (r11, r19)."""
    from unitune.drain import DRAIN_S, KILLED_AFTER_S, LEAVE_S

    assert KILLED_AFTER_S > DRAIN_S + LEAVE_S
    for name, pod in pods():
        assert pod["terminationGracePeriodSeconds"] == KILLED_AFTER_S, name


def test_manifests_meet_the_restricted_pod_security_profile() -> None:
    """No container runs as root, gains privileges, keeps a capability or writes to its image."""
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        assert pod["automountServiceAccountToken"] is False, name
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"]["drop"] == ["ALL"], name


def test_every_port_of_a_service_is_one_its_program_listens_on() -> None:
    """A Service's target ports are ports of the containers that it selects."""
    ports = {name: {port["name"] for port in container["ports"]} for name, container in containers()}

    for found in manifests():
        if found["kind"] == "Service":
            selected = found["spec"]["selector"]["app.kubernetes.io/name"]
            assert {port["targetPort"] for port in found["spec"]["ports"]} <= ports[selected], selected


@pytest.mark.parametrize("service", ["gateway", "sampler_svc", "tuner_svc"])
def test_an_image_copies_what_exists(service: str) -> None:
    """Every source of a COPY in a Dockerfile is in the repository, and .dockerignore lets it through."""
    text = re.sub(r"\$\{BASE_MODEL\}", "stickerbook/model", (ROOT / service / "Dockerfile").read_text())
    let_through = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))

    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source.partition("/")[0] in let_through, source
