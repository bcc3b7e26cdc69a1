"""Puts the parts of the gateway together."""

import asyncio
from contextlib import suppress

import grpc

from gateway import admin_key
from gateway.access import PUBLIC, Access
from gateway.admission import Admission
from gateway.api_keys import ApiKeys
from gateway.compare import Comparisons
from gateway.config import GatewayConfig
from gateway.edit import Edits
from gateway.edit_plan import Planner
from gateway.edit_results import EditResults
from gateway.evictions import Evictions
from gateway.fair_queue import FairQueue
from gateway.gauges import Gauges
from gateway.images import Images
from gateway.joined_edits import JoinedEdits
from gateway.jwks import Jwks
from gateway.key_service import KeyService
from gateway.known_services import KnownServices
from gateway.open_calls import OpenCalls
from gateway.retention import Retention
from gateway.samplers import Samplers
from gateway.service import EditService, ImageService, ServerService, TuningService
from gateway.shared_edits import SharedEdits
from gateway.signed_uploads import SignedUploads
from gateway.state import State
from gateway.stored_bytes import StoredBytes
from gateway.stored_edits import StoredEdits
from gateway.tokens import Tokens
from gateway.tuner_pool import TunerPool
from gateway.tuners import Tuners
from gateway.tuning_records import QueueLimits
from gateway.tunings import Tunings
from gateway.uploads import Uploads
from gateway.usage import UsageCounts, UsageService
from gateway.weight_files import WeightFiles
from unitune import exposure, peers, serving
from unitune.certificates import CertificateReader
from unitune.errors import Unavailable, UniTuneError
from unitune.object_store import ObjectStore
from unitune.v1 import (
    edit_pb2_grpc,
    image_pb2_grpc,
    key_pb2_grpc,
    server_pb2_grpc,
    tuner_pb2,
    tuner_pb2_grpc,
    tuning_pb2_grpc,
    usage_pb2_grpc,
)

WRITING = "writing"  # a name that health is asked for: whether anything can be made, changed or deleted
REPORT_S = 2.0  # for a report that has come to be kept


