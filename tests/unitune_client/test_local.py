"""LocalServices and `unitune up` with stand-in programs: real processes, real ports, real signals."""

import ast
import inspect
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import unitune_client
from tests.full_disk import fill, mounted
from tests.unitune_client import stand_ins
from unitune import drain, serving
from unitune.errors import Internal, InvalidField, ResourceExhausted, UniTuneError
from unitune_client import Client
from unitune_client.cli.connection import connection
from unitune_client.cli.main import main
from unitune_client.local import machine, programs, stage_log, supervision
from unitune_client.local.home import RESERVE_BYTES, Home
from unitune_client.local.machine import LocalError
from unitune_client.local.services import LocalServices
from unitune_client.local.stage_log import StageLog

pytestmark = pytest.mark.slow  # real services, killed and started again

ROOT = Path(unitune_client.__file__).parents[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home of its own, with stand-in programs before the real ones."""
    for name in [name for name in os.environ if name.startswith("UNITUNE_")]:
        monkeypatch.delenv(name)
    stand_ins.write(tmp_path / "programs")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "programs"))
    monkeypatch.setenv("UNITUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UNITUNE_THREADS", "2")
    return Home(tmp_path / "home")


@pytest.fixture
def base_model(tmp_path: Path) -> str:
    """A folder that looks like a base model."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model_index.json").write_text("{}")
    return str(tmp_path / "tiny")


@pytest.fixture
def said() -> list[str]:
    """What the services told on the way."""
    return []


def environment_of(folder: Path) -> dict[str, str]:
    """For a program of ours, with the stand-ins before the real ones."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder / "programs"), str(ROOT)])}


def pids(home: Home) -> list[int]:
    """The processes that were started."""
    return [note["pid"] for note in stand_ins.notes(home.store).values()]


def test_three_services_run_and_know_each_other(home: Home, base_model: str, said: list[str]) -> None:
    """Every service gets its settings and a free port; the gateway answers; all are gone afterwards."""
    with LocalServices(base_model, home=home, log=said.append) as services, Client(services.address) as client:
        assert "gateway" == client.server_info().version
        notes = stand_ins.notes(home.store)
        assert [] == [pid for pid in pids(home) if pid not in stand_ins.still_running(pids(home))]

    settings = {name: note["settings"] for name, note in notes.items()}
    assert {"UNITUNE_STORE": str(home.store), "UNITUNE_THREADS": "2"}.items() <= settings["tuner"].items()
    assert base_model == settings["tuner"]["UNITUNE_BASE_MODEL"]
    assert str(home.engines / "e1") == settings["sampler"]["UNITUNE_ENGINE"]
    assert str(home.state) == settings["gateway"]["UNITUNE_STATE"]
    assert settings["gateway"]["UNITUNE_INTERNAL_ADDRESS"] == settings["tuner"]["UNITUNE_GATEWAY"]
    addresses = [settings["gateway"][f"UNITUNE_{one}"] for one in ("GATEWAY_ADDRESS", "INTERNAL_ADDRESS", "SAMPLER")]
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", one) for one in addresses) and 3 == len({*addresses})
    assert all("UNITUNE_HOME" not in one for one in settings.values())
    assert 3 == len(pids(home)) and [] == stand_ins.still_running(pids(home))


def test_the_engine_is_built_once(home: Home, base_model: str, said: list[str]) -> None:
    """The programs are asked every time, and words and stages come only when something is to be built."""
    first = LocalServices(base_model, home=home, log=said.append).build()
    second = LocalServices(base_model, home=home, log=said.append).build()

    assert home.engines / "e1" == first == second
    words = "building the engine for tiny, once"
    assert [words, "  g1: working on it ...", "  e1: working on it ..."] == said
    arguments = ast.literal_eval((home.engines / "e1" / "arguments").read_text())
    assert {"--graphs": str(home.graphs / "g1"), "--engines": str(home.engines)} == arguments


def test_a_single_file_is_written_as_a_folder_once(home: Home, tmp_path: Path, said: list[str]) -> None:
    """A base model in one file is written into the cache folder, under its name, before the first export alone."""
    file = tmp_path / "cats.safetensors"
    file.write_bytes(b"weights")

    LocalServices(str(file), home=home, log=said.append).build()
    (folder,) = home.models.glob("*/cats")
    LocalServices(str(file), home=home, log=said.append).build()

    assert 1 == said.count("  import: writing ...")
    assert [str(file), "--out", str(folder)] == ast.literal_eval((folder / "arguments").read_text())
    exported = ast.literal_eval((home.graphs / "g1" / "arguments").read_text())
    assert str(folder) == exported["--base-model"]
    file.write_bytes(b"other weights")
    LocalServices(str(file), home=home).build()
    assert 2 == len(list(home.models.glob("*/cats")))


def test_services_with_a_file_start_where_another_engine_is(home: Home, base_model: str, tmp_path: Path) -> None:
    """The tuner is not started on a folder that is yet to be written, though engines of other models are there."""
    LocalServices(base_model, home=home).build()
    (tmp_path / "cats.safetensors").write_bytes(b"weights")
    needs_folder = 'assert (Path(os.environ["UNITUNE_BASE_MODEL"]) / "model_index.json").is_file()'
    stand_ins.write(tmp_path / "programs", tuner=needs_folder)

    with LocalServices(str(tmp_path / "cats.safetensors"), home=home) as services:
        services.check()


def test_a_file_that_is_refused_is_told_in_one_sentence(home: Home, tmp_path: Path) -> None:
    """The program's own sentence is the error, and says where its log is."""
    stand_ins.write(tmp_path / "programs", single_file='sys.exit("import: cats is a Flux model: give another")')
    (tmp_path / "cats.safetensors").touch()

    with pytest.raises(LocalError, match=r"^cats is a Flux model: give another\n  \(its log is .*import\.log\)$"):
        LocalServices(str(tmp_path / "cats.safetensors"), home=home).build()


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "notes.txt"])
def test_a_file_of_another_kind_is_no_base_model(name: str, home: Home, tmp_path: Path) -> None:
    """Pickles are refused before anything starts."""
    (tmp_path / name).touch()

    with pytest.raises(InvalidField, match=r"--base-model is .*: give a \.safetensors file or a folder"):
        LocalServices(str(tmp_path / name), home=home)


