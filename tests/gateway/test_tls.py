"""TLS to clients and between the services: who is let in, who is believed, and what a new certificate needs."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from gateway.config import GatewayConfig
from gateway.sampler_connection import SamplerConnection
from sampler_svc.config import SamplerConfig
from tests.certificates import Authority
from tests.gateway.conftest import World, edit, eventually, picture, refused
from tests.gateway.test_main import start
from tests.gateway.upstream_servers import serve_sampler, serve_tuner
from tuner_svc import gateways as tuner_gateways
from tuner_svc.config import TunerConfig
from tuner_svc.gateways import Gateways
from unitune import peers, serving
from unitune.certificates import CertificateFiles, CertificateReader
from unitune.errors import InvalidField, Unauthenticated, Unavailable
from unitune.v1.sampler_pb2 import GetSamplerInfoRequest
from unitune.v1.sampler_pb2_grpc import SamplerServiceStub
from unitune.v1.server_pb2 import GetServerInfoRequest
from unitune.v1.server_pb2_grpc import ServerServiceStub
from unitune.v1.tuner_pb2 import ReportTuningRequest, TakeTuningRequest
from unitune.v1.tuner_pb2_grpc import TunerPoolServiceStub
from unitune.v1.tuning_pb2 import CancelTuningRequest, Tuning, TuningEvent, WatchTuningRequest
from unitune.v1.tuning_pb2_grpc import TuningServiceStub
from unitune_client import AsyncClient

LOCAL = ("localhost", "127.0.0.1")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Who vouches for all services."""
    return Authority.make(tmp_path)


@pytest.fixture
async def mutual(world: World, authority: Authority) -> AsyncIterator[World]:
    """A gateway, a tuner and a sampler that know each other by their certificates."""
    await world.close()
    await world.tuner_server.stop()
    await world.sampler_server.stop()
    of = {
        name: authority.issue(world.folder, name, peers=authority)
        for name in (peers.GATEWAY, peers.TUNER, peers.SAMPLER)
    }
    world.sampler_server = await serve_sampler(world.sampler, **peers.served_by(CertificateReader(of[peers.SAMPLER])))
    world.config = replace(
        world.config,
        sampler=world.sampler_server.address,
        peer_cert=of[peers.GATEWAY].certificate,
        peer_key=of[peers.GATEWAY].key,
        peer_ca=authority.path,
    )
    await world.open()
    assert world.gateway is not None
    credentials = CertificateReader(of[peers.TUNER]).channel_credentials()
    world.tuner_server = await serve_tuner(world.tuner, world.gateway.internal_address, credentials)
    yield world


def certificate_of(channel: grpc.aio.Channel) -> Any:
    """A call that tells whether the server's certificate is believed."""
    return ServerServiceStub(channel).GetServerInfo(GetServerInfoRequest(), timeout=10)


def trusting(address: str, authority: Authority) -> grpc.aio.Channel:
    """A channel that believes an authority."""
    return serving.channel(
        address, credentials=grpc.ssl_channel_credentials(authority.path.read_bytes()), name="localhost"
    )


