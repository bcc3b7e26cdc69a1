"""Admission: what is beyond a tenant's limits, or everybody's, is refused at once; what was accepted is unharmed."""

import asyncio
import itertools
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gateway import admission
from gateway.admission import RequestRates, tenant_of
from gateway.config import GatewayConfig
from gateway.fair_queue import FairQueue
from gateway.request_cost import (
    check_edit_cost,
    check_tuning_cost,
    edit_steps,
    most_tiles,
    super_resolution_stages,
    tuning_pixels,
)
from gateway.turn_times import TurnTimes
from sampler_svc.sampling.tiles import Tiles
from tests.configs import entry, sampling_config, tuning_config
from tests.gateway.conftest import World, edit, eventually, picture, refused
from unitune import settings, working_size
from unitune.base_model import Preset
from unitune.choices import TUNING_METHODS
from unitune.errors import InvalidArgument, ResourceExhausted, UniTuneError
from unitune.options import TUNING, read_by
from unitune.v1.edit_pb2 import CancelEditRequest, CompareRequest, EditRequest, GetEditRequest
from unitune.v1.image_pb2 import DeleteImageRequest
from unitune.v1.server_pb2 import BaseModel, GetServerInfoRequest
from unitune.v1.tuning_pb2 import (
    CancelTuningRequest,
    CreateTuningRequest,
    DeleteTuningRequest,
    GetTuningRequest,
    ListTuningsRequest,
    Tuning,
    UpdateTuningRequest,
)
from unitune.v1.usage_pb2 import ListUsageRequest

SDEDIT = sampling_config(method="sdedit", num_inference_steps=4)
COLOURS = ("red", "green", "blue", "yellow")


async def limited(world: World, **limits: float) -> World:
    """The world, with a gateway of these limits."""
    await world.close()
    world.config = replace(world.config, **limits)
    await world.open()
    return world


async def shed(call: Any, reason: str, subject: str) -> UniTuneError:
    """The error of a call that is refused by a quota, having checked all that such an answer tells."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    status = rpc_status.from_call(caught.value)
    assert status is not None
    quota = error_details_pb2.QuotaFailure()
    assert [detail.Unpack(quota) for detail in status.details].count(True) == 1
    assert [(one.subject, one.description) for one in quota.violations] == [(subject, status.message)]
    pushback = dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]

    async def raising() -> None:
        raise caught.value

    error = await refused(raising(), grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
    assert error.retry_after_s is not None and error.retry_after_s > 0
    assert int(pushback) == round(1000 * error.retry_after_s) and error.metadata["limit"]
    return error


def create(world: World, image: str, **request: Any) -> Any:
    """A tuning of an image."""
    return world.tunings.CreateTuning(CreateTuningRequest(image=image, config=tuning_config(), **request))


async def test_a_tenant_has_so_many_tunings(world: World) -> None:
    """One more is refused at once, and nothing of it is kept; accepted ones are found again, another tenant is not
    concerned, and one that ended makes room (R7)."""
    await limited(world, tenant_tunings=2)
    world.tuner.go_on.clear()
    images = [(await world.upload(picture(colour))).name for colour in COLOURS[:3]]
    request_id = str(uuid.uuid4())
    first = await create(world, images[0], request_id=request_id)
    second = await create(world, images[1])
    error = await shed(create(world, images[2]), "TENANT_TUNING_LIMIT", "tenants/default")
    assert "2 tunings" in error.message
    await shed(world.edits.Edit(EditRequest(image=images[2], prompt="a dog")), "TENANT_TUNING_LIMIT", "tenants/default")
    assert (await create(world, images[0], request_id=request_id)).name == first.name
    assert (await create(world, images[1])).name == second.name
    other = await world.upload(picture("red"), parent="tenants/other")
    assert (await create(world, other.name)).state == Tuning.STATE_QUEUED
    await world.tunings.CancelTuning(CancelTuningRequest(name=second.name))
    assert (await create(world, images[2])).state == Tuning.STATE_QUEUED
    world.tuner.go_on.set()


async def test_a_tenant_keeps_so_many_tunings(world: World) -> None:
    """Ended ones count until they are deleted; one that is there is found, and another tenant is not concerned (R7)."""
    await limited(world, tenant_kept_tunings=2)
    first, second = [await world.tuned(picture(colour)) for colour in COLOURS[:2]]
    image = (await world.upload(picture(COLOURS[2]))).name
    error = await shed(create(world, image), "TENANT_TUNING_LIMIT", "tenants/default")
    assert "delete some" in error.message
    assert (await create(world, second.image)).name == second.name
    other = await world.upload(picture("red"), parent="tenants/other")
    assert (await create(world, other.name)).state == Tuning.STATE_QUEUED
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=first.name))
    assert (await create(world, image)).state == Tuning.STATE_QUEUED


async def test_all_tenants_together_have_so_many_tunings(world: World) -> None:
    """The queue of all is bounded, too, and a full one is told as the server's (R7)."""
    await limited(world, open_tunings=2)
    world.tuner.go_on.clear()
    images = [(await world.upload(picture(colour), parent=f"tenants/{colour}")).name for colour in COLOURS[:3]]
    for image in images[:2]:
        await create(world, image)
    await shed(create(world, images[2]), "QUEUE_FULL", "server")
    world.tuner.go_on.set()


