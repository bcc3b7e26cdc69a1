"""Decoded weights in the memory of the host: what they spare, what they hold, and that they change no bit."""

import gc
import shutil
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from sampler_svc.config import KEPT_WEIGHTS_SHARE, SamplerConfig
from sampler_svc.decoded_weights import VALUE_BYTES, DecodedWeights
from sampler_svc.engines.engine import WeightSet
from sampler_svc.engines.weights import CompletedTensors
from sampler_svc.model import Model
from sampler_svc.service import SamplerService
from tests.sampler_svc.test_service import events, kinds, pngs, request, store_folder, stored
from tests.sampler_svc.tunings import Tunings
from unitune import metrics, serving, settings
from unitune.errors import from_status
from unitune.free_memory import free_memory_bytes
from unitune.object_store import ObjectStore
from unitune.v1 import sampler_pb2, sampler_pb2_grpc, tuning_pb2

__all__ = ["store_folder", "stored"]  # fixtures

Put = Callable[[int], tuning_pb2.WeightsRef]


def set_bytes(weights: WeightSet) -> int:
    """What a set of all of the base model's tensors takes."""
    return sum(VALUE_BYTES * tensor.size for tensor in weights.tensors.values())


@pytest.fixture
def service(model: Model, store_folder: Path) -> SamplerService:
    """A servicer with one engine, and memory for two tunings."""
    return SamplerService(model, ObjectStore(str(store_folder)), kept_bytes=2 * set_bytes(model.base))


@pytest.fixture
async def sampler(service: SamplerService) -> AsyncIterator[sampler_pb2_grpc.SamplerServiceStub]:
    """A client of a server on loopback."""
    server = await serving.start("127.0.0.1:0", service.register)
    async with serving.channel(server.address) as channel:
        yield sampler_pb2_grpc.SamplerServiceStub(channel)
    await server.stop()


async def first_state(sampler: sampler_pb2_grpc.SamplerServiceStub) -> sampler_pb2.ReplicaState:
    """What a watch begins with."""
    watch = sampler.WatchReplica(sampler_pb2.WatchReplicaRequest())
    state = await watch.read()
    watch.cancel()
    return state


async def test_a_refit_with_kept_weights_reads_nothing(sampler, stored: Put, store_folder: Path) -> None:
    """Two tunings take turns in one engine: with the store gone they are refitted all the same, to the same pictures;
    one that was evicted is not."""
    one, two = stored(1), stored(2)
    before = [pngs(await events(sampler, request(weights))) for weights in (one, two)]
    shutil.move(store_folder, store_folder.with_name("away"))
    for weights, expected in ((one, before[0]), (two, before[1]), (one, before[0])):
        found = await events(sampler, request(weights))
        assert kinds(found)[-1] == "done" and not found[0].loading.warm and pngs(found) == expected
    state = await first_state(sampler)
    assert sorted(state.kept) == sorted([one.digest, two.digest]) and state.kept_refit_s > 0 < state.refit_s
    assert {(held.digest, held.path) for held in state.held} == {(w.digest, w.path) for w in (one, two)}

    await sampler.Evict(sampler_pb2.EvictRequest(digest=two.digest))
    state = await first_state(sampler)
    assert list(state.kept) == [one.digest] and [held.digest for held in state.held] == [one.digest]
    found = await events(sampler, request(two))
    assert from_status(found[-1].failed).reason == "WEIGHTS_MISSING"


async def test_the_one_used_longest_ago_gives_way(sampler, stored: Put, model: Model) -> None:
    """Within the bound, which the metric tells of; nothing is kept that alone is larger."""
    one, two, three = (stored(seed) for seed in (1, 2, 3))
    for weights in (one, two, one, three):
        await events(sampler, request(weights))
    assert list((await first_state(sampler)).kept) == [one.digest, three.digest]
    assert metrics.KEPT_WEIGHTS_BYTES._value.get() == 2 * set_bytes(model.base)


def test_what_is_kept_is_read_only_and_the_same(tunings: Tunings) -> None:
    """Each tensor is decoded once, to the bits of the file, and nobody can write to it; the others are the base's."""
    name = max(tunings.base.tensors, key=lambda name: tunings.base.tensors[name].size)
    weights = tunings.weights(1, names=[name])
    decoded = DecodedWeights(set_bytes(weights))
    kept = decoded.keep(weights)
    assert kept.tensors[name] is kept.tensors[name] and (kept.tensors[name] == weights.tensors[name]).all()
    with pytest.raises(ValueError, match="read-only"):
        kept.tensors[name][...] = 0
    others = kept.tensors.keys() - {name}
    assert all(np.shares_memory(kept.tensors[one], tunings.base.tensors[one]) for one in others)
    assert decoded.find(weights.id) is kept and decoded.find(weights.id, "another model") is None
    assert metrics.KEPT_WEIGHTS_BYTES._value.get() == VALUE_BYTES * tunings.base.tensors[name].size
    decoded.forget(weights.id)
    assert decoded.find(weights.id) is None and metrics.KEPT_WEIGHTS_BYTES._value.get() == 0


def test_what_weights_were_decoded_from_is_not_kept(tunings: Tunings) -> None:
    """It counts nowhere, and is of no use once every tensor is decoded."""
    weights = tunings.weights(1)
    decoded = DecodedWeights(set_bytes(weights))
    assert isinstance(weights.tensors, CompletedTensors)
    coded = weakref.ref(weights.tensors.tuned)
    before = {name: tensor.copy() for name, tensor in weights.tensors.items()}
    kept = decoded.keep(weights)
    del weights
    assert all((kept.tensors[name] == tensor).all() for name, tensor in before.items())
    gc.collect()
    assert coded() is None and kept.tensors.keys() == before.keys()
    assert all((kept.tensors[name] == tensor).all() for name, tensor in before.items())


def test_nothing_is_kept_without_memory_for_it(tunings: Tunings) -> None:
    """With 0, and for a tuning that is larger than all that may be kept."""
    weights = tunings.weights(1)
    for most_bytes in (0, set_bytes(weights) - 1):
        decoded = DecodedWeights(most_bytes)
        assert decoded.keep(weights) is weights and decoded.digests() == []


def test_how_much_is_kept_is_a_setting() -> None:
    """In GB; without it a share of the memory that is free."""
    needed = {"UNITUNE_STORE": "x", "UNITUNE_ENGINE": "y"}
    bytes_of = {
        text: settings.load(SamplerConfig, needed | {"UNITUNE_KEPT_WEIGHTS_GB": text}).kept_weights_bytes()
        for text in ("0", "1.5", "")
    }
    assert bytes_of["0"] == 0 and bytes_of["1.5"] == 1_500_000_000
    free_bytes = free_memory_bytes() or KEPT_WEIGHTS_SHARE * (256 << 20)
    assert 0.5 * free_bytes < KEPT_WEIGHTS_SHARE * bytes_of[""] < 2 * free_bytes
    with pytest.raises(settings.BadSetting, match="UNITUNE_KEPT_WEIGHTS_GB is -1"):
        settings.load(SamplerConfig, needed | {"UNITUNE_KEPT_WEIGHTS_GB": "-1"})
