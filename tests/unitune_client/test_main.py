"""The program `unitune` before its command line is there: what is missing, and what is interrupted."""

import subprocess
import sys

HIDE = """
import sys
for name in {hidden}:
    sys.modules[name] = None
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python of its own."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_the_sdk_needs_neither_pillow_nor_click_nor_rich() -> None:
    """The SDK is imported, and uploads are checked by their headers, where the packages of the extra `cli` are not."""
    program = (
        HIDE.format(hidden=("PIL", "click", "rich", "numpy")) + "import unitune_client; print(unitune_client.Client)"
    )
    ended = run(program)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Client" in ended.stdout


def test_without_its_extra_the_command_line_names_it() -> None:
    """`unitune` without click says what to install, and is no traceback."""
    ended = run(HIDE.format(hidden=("click",)) + "from unitune_client.__main__ import main; main()")
    assert ended.returncode == 1
    assert ended.stderr == "error: the command line needs click: pip install 'unitune[cli]'\n"


def test_an_interrupt_during_the_imports_is_no_traceback() -> None:
    """Ctrl-C before the command line is there ends the program as later: a word, and the status of SIGINT."""
    program = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "unitune_client.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
from unitune_client.__main__ import main
main()
"""
    ended = run(program)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")
