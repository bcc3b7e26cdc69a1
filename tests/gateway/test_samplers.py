"""Several samplers behind a gateway: where they are, which of them gets an edit, and what one that is lost costs."""

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest

from gateway import sampler_connection, samplers
from gateway.evictions import Evictions
from tests.gateway.callers import READ, ask_for_keys, make
from tests.gateway.conftest import World, edit, eventually, picture, refused
from tests.gateway.test_sample_queue import SDEDIT, begin, held, large_png, pictures, rest
from tests.gateway.upstream_servers import Sampler, serve_sampler
from tests.postgres_server import PostgresServer
from unitune import metrics, serving
from unitune.errors import InvalidField, Unavailable, from_status
from unitune.v1.edit_pb2 import CancelEditRequest, EditEvent, EditRequest
from unitune.v1.server_pb2 import BaseModel, GetServerInfoRequest, Upstream
from unitune.v1.tuning_pb2 import DeleteTuningRequest, Tuning, WeightsRef

STREAMS = 4  # the default of UNITUNE_SAMPLE_STREAMS


@dataclass
class Fleet:
    """A gateway with several samplers."""

    world: World
    samplers: list[Sampler]
    servers: list[serving.RunningServer]
    others: list[World] = field(default_factory=list)  # further gateways

    @property
    def addresses(self) -> list[str]:
        return [server.address for server in self.servers]

    def requests(self) -> list[int]:
        """How many runs each was asked for."""
        return [len(sampler.requests) for sampler in self.samplers]

    async def ready(self, number: int | None = None) -> None:
        """Return once every gateway has so many samplers for edits, by default all."""
        wanted = len(self.samplers) if number is None else number

        async def are_there() -> bool:
            gateways = [world.gateway for world in (self.world, *self.others) if world.gateway is not None]
            usable = [gateway._samplers._usable() for gateway in gateways]
            return all(len(found) == wanted and all(one.is_watched for one in found) for found in usable)

        await eventually(are_there)

    async def reopen(self, names: str) -> None:
        """Start the gateway anew with these names of samplers."""
        await self.world.close()
        self.world.config = replace(self.world.config, sampler=names, resolve_s=0.05)
        await self.world.open()

    async def first(self) -> Sampler:
        """The one that gets an edit without weights while nothing runs."""
        before = self.requests()
        assert (await edit(self.world, image_data=picture(), config=SDEDIT))[-1].HasField("done")
        await self.told()
        return next(one for one, count in zip(self.samplers, before, strict=True) if len(one.requests) > count)

    async def told(self) -> None:
        """Return once the gateways know what has just happened."""
        await asyncio.sleep(sampler_connection.STATE_LAG_S)
        since_s = time.monotonic()
        for sampler in self.samplers:
            sampler.change()

        async def are_told() -> bool:
            gateways = [world.gateway for world in (self.world, *self.others) if world.gateway is not None]
            connections = [one for gateway in gateways for one in gateway._samplers._named() if one.is_watched]
            return all(one._state_s > since_s for one in connections)

        await eventually(are_told)


@pytest.fixture
async def fleet(world: World) -> AsyncIterator[Fleet]:
    """Four samplers, each with two engines that hold weights."""
    fleet = Fleet(world, [world.sampler], [world.sampler_server])
    for _ in range(3):
        fleet.samplers.append(Sampler(world.sampler.store))
        fleet.servers.append(await serve_sampler(fleet.samplers[-1]))
    for sampler in fleet.samplers:
        sampler.engines = 2
    await fleet.reopen(",".join(fleet.addresses))
    await fleet.ready()
    yield fleet
    for opened in (*fleet.others, world):
        await opened.close()
    for server in fleet.servers:
        await server.stop()


def kinds(events: list[EditEvent]) -> list[str | None]:
    """What the events are, runs of steps told once."""
    return [kind for kind, _ in itertools.groupby(event.WhichOneof("event") for event in events)]


# Where they are


def resolve(monkeypatch: pytest.MonkeyPatch, there: list[str]) -> None:
    """Have the name `samplers` stand for these addresses, as the one of a headless Service does."""

    async def getaddrinfo(host: str, port: int, **_: Any) -> Any:
        assert host == "samplers"
        if not there:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, 1, 6, "", (address, port)) for address in there]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