def test_the_programs_take_what_they_are_given(
    home: Home, base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export's real command line knows the options that a backend on a GPU needs."""
    note = "Path(arguments_file).write_text(repr(sys.argv[1:]))"
    stand_ins.write(tmp_path / "programs", export=f"arguments_file = {str(tmp_path / 'export')!r}\n{note}")
    monkeypatch.setenv("UNITUNE_SAMPLER_BACKEND", "tensorrt")
    with suppress(LocalError):
        LocalServices(base_model, home=home).build()
    given = ast.literal_eval((tmp_path / "export").read_text())

    ended = subprocess.run(
        [sys.executable, "-m", "tuner_svc.export", *given],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )

    assert "--fp16" in given
    assert "unrecognized arguments" not in ended.stderr and 1 == ended.returncode, ended.stderr


def test_a_build_tells_what_the_last_one_took(home: Home, base_model: str, said: list[str]) -> None:
    """Numbers of this machine, or none: the first build has none, the next one that of the first, stage by stage."""
    loading = "  g1: working on it ..."
    LocalServices(base_model, home=home, log=said.append).build()
    shutil.rmtree(home.engines)
    home.note_build("tiny", {loading.strip(): 70.3, "build: another ...": 3.2})
    shutil.rmtree(home.graphs)
    LocalServices(base_model, home=home, log=said.append).build()
    took_s = sum(home.build_s("tiny").values())
    shutil.rmtree(home.engines)
    LocalServices(base_model, home=home, log=said.append).build()

    first, second, third = (line for line in said if line.startswith("building"))
    assert "building the engine for tiny, once" == first
    assert f"{first}; the last one took 74 s here" == second
    assert [loading, f"{loading} about 70 s"] == [line for line in said if line.startswith(loading)]
    assert 0.3 < took_s < 60 and f"{first}; the last one took {took_s:.0f} s here" == third


def test_a_long_stage_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is silent for more than 15 s, and what is left is told only while it is known."""
    now_s, said = [0.0], list[str]()
    monkeypatch.setattr(stage_log, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    log = StageLog(said.append, {"export: long ...": 40.0})
    log.begin("export: long ...")
    for second in range(1, 62):
        now_s[0] = float(second)
        log.tick()
    log.end()

    assert "  export: long ... about 40 s" == said[0]
    told = ["15 s so far, about 25 s left", "30 s so far, about 10 s left", "45 s so far", "60 s so far"]
    assert [f"  export: long ... {note}" for note in told] == said[1:]
    assert {"export: long ...": 61.0} == log.took_s


def test_folders_are_closed_to_other_users(home: Home) -> None:
    """Tuned weights can show the pictures they were tuned on."""
    home.prepare()

    assert [0o700] * 3 == [path.stat().st_mode & 0o777 for path in (home.root, home.store, home.state.parent)]


@pytest.mark.parametrize("name", ["tuner", "sampler", "gateway"])
def test_a_service_that_dies_at_start_is_one_clear_error(
    home: Home, base_model: str, tmp_path: Path, name: str
) -> None:
    """The error names the service, its status, its log and the end of it; nothing is left running."""
    stand_ins.write(tmp_path / "programs", **{name: stand_ins.DIES})

    with pytest.raises(LocalError) as raised, LocalServices(base_model, home=home):
        pytest.fail("it must not start")

    message = str(raised.value)
    assert message.startswith(f"the {name} ended with status 1; the end of its log, {home.root / 'logs'}")
    assert message.endswith(f"{name}.log:\n  cannot: the model is not a model")
    assert [] == stand_ins.still_running(pids(home))


def test_a_build_that_fails_is_one_clear_error(home: Home, base_model: str, tmp_path: Path) -> None:
    """The program, its status and the end of its log."""
    stand_ins.write(tmp_path / "programs", build=stand_ins.DIES)

    with pytest.raises(
        LocalError, match=r"^python -m sampler_svc\.build ended with status 1; the end of its log, "
    ) as up:
        LocalServices(base_model, home=home).build()

    assert str(up.value).endswith("build.log:\n  cannot: the model is not a model")


def test_services_stop_when_the_block_fails(home: Home, base_model: str) -> None:
    """An exception passes, and leaves no process."""
    with pytest.raises(KeyError), LocalServices(base_model, home=home):
        raise KeyError("mine")

    assert [] == stand_ins.still_running(pids(home))


SLOW = "print('begun', file=sys.stderr, flush=True); import time; time.sleep(99)"


@pytest.mark.parametrize("name", ["export", "build", "tuner", "sampler", "gateway"])
def test_an_interrupt_at_start_leaves_no_process(
    home: Home, base_model: str, photo: Path, tmp_path: Path, name: str
) -> None:
    """Whatever is being started or built, Ctrl-C ends it, and the command leaves with 130."""
    stand_ins.write(tmp_path / "programs", **{name: SLOW})
    command = [sys.executable, "-m", "unitune_client", "edit", str(photo), "a dog", "--base-model", base_model]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "programs"), str(ROOT)])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        logs = home.root / "logs"
        gives_up_at = time.monotonic() + 30
        while not any("begun" in log.read_text() for log in logs.glob(f"*/{name}.log")):
            assert time.monotonic() < gives_up_at
            time.sleep(0.02)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]

        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)

    assert (130, 1) == (process.returncode, stderr.count("interrupted"))
    assert "Traceback" not in stderr
    assert children and [] == stand_ins.still_running(children)


def test_a_service_that_does_not_stop_is_killed(
    home: Home, base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM first, SIGKILL after the grace."""
    ignores = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('listening 127.0.0.1:1', flush=True); time.sleep(99)"
    )
    stand_ins.write(tmp_path / "programs", sampler=ignores)
    monkeypatch.setattr(programs, "TELLS_AFTER_S", 0.1)
    monkeypatch.setattr(programs, "KILLED_AFTER_S", 0.3)

    with LocalServices(base_model, home=home):
        pass

    assert 3 == len(pids(home)) and [] == stand_ins.still_running(pids(home))


