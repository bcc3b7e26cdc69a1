"""Methods side by side, through gateway, tuner and sampler: real processes on the tiny base model."""

import io
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from unitune_client import Client, CompareAccepted, CompareDone, CompareEdit, CompareResult, EditLoading, TuningReady
from unitune_client.cli.main import main
from unitune_client.local.services import LocalServices

LARGE = (109, 80)  # the area of the tiny base model's super-resolution, 96 px square, at the picture's aspect
SAMPLING = {"num_inference_steps": 4, "guidance_scale": 3.0, "strength": 0.8}


def picture() -> bytes:
    """A PNG of smooth random colours."""
    small = Image.fromarray(np.random.default_rng(7).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((60, 44), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def test_a_comparison_gives_what_single_edits_give(client: Client) -> None:
    """UniTune is tuned and refitted, SDEdit is not; each picture is, bit for bit, that of an edit of its own."""
    methods = {"unitune": {"updates": 3, **SAMPLING}, "sdedit": SAMPLING}
    events = list(client.compare(picture(), "a dog on the beach", methods, seeds=[4, 5]))

    assert events[0] == CompareAccepted(sequence=1, create_time=events[0].create_time, methods=("unitune", "sdedit"))
    assert isinstance(events[-1], CompareDone)
    assert sum(isinstance(event, CompareDone) for event in events) == 1
    inner = [(event.method, type(event.event)) for event in events if isinstance(event, CompareEdit)]
    assert inner.index(("unitune", TuningReady)) < inner.index(("unitune", EditLoading))
    unitune, sdedit = [event for event in events if isinstance(event, CompareResult)]
    tuning = client.get_tuning(unitune.tuning)
    assert tuning.weights is not None and unitune.size_bytes == tuning.weights.size_bytes > 0
    assert unitune.tuning_s > 0 and unitune.edit_s > 0 and sdedit.edit_s > 0
    assert (sdedit.tuning, sdedit.tuning_s, sdedit.size_bytes) == ("", 0, 0)
    for result, target in ((unitune, unitune.tuning), (sdedit, picture())):
        alone = client.edit_to_end(target, "a dog on the beach", method=result.method, seeds=[4, 5], **SAMPLING)
        assert result.error is None and [one.seed for one in result.images] == [4, 5]
        assert [one.png for one in result.images] == [one.png for one in alone.images]
        assert [one.mask for one in result.images] == [one.mask for one in alone.images]
    assert unitune.images[0].png != sdedit.images[0].png


def test_the_command_writes_the_sheet_of_a_comparison(services: LocalServices, tmp_path: Path) -> None:
    """`unitune compare` on real services leaves a picture, here an enlarged one, a sheet and one row of the table per
    method."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture())
    words = ["compare", str(photo), "a cat", "--methods=sdedit", "-o", str(tmp_path / "out")]

    done = CliRunner().invoke(main, [*words, "--super-resolution", "--address", services.address])

    assert done.exit_code == 0, done.output
    edited, sheet, head, row = done.stdout.splitlines()
    assert Image.open(edited).size == LARGE
    assert Image.open(sheet).width > 240 + 2 * LARGE[0]  # the photo, and the edit beside it
    assert head.startswith("method") and row.startswith("sdedit")