async def test_a_tenant_has_so_many_edits(world: World) -> None:
    """Edits and comparisons that run or wait count together; one that ends makes room, however it ends (R7)."""
    await limited(world, tenant_edits=2)
    world.sampler.go_on.clear()
    request = EditRequest(image_data=picture(), config=SDEDIT, prompt="a dog")
    running = world.edits.Edit(request)
    name = (await running.read()).accepted.edit
    comparing = world.edits.Compare(
        CompareRequest(image_data=picture(), prompt="a dog", methods=[entry("sdedit", config=SDEDIT)])
    )
    await comparing.read()
    before = len(world.sampler.checked)
    await shed(world.edits.Edit(request), "TENANT_EDIT_LIMIT", "tenants/default")
    assert len(world.sampler.checked) == before  # refused before anything else
    other = world.edits.Edit(EditRequest(parent="tenants/other", image_data=picture(), config=SDEDIT, prompt="a dog"))
    assert (await other.read()).HasField("accepted")
    await world.edits.CancelEdit(CancelEditRequest(name=name))
    assert (await rest(running))[-1].HasField("cancelled")
    another = world.edits.Edit(request)
    assert (await another.read()).HasField("accepted")
    comparing.cancel()
    await eventually(lambda: _can_begin(world, request))
    world.sampler.go_on.set()
    assert (await rest(another))[-1].HasField("done")


async def rest(call: Any) -> list[Any]:
    """The events that are left."""
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


async def _can_begin(world: World, request: EditRequest) -> bool:
    call = world.edits.Edit(request)
    try:
        return (await call.read()).HasField("accepted")
    except grpc.aio.AioRpcError:
        return False
    finally:
        call.cancel()


async def test_all_tenants_together_have_so_many_edits(world: World) -> None:
    """Beyond it anybody's edit is refused, and told as the server's limit (R7)."""
    await limited(world, open_edits=2)
    world.sampler.go_on.clear()
    calls = []
    for tenant in ("a", "b"):
        request = EditRequest(parent=f"tenants/{tenant}", image_data=picture(), config=SDEDIT, prompt="a dog")
        calls.append(world.edits.Edit(request))
        await calls[-1].read()
    request = EditRequest(parent="tenants/c", image_data=picture(), config=SDEDIT, prompt="a dog")
    await shed(world.edits.Edit(request), "QUEUE_FULL", "server")
    world.sampler.go_on.set()
    for call in calls:
        assert (await rest(call))[-1].HasField("done")