async def test_a_name_is_all_samplers_that_it_stands_for(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is added to a name is used, one that is removed gets nothing more though it lives, and an edit that it
    has goes on (F29)."""
    there = ["127.0.0.2"]
    resolve(monkeypatch, there)
    old, new = fleet.samplers[:2]
    listening = [await serve_sampler(old, "127.0.0.2:0")]
    port = listening[0].address.rpartition(":")[2]
    listening.append(await serve_sampler(new, f"127.0.0.3:{port}"))
    await fleet.reopen(f"samplers:{port}")
    await fleet.ready(1)
    assert (await edit(fleet.world, image_data=picture(), config=SDEDIT))[-1].HasField("done")
    assert len(old.requests) == 1

    there.append("127.0.0.3")
    await fleet.ready(2)
    old.told["queued_s"] = 9.0
    await fleet.told()
    assert (await edit(fleet.world, image_data=picture(), config=SDEDIT))[-1].HasField("done")
    assert len(new.requests) == 1

    old.told["queued_s"] = 0.0
    new.told["queued_s"] = 9.0
    await fleet.told()
    old.go_on.clear()
    running = begin(fleet.world.edits, "default")
    await eventually(lambda: _true(len(old.requests) == 2))
    there.remove("127.0.0.2")
    await fleet.ready(1)
    assert (await edit(fleet.world, image_data=picture(), config=SDEDIT))[-1].HasField("done")
    assert (len(old.requests), len(new.requests)) == (2, 2)
    old.go_on.set()
    assert (await rest(running))[-1].HasField("done")

    there.clear()  # a resolver that fails takes nothing away
    await asyncio.sleep(0.2)
    assert (await edit(fleet.world, image_data=picture(), config=SDEDIT))[-1].HasField("done")
    for server in listening:
        await server.stop()


async def test_a_sampler_that_drains_after_its_address_is_gone_ends_its_edits(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a rolling update: first its address leaves the name, then it ends its watch, last its edits."""
    there = ["127.0.0.2"]
    resolve(monkeypatch, there)
    old, new = fleet.samplers[:2]
    listening = [await serve_sampler(old, "127.0.0.2:0")]
    port = listening[0].address.rpartition(":")[2]
    listening.append(await serve_sampler(new, f"127.0.0.3:{port}"))
    await fleet.reopen(f"samplers:{port}")
    await fleet.ready(1)
    old.go_on.clear()
    running = begin(fleet.world.edits, "default")
    await eventually(lambda: _true(len(old.requests) == 1))
    there[:] = ["127.0.0.3"]
    assert fleet.world.gateway is not None
    connections = fleet.world.gateway._samplers._connections
    left = connections[f"127.0.0.2:{port}"]
    await eventually(lambda: _true(not left.is_named))
    old.drain()
    await eventually(lambda: _true(not left.is_watched))
    await asyncio.sleep(0.1)
    old.go_on.set()
    events = await rest(running)
    assert events[-1].HasField("done") and kinds(events).count("warning") == 0 and not new.requests
    await eventually(lambda: _true(left.address not in connections))
    for server in listening:
        await server.stop()


async def test_a_connection_that_is_closed_is_a_sampler_away(fleet: Fleet) -> None:
    """What runs over it begins again at another sampler, and what is asked of all is answered by the others."""
    assert fleet.world.gateway is not None
    known = fleet.world.gateway._samplers
    for sampler in fleet.samplers:
        sampler.go_on.clear()
    running = begin(fleet.world.edits, "default")
    await eventually(lambda: _true(sum(fleet.requests()) == 1))
    closed = known._connections[fleet.addresses[fleet.requests().index(1)]]
    await closed.close()
    for sampler in fleet.samplers:
        sampler.go_on.set()
    events = await rest(running)
    assert events[-1].HasField("done") and sum(fleet.requests()) == 2
    assert await known.ask_all()
    await known.evict("a" * 64)
    for _ in range(4):
        assert (await known.sampler_info()).engine
    with pytest.raises(Unavailable):
        await closed.sampler_info()


async def _true(answer: bool) -> bool:
    return answer


async def test_two_addresses_of_one_process_are_one_sampler(fleet: Fleet) -> None:
    """A process that is named twice has no more turns, and is no second chance."""
    again = await serve_sampler(fleet.samplers[0])
    await fleet.reopen(f"{fleet.addresses[0]},{again.address}")
    await fleet.ready(1)
    assert fleet.world.gateway is not None and len(fleet.world.gateway._samplers._named()) == 2
    await again.stop()


async def test_a_resolver_that_hangs_is_asked_once(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question has a thread until its end, and there are few; when it answers, the name's samplers are used."""
    monkeypatch.setattr(samplers, "RESOLVE_S", 0.02)
    host, _, port = fleet.addresses[0].rpartition(":")
    asked, answers = list[str](), asyncio.Event()

    async def getaddrinfo(name: str, port: int, **_: Any) -> Any:
        asked.append(name)
        await asyncio.shield(answers.wait())
        return [(socket.AF_INET, 1, 6, "", (host, port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    await fleet.reopen(f"samplers:{port}")
    await asyncio.sleep(0.5)
    assert asked == ["samplers"]
    answers.set()
    await fleet.ready(1)
    assert (await edit(fleet.world, image_data=picture(), config=SDEDIT))[-1].HasField("done")


async def test_a_name_of_nothing_is_an_answer_away(fleet: Fleet) -> None:
    """Edits are refused as with a sampler that does not answer, and the name is told."""
    await fleet.reopen("no-such-name.invalid:1")
    call = begin(fleet.world.edits, "default")
    await refused(call, grpc.StatusCode.UNAVAILABLE, "BACKEND_DOWN")
    told = (await fleet.world.info.GetServerInfo(GetServerInfoRequest())).upstreams
    assert [(one.name, one.address, one.is_answering) for one in told[1:]] == [
        ("sampler", "no-such-name.invalid:1", False)
    ]


# What they are


async def upstreams(caller: Any) -> dict[str, Upstream]:
    """The samplers that GetServerInfo tells of, by their addresses."""
    told = (await caller.GetServerInfo(GetServerInfoRequest())).upstreams
    return {one.address: one for one in told if one.name == "sampler"}


async def test_a_sampler_of_another_base_model_is_named_and_gets_nothing(fleet: Fleet) -> None:
    """It is told which one it is, whoever was there first; with the model of the others it is used."""
    odd = fleet.samplers[0]
    model = odd.base_model
    odd.base_model = BaseModel(name="other", digest="f" * 64, width=64, height=64)
    await fleet.reopen(",".join(fleet.addresses))
    await fleet.ready(3)
    told = await upstreams(fleet.world.info)
    assert {address for address, one in told.items() if one.is_left_out} == {fleet.addresses[0]}
    assert told[fleet.addresses[0]].base_model == "f" * 64 and all(one.is_answering for one in told.values())
    ends = [await edit(fleet.world, image_data=picture(), config=SDEDIT) for _ in range(3)]
    ends += await asyncio.gather(*(rest(begin(fleet.world.edits, f"t{number}")) for number in range(12)))
    assert all(events[-1].HasField("done") for events in ends)
    assert fleet.requests()[0] == 0 and sum(fleet.requests()) == 15
    counts = {state: metrics.SAMPLERS.labels(state)._value.get() for state in ("usable", "left_out", "away")}
    assert counts == {"usable": 3, "left_out": 1, "away": 0}
    info = await fleet.world.info.GetServerInfo(GetServerInfoRequest())
    assert info.base_model.digest == fleet.samplers[1].base_model.digest
    odd.base_model = model
    await fleet.ready(4)


async def test_the_base_model_stays_while_its_samplers_are_away(fleet: Fleet) -> None:
    """A sampler of another one is not most samplers because the others start again, nor one of two in the next process
    of the gateway."""
    model = fleet.samplers[1].base_model.digest
    fleet.samplers[0].base_model = BaseModel(name="other", digest="0" * 64, width=64, height=64)
    await fleet.reopen(",".join(fleet.addresses[:3]))
    await fleet.ready(2)
    for server in fleet.servers[1:3]:
        await server.stop()

    async def told() -> dict[str, bool]:
        assert fleet.world.gateway is not None
        assert fleet.world.gateway._samplers.known is not None
        assert fleet.world.gateway._samplers.known.base_model.digest == model
        return {address: one.is_answering for address, one in (await upstreams(fleet.world.info)).items()}

    await eventually(lambda: _true_of(told(), lambda answering: sorted(answering.values()) == [False, False, True]))
    assert fleet.world.gateway is not None
    assert await fleet.world.gateway._samplers.ask_all()
    await told()
    fleet.servers[1] = await serve_sampler(fleet.samplers[1], fleet.addresses[1])
    await fleet.reopen(",".join(fleet.addresses[:2]))
    await fleet.ready(1)
    assert all((await told()).values())


async def _true_of(found: Awaitable[Any], check: Callable[[Any], bool]) -> bool:
    return check(await found)


async def test_addresses_are_for_administrators(fleet: Fleet) -> None:
    """Everybody is told how many samplers there are, and that one is away; where, only who may administer."""
    await fleet.servers[3].stop()
    await fleet.ready(3)
    admin = await ask_for_keys(fleet.world)
    told = await admin("info.GetServerInfo", GetServerInfoRequest())
    assert [one.address for one in told.upstreams[1:]] == sorted(fleet.addresses)
    assert [one.is_answering for one in told.upstreams[1:]].count(False) == 1
    reader = await make(admin, "acme", READ)
    seen = await reader("info.GetServerInfo", GetServerInfoRequest())
    assert len(seen.upstreams) == 5 and not any(one.address for one in seen.upstreams)


async def test_a_sampler_that_tells_nothing_any_more_gets_nothing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stands still is passed over before any edit has waited for it, and used when it goes on."""
    monkeypatch.setattr(sampler_connection, "STALE_S", 1.5)

    async def tell() -> None:
        while True:
            for sampler in fleet.samplers:
                sampler.change()
            await asyncio.sleep(0.1)

    telling = asyncio.create_task(tell())  # often enough for a busy machine
    still = await fleet.first()
    still.is_told.clear()
    still.change()
    await fleet.ready(3)
    before = len(still.requests)
    assert (await edit(fleet.world, image_data=picture(), config=SDEDIT))[-1].HasField("done")
    assert len(still.requests) == before
    still.is_told.set()
    await fleet.ready(4)
    assert await fleet.first() is still
    telling.cancel()


# Which of them gets an edit


async def tunings(fleet: Fleet, count: int) -> list[Tuning]:
    """READY tunings of so many pictures."""
    return [await fleet.world.tuned(picture(size=(40 + number, 30))) for number in range(count)]


async def test_edits_go_where_their_weights_are(fleet: Fleet, postgres_server: PostgresServer) -> None:
    """Tunings fewer than engines, edits at two gateways: nine of ten at least are warm, and a sampler's death moves its
    own tunings alone (F28, check 19)."""
    first = fleet.world
    await first.close()
    first.config = replace(first.config, state=postgres_server.new_database())
    await first.open()
    second = World(
        first.folder,
        None,
        first.sampler,
        replace(first.config, internal_address="127.0.0.1:0"),
        first.sampler_server,
    )
    fleet.others.append(second)
    await second.open()
    await fleet.ready()
    made = await tunings(fleet, 4)
    await eventually(lambda: _true(sum(len(one.loaded) for one in fleet.samplers) == 4))
    await fleet.told()

    async def edit_all(times: int) -> None:
        for _ in range(times):
            calls = [edit(world, tuning=one.name) for one, world in zip(made, (first, second) * 2, strict=True)]
            assert all(events[-1].HasField("done") for events in await asyncio.gather(*calls))
            calls = [edit(world, tuning=one.name) for one, world in zip(made, (second, first) * 2, strict=True)]
            assert all(events[-1].HasField("done") for events in await asyncio.gather(*calls))

    await edit_all(3)
    warm = [is_warm for sampler in fleet.samplers for is_warm in sampler.warm]
    assert len(warm) == 24 and warm.count(True) >= 22

    homes = {one.weights.digest: [s for s in fleet.samplers if one.weights.digest in s.resident] for one in made}
    dead = homes[made[0].weights.digest][0]
    await fleet.servers[fleet.samplers.index(dead)].stop()
    await fleet.ready(3)
    moving = {digest for digest, places in homes.items() if places == [dead]}
    for sampler in fleet.samplers:
        sampler.warm.clear()
    await edit_all(1)
    warm = [is_warm for sampler in fleet.samplers for is_warm in sampler.warm]
    # Two gateways may move a tuning at the same moment, to the same place or to two.
    assert len(warm) == 8 and warm.count(False) <= 2 * len(moving)
    for digest, places in homes.items():
        if digest not in moving:
            assert any(digest in place.resident for place in places if place is not dead)


async def test_weights_are_loaded_where_their_first_edit_goes(fleet: Fleet) -> None:
    """A tuning that is READY is loaded by one sampler, and that one is asked to edit with it."""
    tuning = await fleet.world.tuned()
    await eventually(lambda: _true(any(sampler.loaded for sampler in fleet.samplers)))
    (there,) = (sampler for sampler in fleet.samplers if sampler.loaded == [tuning.weights.digest])
    await fleet.told()
    events = await edit(fleet.world, tuning=tuning.name)
    assert events[-1].HasField("done") and len(there.requests) == 1 and there.warm == [True]


async def test_turns_are_for_each_sampler(fleet: Fleet) -> None:
    """Four samplers have four times the turns, of which one tenant has half; none has many more than its share, and
    another tenant's edit begins at once."""
    for sampler in fleet.samplers:
        sampler.go_on.clear()
    calls = [begin(fleet.world.edits, "noisy") for _ in range(3 * STREAMS * 4)]
    most = 4 * STREAMS // 2
    await eventually(lambda: _true(sum(fleet.requests()) == most), 30)
    await asyncio.sleep(0.1)
    assert sum(fleet.requests()) == most and max(fleet.requests()) <= 2 * most / 4 + 1
    other = begin(fleet.world.edits, "polite")
    await eventually(lambda: _true(sum(fleet.requests()) == most + 1), 30)
    for sampler in fleet.samplers:
        sampler.go_on.set()
    assert (await rest(other))[-1].HasField("done")
    assert all([(await rest(call))[-1].HasField("done") for call in calls])


async def test_turns_go_with_their_samplers(fleet: Fleet) -> None:
    """With one of four left there are as many turns as with one, and what runs at it goes on."""
    for server in fleet.servers[1:]:
        await server.stop()
    await fleet.ready(1)
    async with held(fleet.world):
        calls = [begin(fleet.world.edits, tenant) for tenant in ("one", "two") for _ in range(STREAMS)]
        await eventually(lambda: _true(fleet.requests()[0] == STREAMS))
        await asyncio.sleep(0.1)
        assert fleet.requests()[0] == STREAMS
    assert all([(await rest(call))[-1].HasField("done") for call in calls])


# What one that is lost costs


async def test_an_edit_of_which_nothing_had_come_moves_without_a_word(fleet: Fleet) -> None:
    """Its sampler refuses it as a broken transport does, however often: another one makes it, and the events are those
    of an edit without the loss (F27)."""
    lost = await fleet.first()
    whole = await edit(fleet.world, image_data=picture(), config=SDEDIT, seeds=[1, 2])
    lost.refusals = 100
    events = await edit(fleet.world, image_data=picture(), config=SDEDIT, seeds=[1, 2])
    assert kinds(events) == kinds(whole) == ["accepted", "loading", "step", "image", "done"]
    assert pictures(events) == pictures(whole) and len(pictures(events)) == 2
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


async def test_an_edit_moves_so_often_and_no_further(fleet: Fleet) -> None:
    """Where all refuse, each is asked once, with gRPC's own repetitions, and the edit fails as with one sampler."""
    for sampler in fleet.samplers:
        sampler.refusals = 100
    events = await edit(fleet.world, image_data=picture(), config=SDEDIT)
    assert from_status(events[-1].failed).reason == "BACKEND_DOWN" and kinds(events) == ["accepted", "failed"]
    assert fleet.requests() == [3, 3, 3, 3]


@pytest.mark.parametrize("kind", ["loading", "step"])
async def test_an_edit_that_had_begun_begins_again_once(fleet: Fleet, kind: str) -> None:
    """Lost after its first event, it is made by another sampler from the same seeds, and a warning says so; lost again,
    it fails (F27)."""
    lost = await fleet.first()
    whole = await edit(fleet.world, image_data=picture(), config=SDEDIT, seeds=[1, 2], omit_metadata=True)
    lost.breaks_after = kind
    moves = metrics.EDIT_MOVES._value.get()
    events = await edit(fleet.world, image_data=picture(), config=SDEDIT, seeds=[1, 2], omit_metadata=True)
    assert metrics.EDIT_MOVES._value.get() == moves + 1
    begun = ["loading"] if kind == "loading" else ["loading", "step"]
    assert kinds(events) == ["accepted", *begun, "warning", "loading", "step", "image", "done"]
    (warning,) = (event.warning.text for event in events if event.HasField("warning"))
    assert warning == samplers.LOST
    assert pictures(events) == pictures(whole) and len(pictures(events)) == 2
    for sampler in fleet.samplers:
        sampler.breaks_after = kind
    before = sum(fleet.requests())
    events = await edit(fleet.world, image_data=picture(), config=SDEDIT)
    told = [found for found in kinds(events) if found != "step"]  # the second's may come too soon after the first's
    assert told == ["accepted", "loading", "warning", "loading", "failed"]
    assert from_status(events[-1].failed).reason == "BACKEND_DOWN" and sum(fleet.requests()) == before + 2


async def test_a_sampler_that_refuses_costs_no_edit_that_was_lost(fleet: Fleet) -> None:
    """Lost after its first event, an edit is refused by the next sampler before any: a third makes it, and the caller
    is warned once."""
    for sampler in fleet.samplers:
        sampler.go_on.clear()
        sampler.breaks_after = "step"
    running = begin(fleet.world.edits, "default", seeds=[1, 2])
    await eventually(lambda: _true(sum(fleet.requests()) == 1))
    lost = next(sampler for sampler in fleet.samplers if sampler.requests)
    others = [sampler for sampler in fleet.samplers if sampler is not lost]
    lost.go_on.set()
    await eventually(lambda: _true(sum(fleet.requests()) == 2))
    refusing = next(sampler for sampler in others if sampler.requests)
    refusing.refusals = 100
    for sampler in fleet.samplers:
        sampler.breaks_after = ""
        sampler.go_on.set()
    events = await rest(running)
    told = [kind for kind in kinds(events) if kind != "step"]
    assert told == ["accepted", "loading", "warning", "loading", "image", "done"]
    assert len(pictures(events)) == 2 and len(refusing.requests) == 3 and sum(fleet.requests()) == 5


@pytest.mark.parametrize("kind", ["image", "image_part"])
async def test_no_picture_comes_twice(fleet: Fleet, kind: str) -> None:
    """Lost amid the pictures, and amid the pieces of one: each comes once and whole, and none is of two samplers."""
    lost = await fleet.first()
    for number, sampler in enumerate(fleet.samplers):
        sampler.png = large_png(700_000) + bytes([number])
    lost.breaks_after = kind
    if kind == "image":
        lost.png = picture()  # whole with its first message
    events = await edit(fleet.world, image_data=picture(), config=SDEDIT, seeds=[1, 2, 3], omit_metadata=True)
    assert events[-1].HasField("done") and kinds(events).count("warning") == 1
    assert [event.image.index for event in events if event.HasField("image")] == [0, 1, 2]
    other = next(one for one in fleet.samplers if one is not lost and one.requests)
    came = [lost.png] + 2 * [other.png] if kind == "image" else 3 * [other.png]
    assert [file[-1000:] for file in pictures(events)] == [png[-1000:] for png in came]


async def test_what_would_fail_anywhere_moves_nowhere(fleet: Fleet) -> None:
    """Damaged weights, a request that the sampler refuses, and a cancelled edit are asked of one sampler alone."""
    tuning = await fleet.world.tuned()
    (path,) = (fleet.world.folder / "store").rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    events = await edit(fleet.world, tuning=tuning.name)
    assert from_status(events[-1].failed).reason == "WEIGHTS_CORRUPT" and sum(fleet.requests()) == 1
    for sampler in fleet.samplers:
        sampler.failure = InvalidField("prompt", "x", "it must be another one")
    events = await edit(fleet.world, image_data=picture(), config=SDEDIT)
    assert from_status(events[-1].failed).reason == "INVALID_FIELD" and sum(fleet.requests()) == 2
    for sampler in fleet.samplers:
        sampler.failure = None
        sampler.go_on.clear()
    call = begin(fleet.world.edits, "default")
    name = (await call.read()).accepted.edit
    await eventually(lambda: _true(sum(fleet.requests()) == 3))
    await fleet.world.edits.CancelEdit(CancelEditRequest(name=name))
    assert (await rest(call))[-1].HasField("cancelled")
    for sampler in fleet.samplers:
        sampler.go_on.set()
    await asyncio.sleep(0.1)
    assert sum(fleet.requests()) == 3


async def test_a_deadline_ends_the_moving(fleet: Fleet) -> None:
    """A sampler that is lost when the time is over costs the edit, not another sampler's time."""
    for sampler in fleet.samplers:
        sampler.go_on.clear()
    call = fleet.world.edits.Edit(EditRequest(image_data=picture(), prompt="a dog", config=SDEDIT), timeout=0.8)
    with pytest.raises(grpc.aio.AioRpcError):
        await rest(call)
    await asyncio.sleep(0.2)
    assert sum(fleet.requests()) <= 1
    for sampler in fleet.samplers:
        sampler.go_on.set()


async def test_a_sampler_whose_edits_all_fail_gets_few(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two faults of its own it is the last choice for some time, though its queue is the shortest; then an edit
    tries it again."""
    faulty = await fleet.first()

    async def ends(count: int) -> list[str | None]:
        return [
            (await edit(fleet.world, image_data=picture(), config=SDEDIT))[-1].WhichOneof("event") for _ in range(count)
        ]

    monkeypatch.setattr(sampler_connection, "FAULTY_S", 0.0)
    faulty.failure = RuntimeError("no memory left")
    assert await ends(3) == 3 * ["failed"]
    monkeypatch.setattr(sampler_connection, "FAULTY_S", 1000.0)
    assert await ends(5) == ["failed"] + 4 * ["done"]
    for sampler in fleet.samplers:
        sampler.failure = RuntimeError("no memory left")
    assert await ends(8) == 8 * ["failed"]
    assert all(len(sampler.requests) >= 2 for sampler in fleet.samplers)
    for sampler in fleet.samplers:
        sampler.failure = None
    assert await ends(2) == 2 * ["done"]  # all are the last choice, and one is chosen all the same


async def test_checks_are_asked_of_those_that_answer(fleet: Fleet) -> None:
    """With all but one sampler gone, plans are made at once by the one that is there."""
    for server in fleet.servers[1:]:
        await server.stop()
    async with asyncio.timeout(10):  # each question to one that is gone would take its deadline of 3 s
        for _ in range(4):
            events = await edit(fleet.world, image_data=picture(), config=SDEDIT, validate_only=True)
            assert events[-1].HasField("done")


# What they forget


async def test_all_samplers_forget_what_is_deleted(fleet: Fleet) -> None:
    """Those that are there at once. One that was away is told when it comes back and says what it holds, and of nothing
    that is still used (F34)."""
    gone, kept = await tunings(fleet, 2)
    await eventually(lambda: _true(sum(len(one.loaded) for one in fleet.samplers) == 2))
    away = fleet.samplers[3]
    address = fleet.addresses[3]
    await fleet.servers[3].stop()
    await fleet.ready(3)
    await fleet.world.tunings.DeleteTuning(DeleteTuningRequest(name=gone.name), timeout=10)
    digest = gone.weights.digest
    await eventually(lambda: _true(all(digest in one.evicted for one in fleet.samplers[:3])))
    assert away.evicted == []
    nobodys = WeightsRef(digest="e" * 64, path="somewhere/else")
    away.held = [gone.weights, kept.weights, nobodys]
    fleet.servers[3] = await serve_sampler(away, address)
    await eventually(lambda: _true(len(away.evicted) == 2), 20)
    await asyncio.sleep(0.1)
    assert away.evicted == [digest, nobodys.digest]


async def test_a_sampler_that_stood_still_forgets_what_was_deleted_meanwhile(fleet: Fleet) -> None:
    """Its watch had not ended, and all the same it says what it holds when it goes on."""
    await fleet.reopen(",".join(fleet.addresses[:2]))
    (gone,) = await tunings(fleet, 1)
    still = fleet.samplers[0]
    still.is_told.clear()
    still.change()
    await fleet.ready(1)
    await fleet.world.tunings.DeleteTuning(DeleteTuningRequest(name=gone.name), timeout=10)
    digest = gone.weights.digest
    await eventually(lambda: _true(digest in fleet.samplers[1].evicted))
    still.held = [gone.weights]
    still.evicted.clear()
    still.is_told.set()
    await eventually(lambda: _true(digest in still.evicted))


async def test_states_are_read_while_weights_are_compared(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing what a sampler holds with the tunings may take long: with a slow database, or a slow sampler."""
    compared = asyncio.Event()

    async def forget_dead(self: Evictions, *_: object) -> None:
        compared.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Evictions, "forget_dead", forget_dead)
    fleet.samplers[0].held = [WeightsRef(digest="e" * 64, path="somewhere/else")]
    await fleet.reopen(",".join(fleet.addresses))
    await asyncio.wait_for(compared.wait(), 10)
    assert fleet.world.gateway is not None
    connection = fleet.world.gateway._samplers._connections[fleet.addresses[0]]
    before_s = connection._state_s
    await eventually(lambda: _true(connection._state_s > before_s))