def test_a_service_that_dies_later_is_noticed(
    home: Home, base_model: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is lost is told as the service that ended, with its log, and not as one that does not answer."""
    monkeypatch.setattr(supervision, "FIRST_WAIT_S", 60.0)
    died = pytest.raises(LocalError, match="the gateway ended with status -9 and is started again: repeat the command")
    with died, connection(None, base_model, said.append) as client:
        os.kill(stand_ins.notes(home.store)["gateway"]["pid"], signal.SIGKILL)
        client.server_info()

    assert "running the services here; `unitune up` keeps them running" in said
    assert [] == stand_ins.still_running(pids(home))


def test_an_error_that_speaks_of_a_log_names_it(home: Home, base_model: str, said: list[str]) -> None:
    """The details are in a file of this machine, and the message has its path (N25)."""
    for message, name in (
        ("the server made a mistake; its log has the details", "gateway"),
        ("the tuner made a mistake; its log has the details", "tuner"),
    ):
        with pytest.raises(Internal) as raised, connection(None, base_model, said.append):
            raise Internal(message, reason="INTERNAL")

        told, _, path = raised.value.message.rpartition(": ")
        assert (message, f"{name}.log", True) == (told, Path(path).name, Path(path).is_file())


def test_a_port_in_use_is_told_before_anything_starts(home: Home, base_model: str, said: list[str]) -> None:
    """No engine is built and no service runs for a port that is not to be had (N18)."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(LocalError, match=rf"cannot listen on 127\.0\.0\.1:{port}: it is in use; give an"),
            LocalServices(base_model, home=home, log=said.append, port=port),
        ):
            pytest.fail("it must not start")

    assert [] == said and {} == stand_ins.notes(home.store) and [] == home.engine_names()


