"""AsyncClient: every call of the product, for programs that use asyncio."""

import asyncio
import hashlib
import os
import uuid
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from datetime import date, datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from unitune.errors import Cancelled, InvalidArgument, InvalidField, Unavailable, UniTuneError
from unitune.image_pieces import Assembly
from unitune.picture_header import MAX_BYTES, PNG, header, other_kind
from unitune.v1 import (
    edit_pb2,
    edit_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    key_pb2,
    key_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    tuning_pb2,
    tuning_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)
from unitune_client import events, forks, messages
from unitune_client.channel import (
    CHUNK_BYTES,
    INLINE_IMAGE_BYTES,
    INLINE_MASK_BYTES,
    Key,
    KeyedChannel,
    Unreached,
    checked_address,
    checked_key,
    open_channel,
    read_to_end,
    refuse_readable_key,
    split_address,
    typed_errors,
)
from unitune_client.messages import Methods
from unitune_client.options import EditOptions, TuningOptions
from unitune_client.pictures import Picture, picture_bytes, resource_name
from unitune_client.repeats import FIRST_CONTACT_S, Backoff, OnRetry, Told, ToldComparison, ToldEdit

UPLOAD_TIMEOUT_S = 120.0
KEY_TIMEOUT_S = 15.0
HEALTH_S = 15.0
HEALTH = {b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}  # a HealthCheckResponse, serialized
# Of refused uploads: there is room again when others have ended, and not only when something is deleted.
BRIEFLY_FULL = ("TOO_MANY_UPLOADS", "TOO_MANY_CALLS", "TENANT_REQUEST_RATE")
CANCEL_S = 5.0  # for a server to end an edit whose stream was lost

E = TypeVar("E", bound=events.Event)
T = TypeVar("T")