@pytest.mark.slow
async def test_a_client_knows_the_gateway_by_its_certificate(world: World, authority: Authority) -> None:
    """The SDK with the authority is answered, with a key; without TLS, or with other authorities, it is not."""
    files = authority.issue(world.folder, "door", *LOCAL)
    key_file = world.folder / "admin.key"
    process, address = await start(
        world,
        UNITUNE_TLS_CERT=str(files.certificate),
        UNITUNE_TLS_KEY=str(files.key),
        UNITUNE_ADMIN_KEY_FILE=str(key_file),
        UNITUNE_GATEWAY_ADDRESS="0.0.0.0:0",
    )
    port, certificate = address.rpartition(":")[2], authority.path.read_bytes()
    for host in LOCAL:
        async with AsyncClient(
            f"grpcs://{host}:{port}", key=key_file.read_text(), root_certificates=certificate
        ) as admin:
            made = await admin.create_key("acme", ["read", "edit", "tune"])
            assert made.api_key.scopes == ("read", "edit", "tune") and made.secret not in repr(made)
            with pytest.raises(InvalidField, match=r"scopes\[1\] is 'write': give one of read, edit, tune, admin"):
                await admin.create_key("acme", ["read", "write"])
    async with AsyncClient(f"localhost:{port}", key=lambda: made.secret, root_certificates=certificate) as client:
        tuning = await client.create_tuning(picture())
        assert tuning.name.startswith("tenants/acme/tunings/")
        assert [tuning.name] == [one.name async for one in client.list_tunings()]
        accepted = await client.check_edit(picture(), "a dog")
        assert accepted.config.method == "unitune"
    async with AsyncClient(f"grpcs://localhost:{port}", root_certificates=certificate) as stranger:
        with pytest.raises(Unauthenticated, match="UNITUNE_KEY"):
            await stranger.server_info()
    other = Authority.make(world.folder, "other").path.read_bytes()
    for client, words in (
        (
            AsyncClient(f"grpcs://localhost:{port}", key=made.secret, root_certificates=other),
            "no authority that is trusted",
        ),
        (AsyncClient(f"grpcs://localhost:{port}", key=made.secret), "--ca or root_certificates"),
        (AsyncClient(f"grpcs://127.0.0.2:{port}", key=made.secret, root_certificates=certificate), "of another name"),
        (AsyncClient(f"localhost:{port}", key=made.secret), "no UniTune server answers"),
        (AsyncClient(f"grpcs://{world.tuner_server.address}", key=made.secret), "without TLS"),
    ):
        async with client:
            with pytest.raises(Unavailable, match=words):
                await client.server_info()
    process.terminate()
    assert await process.wait() == 0


async def test_a_new_certificate_drops_no_call(world: World, authority: Authority) -> None:
    """It is used from the next connection on, without a restart; calls and a stream go on over the old ones (F41)."""
    assert world.gateway is not None and world.server is not None
    files = authority.issue(world.folder, "door", *LOCAL)
    reader = CertificateReader(files)
    server = await serving.start("127.0.0.1:0", world.gateway.register, credentials=reader.server_credentials())
    world.tuner.go_on.clear()
    tuning = await world.tune()
    failures: list[Exception] = []
    done = asyncio.Event()

    async def call_on(authority: Authority, *, anew: bool) -> None:
        channel = trusting(server.address, authority)
        while not done.is_set():
            try:
                await certificate_of(channel)
            except grpc.aio.AioRpcError as error:
                failures.append(error)
            if anew:
                await channel.close()
                channel = trusting(server.address, authority)
            await asyncio.sleep(0.01)
        await channel.close()

    calls = [asyncio.create_task(call_on(authority, anew=anew)) for anew in (False, True)]
    async with trusting(server.address, authority) as channel:
        watch = TuningServiceStub(channel).WatchTuning(WatchTuningRequest(name=tuning.name), timeout=30)
        assert await watch.read() is not grpc.aio.EOF
        for _ in range(5):
            authority.issue(world.folder, "door", *LOCAL)
            await asyncio.sleep(0.1)
        world.tuner.go_on.set()
        last = None
        while (event := await watch.read()) is not grpc.aio.EOF:
            last = event
        assert last is not None and last.HasField("ready")
    done.set()
    await asyncio.gather(*calls)
    assert not failures

    replacing = Authority.make(world.folder, "replacing")
    replacing.issue(world.folder, "door", *LOCAL)
    async with trusting(server.address, replacing) as channel:
        await certificate_of(channel)
    async with trusting(server.address, authority) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await certificate_of(channel)
        assert caught.value.code() is StatusCode.UNAVAILABLE
    await server.stop()


@pytest.mark.parametrize("fault", ["cut", "of another key", "gone", "text"])
async def test_a_broken_certificate_changes_nothing(world: World, authority: Authority, fault: str) -> None:
    """The one that was read last stays in use, the log says why, and a whole one is taken again."""
    assert world.gateway is not None
    files = authority.issue(world.folder, "door", *LOCAL)
    whole = files.certificate.read_bytes()
    server = await serving.start(
        "127.0.0.1:0", world.gateway.register, credentials=CertificateReader(files).server_credentials()
    )
    if fault == "gone":
        files.certificate.unlink()
    else:
        other = authority.issue(world.folder, "other", *LOCAL).certificate.read_bytes()
        data = {"cut": whole[:200], "of another key": other, "text": b"text"}[fault]
        files.certificate.write_bytes(data)
    for _ in range(2):
        async with trusting(server.address, authority) as channel:
            assert (await certificate_of(channel)).version
    replacing = Authority.make(world.folder, "replacing")
    replacing.issue(world.folder, "door", *LOCAL)
    async with trusting(server.address, replacing) as channel:
        assert (await certificate_of(channel)).version
    await server.stop()


