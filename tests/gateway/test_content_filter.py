"""Tenants whose edits go through the sampler's content filter."""

from dataclasses import replace

import grpc

from tests.gateway.conftest import World, edit, picture, refused
from tests.gateway.upstream_servers import BASE_MODEL
from unitune.v1.edit_pb2 import EditRequest, GetEditRequest
from unitune.v1.server_pb2 import BaseModel
from unitune.v1.tuning_pb2 import ListTuningsRequest


async def filtered(world: World, tenants: str, *, has_filter: bool = True) -> None:
    """Start the gateway anew with these tenants."""
    await world.close()
    world.config = replace(world.config, filtered_tenants=tenants)
    await world.open()
    base_model = BaseModel()
    base_model.CopyFrom(BASE_MODEL)
    base_model.has_content_filter = has_filter
    world.sampler.base_model = base_model


async def test_edits_of_the_named_tenants_are_checked_and_no_others(world: World) -> None:
    """The request to the sampler says so; a blocked picture comes without files, and GetEdit has it the same."""
    await filtered(world, "red, blue")
    for tenant, is_checked in (("red", True), ("blue", True), ("green", False)):
        await edit(world, image_data=picture(), parent=f"tenants/{tenant}")
        assert is_checked == world.sampler.requests[-1].content_filter


async def test_a_blocked_picture_is_told_as_such(world: World) -> None:
    """It has no file to write metadata into, and the edit succeeds."""
    await filtered(world, "*")
    world.sampler.chosen = {"blocked": True, "png": b"", "mask": b""}

    seen = await edit(world, image_data=picture(), seeds=[7])

    (image,) = (event.image for event in seen if event.HasField("image"))
    assert (True, b"", 7) == (image.blocked, image.png, image.seed)
    kept = await world.edits.GetEdit(GetEditRequest(name=seen[0].accepted.edit))
    assert [True] == [one.blocked for one in kept.images] and seen[-1].HasField("done")


async def test_without_a_filter_a_checked_tenant_is_refused_before_anything_is_tuned(world: World) -> None:
    """Nothing of it is made; another tenant's edit goes on."""
    await filtered(world, "red", has_filter=False)

    call = world.edits.Edit(EditRequest(parent="tenants/red", image_data=picture(), prompt="a dog"))
    await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "CONTENT_FILTER_MISSING")

    assert [] == list((await world.tunings.ListTunings(ListTuningsRequest(parent="tenants/red"))).tunings)
    assert (await edit(world, image_data=picture()))[-1].HasField("done")