class AsyncClient:
    """A connection to one UniTune server. It is made anywhere and used in one event loop.

        async with AsyncClient("localhost:50051") as client:
            tuning = await client.tune("cat.png")
            result = await client.edit_to_end(tuning, "a cat on a beach", seeds=[1, 2])
            result.images[0].save("beach.png")

    Every method raises errors of `unitune.errors`: Unavailable when no server answers, InvalidField when a value is
    wrong, and so on.

    A call that is lost is sent again, with growing pauses, where that is harmless: uploads, tunings, watches, edits and
    comparisons outlive a server that is restarted, a sampler that is lost and a connection that breaks. The seeds of an
    edit stay the same, and so do its pictures. What is refused is never sent again, nor what makes an API key.

    A client does not outlive a fork (os.fork, multiprocessing's "fork", gunicorn's preload, Celery's prefork): in the
    child its methods raise RuntimeError, and `close` does nothing. Make a client in the child, and have none open in
    the parent at the fork: gRPC would not work in the child, and a new client there raises RuntimeError, too.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        tenant: str | None = None,
        key: Key | None = None,
        tls: bool = False,
        root_certificates: bytes | None = None,
        plaintext_key: bool = False,
        reconnect_s: float = 120.0,
        on_retry: OnRetry | None = None,
    ) -> None:
        """`address` is HOST:PORT, or grpcs://HOST:PORT, which turns `tls` on; so does `root_certificates`, a PEM file's
        bytes. `key` is an API key or a token, or a function that gives the one to send now; the server knows the tenant
        by it. `tenant` is for servers without keys, "default" by default. A lost call is sent again until the server
        has not answered for `reconnect_s` seconds, or 10 where nobody has ever answered this client; with 0 it is not.
        `on_retry` is called before each pause, with the error and the seconds, for a log or a metric.

        Raises InvalidField for an address of another form, and for a key that would leave this machine without TLS,
        unless `plaintext_key` says that something else encrypts it.
        """
        self._address, is_grpcs = split_address(checked_address(address))
        self._tls, self._root_certificates = tls or is_grpcs or root_certificates is not None, root_certificates
        self._key = checked_key(key) if isinstance(key, str) else key
        if self._key and not self._tls and not plaintext_key:
            refuse_readable_key(self._address)
        # A key has its tenant.
        self._parent = f"tenants/{tenant or 'default'}" if tenant or not key else ""
        self._reconnect_s, self._on_retry = reconnect_s, on_retry
        self._channel: grpc.aio.Channel | KeyedChannel | None = None
        self._closed = False
        self._end = asyncio.Event()  # of the client, which ends its pauses
        self._has_answered = False
        self._followed: dict[str, ToldEdit] = {}  # edits whose events are read, by each name that they had
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._address}{', closed' if self._closed else ''}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_channel", None) is not None and os.getpid() == self._process:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    async def close(self) -> None:
        """Close the connection and every stream on it. Closing twice is harmless, and so is closing after a fork."""
        if os.getpid() != self._process:
            return
        channel, self._channel, self._closed = self._channel, None, True
        self._end.set()
        if channel is not None:
            await channel.close(None)

    async def server_info(self) -> events.ServerInfo:
        """What the server is, its base model, defaults and limits."""
        stub = server_pb2_grpc.ServerServiceStub(self._connection())
        with self._typed_errors():
            return messages.server_info(await stub.GetServerInfo(server_pb2.GetServerInfoRequest()))

    async def health(self) -> str:
        """Whether the server takes calls: SERVING, NOT_SERVING or UNKNOWN, by grpc.health.v1."""
        # By hand: the package with these messages is installed with the services, not with the client.
        check = self._connection().unary_unary("/grpc.health.v1.Health/Check", None, None)
        with self._typed_errors():
            answer = await check(b"", timeout=HEALTH_S)
        return HEALTH.get(answer, "UNKNOWN")

    async def upload_image(self, image: Picture) -> events.Image:
        """Upload a picture: its bytes or the path of a PNG, JPEG, WebP, AVIF or HEIC file, at most 16 MiB and 64
        megapixels, 24 as WebP and 25 as AVIF or HEIC.

        Images are named by their digest, so uploading one again changes nothing.
        Raises InvalidArgument when the server cannot use the picture.
        """
        return await self._upload_file(await asyncio.to_thread(picture_bytes, image))

    async def create_upload(self) -> events.Upload:
        """A URL to which somebody else, such as a browser, PUTs a picture's file, which `claim_upload` makes an image.

        Raises FailedPrecondition for a server whose store is no bucket.
        """
        request = image_pb2.CreateUploadRequest(parent=self._parent)
        return messages.upload(await self._answer(lambda: self._images().CreateUpload(request)))

    async def claim_upload(self, name: str) -> events.Image:
        """The image of the file in an upload, which can be claimed once.

        Raises NotFound, FailedPrecondition while nothing was put there, and InvalidArgument as `upload_image` does.
        """
        header = image_pb2.UploadImageRequest.Header(parent=self._parent, upload=name)
        stub = self._images()
        with self._typed_errors():
            call = stub.UploadImage(iter([image_pb2.UploadImageRequest(header=header)]), timeout=UPLOAD_TIMEOUT_S)
            return messages.image(await call)

    async def _upload_file(self, data: bytes, field: str = "image") -> events.Image:
        """Errors name the field that the file is for."""
        if len(data) > MAX_BYTES:  # a server that refuses it does so while it is sent, and grpc may not say why
            header(data, field)
        backoff = self._backoff()
        while True:
            try:
                stub = self._images()
                with self._typed_errors():
                    return messages.image(await stub.UploadImage(self._upload(data), timeout=UPLOAD_TIMEOUT_S))
            except InvalidArgument as error:
                raise messages.file_error(error, field) from None
            except UniTuneError as error:
                await backoff.wait_after(error, even_if_full=error.reason in BRIEFLY_FULL)

    async def get_image(self, name: str) -> events.Image:
        """What is known of an uploaded picture. Raises NotFound."""
        request = image_pb2.GetImageRequest(name=name)
        return messages.image(await self._answer(lambda: self._images().GetImage(request)))

    async def list_images(self) -> AsyncGenerator[events.Image, None]:
        """The uploaded pictures of this tenant, in the order of their names."""
        request = image_pb2.ListImagesRequest(parent=self._parent)
        while True:
            page = await self._answer(lambda: self._images().ListImages(request))
            for one in page.images:
                yield messages.image(one)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def delete_image(self, name: str, *, allow_missing: bool = False) -> None:
        """Delete an uploaded picture. After a day the server itself deletes one that no tuning uses.

        Raises FailedPrecondition while a tuning uses it, NotFound unless `allow_missing`.
        """
        request = image_pb2.DeleteImageRequest(name=name, allow_missing=allow_missing)
        stub = self._images()
        await self._delete(stub.DeleteImage, request)

    async def create_tuning(
        self,
        image: Picture,
        *,
        further_images: Sequence[Picture] = (),
        labels: Mapping[str, str] | None = None,
        **config: Unpack[TuningOptions],
    ) -> events.Tuning:
        """Ask for a tuning and return at once; `config` is that of TuningOptions. `further_images` are up to 4 more of
        the same subject, with method "dreambooth".

        The same picture and config never tune twice: the tuning may be READY already. A path or bytes are uploaded.
        Raises InvalidField naming what is wrong, NotFound for an image that was never uploaded.
        """
        request = await self._tuning_request(image, further_images, config)
        request.request_id = str(uuid.uuid4())
        request.labels.update(labels or {})
        return messages.tuning(await self._answer(lambda: self._tunings().CreateTuning(request)))

    async def check_tuning(
        self, image: Picture, *, further_images: Sequence[Picture] = (), **config: Unpack[TuningOptions]
    ) -> events.Tuning:
        """What `create_tuning` would give, and nothing is made: a new tuning has no name here.

        Raises what `create_tuning` would be refused with.
        """
        request = await self._tuning_request(image, further_images, config)
        request.validate_only = True
        return messages.tuning(await self._answer(lambda: self._tunings().CreateTuning(request)))

    async def _tuning_request(
        self, image: Picture, further_images: Sequence[Picture], config: TuningOptions
    ) -> tuning_pb2.CreateTuningRequest:
        """The request for a tuning. What has no name yet is uploaded."""
        messages.refuse_unknown(config, TuningOptions)
        name, *further = [
            resource_name(one, "images") or (await self.upload_image(one)).name for one in (image, *further_images)
        ]
        return tuning_pb2.CreateTuningRequest(
            parent=self._parent, image=name, images=further, config=messages.tuning_config(config)
        )

    async def get_tuning(self, name: str) -> events.Tuning:
        """A tuning as it is now. Raises NotFound."""
        request = tuning_pb2.GetTuningRequest(name=name)
        return messages.tuning(await self._answer(lambda: self._tunings().GetTuning(request)))

    async def list_tunings(
        self, *, state: events.TuningState | str | None = None
    ) -> AsyncGenerator[events.Tuning, None]:
        """The tunings of this tenant, the newest first; with `state`, only those in it."""
        request = tuning_pb2.ListTuningsRequest(parent=self._parent)
        if state == events.TuningState.UNKNOWN:
            raise InvalidField("state", str(state), "name one that this client knows")
        if state is not None:
            request.state = getattr(tuning_pb2.Tuning, f"STATE_{events.TuningState(state)}")
        while True:
            page = await self._answer(lambda: self._tunings().ListTunings(request))
            for one in page.tunings:
                yield messages.tuning(one)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def watch_tuning(self, name: str, after_sequence: int = 0) -> AsyncGenerator[events.TuningEvent, None]:
        """The events of a tuning after number `after_sequence`, until it is READY.

        After a lost connection the events go on where they stopped: none is missing, and none comes twice.
        Raises the tuning's own error if it fails, Cancelled if it is cancelled, NotFound for an unknown name.
        """
        last = after_sequence
        # Who knows a tuning's name knows the address.
        backoff = Backoff(lambda: self._reconnect_s, self._end, on_retry=self._on_retry)
        failure: UniTuneError
        while True:
            try:
                async with aclosing(self._watch_once(name, last)) as stream:
                    async for event in stream:
                        backoff.succeeded()
                        last = max(last, event.sequence)
                        if isinstance(event, events.TuningFailed):
                            failure = event.error
                            break
                        if isinstance(event, events.TuningCancelled):
                            failure = Cancelled("the tuning was cancelled", reason="TUNING_CANCELLED")
                            break
                        yield event
                        if isinstance(event, events.TuningReady):
                            return
            except UniTuneError as error:
                await backoff.wait_after(error, even_if_full=last > after_sequence)
            else:  # the tuning's own failure: it may be Unavailable too, and is not tried again
                raise failure

    async def tune(
        self,
        image: Picture,
        *,
        further_images: Sequence[Picture] = (),
        on_event: Callable[[events.TuningEvent], object] | None = None,
        **config: Unpack[TuningOptions],
    ) -> events.Tuning:
        """Make a tuning and wait until it is READY; `on_event` is called with everything on the way.

        Raises as `create_tuning` and `watch_tuning` do. Leaving early does not cancel the tuning.
        """
        tuning = await self.create_tuning(image, further_images=further_images, **config)
        async for event in self.watch_tuning(tuning.name):
            if on_event is not None:
                on_event(event)
            if isinstance(event, events.TuningReady):
                tuning = event.tuning
        return tuning

    async def cancel_tuning(self, name: str) -> events.Tuning:
        """Stop a tuning before its next update; after its end this changes nothing. Raises NotFound."""
        request = tuning_pb2.CancelTuningRequest(name=name)
        return messages.tuning(await self._answer(lambda: self._tunings().CancelTuning(request)))

    async def update_tuning(
        self, name: str, *, labels: Mapping[str, str], expire_time: datetime | None, etag: str = ""
    ) -> events.Tuning:
        """Replace the labels of a tuning, and the time at which its weights are discarded; None keeps them until
        `delete_tuning`. With `etag`, that of the tuning as it was read, nothing changed meanwhile is overwritten.

        Raises NotFound, Aborted for an etag that is not current, InvalidField for a time that is past.
        """
        request = messages.update_tuning_request(name, labels, expire_time, etag)
        with self._typed_errors():
            return messages.tuning(await self._tunings().UpdateTuning(request))

    async def delete_tuning(self, name: str, *, allow_missing: bool = False) -> None:
        """Cancel a tuning if it runs, and discard its weights. Raises NotFound unless `allow_missing`."""
        request = tuning_pb2.DeleteTuningRequest(name=name, allow_missing=allow_missing)
        await self._delete(self._tunings().DeleteTuning, request)

    async def edit(
        self, image_or_tuning: Picture | events.Tuning, prompt: str, **options: Unpack[EditOptions]
    ) -> AsyncGenerator[events.EditEvent, None]:
        """Edit a picture by text and yield everything on the way; `options` are those of EditOptions.

        For a picture, the server finds its tuning or makes it first. The last event is EditDone. Closing the
        iterator early cancels the edit, but not a tuning that it began. An edit that is lost is asked for again within
        `timeout_s`: one Retrying says so, a second EditAccepted has its new name (the same if it was done
        meanwhile), and no picture or step comes twice.
        Raises the edit's own error if it fails, Cancelled if it is cancelled, InvalidField, NotFound, and
        FailedPrecondition for a tuning that is not READY.
        """
        async with aclosing(self._edit(image_or_tuning, prompt, options, validate_only=False)) as stream:
            async for event in stream:
                yield event

    async def check_edit(
        self, image_or_tuning: Picture | events.Tuning, prompt: str, **options: Unpack[EditOptions]
    ) -> events.EditAccepted:
        """The first event of such an edit, with settings in force and warnings. Nothing is tuned or edited.

        Raises what `edit` would be refused with, so that it is known before anything costly begins.
        """
        accepted = None
        async with aclosing(self._edit(image_or_tuning, prompt, options, validate_only=True)) as stream:
            async for event in stream:
                accepted = event if isinstance(event, events.EditAccepted) else accepted
        if accepted is None:
            raise Unavailable("the stream ended before the edit was accepted", reason="STREAM_ENDED")
        return accepted

    async def _edit(
        self, image_or_tuning: Picture | events.Tuning, prompt: str, options: EditOptions, *, validate_only: bool
    ) -> AsyncGenerator[events.EditEvent, None]:
        messages.refuse_unknown(options, EditOptions)
        mask, data, uploaded = options.get("mask"), b"", None
        if mask is not None and (uploaded := resource_name(mask, "images")) is None:
            data = await asyncio.to_thread(picture_bytes, mask, "mask")
        request = messages.edit_request(self._parent, prompt, {**options, "mask": data or None})
        if uploaded is not None:
            request.mask_image = uploaded
        elif len(data) > INLINE_MASK_BYTES:
            if wrong := other_kind(data, (PNG,)):
                raise InvalidField("mask", *wrong)
            request.mask_image = (await self._upload_file(data, "mask")).name
            request.ClearField("mask")
        request.validate_only = validate_only
        if not validate_only:
            request.request_id = str(uuid.uuid4())  # of all attempts, which so are one edit
        await self._set_target(request, image_or_tuning)
        told = ToldEdit()
        async with aclosing(
            self._repeated(lambda left_s: self._edit_once(request, told, left_s), told, options.get("timeout_s"))
        ) as stream:
            try:
                async for event in stream:
                    self._followed.update(dict.fromkeys(told.names, told))
                    yield event
            finally:
                for name in told.names:
                    self._followed.pop(name, None)

    async def _edit_once(
        self, request: edit_pb2.EditRequest, told: ToldEdit, timeout_s: float | None
    ) -> AsyncGenerator[events.EditEvent, None]:
        """The events of one attempt. Raises Unavailable when its stream breaks or ends early."""
        if told.edit:
            await self._end_lost(told)
        call, assembly = self._edits().Edit(request, timeout=timeout_s), Assembly()
        try:
            with self._typed_errors():
                async for message in call:
                    event = messages.edit_event(message, assembly)
                    if isinstance(event, UniTuneError):
                        raise event
                    if isinstance(event, events.Edit):
                        raise edit_cancelled()
                    if event is not None:
                        yield event
                    if isinstance(event, events.EditDone):
                        await read_to_end(call)
                        return
            raise Unavailable("the stream ended before the edit did", reason="STREAM_ENDED")
        finally:
            call.cancel()

    async def _end_lost(self, told: ToldEdit) -> None:
        """Cancel the attempt that was lost: a server that lives may not know yet that nobody reads it."""
        with suppress(UniTuneError), self._typed_errors():
            await self._edits().CancelEdit(edit_pb2.CancelEditRequest(name=told.edit), timeout=CANCEL_S)
        told.edit = ""

    async def edit_to_end(
        self,
        image_or_tuning: Picture | events.Tuning,
        prompt: str,
        *,
        on_event: Callable[[events.EditEvent], object] | None = None,
        **options: Unpack[EditOptions],
    ) -> events.EditResult:
        """Edit a picture by text and return its pictures; `on_event` is called with everything on the way.

        Raises as `edit` does.
        """
        seen: list[events.EditEvent] = []
        async for event in self.edit(image_or_tuning, prompt, **options):
            if on_event is not None:
                on_event(event)
            seen.append(event)
        return edit_result(seen)

    async def compare(
        self,
        picture: Picture,
        prompt: str,
        methods: Methods = None,
        *,
        class_noun: str | None = None,
        initial_word: str | None = None,
        base_prompt: str | None = None,
        seeds: Sequence[int] | None = None,
        omit_metadata: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[events.CompareEvent, None]:
        """Edit a picture by one prompt with several methods in turn, and yield everything on the way.

        `methods` are names, or a mapping from names to EditOptions of their own; None is every method that can run:
        "dreambooth" needs `class_noun`, "textual_inversion" `initial_word`, "prompt_to_prompt" `base_prompt`, which
        says what the picture shows. The prompt mentions the first two as they are, and the server puts in what a method
        binds. `timeout_s` is for all of it.

        One CompareResult per method, which may hold its error; the last event is CompareDone. Closing the iterator
        early stops the edit that runs, but not a tuning that it began.
        A comparison that is lost is asked for again within `timeout_s`, for the methods that are left; one Retrying
        says so.
        Raises InvalidField before the first event.
        """
        words = {"class_noun": class_noun, "initial_word": initial_word, "base_prompt": base_prompt}
        request = messages.compare_request(self._parent, prompt, methods, seeds, words)
        request.omit_metadata = omit_metadata
        request.request_id = str(uuid.uuid4())  # of all attempts, in which each method so has one edit
        async with aclosing(self._compare(request, picture, timeout_s)) as stream:
            async for event in stream:
                yield event

    async def check_compare(
        self,
        picture: Picture,
        prompt: str,
        methods: Methods = None,
        *,
        class_noun: str | None = None,
        initial_word: str | None = None,
        base_prompt: str | None = None,
        seeds: Sequence[int] | None = None,
    ) -> events.CompareAccepted:
        """The first event of such a comparison: the methods that would run, and warnings. Nothing is tuned or edited.

        Raises what `compare` would be refused with.
        """
        words = {"class_noun": class_noun, "initial_word": initial_word, "base_prompt": base_prompt}
        request = messages.compare_request(self._parent, prompt, methods, seeds, words)
        request.validate_only = True
        async with aclosing(self._compare(request, picture, None)) as stream:
            async for event in stream:
                if isinstance(event, events.CompareAccepted):
                    return event
        raise Unavailable("the stream ended before the comparison was accepted", reason="STREAM_ENDED")

    async def _compare(
        self, request: edit_pb2.CompareRequest, picture: Picture, timeout_s: float | None
    ) -> AsyncGenerator[events.CompareEvent, None]:
        await self._set_picture(request, picture)
        told = ToldComparison()
        async with aclosing(
            self._repeated(lambda left_s: self._compare_once(request, told, left_s), told, timeout_s)
        ) as stream:
            async for event in stream:
                yield event

    async def _compare_once(
        self, request: edit_pb2.CompareRequest, told: ToldComparison, timeout_s: float | None
    ) -> AsyncGenerator[events.CompareEvent, None]:
        """The events of one attempt. Raises Unavailable when its stream breaks or ends early."""
        if told.left is not None:
            if not told.left:
                yield events.CompareDone(total_s=told.age_s)
                return
            messages.narrow_comparison(request, told.left)
        call, reader = self._edits().Compare(request, timeout=timeout_s), messages.ComparisonReader()
        try:
            with self._typed_errors():
                async for message in call:
                    event = reader.event(message)
                    if isinstance(event, UniTuneError):
                        raise event
                    if isinstance(event, events.CompareDone) and told.is_repeat:
                        event = replace(event, total_s=told.age_s)
                    if event is not None:
                        yield event
                    if isinstance(event, events.CompareDone):
                        await read_to_end(call)
                        return
            raise Unavailable("the stream ended before the comparison did", reason="STREAM_ENDED")
        finally:
            call.cancel()

    async def get_edit(self, name: str, *, urls: bool = False) -> events.Edit:
        """An edit and, once it is done, its pictures; the server keeps it for 10 minutes. With `urls` the pictures have
        `png_url` and `mask_url`, for whoever has these, in place of their bytes.

        Raises NotFound, and FailedPrecondition for `urls` of a server whose store is no bucket.
        """
        request = edit_pb2.GetEditRequest(name=name, image_urls=urls)
        return messages.edit(await self._answer(lambda: self._edits().GetEdit(request)))

    async def cancel_edit(self, name: str) -> events.Edit:
        """Stop an edit before its next step; after its end this changes nothing. Raises NotFound.

        Any name that an edit of this client had will do, also while it is between two attempts.
        """
        if (told := self._followed.get(name)) is not None:
            if not told.began_now:
                told.cancelled.set()
                return events.Edit(name=name, state=events.EditState.CANCELLED)
            name = told.edit
        request = edit_pb2.CancelEditRequest(name=name)
        return messages.edit(await self._answer(lambda: self._edits().CancelEdit(request)))

    async def create_key(
        self, tenant: str, scopes: Sequence[str], *, expire_time: datetime | None = None
    ) -> events.NewKey:
        """Make an API key of a tenant; its secret is in the answer and nowhere else. `scopes` are of "read", "edit",
        "tune" and "admin", and "admin" is what a client needs that makes keys.

        Raises InvalidField for a scope that is none or a time that is past.
        """
        request = messages.create_key_request(tenant, scopes, expire_time)
        with self._typed_errors():
            made = await self._keys().CreateKey(request, timeout=KEY_TIMEOUT_S)
        return events.NewKey(api_key=messages.api_key(made.api_key), secret=made.secret)

    async def list_keys(self, tenant: str | None = None) -> AsyncGenerator[events.ApiKey, None]:
        """The API keys of a tenant, or of all, also those that ended in the last 30 days."""
        request = key_pb2.ListKeysRequest(parent=f"tenants/{tenant}" if tenant else "")
        while True:
            with self._typed_errors():
                page = await self._keys().ListKeys(request)
            for one in page.api_keys:
                yield messages.api_key(one)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def rotate_key(
        self, name: str, *, old_expire_time: datetime | None = None, expire_time: datetime | None = None
    ) -> events.NewKey:
        """A new API key of the same tenant and scopes as `name`, which ends at `old_expire_time`, by default now.

        Raises NotFound, and FailedPrecondition for a key that has ended.
        """
        request = messages.rotate_key_request(name, old_expire_time, expire_time)
        with self._typed_errors():
            made = await self._keys().RotateKey(request, timeout=KEY_TIMEOUT_S)
        return events.NewKey(api_key=messages.api_key(made.api_key), secret=made.secret)

    async def revoke_key(self, name: str) -> events.ApiKey:
        """End an API key now. Revoking it again changes nothing. Raises NotFound."""
        with self._typed_errors():
            return messages.api_key(await self._keys().RevokeKey(key_pb2.RevokeKeyRequest(name=name)))

    async def list_usage(
        self, tenant: str | None = None, *, start_day: date | None = None, end_day: date | None = None
    ) -> AsyncGenerator[events.Usage, None]:
        """What a tenant has used from day to day, by default in the last 30, and stores now. Without `tenant` it is the
        key's own, and with the key of an admin, or on a server without keys, it is each of all.
        """
        request = usage_pb2.ListUsageRequest(
            parent=f"tenants/{tenant}" if tenant else "",
            start_day=start_day.isoformat() if start_day else "",
            end_day=end_day.isoformat() if end_day else "",
        )
        stub = usage_pb2_grpc.UsageServiceStub(self._connection())
        while True:
            page = await self._answer(lambda: stub.ListUsage(request))
            for one in page.usage:
                yield messages.usage(one)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _connection(self) -> Any:
        forks.refuse_foreign(self._process)
        if self._closed:
            raise RuntimeError(f"{self!r} cannot be used any more")
        if self._channel is None:
            self._channel = open_channel(self._address, self._tls, self._root_certificates, self._key)
        return self._channel

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        """As `typed_errors`; it remembers whether a server of ours has answered."""
        try:
            with typed_errors(self._address):
                yield
        except UniTuneError as error:
            self._has_answered |= not isinstance(error, Unreached)
            raise
        self._has_answered = True

    def _backoff(self, timeout_s: float | None = None, first_contact_s: float = FIRST_CONTACT_S) -> Backoff:
        def patience_s() -> float:
            return self._reconnect_s if self._has_answered else min(self._reconnect_s, first_contact_s)

        return Backoff(patience_s, self._end, on_retry=self._on_retry, timeout_s=timeout_s)

    async def _answer(self, call: Callable[[], Awaitable[T]]) -> T:
        """The answer to a call that may be repeated. An address where nobody ever answered is told at once."""
        backoff = self._backoff(first_contact_s=0.0)
        while True:
            try:
                with self._typed_errors():
                    return await call()
            except UniTuneError as error:
                await backoff.wait_after(error)

    async def _delete(
        self,
        call: Callable[[Any], Awaitable[Any]],
        request: image_pb2.DeleteImageRequest | tuning_pb2.DeleteTuningRequest,
    ) -> None:
        """Have the server delete something. A repeat may find nothing, since the attempt before it had deleted it."""

        async def once() -> None:
            try:
                await call(request)
            finally:
                request.allow_missing = True

        await self._answer(once)

    async def _repeated(
        self, once: Callable[[float | None], AsyncGenerator[E, None]], told: Told[E], timeout_s: float | None
    ) -> AsyncGenerator[E | events.Retrying, None]:
        """The events of a stream, which is asked for again when it is lost. `once` opens it, with the time that is
        left; it ends with its last event, or raises.
        """
        backoff = self._backoff(timeout_s)
        while True:
            try:
                async with aclosing(once(backoff.left_s)) as stream:
                    async for event in stream:
                        self._has_answered = True
                        backoff.answered()
                        if told.cancelled.is_set():
                            raise edit_cancelled()
                        if told.tells(event):
                            yield event
                return
            except UniTuneError as error:
                lost = error
            if told.is_over:
                raise lost
            retrying = told.lost(lost, self._reconnect_s)
            pause_s = backoff.pause_after(lost, even_if_full=told.has_begun)
            if retrying is not None:
                yield retrying
            await backoff.pause(pause_s, told.cancelled)
            if told.cancelled.is_set():
                raise edit_cancelled()

    def _images(self) -> Any:
        return image_pb2_grpc.ImageServiceStub(self._connection())

    def _tunings(self) -> Any:
        return tuning_pb2_grpc.TuningServiceStub(self._connection())

    def _edits(self) -> Any:
        return edit_pb2_grpc.EditServiceStub(self._connection())

    def _keys(self) -> Any:
        return key_pb2_grpc.KeyServiceStub(self._connection())

    def _upload(self, data: bytes) -> Iterator[image_pb2.UploadImageRequest]:
        digest = hashlib.sha256(data).hexdigest()
        header = image_pb2.UploadImageRequest.Header(parent=self._parent, size_bytes=len(data), sha256=digest)
        yield image_pb2.UploadImageRequest(header=header)
        for start in range(0, len(data), CHUNK_BYTES):
            yield image_pb2.UploadImageRequest(chunk=data[start : start + CHUNK_BYTES])

    async def _watch_once(self, name: str, after_sequence: int) -> AsyncGenerator[events.TuningEvent, None]:
        """The events of one connection. Raises Unavailable when it breaks or ends."""
        request = tuning_pb2.WatchTuningRequest(name=name, after_sequence=after_sequence)
        call = self._tunings().WatchTuning(request)
        try:
            with self._typed_errors():
                async for message in call:
                    event = messages.tuning_event(message)
                    if event is not None:
                        yield event
            raise Unavailable("the stream ended before the tuning did", reason="STREAM_ENDED")
        finally:
            call.cancel()

    async def _set_target(self, request: edit_pb2.EditRequest, target: Picture | events.Tuning) -> None:
        if (tuning := resource_name(target, "tunings")) is not None:
            request.tuning = tuning
        else:
            await self._set_picture(request, target)

    async def _set_picture(
        self, request: edit_pb2.EditRequest | edit_pb2.CompareRequest, target: Picture | events.Tuning
    ) -> None:
        if (image := resource_name(target, "images")) is not None:
            request.image = image
        else:
            data = await asyncio.to_thread(picture_bytes, target)
            if len(data) <= INLINE_IMAGE_BYTES:
                request.image_data = data
            else:
                request.image = (await self.upload_image(data)).name


def edit_cancelled() -> Cancelled:
    """The error of an edit that was cancelled."""
    return Cancelled("the edit was cancelled", reason="EDIT_CANCELLED")


def edit_result(seen: list[events.EditEvent]) -> events.EditResult:
    """The result of an edit, from all of its events."""
    accepted = next(event for event in reversed(seen) if isinstance(event, events.EditAccepted))
    done = next(event for event in seen if isinstance(event, events.EditDone))
    images = [event for event in seen if isinstance(event, events.EditedImage)]
    return events.EditResult(
        edit=accepted.edit,
        images=tuple(sorted(images, key=lambda image: image.index)),
        config=accepted.config,
        effective_strength=accepted.effective_strength,
        warnings=(*accepted.warnings, *(event.text for event in seen if isinstance(event, events.EditWarning))),
        timings=done.timings,
        tuning=done.tuning,
    )
