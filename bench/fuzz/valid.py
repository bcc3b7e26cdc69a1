"""Requests that servers take, one or more of each call, for others to change."""

import pkgutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from unitune import v1
from unitune.v1.edit_pb2 import CancelEditRequest, CompareRequest, EditRequest, GetEditRequest, SamplingConfig
from unitune.v1.image_pb2 import GetImageRequest, ListImagesRequest, UploadImageRequest
from unitune.v1.sampler_pb2 import CheckTuningRequest, LoadRequest, SampleRequest
from unitune.v1.tuner_pb2 import AnnounceRequest, ReportTuningRequest, TakeTuningRequest, TunerInfo, TunerProcess
from unitune.v1.tuning_pb2 import (
    CancelTuningRequest,
    CreateTuningRequest,
    DeleteTuningRequest,
    GetTuningRequest,
    ListTuningsRequest,
    Tuning,
    TuningConfig,
    TuningProgress,
    UpdateTuningRequest,
    WatchTuningRequest,
    WeightsRef,
)

INTERNAL = ("SamplerService", "TunerPoolService")
SDEDIT = SamplingConfig(method=SamplingConfig.METHOD_SDEDIT, num_inference_steps=1)
UNITUNE = TuningConfig(method=TuningConfig.METHOD_UNITUNE, updates=1)


class ValidCall(NamedTuple):
    """A call and a request that it takes."""

    method: MethodDescriptor
    request: Message


def public_calls(picture: bytes, image: str, tuning: str, edit: str) -> list[ValidCall]:
    """Every call of the public services. The names are those of things that are there; the tuning is READY."""
    requests = [
        CreateTuningRequest(image=image, config=UNITUNE),
        GetTuningRequest(name=tuning),
        ListTuningsRequest(page_size=1),
        WatchTuningRequest(name=tuning),
        CancelTuningRequest(name=tuning),
        UpdateTuningRequest(tuning=Tuning(name=tuning)),
        DeleteTuningRequest(name=f"{tuning}a"),
        UploadImageRequest(header=UploadImageRequest.Header()),
        GetImageRequest(name=image),
        ListImagesRequest(page_size=1),
        EditRequest(tuning=tuning, prompt="a dog"),
        EditRequest(image_data=picture, prompt="a dog", config=SDEDIT),
        EditRequest(image=image, prompt="a dog", tuning_config=UNITUNE),
        CompareRequest(image=image, prompt="a dog"),
        GetEditRequest(name=edit),
        CancelEditRequest(name=edit),
    ]
    return calls(public_services(), requests)


def tuner_pool_calls(base_model: str, tuning: str) -> list[ValidCall]:
    """Every call that tuners make. `base_model` is a digest that no tuner has: nothing is taken from a real one."""
    process = TunerProcess(place="place", instance="instance")
    requests = [
        AnnounceRequest(info=TunerInfo(base_model={"digest": base_model})),
        TakeTuningRequest(tuner=process, base_model=base_model),
        *(
            ReportTuningRequest(name=tuning, attempt=1, tuner=process, **report)
            for report in (
                {"progress": TuningProgress(update=1, total=2)},
                {"alive": ReportTuningRequest.Alive()},
                {"done": {"key": "key", "digest": "0" * 64, "path": "tunings/default/t-none/1"}},
                {"failed": {"code": 3, "message": "no"}},
                {"give_back": ReportTuningRequest.GiveBack()},
                {"checkpoint": {"path": "tunings/default/t-none/1/checkpoint-1", "sha256": "0" * 64, "update": 1}},
            )
        ),
    ]
    return calls(services_named("TunerPoolService"), requests)


def sampler_calls(picture: bytes, weights: WeightsRef, config: SamplingConfig) -> list[ValidCall]:
    """Every call that the gateway makes of a sampler. The config has all fields set."""
    sample = SampleRequest(edit="tenants/default/edits/e-1", image=picture, prompt="a dog", config=config, seeds=[1])
    requests = [sample, LoadRequest(weights=weights), CheckTuningRequest(config=UNITUNE)]
    (service,) = services_named("SamplerService")
    return [*calls([service], requests), ValidCall(service.methods_by_name["CheckSample"], sample)]


def public_services() -> list[ServiceDescriptor]:
    """Those of the contract that callers may use."""
    return [service for service in _services() if service.name not in INTERNAL]


def services_named(name: str) -> list[ServiceDescriptor]:
    """The one service of the contract with this name."""
    return [service for service in _services() if service.name == name]


def calls(services: Sequence[ServiceDescriptor], requests: Sequence[Message]) -> list[ValidCall]:
    """Each request with its call, and each other call of the services with an empty request."""
    # Of several calls with one type of request the first.
    methods: dict[Any, MethodDescriptor] = {
        method.input_type: method for service in services for method in reversed(service.methods)
    }
    known = {request.DESCRIPTOR for request in requests}
    others = [GetMessageClass(kind)() for kind in methods if kind not in known]
    return [ValidCall(methods[request.DESCRIPTOR], request) for request in (*requests, *others)]


def _services() -> Iterator[ServiceDescriptor]:
    for module in pkgutil.iter_modules(v1.__path__, f"{v1.__name__}."):
        if module.name.endswith("_pb2"):
            yield from import_module(module.name).DESCRIPTOR.services_by_name.values()