async def test_a_tenant_asks_so_often(world: World) -> None:
    """Every call counts, bursts are taken, one beyond them is told when to come back; neither another tenant nor what
    describes the server is concerned (R7)."""
    await limited(world, tenant_requests_per_s=0.5)
    missing = GetTuningRequest(name=f"tenants/noisy/tunings/t-{'0' * 32}")
    for _ in range(5):
        await refused(world.tunings.GetTuning(missing), grpc.StatusCode.NOT_FOUND, "TUNING_NOT_FOUND")
    error = await shed(world.tunings.GetTuning(missing), "TENANT_REQUEST_RATE", "tenants/noisy")
    assert 0 < error.retry_after_s <= 2
    await shed(world.upload(picture(), parent="tenants/noisy"), "TENANT_REQUEST_RATE", "tenants/noisy")
    request = EditRequest(parent="tenants/noisy", image_data=picture(), config=SDEDIT, prompt="a dog")
    await shed(world.edits.Edit(request), "TENANT_REQUEST_RATE", "tenants/noisy")
    named = GetEditRequest(name=f"tenants/noisy/edits/e-{'0' * 32}")
    await shed(world.edits.GetEdit(named), "TENANT_REQUEST_RATE", "tenants/noisy")
    assert (await world.upload(picture(), parent="tenants/polite")).width == 40
    for _ in range(20):
        await world.info.GetServerInfo(GetServerInfoRequest())


async def test_who_asks_what_all_have_used_counts_for_none_of_them(world: World) -> None:
    """An admin that lists the use of all tenants as often as may be leaves the tenant `default` its own calls."""
    await limited(world, tenant_requests_per_s=0.5)
    usage = world.stubs["usage"].ListUsage
    for _ in range(5):
        await usage(ListUsageRequest())
    await shed(usage(ListUsageRequest()), "TENANT_REQUEST_RATE", "tenants/*")
    await world.tunings.ListTunings(ListTuningsRequest())
    assert len((await usage(ListUsageRequest(parent="tenants/default"))).usage) == 1


