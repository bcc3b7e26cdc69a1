"""What a tenant that floods the server costs another one: the p95 of a polite tenant's edits, alone and beside a flood.

    python -m bench.polite

A polite tenant sends its next edit after each answer. The flood is of one other tenant, which always has 40 edits of
the same kind open. Goal: the p95 beside the flood is at most twice the p95 alone and one edit more. Real services on
loopback, without a tuning: SDEdit's edits.
"""

import asyncio
import tempfile
from pathlib import Path

from bench.inputs import GUIDANCE, PICTURE, PROMPT
from bench.measure import percentile
from bench.program import run, say
from unitune.errors import UniTuneError
from unitune_client import AsyncClient
from unitune_client.local.home import Home
from unitune_client.local.services import LocalServices

STEPS = 20
EDITS_OF_A_ROUND = 10
OPEN = 40  # edits of the flood


def polite(rounds: int, *, quick: bool = False) -> dict[str, object]:
    """Seconds of the polite tenant's edits, and how its p95 compares with the goal."""
    with tempfile.TemporaryDirectory() as scratch, LocalServices(home=Home(Path(scratch)), log=say) as services:
        edits, opened = (2, 4) if quick else (EDITS_OF_A_ROUND * rounds, OPEN)
        alone, beside = asyncio.run(measured(services.address, edits, opened))
    edit_s = percentile(alone, 0.5)
    goal_s = 2 * percentile(alone, 0.95) + edit_s
    p95_s = percentile(beside, 0.95)
    return {
        "polite.alone_s": {"p50": round(edit_s, 3), "p95": round(percentile(alone, 0.95), 3)},
        "polite.beside_a_flood_s": {"p50": round(percentile(beside, 0.5), 3), "p95": round(p95_s, 3)},
        "polite.p95_to_goal": {"goal_s": round(goal_s, 3), "ratio": round(p95_s / goal_s, 3), "met": p95_s <= goal_s},
    }


async def measured(address: str, edits: int, opened: int) -> tuple[list[float], list[float]]:
    """Seconds of so many edits alone, and beside a flood."""
    async with AsyncClient(address, tenant="polite") as client, AsyncClient(address, tenant="flood") as other:
        await edit(client)  # the first one loads
        say(f"{edits} edits alone")
        alone = [await edit(client) for _ in range(edits)]
        flood = [asyncio.create_task(endless(other)) for _ in range(opened)]
        try:
            await edit(client)
            say(f"{edits} edits beside a flood of {opened}")
            beside = [await edit(client) for _ in range(edits)]
        finally:
            for task in flood:
                task.cancel()
            await asyncio.gather(*flood, return_exceptions=True)
    return alone, beside


async def edit(client: AsyncClient) -> float:
    """The seconds that an edit takes."""
    began = asyncio.get_running_loop().time()
    await client.edit_to_end(
        PICTURE.read_bytes(), PROMPT, method="sdedit", scheduler="ddim", strength=1.0, guidance_scale=GUIDANCE,
        num_inference_steps=STEPS, interpolation=0.0, seeds=[0],
    )  # fmt: skip
    return asyncio.get_running_loop().time() - began


async def endless(client: AsyncClient) -> None:
    """Edit after edit, until cancelled; what is refused is asked again."""
    while True:
        try:
            await edit(client)
        except UniTuneError:
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    run(polite, __doc__, rounds=3)