async def test_services_with_certificates_make_an_edit(mutual: World) -> None:
    """Everything that the gateway asks of tuner and sampler passes."""
    tuning = await mutual.tuned()
    events = await edit(mutual, tuning=tuning.name)
    assert events[-1].HasField("done")


async def test_all_samplers_have_one_name(mutual: World, authority: Authority) -> None:
    """Whatever their addresses, samplers with the sampler's certificate are watched and used."""
    files = authority.issue(mutual.folder, "another", peers.SAMPLER, peers=authority)
    another = await serve_sampler(mutual.sampler, **peers.served_by(CertificateReader(files)))
    mutual.sampler.epoch = ""  # of two processes
    await mutual.close()
    mutual.config = replace(mutual.config, sampler=f"{mutual.config.sampler},{another.address}")
    await mutual.open()

    async def are_watched() -> bool:
        assert mutual.gateway is not None
        return [one.is_watched for one in mutual.gateway._samplers._usable()] == [True, True]

    await eventually(are_watched)
    assert (await edit(mutual, image_data=picture()))[-1].HasField("done")
    await another.stop()


async def test_a_sampler_answers_the_gateway_alone(mutual: World, authority: Authority) -> None:
    """Nobody without a certificate, with one of another authority, or with another service's gets an answer (F41)."""
    foreign = Authority.make(mutual.folder, "foreign")

    async def asks(credentials: grpc.ChannelCredentials | None) -> Any:
        channel = serving.channel(mutual.sampler_server.address, credentials=credentials, name=peers.SAMPLER)
        async with channel:
            return await SamplerServiceStub(channel).GetSamplerInfo(GetSamplerInfoRequest(), timeout=10)

    def reader(of: Authority, name: str, *names: str) -> grpc.ChannelCredentials:
        return CertificateReader(of.issue(mutual.folder, name, *names, peers=authority)).channel_credentials()

    assert (await asks(reader(authority, "again", peers.GATEWAY))).engine
    for credentials in (
        None,
        grpc.ssl_channel_credentials(authority.path.read_bytes()),
        reader(foreign, "stranger", peers.GATEWAY),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asks(credentials)
        assert caught.value.code() is StatusCode.UNAVAILABLE
    for name in (peers.TUNER, "gateway.unitune.svc.example.com", "x.gateway.unitune.svc"):
        await refused(asks(reader(authority, "peer", name)), StatusCode.PERMISSION_DENIED, "PEER_REFUSED")


async def test_the_gateway_believes_only_the_service_that_it_calls(mutual: World, authority: Authority) -> None:
    """A sampler with the tuner's certificate, or with one of another authority, is as good as none."""
    for issuer, name in ((authority, peers.TUNER), (Authority.make(mutual.folder, "foreign"), peers.SAMPLER)):
        files = issuer.issue(mutual.folder, "false", name, peers=authority)
        server = await serve_sampler(mutual.sampler, **peers.served_by(CertificateReader(files)))
        gateway_files = CertificateFiles(mutual.config.peer_cert, mutual.config.peer_key, authority.path)  # type: ignore[arg-type]
        of = SamplerConnection(server.address, certificates=CertificateReader(gateway_files))
        with pytest.raises(Unavailable):
            await of.sampler_info()
        await of.close()
        await server.stop()


async def test_only_a_tuner_takes_tunings(mutual: World, authority: Authority) -> None:
    """The gateway's internal port answers the tuner's certificate alone."""
    assert mutual.gateway is not None
    files = authority.issue(mutual.folder, "false-tuner", peers.SAMPLER, peers=authority)
    credentials = CertificateReader(files).channel_credentials()
    request = TakeTuningRequest(tuner=mutual.tuner.process, base_model="b")
    address = mutual.gateway.internal_address
    async with serving.channel(address, credentials=credentials, name=peers.GATEWAY) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await TunerPoolServiceStub(channel).TakeTuning(request, timeout=10)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    async with serving.channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await TunerPoolServiceStub(channel).TakeTuning(request, timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_new_certificate_of_the_gateway_cuts_no_edit(mutual: World, authority: Authority) -> None:
    """New calls use it, and an edit that runs over the old connection ends well."""
    tuning = await mutual.tuned()
    mutual.sampler.go_on.clear()
    running = asyncio.create_task(edit(mutual, tuning=tuning.name))

    async def runs() -> bool:
        return bool(mutual.sampler.requests)

    await eventually(runs)
    assert mutual.gateway is not None
    (of,) = mutual.gateway._samplers._connections.values()
    before = of._connections
    authority.issue(mutual.folder, peers.GATEWAY, peers=authority)

    async def renewed() -> bool:
        return of._connections is not before

    await eventually(renewed)
    mutual.sampler.go_on.set()
    assert (await running)[-1].HasField("done")
    assert (await edit(mutual, tuning=tuning.name))[-1].HasField("done")
    assert before.streams == 0


async def test_a_new_certificate_of_the_gateway_is_for_all_its_connections(mutual: World, authority: Authority) -> None:
    """With several samplers it is the one by which each of them is called, and that of the internal port."""
    files = authority.issue(mutual.folder, "second", peers.SAMPLER, peers=authority)
    second = await serve_sampler(mutual.sampler, **peers.served_by(CertificateReader(files)))
    await mutual.close()
    mutual.config = replace(mutual.config, sampler=f"{mutual.config.sampler},{second.address}")
    await mutual.open()
    assert mutual.gateway is not None
    known = mutual.gateway._samplers._connections.values()

    async def are_known() -> bool:
        return [one.is_answering for one in known] == [True, True]

    await eventually(are_known)
    before = [one._connections for one in known]
    files = authority.issue(mutual.folder, peers.GATEWAY, peers=authority)

    async def renewed() -> bool:
        return all(one._connections is not old for one, old in zip(known, before, strict=True))

    await eventually(renewed)
    context = ssl.create_default_context(cafile=authority.path)
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    host, _, port = mutual.gateway.internal_address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=peers.GATEWAY)
    served = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    assert served == ssl.PEM_cert_to_DER_cert(files.certificate.read_text())
    writer.close()
    await second.stop()


@pytest.fixture
async def tuning(mutual: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Gateways, ReportTuningRequest]]:
    """A tuner's connections with its certificate, in the midst of a tuning, and a report of that."""
    monkeypatch.setattr(tuner_gateways, "LOOKS_S", 0.0)
    assert mutual.gateway is not None and mutual.tuner_server is not None
    await mutual.tuner_server.stop()
    files = CertificateFiles(
        *(mutual.folder / f"{peers.TUNER}.{kind}" for kind in ("crt", "key")), mutual.config.peer_ca
    )
    gateways = Gateways([mutual.gateway.internal_address], CertificateReader(files))
    made = await mutual.tune()
    taken = await gateways.take(TakeTuningRequest(tuner=mutual.tuner.process, base_model=made.base_model), 5.0)
    name, attempt = taken.assignment.name, taken.assignment.attempt
    assert name == made.name
    yield gateways, ReportTuningRequest(name=name, attempt=attempt, tuner=mutual.tuner.process)
    await gateways.close()