def test_a_port_is_kept_while_the_engine_is_built(home: Home, base_model: str, tmp_path: Path) -> None:
    """Nobody takes it in the minutes until the gateway listens on it, which then works (N18)."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    outcomes: list[str] = []

    def say(line: str) -> None:
        if "building the engine" in line:
            with socket.socket() as other:
                try:
                    other.bind(("127.0.0.1", port))
                except OSError:
                    outcomes.append("kept")

    with LocalServices(base_model, home=home, log=say, port=port) as services, Client(services.address) as client:
        assert (f"127.0.0.1:{port}", "gateway") == (services.address, client.server_info().version)
    assert ["kept"] == outcomes


def test_a_start_says_what_it_does_and_how_long_it_took(home: Home, base_model: str, said: list[str]) -> None:
    """A line per stage, with the seconds since the start, which never go back (N18)."""
    with LocalServices(base_model, home=home, log=said.append):
        pass

    assert said[0].startswith(f"starting the services; their logs are in {home.root}/logs/")
    stages = [re.fullmatch(r"(.*) after (\d+\.\d) s", line) for line in said]
    told = [(stage[1], float(stage[2])) for stage in stages if stage is not None]
    assert [
        "the engine is there",
        "the sampler listens",
        "the tuner listens",
        "the gateway listens",
        "the gateway answers",
    ] == [what for what, _ in told]
    assert sorted(seconds for _, seconds in told) == [seconds for _, seconds in told]


def test_a_second_up_names_the_first(home: Home, up: subprocess.Popen[str], base_model: str, tmp_path: Path) -> None:
    """It tells address and process, and ends with 1 instead of waiting (N18)."""
    running = home.running()
    assert running is not None

    second = subprocess.run(up.args, capture_output=True, text=True, env=environment_of(tmp_path), timeout=120)

    assert (1, "") == (second.returncode, second.stdout)
    assert second.stderr.startswith(f"error: `unitune up` runs already: {running.address}, process {up.pid}; ")


def test_an_up_beside_a_command_with_its_own_services_names_that(home: Home, base_model: str, tmp_path: Path) -> None:
    """A command that shares nothing is told by its process (N18)."""
    with LocalServices(base_model, home=home):
        command = [sys.executable, "-m", "unitune_client", "up", "--port", "0", "--base-model", base_model]
        second = subprocess.run(command, capture_output=True, text=True, env=environment_of(tmp_path), timeout=120)

    assert 1 == second.returncode
    assert second.stderr.startswith(f"error: process {os.getpid()} runs its services in {home.root}; ")


def test_a_waiting_command_takes_services_that_are_shared_meanwhile(
    home: Home, base_model: str, said: list[str]
) -> None:
    """A command that came while `up` was starting does not wait for the end of it (N18)."""
    with LocalServices(base_model, home=home) as services:
        found: list[str] = []

        def command() -> None:
            with connection(None, base_model, said.append) as client:
                found.append(client.server_info().version)

        waiting = threading.Thread(target=command)
        waiting.start()
        wait_until(lambda: any("waiting for its end" in line for line in said))
        services.share()
        waiting.join(60)

    assert ["gateway"] == found
    assert f"using the services of `unitune up` at {services.address}, process {os.getpid()}" in said


def test_looking_is_in_nobodys_way(home: Home) -> None:
    """Programs that look whether services run never make a start believe that some do (N18)."""
    home.prepare()
    stopped = threading.Event()

    def look() -> None:
        while not stopped.is_set():
            home.running()

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(100):
            lock = home.lock()
            assert lock is not None
            lock.release()
    finally:
        stopped.set()
        for looker in lookers:
            looker.join()


def test_every_time_for_an_end_is_one_number(home: Home, base_model: str) -> None:
    """Services drain as long as their parents and Kubernetes let them, and the help says so (r11)."""
    graces = [
        int(seconds)
        for path in sorted((ROOT / "k8s" / "base").glob("*.yaml"))
        for seconds in re.findall(r"terminationGracePeriodSeconds: (\d+)", path.read_text())
    ]

    assert [drain.KILLED_AFTER_S] * 3 == graces
    assert drain.DRAIN_S < drain.KILLED_AFTER_S
    assert drain.DRAIN_S == inspect.signature(serving.serve).parameters["drain_s"].default
    words = " ".join(CliRunner().invoke(main, ["up", "--help"]).stdout.split())
    assert f"what runs gets {drain.DRAIN_S:.0f} seconds to end; a second Ctrl-C ends it at once" in words
    with LocalServices(base_model, home=home) as services:
        given = Path(f"/proc/{services._services['tuner'].process.pid}/cmdline").read_bytes().split(b"\0")
    assert f"{drain.KILLED_AFTER_S}".encode() in given


def test_what_drains_is_told_and_a_second_interrupt_ends_it(home: Home, base_model: str, tmp_path: Path) -> None:
    """Ctrl-C waits for what runs, and says how long and what ends it at once, which it does (r11)."""
    drains = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('listening 127.0.0.1:1', flush=True); time.sleep(99)"
    stand_ins.write(tmp_path / "programs", sampler=drains)
    command = [sys.executable, "-m", "unitune_client", "up", "--port", "0", "--base-model", base_model]
    said = tmp_path / "said"
    with (
        said.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment_of(tmp_path)
        ) as process,
    ):
        assert process.stdout is not None and process.stdout.readline().startswith("listening")
        process.send_signal(signal.SIGINT)
        wait_until(lambda: "what still runs gets 30 s to end; Ctrl-C again ends it at once" in said.read_text())
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)

        assert 130 == process.wait(60)

    assert time.monotonic() - began < drain.DRAIN_S - 5
    assert [] == stand_ins.still_running(pids(home))


def test_missing_packages_are_named_with_the_remedy(
    home: Home, base_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything starts, one error tells what to install."""
    monkeypatch.setitem(machine.EXTRAS, "tuner", ("torch_of_nobody",))

    with pytest.raises(
        LocalError, match=r"torch_of_nobody cannot be found: pip install 'unitune\[cli,tuner,sampler,gateway\]'"
    ):
        LocalServices(base_model, home=home).build()

    assert not home.root.exists()