class Gateway:
    """One gateway. It belongs to the event loop in which it was opened."""

    def __init__(self, config: GatewayConfig, state: State, store: ObjectStore, keys: ApiKeys) -> None:
        self._state, self._keys = state, keys
        is_named = exposure.NO_KEYS in exposure.allowed(config.insecure)
        is_open = is_named or not (config.asks_for_credentials or keys.has_any)
        self._tokens = tokens_of(config)
        self.access = Access(keys, self._tokens, is_open=is_open)
        self._key_service = KeyService(keys)
        certificates = CertificateReader(config.peer_files) if config.peer_files is not None else None
        self._certificates = certificates
        self._samplers = Samplers(
            config.sampler, silence_s=config.silence_s, resolve_s=config.resolve_s, certificates=certificates
        )
        self._tuners = Tuners()
        self._services = KnownServices(self._samplers, self._tuners, state)
        storage = StoredBytes(store, config.tenant_bytes)
        self._usage = UsageCounts(state)
        self._images, files = Images(store, storage, self._usage, state), WeightFiles(store)
        images = self._images
        self._pool = TunerPool(
            state,
            files,
            self._tuners,
            self._services,
            self._samplers,
            lease_s=config.lease_s,
            most_running=config.tenant_running_tunings,
            model_gone_s=config.model_gone_s,
        )
        evictions = Evictions(state, self._samplers, retry_s=config.retry_s)
        tunings = Tunings(
            state,
            images,
            files,
            self._samplers,
            self._tuners,
            evictions,
            storage=storage,
            limits=QueueLimits(config.tenant_tunings, config.open_tunings, config.tenant_kept_tunings),
            most_pixels=config.tuning_pixels,
            position_s=config.position_s,
        )
        stored_edits = StoredEdits(store)
        self._shared_edits = SharedEdits(state) if state.is_shared else None
        self._results = EditResults(stored_edits, self._shared_edits)
        signed = SignedUploads(store, images, storage)
        self.retention = Retention(
            state, images, store, stored_edits, signed, keep_s=config.keep_unused_s, is_known=self._results.is_known
        )
        planner = Planner(tunings, images, self._samplers, config.is_filtered, most_steps=config.edit_steps)
        # No edit waits in the transport, where it would have no heartbeat and could not be cancelled alone.
        queue = FairQueue(config.sample_streams)
        self._samplers.on_count = lambda count: queue.resize(config.sample_streams * max(1, count))
        self._joined = JoinedEdits(state, self._results, heartbeat_s=config.heartbeat_s)
        edits = Edits(
            *(planner, tunings, self._samplers, self._results, queue, self._usage),
            heartbeat_s=config.heartbeat_s,
            joined=self._joined,
        )
        self._comparisons = Comparisons(
            planner, edits, tunings, images, self._samplers, self._results, heartbeat_s=config.heartbeat_s
        )
        calls, admission = OpenCalls(), Admission(config)
        self._tuning_service = TuningService(tunings, self._results, calls, admission, config.heartbeat_s)
        self._image_service = ImageService(images, Uploads(), signed, self.retention, calls, admission)
        self._edit_service = EditService(edits, self._comparisons, self._results, calls, admission)
        self._usage_service = UsageService(state, self._usage, storage, admission)
        gauges = Gauges(state, queue)
        self._server_service = ServerService(
            self._samplers, self._tuners, gauges, config, is_read_only=state.is_read_only
        )
        self._internal: serving.RunningServer | None = None
        self._tasks = [asyncio.create_task(gauges.run()), asyncio.create_task(self._samplers.run())]
        if not state.is_read_only:
            self._samplers.forget = evictions.forget_dead
            self._tasks += [
                asyncio.create_task(self._pool.run()),
                asyncio.create_task(tunings.sweep(config.sweep_s)),
                asyncio.create_task(self.retention.run(config.store_sweep_s)),
                asyncio.create_task(evictions.run()),
                asyncio.create_task(self._usage.run()),
            ]
        if self._shared_edits is not None:
            self._tasks.append(asyncio.create_task(self._shared_edits.run()))

    @classmethod
    async def open(cls, config: GatewayConfig) -> "Gateway":
        """Open the state and the store and begin to give out what is queued, at the internal address.

        Raises OSError when one of them cannot be used.
        """
        store = ObjectStore(config.store, config.store_signed_endpoint)
        with suppress(UniTuneError):  # a bucket that does not answer now is not checked
            await store.answer(store.check_create_only)
        state = await State.open(config.state, config.state_listen)
        try:
            keys = await ApiKeys.open(state.database)
            if config.admin_key_file is not None:
                await admin_key.adopt(keys, config.admin_key_file)
            gateway = cls(config, state, store, keys)
        except BaseException:
            await state.close()
            raise
        await gateway._services.begin()
        try:
            gateway._internal = await serving.start(
                config.internal_address,
                gateway._register_internal,
                **peers.served_by(gateway._certificates, (peers.TUNER,)),
            )
        except OSError:
            await gateway.close()
            raise
        gateway._tasks.append(asyncio.create_task(gateway._services.poll(config.poll_s)))
        return gateway

    def register(self, server: grpc.aio.Server) -> list[str]:
        """Add the public services to a server; their names."""
        tuning_pb2_grpc.add_TuningServiceServicer_to_server(self._tuning_service, server)
        image_pb2_grpc.add_ImageServiceServicer_to_server(self._image_service, server)
        edit_pb2_grpc.add_EditServiceServicer_to_server(self._edit_service, server)
        server_pb2_grpc.add_ServerServiceServicer_to_server(self._server_service, server)
        key_pb2_grpc.add_KeyServiceServicer_to_server(self._key_service, server)
        usage_pb2_grpc.add_UsageServiceServicer_to_server(self._usage_service, server)
        return [service.full_name for service in PUBLIC] + ([] if self._state.is_read_only else [WRITING])

    @property
    def not_serving(self) -> list[str]:
        """What health is told not to be served: with a state that can only be read, WRITING."""
        return [WRITING] if self._state.is_read_only else []

    @property
    def internal_address(self) -> str:
        """Where tuners find it, HOST:PORT."""
        assert self._internal is not None
        return self._internal.address

    def _register_internal(self, server: grpc.aio.Server) -> list[str]:
        tuner_pb2_grpc.add_TunerPoolServiceServicer_to_server(self._pool, server)
        return [service.full_name for service in tuner_pb2.DESCRIPTOR.services_by_name.values()]

    async def drain(self) -> None:
        """Begin nothing new, and end what could last longer than the drain. Tuners may report until the end."""
        self._pool.pause()
        reason = Unavailable("the server is stopping; ask again", reason="DRAINING", retry_after_s=1.0)
        self._tuning_service.end_watches(reason)
        self._comparisons.end(reason)  # first, so that no edit begins in place of one that is stopped next
        self._results.end_waiting(reason)
        self._joined.end(reason)

    async def close(self) -> None:
        """Stop everything. Tuners go on with what they run, and report to the next process."""
        self._pool.pause()  # no call waits
        if self._internal is not None:
            await self._internal.stop(REPORT_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._samplers.close()
        if self._tokens is not None:
            await self._tokens.close()
        await self._keys.close()
        await self._images.close()
        with suppress(UniTuneError):  # such as a disk that is full
            await self._usage.keep()
        await self._state.close()


def tokens_of(config: GatewayConfig) -> Tokens | None:
    """The tokens that are taken as credentials; None without an issuer."""
    if not config.oidc_issuer:
        return None
    return Tokens(Jwks(config.oidc_jwks), config.oidc_issuer, config.oidc_audience, config.oidc_tenant_claim)
