"""Children that decode: bounded memory, and no picture and no death of one is ever a hang or a mistake of ours."""

import asyncio
import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from tests.picture_files import file_of
from unitune import picture_check
from unitune.errors import InvalidArgument, Unavailable
from unitune.picture_check import MaskInfo, PictureChecks
from unitune.picture_file import PictureInfo, is_readable
from unitune.picture_header import AVIF, HEIC, header

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and /proc are Linux's"),
    pytest.mark.slow,  # real child processes, some of them held up
]


SMALL = file_of(Image.new("RGB", (20, 12), "teal"))


@pytest.fixture
async def checks() -> AsyncIterator[PictureChecks]:
    """Checks without a child yet."""
    checks = PictureChecks()
    yield checks
    await checks.close()


def test_a_child_starts_without_what_it_does_not_need() -> None:
    """Its program imports neither gRPC nor asyncio, which take longer than all else that it imports."""
    code = (
        "import unitune.picture_decoder, sys; sys.exit(bool({'asyncio', 'google.protobuf', 'grpc'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def peak_bytes(pid: int | str) -> int:
    """The most memory that a process ever had in RAM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


async def reason_of(checks: PictureChecks, data: bytes) -> str:
    """Why a picture is refused."""
    with pytest.raises(InvalidArgument) as refusal:
        await checks.picture(data)
    assert refusal.value.field == "image" and refusal.value.metadata["remedy"]
    return refusal.value.reason


async def test_a_warm_child_serves_many_pictures(checks: PictureChecks) -> None:
    """One after the other, in one child, and several at once in no more than two."""
    for _ in range(3):
        assert await checks.picture(SMALL) == PictureInfo(20, 12, "image/png")
    assert len(checks._idle) == 1
    await asyncio.gather(*(checks.picture(SMALL) for _ in range(6)))
    assert len(checks._idle) <= picture_check.CHILDREN


async def test_a_mask_is_told_by_size_and_range(checks: PictureChecks) -> None:
    """Its darkest and brightest grey say whether it edits anything; another kind of file is refused as a mask."""
    mask = Image.new("L", (20, 12), 40)
    mask.putpixel((3, 3), 200)

    assert await checks.mask(file_of(mask)) == MaskInfo(20, 12, 40, 200)
    with pytest.raises(InvalidArgument, match="mask is a JPEG: send a PNG picture"):
        await checks.mask(file_of(mask, "JPEG"))


@pytest.mark.parametrize(
    ("mode", "size", "kind"),
    [
        ("RGBA", (8000, 8000), "PNG"),
        ("RGB", (16_383, 1464), "WEBP"),
        ("RGB", (8000, 8000), "JPEG"),
    ],
)
async def test_the_largest_pictures_fit_the_memory_that_one_has(
    checks: PictureChecks, mode: str, size: tuple[int, int], kind: str
) -> None:
    """The child stays below 640 MiB and this process takes on nothing of the picture (R4)."""
    options = {"PNG": {"compress_level": 1}, "WEBP": {"quality": 1, "method": 0}, "JPEG": {"progressive": True}}
    data = file_of(Image.new(mode, size, "teal"), kind, **options[kind])
    before = peak_bytes("self")

    info = await checks.picture(data)

    assert (info.width, info.height) == size
    assert peak_bytes(checks._idle[0].pid) < 640 << 20
    assert peak_bytes("self") - before < 32 << 20


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("AVIF", marks=pytest.mark.skipif(not is_readable(AVIF), reason="this Pillow has no AVIF")),
        pytest.param("HEIF", marks=pytest.mark.skipif(not is_readable(HEIC), reason="unitune[heic] is not installed")),
    ],
)
async def test_a_heif_picture_needs_no_more_than_its_header_is_taken_to_say(checks: PictureChecks, kind: str) -> None:
    """What the child takes more than for a small one is below the bytes that are reserved for it (R4)."""
    options = {"speed": 10} if kind == "AVIF" else {"enc_params": {"preset": "ultrafast"}}

    def made(size: tuple[int, int]) -> bytes:
        image = Image.new("RGBA", size, (200, 30, 30, 99))
        if kind == "AVIF":
            return file_of(image, kind, **options)
        import pillow_heif

        file = io.BytesIO()
        pillow_heif.from_pillow(image).save(file, **options)
        return file.getvalue()

    small, large = made((64, 64)), made((2400, 1600))
    await checks.picture(small)
    before = peak_bytes(checks._idle[0].pid)
    info = await checks.picture(large)

    assert (info.width, info.height) == (2400, 1600)
    assert peak_bytes(checks._idle[0].pid) - before <= header(large).checking_bytes


async def test_a_picture_that_needs_too_much_memory_is_too_large(checks: PictureChecks) -> None:
    """An allocation that fails in the child is IMAGE_TOO_LARGE, and the child goes on (R4)."""
    await checks.picture(SMALL)
    child = checks._idle[0]
    taken = int(Path(f"/proc/{child.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.prlimit(child.pid, resource.RLIMIT_AS, (taken + (48 << 20), taken + (48 << 20)))

    assert await reason_of(checks, file_of(Image.new("RGB", (6000, 6000)))) == "IMAGE_TOO_LARGE"
    assert await checks.picture(SMALL) == PictureInfo(20, 12, "image/png")
    assert checks._idle == [child]


async def test_a_child_that_died_is_replaced(checks: PictureChecks) -> None:
    """One that was killed while it was idle costs nobody anything (R4)."""
    await checks.picture(SMALL)
    checks._idle[0].kill()

    assert await checks.picture(SMALL) == PictureInfo(20, 12, "image/png")


def children() -> set[int]:
    """The process ids of this process's children."""
    found: set[int] = set()
    for entry in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # of a thread that has ended
            found |= {int(pid) for pid in entry.read_text().split()}
    return found


async def test_a_picture_that_kills_its_decoder_is_refused(checks: PictureChecks) -> None:
    """Killed for memory each time it is decoded, it is IMAGE_TOO_LARGE; the next picture is taken (R4)."""
    large = file_of(Image.new("RGB", (8000, 8000)))
    others, killed = children(), set[int]()  # of other tests, such as services of the session

    async def kill() -> None:
        while True:
            for pid in children() - others:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            await asyncio.sleep(0.001)

    killer = asyncio.create_task(kill())
    try:
        assert await reason_of(checks, large) == "IMAGE_TOO_LARGE"
    finally:
        killer.cancel()
    assert len(killed) == 2
    assert await checks.picture(SMALL) == PictureInfo(20, 12, "image/png")


async def test_the_signal_that_ended_a_child_is_known() -> None:
    """Of a child that is killed while its answer is read the signal is told: it may mean a lack of memory (R4)."""
    pipe = asyncio.subprocess.PIPE
    for _ in range(100):
        child = await asyncio.create_subprocess_exec("sleep", "60", stdin=pipe, stdout=pipe)
        asyncio.get_running_loop().call_later(0.01, os.kill, child.pid, signal.SIGKILL)
        assert child.stdout is not None and await child.stdout.read() == b""
        assert await picture_check._exit_code(child) == -signal.SIGKILL


async def test_a_child_that_hangs_is_ended_at_the_deadline() -> None:
    """A stopped child is ended at the deadline, and its picture is taken by a fresh one (R4)."""
    checks = PictureChecks(deadline_s=3)
    try:
        await asyncio.wait_for(_warmed(checks), 60)
        child = checks._idle[0]
        child.send_signal(signal.SIGSTOP)

        assert await asyncio.wait_for(_warmed(checks), 60) == PictureInfo(20, 12, "image/png")
        assert child.returncode is not None
    finally:
        await checks.close()


async def test_a_machine_that_stands_still_is_told_as_such() -> None:
    """With every child stopped the caller is told to come back, whatever the picture; then all is as before."""
    checks, others, stopped = PictureChecks(deadline_s=0.5), children(), set[int]()

    async def stop() -> None:
        while True:
            for pid in children() - others - stopped:
                os.kill(pid, signal.SIGSTOP)
                stopped.add(pid)
            await asyncio.sleep(0.001)

    stopper = asyncio.create_task(stop())
    try:
        with pytest.raises(Unavailable) as late:
            await asyncio.wait_for(checks.picture(SMALL), 60)
        assert late.value.retry_after_s and late.value.reason == "BACKEND_DOWN" and len(stopped) == 2
        stopper.cancel()
        checks._deadline_s = 30
        assert await checks.picture(SMALL) == PictureInfo(20, 12, "image/png")
        assert not children() & stopped
    finally:
        stopper.cancel()
        await checks.close()


async def test_a_picture_that_computes_past_the_deadline_is_too_large() -> None:
    """A child that has used the time for computing was not held up: the picture itself takes too long."""
    large = file_of(Image.new("RGB", (8000, 8000), "teal"), "JPEG", progressive=True)
    checks = PictureChecks(deadline_s=30)
    try:
        await _warmed(checks)
        checks._deadline_s = 0.05
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await reason_of(checks, large) == "IMAGE_TOO_LARGE"
                    break
                except Unavailable:  # a busy machine, which gave the child less than half of its time
                    checks._deadline_s = 30
                    await _warmed(checks)
                    checks._deadline_s = 0.05
    finally:
        await checks.close()


async def test_a_caller_who_goes_leaves_no_child_behind(checks: PictureChecks) -> None:
    """The child of a check that was cancelled is ended, and its place and its bytes are free again."""
    data = file_of(Image.new("RGB", (8000, 8000)), compress_level=1)
    running = [asyncio.create_task(checks.picture(data)) for _ in range(3)]
    await asyncio.sleep(0.5)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)

    assert checks._decoding_bytes == 0
    assert await checks.picture(SMALL) == PictureInfo(20, 12, "image/png")


async def _warmed(checks: PictureChecks) -> PictureInfo:
    """What a child answers within the deadline, which a busy machine may need another try for."""
    while True:
        try:
            return await checks.picture(SMALL)
        except Unavailable:
            continue
