"""Many edits at once: each gets its own picture, whoever else asks, and the same one as alone."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.reports.conftest import PATIENCE_S
from unitune_client import Client

SHORT = {"method": "sdedit", "strength": 0.5, "num_inference_steps": 4, "guidance_scale": 3.0}


def test_sixty_edits_at_once_all_come_back(client: Client, photo: Path) -> None:
    """Sixty in flight on one connection are all answered, each with the picture of its own seed."""
    asked = [(number % 6, f"a {'cat' if number % 2 else 'dog'}") for number in range(60)]

    def edit(seed: int, prompt: str) -> bytes:
        return client.edit_to_end(photo, prompt, seeds=[seed], **SHORT).images[0].png

    with ThreadPoolExecutor(60) as users:
        found = list(users.map(lambda one: edit(*one), asked))

    assert len(set(found)) == len(set(asked))
    assert all(png == edit(*one) for png, one in list(zip(found, asked, strict=True))[:6])


def test_twelve_threads_share_one_client(client: Client, photo: Path) -> None:
    """Tunings, edits and look-ups from twelve threads at once do not get one another's answers."""

    def work(number: int) -> tuple[str, bytes]:
        tuning = client.tune(photo, updates=1, tuning_seed=number % 2)
        result = client.edit_to_end(tuning.name, "a cat", strength=0.5, num_inference_steps=2, seeds=[number])
        assert (tuning.name, [number]) == (result.tuning, [image.seed for image in result.images])
        assert tuning.name == client.get_tuning(tuning.name).name
        return tuning.name, result.images[0].png

    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(work, range(12)))

    assert [name for name, _ in found] == [found[0][0], found[1][0]] * 6
    assert 12 == len({png for _, png in found})


def test_two_commands_on_one_photo_share_its_tuning(
    client: Client, photo: Path, command_environment: dict[str, str], tmp_path: Path
) -> None:
    """Two `unitune edit` of the same photo, started together, both end well, and the photo is tuned once."""
    before = {tuning.name for tuning in client.list_tunings()}
    commands = [
        [sys.executable, "-m", "unitune_client", "edit", str(photo), prompt, "-o", str(tmp_path / prompt.split()[-1]),
         "--updates", "3", "--steps", "3", "--no-automatic"]
        for prompt in ("a cat", "a dog")
    ]  # fmt: skip
    processes = [
        subprocess.Popen(
            command, env=command_environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    told = [process.communicate(timeout=PATIENCE_S) for process in processes]

    assert [0, 0] == [process.returncode for process in processes], told
    assert list((tmp_path / "cat").glob("*.png")) and list((tmp_path / "dog").glob("*.png"))
    assert 1 == len({tuning.name for tuning in client.list_tunings()} - before)


def test_a_seed_gives_the_same_bytes_alone_and_among_others(client: Client, photo: Path) -> None:
    """The picture of a seed does not depend on the seeds beside it, nor on their order."""
    among = client.edit_to_end(photo, "a cat", seeds=[3, 4, 5], **SHORT).images
    reversed_ = client.edit_to_end(photo, "a cat", seeds=[5, 4, 3], **SHORT).images
    alone = client.edit_to_end(photo, "a cat", seeds=[4], **SHORT).images

    assert among[1].png == reversed_[1].png == alone[0].png
    assert 3 == len({image.png for image in among})