def test_requests_of_a_while_may_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket is refilled with time and never overflows; those of tenants that are silent are forgotten."""
    now_s = 100.0
    monkeypatch.setattr(admission.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(admission, "KEPT_TENANTS", 3)
    rates = RequestRates(2.0)
    for _ in range(20):
        rates.take("a")
    with pytest.raises(ResourceExhausted) as caught:
        rates.take("a")
    assert caught.value.retry_after_s == pytest.approx(0.5)
    now_s += 0.5
    rates.take("a")
    now_s += 1000
    for _ in range(20):
        rates.take("a")
    with pytest.raises(ResourceExhausted):
        rates.take("a")
    now_s += 1000
    for tenant in "bcde":
        rates.take(tenant)
    assert "a" not in rates._buckets
    for _ in range(1000):
        RequestRates(0).take("a")


@pytest.mark.parametrize(
    ("request_", "tenant"),
    [
        (GetTuningRequest(name="tenants/a/tunings/t-123"), "a"),
        (GetEditRequest(name="tenants/a/edits/nonsense!"), "a"),
        (UpdateTuningRequest(tuning=Tuning(name="tenants/a/tunings/t-123")), "a"),
        (EditRequest(tuning="tenants/a/tunings/t-123"), "a"),
        (EditRequest(parent="tenants/b", tuning="tenants/a/tunings/t-123"), "b"),
        (CreateTuningRequest(image=f"tenants/a/images/{'0' * 64}"), "a"),
        (EditRequest(image_data=b"x"), "default"),
        (EditRequest(parent="nonsense"), "default"),
        (GetTuningRequest(name="nonsense"), "default"),
        (DeleteImageRequest(), "default"),
    ],
    ids=str,
)
def test_a_request_counts_for_the_tenant_of_its_names(request_: Any, tenant: str) -> None:
    """The parent comes first; what is malformed counts for the default tenant."""
    assert tenant_of(request_) == tenant


async def test_a_tenant_stores_so_many_bytes(world: World) -> None:
    """Further pictures and tunings are refused before they are decoded or tuned; what is there can be used and uploaded
    again, and deleting makes room (R7)."""
    data = picture(size=(300, 200), kind="PNG") + bytes(20_000)
    await limited(world, tenant_bytes=40_000)
    tuning = await world.tuned(data)
    more = picture("red", (300, 200)) + bytes(20_000)
    error = await shed(world.upload(more), "TENANT_STORAGE_LIMIT", "tenants/default")
    assert "40000" in error.message and len([path for path in world.stored() if "images" in path]) == 2
    assert (await world.upload(data)).name == tuning.image
    request = EditRequest(tuning=tuning.name, prompt="a dog")
    assert [event async for event in world.edits.Edit(request)][-1].HasField("done")
    small = await world.upload(picture("red"))
    assert (await world.upload(more, parent="tenants/other")).width == 300
    await limited(world, tenant_bytes=100)
    await shed(create(world, small.name), "TENANT_STORAGE_LIMIT", "tenants/default")
    assert (await create(world, tuning.image)).name == tuning.name  # found, not made
    await limited(world, tenant_bytes=40_000)
    await world.tunings.DeleteTuning(DeleteTuningRequest(name=tuning.name))
    assert (await world.upload(more)).width == 300


async def test_pictures_that_come_at_once_do_not_pass_the_limit_together(world: World) -> None:
    """Eight uploads at the same moment, of which two have room: two are kept."""
    await limited(world, tenant_bytes=50_000)
    several = [picture(f"#0000{shade:02x}") + bytes(20_000) for shade in range(8)]
    found = await asyncio.gather(*(world.upload(data) for data in several), return_exceptions=True)
    assert len([one for one in found if not isinstance(one, BaseException)]) == 2
    assert len([path for path in world.stored() if path.endswith("/file")]) == 2


@pytest.mark.parametrize(
    ("config", "seeds", "field"),
    [
        ({"num_inference_steps": 900}, [1], "config.num_inference_steps"),
        ({"num_inference_steps": 50}, list(range(8)), "seeds"),
        ({"num_inference_steps": 50, "repeats": 9}, [1], "config.repeats"),
        ({"num_inference_steps": 50, "clip_filter": True, "resamples": 8}, [1], "config.clip_filter.resamples"),
    ],
    ids=str,
)
async def test_an_edit_costs_so_many_steps(world: World, config: dict[str, Any], seeds: list[int], field: str) -> None:
    """The field that makes it so many is named, with what would be right; nothing is run for it (R7)."""
    await limited(world, edit_steps=350)
    asked = sampling_config(method="sdedit", **config)
    call = world.edits.Edit(EditRequest(image_data=picture(), config=asked, seeds=seeds, prompt="a dog"))
    error = await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "COST_LIMIT", field)
    assert "350" in error.metadata["remedy"] and world.sampler.checked == [] and world.stored() == []
    events = await edit(world, image_data=picture(), config=sampling_config(method="sdedit", num_inference_steps=300))
    assert events[-1].HasField("done")


LARGE = {"num_inference_steps": 20, "second_pass": True, "second_pass_strength": 0.5}


@pytest.mark.parametrize("target", ["image_data", "image", "tuning"])
async def test_a_second_pass_costs_the_steps_of_its_tiles(world: World, target: str) -> None:
    """As many tiles as the picture needs: a scale that costs too much is refused before anything is stored or run, and
    the same of a small picture, where there is no second pass, is not (R7)."""
    await limited(world, edit_steps=200)
    data, small = picture(size=(700, 700)), picture()
    asked = sampling_config(**LARGE, second_pass_scale=10)
    if target == "image_data":
        targets = [{"image_data": data}, {"image_data": small}]
    elif target == "image":
        targets = [{"image": (await world.upload(one)).name} for one in (data, small)]
    else:
        targets = [{"tuning": (await world.tuned(one)).name} for one in (data, small)]
    before, runs = world.stored(), len(world.tuner.requests)
    field = "config.second_pass.scale"
    call = world.edits.Edit(EditRequest(config=asked, prompt="a dog", **targets[0]))
    error = await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "COST_LIMIT", field)
    tiles = 13 * 13  # of 64 pixels over 640, which have a quarter in common
    assert f"{tiles} tiles x 10 steps" in error.metadata["remedy"] and str(20 + 10 * tiles) in error.metadata["remedy"]
    assert world.stored() == before and len(world.tuner.requests) == runs and not world.sampler.requests
    assert (await edit(world, config=asked, **targets[1]))[-1].HasField("done")
    affordable = sampling_config(**LARGE, second_pass_scale=2)  # 9 tiles
    assert (await edit(world, config=affordable, **targets[0]))[-1].HasField("done")


async def test_a_comparison_counts_the_tiles_of_each_of_its_edits(world: World) -> None:
    """Before the first begins, and told by its place (R7)."""
    await limited(world, edit_steps=200)
    methods = [entry("unitune"), entry("sdedit", config=sampling_config(**LARGE, second_pass_scale=10))]
    request = CompareRequest(image_data=picture(size=(700, 700)), prompt="a dog", methods=methods)
    error = await refused(
        world.edits.Compare(request),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "methods[1].config.second_pass.scale",
    )
    assert "tiles" in error.metadata["remedy"] and world.tuner.requests == [] and world.stored() == []


def test_the_tiles_that_are_counted_are_never_fewer_than_those_that_run() -> None:
    """For pictures of all shapes, base models of all steps and parts of pictures, at every scale."""
    for width, height, step, each in ((64, 64, 0, 8), (512, 512, 64, 8), (96, 96, 8, 4), (48, 48, 16, 8)):
        base_model = BaseModel(width=width, height=height, size_step=step)
        for size, scale in itertools.product(
            [(40, 30), (300, 500), (1500, 1000), (4000, 900), (700, 5000)], [1.1, 2, 3.3, 16]
        ):
            config = sampling_config(**LARGE, second_pass_scale=scale)
            place = working_size.fit(size, working_size.working_size(size, (height, width), step))
            enlarged = working_size.enlarged(size, place, scale, step or each)
            ran = 0
            if enlarged is not None:
                rows, columns = (side // each for side in enlarged.size)
                ran = len(Tiles.over((rows, columns), (min(rows, height // each), min(columns, width // each))).places)
            told = most_tiles(config, size, base_model)
            assert ran <= told <= 2 * ran, (size, scale, step, ran, told)
            config.mask.only_masked = True
            assert most_tiles(config, size, base_model) >= told


def test_predictions_of_a_step_count() -> None:
    """Three of them are half as much again as two, and one is no less: an edit without guidance is not cheaper."""
    plain = {"method": "unitune", "num_inference_steps": 40, "guidance_scale": 7.5}
    assert edit_steps(sampling_config(**plain), 2) == 80
    assert edit_steps(sampling_config(**plain | {"guidance_scale": 1}), 2) == 80
    assert edit_steps(sampling_config(**plain, prompt_guidance_scale=2), 2) == 120
    assert edit_steps(sampling_config(**plain, prompt_guidance_scale=2, base_mixture=0.5), 2) == 160
    with pytest.raises(InvalidArgument, match=r"80 steps.*x 3 / 2 predictions are 240 steps"):
        check_edit_cost(sampling_config(**plain | {"num_inference_steps": 80}, prompt_guidance_scale=2), 2, 239)


async def test_a_comparison_costs_so_many_steps(world: World) -> None:
    """Each of its edits is looked at before the first begins, and told by its place (R7)."""
    await limited(world, edit_steps=100)
    config = sampling_config(num_inference_steps=101)
    methods = [entry("unitune"), entry("sdedit", config=config)]
    call = world.edits.Compare(CompareRequest(image_data=picture(), prompt="a dog", methods=methods))
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "methods[1].config.num_inference_steps")
    assert world.tuner.requests == [] and world.stored() == []


async def test_a_tuning_costs_so_many_pixels(world: World) -> None:
    """updates x batch x pixels of the base model, for CreateTuning and for an edit that tunes (R7)."""
    await limited(world, tuning_pixels=64 * 64 * 4 * 200)
    image = (await world.upload(picture())).name
    config = tuning_config(updates=201)
    call = world.tunings.CreateTuning(CreateTuningRequest(image=image, config=config))
    error = await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "COST_LIMIT", "config.updates")
    assert str(64 * 64 * 4 * 201) in error.metadata["remedy"] and error.metadata["value"] == "201"
    call = world.edits.Edit(EditRequest(image=image, tuning_config=tuning_config(batch=64, updates=13), prompt="a dog"))
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "COST_LIMIT", "tuning_config.batch")
    assert world.tuner.requests == []
    assert (await world.tuned(updates=100, batch=4)).state == Tuning.STATE_READY


@pytest.mark.parametrize("method", TUNING_METHODS)
def test_defaults_pass_the_default_limits(method: str) -> None:
    """What a method does without being asked for more is never refused, up to 1024x1024."""
    config, own = GatewayConfig(store="x", state=Path("y")), Preset().method_preset(method)
    known = {name: getattr(own, name) for name in read_by(TUNING, method) if getattr(own, name, None)}
    tuning = tuning_config(**known | {"method": method})
    if method == "null_text":
        tuning.num_inference_steps = 50
    base_model = BaseModel(width=1024, height=1024)
    check_tuning_cost(tuning, base_model, config.tuning_pixels, "config")
    assert tuning_pixels(tuning, base_model) > 1e8
    sampling = sampling_config(method="unitune", num_inference_steps=own.num_inference_steps, automatic=True)
    check_edit_cost(sampling, 8, config.edit_steps)


def test_the_steps_of_an_edit() -> None:
    """Seeds, repeats and attempts multiply them; super-resolution adds its own once a seed."""
    config = sampling_config(method="unitune", num_inference_steps=20, repeats=3)
    assert edit_steps(config, 2) == 120
    config = sampling_config(num_inference_steps=20, clip_filter=True)
    assert edit_steps(config, 2) == 160
    config = sampling_config(num_inference_steps=20, super_resolution=True, super_resolution_steps=30)
    assert edit_steps(config, 2) == 100
    cascade = BaseModel(super_resolution_width=256, super_resolution_height=256)
    cascade.super_resolution_2_width = cascade.super_resolution_2_height = 1024
    for width, stages, steps in ((256, 1, 100), (1024, 17, 2 * (20 + 17 * 30))):
        config.super_resolution.width = width
        assert super_resolution_stages(config, cascade) == stages
        assert edit_steps(config, 2, stages=stages) == steps
    assert edit_steps(sampling_config(num_inference_steps=20, automatic=True), 1) == 60


async def test_a_deadline_that_the_queue_cannot_meet_is_refused(world: World) -> None:
    """Once the speed is known, an edit behind many of its own tenant with a short deadline is refused at once; with a
    longer one, or of another tenant, it is taken (R7)."""
    world.sampler.step_s = 0.05
    config = sampling_config(method="sdedit", num_inference_steps=10, strength=1.0)
    request = EditRequest(image_data=picture(), config=config, prompt="a dog")
    for _ in range(3):
        assert [event async for event in world.edits.Edit(request)][-1].HasField("done")
    world.sampler.go_on.clear()
    calls = [world.edits.Edit(request) for _ in range(12)]
    for call in calls:
        await call.read()
    await eventually(lambda: _waiting(world, 10))
    # 10 wait for two places, and each takes half a second at least.
    error = await shed(world.edits.Edit(request, timeout=1.5), "DEADLINE_UNREACHABLE", "tenants/default")
    assert 1 <= error.retry_after_s < 60 and "deadline" in error.message
    other = EditRequest(parent="tenants/other", image_data=picture(), config=config, prompt="a dog")
    for call in (world.edits.Edit(other, timeout=20), world.edits.Edit(request, timeout=60)):
        assert (await call.read()).HasField("accepted")
        call.cancel()
    alone = EditRequest(parent="tenants/other", image_data=picture(), config=config, prompt="a dog", seeds=range(8))
    too_short = world.edits.Edit(alone, timeout=1)
    error = await refused(too_short, grpc.StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_UNREACHABLE")
    assert error.retry_after_s is None  # nothing changes with time
    for call in calls:
        call.cancel()
    world.sampler.go_on.set()


async def _waiting(world: World, number: int) -> bool:
    assert world.gateway is not None
    return world.gateway._edit_service._edits._queue.num_waiting == number


async def test_the_work_before_an_edit_is_its_own_tenants() -> None:
    """Divided by the places that the tenant may have; what left the queue no longer counts."""
    queue, go_on = FairQueue(4), asyncio.Event()

    async def one(tenant: str) -> None:
        async with queue.place(tenant, 10):
            await go_on.wait()

    tasks = [asyncio.create_task(one(tenant)) for tenant in "aaaaab"]
    await asyncio.sleep(0)
    assert queue.work_before("a") == 3 * 10 / 2 and queue.work_before("b") == 0
    tasks[4].cancel()
    await asyncio.gather(tasks[4], return_exceptions=True)
    assert queue.work_before("a") == 2 * 10 / 2
    go_on.set()
    await asyncio.gather(*tasks[:4], tasks[5])
    assert queue.work_before("a") == 0 and not queue._entries and queue.num_taken == 0


def test_a_time_is_told_only_when_it_is_known() -> None:
    """The fastest of the last turns counts, and a few are needed."""
    times = TurnTimes()
    for seconds in (4.0, 2.0):
        times.note(10, seconds)
    assert times.at_least_s(30) is None
    times.note(10, 3.0)
    assert times.at_least_s(30) == pytest.approx(6.0)


NEEDED = {"UNITUNE_STORE": "x", "UNITUNE_STATE": "y"}


@pytest.mark.parametrize("limit", ["TENANT_TUNINGS", "TENANT_RUNNING_TUNINGS", "TENANT_REQUESTS_PER_S", "EDIT_STEPS"])
def test_a_limit_is_a_setting(limit: str) -> None:
    """0 is no limit; a negative one stops the start with one line."""

    def read(value: str) -> GatewayConfig:
        return settings.load(GatewayConfig, NEEDED | {f"UNITUNE_{limit}": value})

    assert getattr(read("0"), limit.lower()) == 0 and getattr(read("7"), limit.lower()) == 7
    with pytest.raises(settings.BadSetting, match=f"UNITUNE_{limit} is -1: it must be 0, for no limit, or more"):
        read("-1")


async def test_the_server_tells_its_limits(world: World) -> None:
    """GetServerInfo has those of the configuration."""
    await limited(world, tenant_tunings=3, tenant_running_tunings=2, edit_steps=77, tenant_requests_per_s=0.5)
    limits = (await world.info.GetServerInfo(GetServerInfoRequest())).limits
    assert (limits.tenant_tunings, limits.edit_steps, limits.tenant_requests_per_s) == (3, 77, 0.5)
    assert limits.tuning_pixels == world.config.tuning_pixels and limits.seeds == 8
    assert limits.tenant_running_tunings == 2