def test_a_user_without_a_home_directory_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run as users whom the system does not know; UNITUNE_HOME serves them."""

    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)

    with pytest.raises(LocalError, match="set UNITUNE_HOME"):
        Home.from_environment({})


def test_a_folder_that_is_no_base_model_is_named(home: Home, tmp_path: Path) -> None:
    """Field, value and remedy, before anything starts."""
    with pytest.raises(InvalidField, match=r"^--base-model is '.*': give a folder in diffusers layout"):
        LocalServices(str(tmp_path), home=home)


def test_only_one_program_runs_services_in_a_home(home: Home, base_model: str, said: list[str]) -> None:
    """A second one waits, says so, and starts when the first has stopped."""
    with LocalServices(base_model, home=home):
        other = LocalServices(base_model, home=home, log=said.append)
        starting = threading.Thread(target=other.__enter__)
        starting.start()
        gives_up_at = time.monotonic() + 30
        while not said and time.monotonic() < gives_up_at:
            time.sleep(0.02)
        time.sleep(0.3)
        assert starting.is_alive() and "" == other.address
        who = f"another program (process {os.getpid()})"
        assert [f"{who} runs its services in {home.root}; waiting for its end"] == said
    starting.join(60)
    try:
        with Client(other.address) as client:
            assert "gateway" == client.server_info().version
    finally:
        other.stop()


def test_old_logs_are_thrown_away(home: Home) -> None:
    """The newest ten starts keep their logs."""
    home.prepare()
    for number in range(15):
        (home.root / "logs" / f"20200101-0000{number:02}-1").mkdir()

    newest = home.new_logs()

    kept = sorted(path.name for path in (home.root / "logs").iterdir())
    assert 10 == len(kept)
    assert ["20200101-000006-1", newest.name] == [kept[0], kept[-1]]


@pytest.fixture
def up(home: Home, base_model: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`unitune up`, once it listens."""
    command = [sys.executable, "-m", "unitune_client", "up", "--port", "0", "--base-model", base_model]
    environment = environment_of(tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("listening 127.0.0.1:")
        yield process
        process.kill()


def test_other_commands_find_what_up_runs(
    home: Home, up: subprocess.Popen[str], base_model: str, said: list[str], tmp_path: Path
) -> None:
    """They use the shared services, with that base model only, and do not stop them."""
    with connection(None, None, said.append) as client, connection(None, base_model, said.append):
        assert "gateway" == client.server_info().version
    told = CliRunner().invoke(main, ["doctor"]).stdout
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text("{}")
    with pytest.raises(InvalidField, match=f"or stop `unitune up` .process {up.pid}., which has .*tiny"):
        connection(None, str(tmp_path / "other"), said.append).__enter__()

    assert all(line.startswith("using the services of `unitune up` at 127.0.0.1:") for line in said)
    assert re.search(rf"running here: +127\.0\.0\.1:\d+, process {up.pid}\n", told)
    assert re.search(r"engines: +e1\n", told)
    assert 3 == len(stand_ins.still_running(pids(home)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_up_ends_with_all_its_services(home: Home, up: subprocess.Popen[str], number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM stops the three and leaves with 0; nobody is told of them afterwards."""
    assert home.running() is not None

    up.send_signal(number)

    assert 0 == up.wait(30)
    assert [] == stand_ins.still_running(pids(home))
    assert home.running() is None


def test_services_end_when_their_parent_is_killed(home: Home, up: subprocess.Popen[str]) -> None:
    """SIGKILL leaves no time to clean up; the services notice by themselves, and the home is free again."""
    up.kill()
    up.wait()

    assert [] == stand_ins.still_running(pids(home), within_s=15)
    gives_up_at = time.monotonic() + 5  # the kernel may close a killed process's files a little later
    while home.running() is not None and time.monotonic() < gives_up_at:
        time.sleep(0.05)
    assert home.running() is None
    lock = home.lock()
    assert lock is not None
    lock.release()


def test_a_service_that_dies_is_started_again_at_its_address(
    home: Home, base_model: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others need not be told: it listens where it did. After a few times it is given up (r12)."""
    monkeypatch.setattr(supervision, "RESTARTS", 2)
    with LocalServices(base_model, home=home, log=said.append) as services:
        for name in ("sampler", "gateway"):
            before = stand_ins.notes(home.store)[name]
            os.kill(int(str(before["pid"])), signal.SIGKILL)
            wait_until(lambda name=name: f"the {name} listens again, after" in "\n".join(said))
            notes = stand_ins.notes(home.store)
            assert before["pid"] != notes[name]["pid"]
            where = {"sampler": notes["gateway"]["settings"]["UNITUNE_SAMPLER"], "gateway": services.address}[name]
            assert where == notes[name]["settings"][f"UNITUNE_{name.upper()}_ADDRESS"]
        with Client(services.address) as client:
            assert "gateway" == client.server_info().version
        services.check()
        given_up = threading.Event()
        services.on_failure = given_up.set

        def listens_again(times: int) -> bool:
            return given_up.is_set() or sum("sampler listens again" in line for line in said) == times

        for times in (2, 3):
            os.kill(int(str(stand_ins.notes(home.store)["sampler"]["pid"])), signal.SIGKILL)
            wait_until(partial(listens_again, times))

        assert given_up.wait(30)
        with pytest.raises(
            LocalError, match="the sampler ended with status -9, 3 times within 10 minutes, and is given up"
        ):
            services.check()
    assert [] == stand_ins.still_running(pids(home))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    gives_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < gives_up_at
        time.sleep(0.02)


@pytest.fixture
def small_home(home: Home, tmp_path: Path) -> Iterator[Home]:
    """The home on a disk of its own, of 24 MB."""
    with mounted(tmp_path / "home", "24m"):
        yield home


def test_a_full_home_is_told_with_its_path_before_anything_starts(small_home: Home, base_model: str) -> None:
    """`unitune build` on a full disk names the folder and the remedy, in one line without a number (N11)."""
    fill(small_home.root)
    ended = CliRunner().invoke(main, ["build", "--base-model", base_model])
    assert ended.exit_code == 1 and ended.output.count("\n") == 1
    assert f"error: cannot use {small_home.root}: its disk is full; free some space there" in ended.output
    assert "Errno" not in ended.output and "unitune tunings delete" in ended.output


def test_deleting_starts_the_services_on_a_full_disk(small_home: Home, base_model: str) -> None:
    """Logs, lock and state of the services get the reserve's space, and the reserve is put back when there is some."""
    small_home.prepare()
    ballast = fill(small_home.root)
    services = LocalServices(base_model, home=small_home)
    with small_home.space_to_delete(), services, Client(services.address) as client:
        assert "gateway" == client.server_info().version
    assert not (small_home.root / "reserve").exists()
    ballast.unlink()
    with small_home.space_to_delete():
        pass
    assert (small_home.root / "reserve").stat().st_size == RESERVE_BYTES


@pytest.mark.parametrize(
    ("reason", "kind", "place"),
    [("STORE_FULL", ResourceExhausted, "store"), ("STATE_FULL", ResourceExhausted, "state/gateway.sqlite")],
)
def test_a_full_disk_of_our_own_services_is_told_with_its_path(
    home: Home, base_model: str, reason: str, kind: type[UniTuneError], place: str
) -> None:
    """What a server says without a path has one when the server is this machine's (N11)."""
    with pytest.raises(LocalError) as told, connection(None, base_model, lambda line: None):
        raise kind("the store of the server is full", reason=reason, retry_after_s=1.0)
    assert f"cannot use {home.root / place}: its disk is full" in str(told.value)
    assert "unitune tunings delete" in str(told.value)


def test_a_service_that_ends_on_a_full_disk_waits_for_space(
    small_home: Home, base_model: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not given up: looked at with longer and longer pauses, which are told, and started when there is space."""
    monkeypatch.setattr(supervision, "RESTARTS", 0)
    monkeypatch.setattr(supervision, "SPACE_WAIT_S", 0.2)
    with LocalServices(base_model, home=small_home, log=said.append) as services:
        ballast = fill(small_home.root)
        os.kill(int(str(stand_ins.notes(small_home.store)["sampler"]["pid"])), signal.SIGKILL)

        def pauses() -> list[str]:
            told = [re.fullmatch(r"the sampler is not started again yet: (.*) in (\S+) s", line) for line in said]
            return [found[2] for found in told if found is not None]

        wait_until(lambda: len(pauses()) > 3)
        services.check()
        assert ["0.2", "0.4", "0.8", "1.6"] == pauses()[:4]
        assert any(f"cannot use {small_home.root}" in line and "its disk is full" in line for line in said)
        ballast.unlink()
        wait_until(lambda: any("the sampler listens again" in line for line in said))