async def test_a_tuner_takes_new_certificates_in_the_midst_of_a_tuning(
    mutual: World, tuning: tuple[Gateways, ReportTuningRequest]
) -> None:
    """With those that a new authority made, at a gateway that trusts no other, its reports are kept, in the same lease
    (F41)."""
    gateways, request = tuning
    request.progress.SetInParent()
    assert (await gateways.report_once(request)).HasField("noted")
    replacing = Authority.make(mutual.folder, "replacing")
    mutual.config.peer_ca.write_bytes(replacing.path.read_bytes())  # type: ignore[union-attr]
    for name in (peers.GATEWAY, peers.TUNER):
        replacing.issue(mutual.folder, name)
    await mutual.close()
    await mutual.open()
    async with asyncio.timeout(30):
        assert (await gateways.report(request)).HasField("noted")
    assert await mutual.until(request.name, Tuning.STATE_RUNNING)
    started = [event for event in await kept_events(mutual, request.name) if event.HasField("started")]
    assert len(started) == 1


async def kept_events(world: World, name: str) -> list[TuningEvent]:
    """The events of a tuning so far."""
    assert world.gateway is not None
    kept = await world.gateway._state.read(name, 0)
    assert kept is not None
    return kept.events


async def test_a_new_certificate_of_a_tuner_cuts_no_call(
    mutual: World, authority: Authority, tuning: tuple[Gateways, ReportTuningRequest]
) -> None:
    """A question that waits at the gateway is answered over its old connection; the next report has the new one."""
    gateways, request = tuning
    asking = ReportTuningRequest()
    asking.CopyFrom(request)
    asking.alive.wait.FromSeconds(20)
    waiting = asyncio.create_task(gateways.report_once(asking, 20.0))
    request.progress.SetInParent()
    await gateways.report_once(request)
    before = gateways._channels
    authority.issue(mutual.folder, peers.TUNER)
    assert (await gateways.report_once(request)).HasField("noted") and gateways._channels is not before
    assert not waiting.done()
    await mutual.tunings.CancelTuning(CancelTuningRequest(name=request.name))
    assert (await waiting).HasField("cancel") and not gateways.is_away


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"tls_cert": "c"}, "UNITUNE_TLS_KEY is not set"),
        ({"tls_key": "k"}, "UNITUNE_TLS_CERT is not set"),
        ({"peer_cert": "c", "peer_key": "k"}, "UNITUNE_PEER_CA is not set"),
        ({"address": "0.0.0.0:1", "admin_key_file": "a"}, r"no certificates: .*UNITUNE_INSECURE=no-tls"),
    ],
)
def test_settings_of_certificates_go_together(settings: dict[str, str], word: str) -> None:
    """What is missing is named at the start."""
    with pytest.raises(ValueError, match=word):
        GatewayConfig(store="s", state="t", **settings)  # type: ignore[arg-type]


