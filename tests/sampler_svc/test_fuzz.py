"""Every field of the sampler's requests with extreme values: nothing of them is our mistake."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from bench.fuzz.answers import fault_of
from bench.fuzz.extremes import extremes
from tests.configs import tuning_config
from tests.sampler_svc.test_service import request, sampler, service, store_folder, stored
from unitune.v1 import sampler_pb2, tuning_pb2

__all__ = ["sampler", "service", "store_folder", "stored"]  # fixtures


TEXTUAL_INVERSION = tuning_config(
    method="textual_inversion",
    updates=3,
    batch=4,
    learning_rate=5e-3,
    rare_tokens="beikkpic",
    initial_word="dog",
    num_vectors=1,
)
OWN = ("base_prompt", "inversion", "alignment", "word_weights", "blend_words", "cross_replace", "self_replace")


@pytest.mark.parametrize("call", ["Sample", "CheckSample"])
@pytest.mark.parametrize("method", ["unitune", "prompt_to_prompt"])
async def test_no_extreme_value_of_a_run_is_our_mistake(sampler, method: str, call: str) -> None:
    """Numbers, texts and bytes at their ends, one field at a time: a run or its check, or a refusal with details (r1,
    r2)."""
    is_own = method == "prompt_to_prompt"  # of the second method only what the first does not read
    base = request(method=method, num_inference_steps=1, strength=1.0, base_prompt="a cat" if is_own else "")
    found = []
    for done, asked in extremes(base):
        if is_own and not done.removeprefix("config.").startswith(OWN):
            continue
        if fault := await fault_of(getattr(sampler, call)(asked, timeout=120)):
            found.append(f"{done}: {fault}")
    assert found == []


async def test_no_extreme_value_of_the_other_calls_is_our_mistake(
    sampler, stored: Callable[[int], tuning_pb2.WeightsRef]
) -> None:
    """Weights named by any path and digest, and digests of any length: an answer, or a refusal with details."""

    def watch(asked: sampler_pb2.WatchReplicaRequest, timeout: float) -> AsyncIterator[Message]:
        return first(sampler.WatchReplica(asked, timeout=timeout))

    calls = {
        "Load": (sampler.Load, sampler_pb2.LoadRequest(weights=stored(1))),
        "CheckTuning": (sampler.CheckTuning, sampler_pb2.CheckTuningRequest(config=TEXTUAL_INVERSION)),
        "Evict": (sampler.Evict, sampler_pb2.EvictRequest(digest="a")),
        "GetSamplerInfo": (sampler.GetSamplerInfo, sampler_pb2.GetSamplerInfoRequest()),
        "WatchReplica": (watch, sampler_pb2.WatchReplicaRequest()),
    }
    of_the_contract = sampler_pb2.DESCRIPTOR.services_by_name["SamplerService"].methods_by_name.keys()
    assert {*calls, "Sample", "CheckSample"} == {*of_the_contract}
    found = []
    for name, (call, base) in calls.items():
        for done, asked in (("as it is", base), *extremes(base)):
            if fault := await fault_of(call(asked, timeout=120)):
                found.append(f"{name} {done}: {fault}")
    assert found == []


async def first(stream: Any) -> AsyncIterator[Message]:
    """The first event of a stream that does not end."""
    event = await stream.read()
    assert isinstance(event, Message), event
    yield event
    stream.cancel()
