"""Client: the same calls as AsyncClient, for programs without asyncio. Each waits for its answer."""

import asyncio
import contextlib
import os
import sys
import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from datetime import date, datetime
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from unitune_client import events, forks
from unitune_client.async_client import AsyncClient, edit_result
from unitune_client.channel import Key
from unitune_client.messages import Methods
from unitune_client.options import EditOptions, TuningOptions
from unitune_client.pictures import Picture
from unitune_client.repeats import OnRetry

LOOK_S = 0.1  # how often a thread that waits looks whether another one closed the client
ENDING_S = 1.0  # that closing waits for the ends of its calls, which take milliseconds

T = TypeVar("T")


class Client:
    """A connection to one UniTune server, which any thread may use.

        with Client("localhost:50051") as client:
            tuning = client.tune("cat.png")
            result = client.edit_to_end(tuning, "a cat on a beach", seeds=[1, 2])
            result.images[0].save("beach.png")

    An AsyncClient does the work in a thread of its own. Its documentation says what the methods do and raise, and
    what a fork means.
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
        """As AsyncClient; `on_retry` is called in the client's own thread."""
        self._client = AsyncClient(
            address,
            tenant=tenant,
            key=key,
            tls=tls,
            root_certificates=root_certificates,
            plaintext_key=plaintext_key,
            reconnect_s=reconnect_s,
            on_retry=on_retry,
        )
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        # The thread holds the loop and not the client, so that a forgotten client is still collected, and warns.
        self._thread = threading.Thread(target=_run_loop, args=(self._loop,), name="unitune-client", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return repr(self._client).replace("AsyncClient", "Client", 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        loop = getattr(self, "_loop", None)
        if loop is not None and not loop.is_closed() and os.getpid() == self._process:
            message = f"unclosed {self!r}"
            # Not `close`: this may run in any thread, the loop's own too, where waiting would never end.
            asyncio.run_coroutine_threadsafe(_close_and_stop(self._client), loop)
            warnings.warn(message, ResourceWarning, source=self, stacklevel=2)

    def close(self) -> None:
        """Close the connection and every stream on it, and end the thread. Closing twice is harmless, and so is
        closing after a fork.
        """
        if self._loop.is_closed() or os.getpid() != self._process:
            return
        self._wait_for(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def server_info(self) -> events.ServerInfo:
        """As AsyncClient.server_info."""
        return self._wait_for(self._client.server_info())

    def health(self) -> str:
        """Whether the server takes calls: SERVING, NOT_SERVING or UNKNOWN."""
        return self._wait_for(self._client.health())

    def upload_image(self, image: Picture) -> events.Image:
        """As AsyncClient.upload_image."""
        return self._wait_for(self._client.upload_image(image))

    def create_upload(self) -> events.Upload:
        """As AsyncClient.create_upload."""
        return self._wait_for(self._client.create_upload())

    def claim_upload(self, name: str) -> events.Image:
        """As AsyncClient.claim_upload."""
        return self._wait_for(self._client.claim_upload(name))

    def get_image(self, name: str) -> events.Image:
        """As AsyncClient.get_image."""
        return self._wait_for(self._client.get_image(name))

    def list_images(self) -> Generator[events.Image, None, None]:
        """As AsyncClient.list_images."""
        return self._iterate(self._client.list_images())

    def delete_image(self, name: str, *, allow_missing: bool = False) -> None:
        """As AsyncClient.delete_image."""
        self._wait_for(self._client.delete_image(name, allow_missing=allow_missing))

    def create_tuning(
        self,
        image: Picture,
        *,
        further_images: Sequence[Picture] = (),
        labels: Mapping[str, str] | None = None,
        **config: Unpack[TuningOptions],
    ) -> events.Tuning:
        """As AsyncClient.create_tuning."""
        return self._wait_for(self._client.create_tuning(image, further_images=further_images, labels=labels, **config))

    def check_tuning(
        self, image: Picture, *, further_images: Sequence[Picture] = (), **config: Unpack[TuningOptions]
    ) -> events.Tuning:
        """As AsyncClient.check_tuning."""
        return self._wait_for(self._client.check_tuning(image, further_images=further_images, **config))

    def get_tuning(self, name: str) -> events.Tuning:
        """As AsyncClient.get_tuning."""
        return self._wait_for(self._client.get_tuning(name))

    def list_tunings(self, *, state: events.TuningState | str | None = None) -> Generator[events.Tuning, None, None]:
        """As AsyncClient.list_tunings."""
        return self._iterate(self._client.list_tunings(state=state))

    def watch_tuning(self, name: str, after_sequence: int = 0) -> Generator[events.TuningEvent, None, None]:
        """As AsyncClient.watch_tuning."""
        return self._iterate(self._client.watch_tuning(name, after_sequence))

    def tune(
        self,
        image: Picture,
        *,
        further_images: Sequence[Picture] = (),
        on_event: Callable[[events.TuningEvent], object] | None = None,
        **config: Unpack[TuningOptions],
    ) -> events.Tuning:
        """As AsyncClient.tune; `on_event` is called in this thread."""
        tuning = self.create_tuning(image, further_images=further_images, **config)
        for event in self.watch_tuning(tuning.name):
            if on_event is not None:
                on_event(event)
            if isinstance(event, events.TuningReady):
                tuning = event.tuning
        return tuning

    def cancel_tuning(self, name: str) -> events.Tuning:
        """As AsyncClient.cancel_tuning."""
        return self._wait_for(self._client.cancel_tuning(name))

    def update_tuning(
        self, name: str, *, labels: Mapping[str, str], expire_time: datetime | None, etag: str = ""
    ) -> events.Tuning:
        """As AsyncClient.update_tuning."""
        return self._wait_for(self._client.update_tuning(name, labels=labels, expire_time=expire_time, etag=etag))

    def delete_tuning(self, name: str, *, allow_missing: bool = False) -> None:
        """As AsyncClient.delete_tuning."""
        self._wait_for(self._client.delete_tuning(name, allow_missing=allow_missing))

    def edit(
        self, image_or_tuning: Picture | events.Tuning, prompt: str, **options: Unpack[EditOptions]
    ) -> Generator[events.EditEvent, None, None]:
        """As AsyncClient.edit."""
        return self._iterate(self._client.edit(image_or_tuning, prompt, **options))

    def check_edit(
        self, image_or_tuning: Picture | events.Tuning, prompt: str, **options: Unpack[EditOptions]
    ) -> events.EditAccepted:
        """As AsyncClient.check_edit."""
        return self._wait_for(self._client.check_edit(image_or_tuning, prompt, **options))

    def edit_to_end(
        self,
        image_or_tuning: Picture | events.Tuning,
        prompt: str,
        *,
        on_event: Callable[[events.EditEvent], object] | None = None,
        **options: Unpack[EditOptions],
    ) -> events.EditResult:
        """As AsyncClient.edit_to_end; `on_event` is called in this thread."""
        seen: list[events.EditEvent] = []
        for event in self.edit(image_or_tuning, prompt, **options):
            if on_event is not None:
                on_event(event)
            seen.append(event)
        return edit_result(seen)

    def compare(
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
    ) -> Generator[events.CompareEvent, None, None]:
        """As AsyncClient.compare."""
        stream = self._client.compare(
            picture,
            prompt,
            methods,
            class_noun=class_noun,
            initial_word=initial_word,
            base_prompt=base_prompt,
            seeds=seeds,
            omit_metadata=omit_metadata,
            timeout_s=timeout_s,
        )
        return self._iterate(stream)

    def check_compare(
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
        """As AsyncClient.check_compare."""
        check = self._client.check_compare(
            picture,
            prompt,
            methods,
            class_noun=class_noun,
            initial_word=initial_word,
            base_prompt=base_prompt,
            seeds=seeds,
        )
        return self._wait_for(check)

    def get_edit(self, name: str, *, urls: bool = False) -> events.Edit:
        """As AsyncClient.get_edit."""
        return self._wait_for(self._client.get_edit(name, urls=urls))

    def cancel_edit(self, name: str) -> events.Edit:
        """As AsyncClient.cancel_edit."""
        return self._wait_for(self._client.cancel_edit(name))

    def create_key(self, tenant: str, scopes: Sequence[str], *, expire_time: datetime | None = None) -> events.NewKey:
        """As AsyncClient.create_key."""
        return self._wait_for(self._client.create_key(tenant, scopes, expire_time=expire_time))

    def list_usage(
        self, tenant: str | None = None, *, start_day: date | None = None, end_day: date | None = None
    ) -> Generator[events.Usage, None, None]:
        """As AsyncClient.list_usage."""
        return self._iterate(self._client.list_usage(tenant, start_day=start_day, end_day=end_day))

    def list_keys(self, tenant: str | None = None) -> Generator[events.ApiKey, None, None]:
        """As AsyncClient.list_keys."""
        return self._iterate(self._client.list_keys(tenant))

    def rotate_key(
        self, name: str, *, old_expire_time: datetime | None = None, expire_time: datetime | None = None
    ) -> events.NewKey:
        """As AsyncClient.rotate_key."""
        return self._wait_for(self._client.rotate_key(name, old_expire_time=old_expire_time, expire_time=expire_time))

    def revoke_key(self, name: str) -> events.ApiKey:
        """As AsyncClient.revoke_key."""
        return self._wait_for(self._client.revoke_key(name))

    def _wait_for(self, call: Coroutine[Any, Any, T]) -> T:
        """The answer of a call. An interrupt of this thread, such as Ctrl-C, cancels the call and waits for its end."""
        try:
            forks.refuse_foreign(self._process)
        except RuntimeError:
            call.close()
            raise
        if self._loop.is_closed():
            call.close()
            raise self._closed()
        begun: list[asyncio.Task[T]] = []
        ended: list[bool] = []
        woken: SimpleQueue[None] = SimpleQueue()

        def begin() -> None:
            begun.append(self._loop.create_task(call))
            begun[0].add_done_callback(lambda task: end())

        def give_up() -> None:
            if begun:
                begun[0].cancel()
            else:  # the interrupt came before `begin` was handed over
                call.close()
                end()

        def end() -> None:
            ended.append(True)
            woken.put(None)

        def wait() -> None:
            # Futures, events and conditions take locks in Python code: an interrupt between two of its lines breaks
            # them. This queue waits in C, and an interrupt that swallows its item still leaves `ended`.
            while not ended:
                try:
                    woken.get(timeout=LOOK_S)
                except Empty:
                    if self._loop.is_closed() and not ended:  # another thread closed it before the call began or ended
                        call.close()
                        raise self._closed() from None

        try:
            self._loop.call_soon_threadsafe(begin)
            wait()
        except BaseException:
            if self._loop.is_closed():
                raise
            self._loop.call_soon_threadsafe(give_up)
            wait()
            raise
        if begun[0].cancelled():
            raise self._closed()
        return begun[0].result()

    def _closed(self) -> RuntimeError:
        return RuntimeError(f"{self!r} cannot be used any more")

    def _iterate(self, stream: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """The stream, item by item; it is closed when the caller stops asking."""
        try:
            while True:
                item = self._wait_for(_next(stream))
                if item is _END:
                    return
                yield item  # type: ignore[misc]
        finally:
            if threading.current_thread() is self._thread:  # collected there: waiting would never end
                self._loop.create_task(stream.aclose())
            elif os.getpid() != self._process:
                pass  # the parent's stream
            elif not self._loop.is_closed() and not sys.is_finalizing():  # at exit the thread stands still
                self._wait_for(_close(stream))


_END = object()


async def _next(stream: AsyncGenerator[T, None]) -> T | object:
    return await anext(stream, _END)


async def _close(stream: AsyncGenerator[Any, None]) -> None:
    await stream.aclose()


async def _close_and_stop(client: AsyncClient) -> None:
    await client.close()
    asyncio.get_running_loop().stop()


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    """Wait for tasks, and cancel those that do not end by themselves.

    grpc still has to end each call of the closed channel. All loops of a process share grpc's queue: an event for a
    loop that is closed by then would be an error in the log of the loop that reads the queue next.
    """
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), ENDING_S)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_end(asyncio.all_tasks(loop)))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