def test_an_internal_service_that_others_reach_needs_certificates() -> None:
    """Tuner and sampler do whatever they are asked, so they know who asks, or somebody has said that it is well."""
    files = {"peer_cert": Path("c"), "peer_key": Path("k"), "peer_ca": Path("a")}
    for kind, more in ((TunerConfig, {}), (SamplerConfig, {"engine": Path("e")})):
        with pytest.raises(ValueError, match=r"no certificates: set UNITUNE_PEER_CERT.*UNITUNE_INSECURE=no-tls"):
            kind(store="s", address="0.0.0.0:1", **more)
        kind(store="s", address="0.0.0.0:1", insecure="no-tls", **more)
        kind(store="s", address="0.0.0.0:1", **files, **more)
        kind(store="s", address="127.0.0.1:1", **more)


@pytest.mark.slow
async def test_a_certificate_that_cannot_be_read_stops_the_start(world: World, authority: Authority) -> None:
    """One line names the file and what is wrong with it."""
    files, other = (authority.issue(world.folder, name, *LOCAL) for name in ("one", "two"))
    for key, words in ((str(other.key), [str(other.key), "is no key of that certificate"]), ("/nowhere", ["/nowhere"])):
        process, line = await start(world, UNITUNE_TLS_CERT=str(files.certificate), UNITUNE_TLS_KEY=key)
        assert line == "" and await process.wait() == 1
        assert process.stderr is not None
        told = (await process.stderr.read()).decode().splitlines()
        assert len(told) == 1 and all(word in told[0] for word in words), told


async def test_a_key_is_not_sent_where_others_can_read_it() -> None:
    """Without TLS it leaves this machine only if that is asked for by name."""

    with pytest.raises(InvalidField, match=r"key is 'set': .*grpcs://example.com:1") as caught:
        AsyncClient("example.com:1", key="ut_secret")
    assert "ut_secret" not in caught.value.message
    for address in ("127.0.0.1:1", "localhost:1", "[::1]:1", "grpcs://example.com:1"):
        AsyncClient(address, key="ut_secret")
    AsyncClient("example.com:1", key="ut_secret", plaintext_key=True)
    for wrong in ("", "two words", "snow\N{SNOWMAN}"):
        with pytest.raises(InvalidField, match="key has"):
            AsyncClient("127.0.0.1:1", key=wrong or " ")
