"""Sampling with what each method's tuning made: from a real tuner's files, over a real connection."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sampler_svc import stored_weights
from sampler_svc.model import Model
from sampler_svc.sampling.clip_filter import ClipFilter, Scores
from sampler_svc.sampling.conditioning import embedding, mixed, null_embeddings
from sampler_svc.service import SamplerService
from tests.configs import sampling_config
from tests.sampler_svc.pictures import picture
from unitune import images, serving
from unitune.base_model import Preset
from unitune.errors import DataLoss, from_rpc_error, from_status
from unitune.object_store import ObjectStore
from unitune.options import SAMPLING
from unitune.v1 import sampler_pb2, sampler_pb2_grpc, tuning_pb2
from unitune.weights import WEIGHTS_FILE, TunedWeights, pack

PROMPT = "a cat on the beach"
IMAGIC = {"method": "imagic", "mode": "attn_out", "prompt": PROMPT, "updates": 3, "embedding_updates": 3, "batch": 1,
          "learning_rate": 1e-3, "embedding_learning_rate": 1e-2}  # fmt: skip
VECTORS = {"method": "textual_inversion", "rare_tokens": "S*", "initial_word": "cat", "updates": 3, "batch": 1,
           "learning_rate": 1e-2, "num_vectors": 2}  # fmt: skip

DREAMBOOTH = {"method": "dreambooth", "mode": "attn_out", "class_noun": "cat", "num_class_images": 0, "updates": 3,
              "batch": 1, "learning_rate": 1e-3}  # fmt: skip

NULLS = {"method": "null_text", "base_prompt": PROMPT, "num_inference_steps": 4, "guidance_scale": 3.0, "updates": 6,
         "learning_rate": 1e-2}  # fmt: skip

BESIDE = {"method": "prompt_to_prompt", "base_prompt": PROMPT}

Stored = Callable[..., tuning_pb2.WeightsRef]


@pytest.fixture(scope="session")
def base_model(tiny_model: Path) -> Any:
    """The tiny base model as the tuner has it."""
    from tuner_svc.base_model import load  # torch is slow to import

    return load(tiny_model)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """An empty store in a folder."""
    return ObjectStore(str(tmp_path / "store"))


@pytest.fixture
def stored(base_model: Any, store: ObjectStore) -> Stored:
    """Tunes and puts what was made into the store."""
    from tuner_svc.probe import pack_tuned
    from tuner_svc.tune import tune
    from tuner_svc.tuning_config import TuningConfig

    def put(codec: str = "none", **fields: Any) -> tuning_pb2.WeightsRef:
        config = TuningConfig(**fields)
        image = images.to_model(images.decode(picture()), base_model.image_side)
        key = repr(sorted(fields.items()))
        data, manifest = pack_tuned(base_model, tune(base_model, image, config), config, key, codec)
        path = f"tunings/default/t-{manifest.digest[:40]}/1"
        store.put_weights(path, data, manifest)
        return tuning_pb2.WeightsRef(key=key, digest=manifest.digest, path=path)

    return put


@pytest.fixture
async def start(engine_folder: Path, store: ObjectStore) -> AsyncIterator[Callable[..., Any]]:
    """Starts samplers, each with engines of its own, and stops them."""
    stops: list[Any] = []

    async def start(clip_filter: ClipFilter | None = None) -> Any:
        model = replace(Model.open(engine_folder, threads=1), clip_filter=clip_filter)
        server = await serving.start("127.0.0.1:0", SamplerService(model, store).register)
        channel = serving.channel(server.address)
        stops.extend([channel.close, server.stop])
        return sampler_pb2_grpc.SamplerServiceStub(channel)

    yield start
    for stop in stops:
        await stop()


def request(weights: tuning_pb2.WeightsRef | None, method: str, **changes: Any) -> sampler_pb2.SampleRequest:
    """A run of four steps from the noisiest level."""
    names = SAMPLING
    settings = {name: changes.pop(name) for name in list(changes) if name in names}
    config = sampling_config(
        **{
            "method": method,
            "scheduler": "ddim",
            "num_inference_steps": 4,
            "guidance_scale": 3.0,
            "strength": 1.0,
            "interpolation": 0.0,
            **settings,
        }
    )
    fields = {"edit": "tenants/default/edits/1", "image": picture(), "prompt": PROMPT, "seeds": [5], **changes}
    return sampler_pb2.SampleRequest(weights=weights, config=config, **fields)


async def events(sampler: Any, asked: sampler_pb2.SampleRequest) -> list[sampler_pb2.SampleEvent]:
    """All events of a run."""
    return [event async for event in sampler.Sample(asked)]


async def png(sampler: Any, asked: sampler_pb2.SampleRequest) -> bytes:
    """The one picture of a run."""
    found = await events(sampler, asked)
    assert found[-1].WhichOneof("event") == "done", found[-1]
    (image,) = [event.image.png for event in found if event.WhichOneof("event") == "image"]
    return image


def test_eta_mixes_the_embeddings() -> None:
    """At 0 it is the optimized one and at 1 the text's own, bit for bit; a half is their mean, 2 as far beyond (I1)."""
    rng = np.random.default_rng(0)
    target, optimized = rng.standard_normal((2, 16, 32), dtype=np.float32)

    assert np.array_equal(mixed(0.0, target, optimized), optimized)
    assert np.array_equal(mixed(1.0, target, optimized), target)
    np.testing.assert_allclose(mixed(0.5, target, optimized), (target + optimized) / 2, atol=1e-6)
    np.testing.assert_allclose(mixed(2.0, target, optimized), 2 * target - optimized, atol=1e-6)
    assert mixed(0.7, target, optimized).dtype == np.float32


async def test_eta_moves_the_picture(start: Callable[..., Any], stored: Stored) -> None:
    """Each eta gives another picture, and the same one again; the prompt's words play no part beside the file (I1)."""
    sampler, weights = await start(), stored(**IMAGIC)

    zero, half, one, again, other_words = [
        await png(sampler, request(weights, "imagic", eta=eta, prompt=prompt))
        for eta, prompt in ((0, PROMPT), (0.5, PROMPT), (1, PROMPT), (0, PROMPT), (0, "a dog"))
    ]

    assert zero == again == other_words
    assert len({zero, half, one}) == 3


async def test_zero_embedding_updates_make_eta_idle(start: Callable[..., Any], stored: Stored) -> None:
    """When the optimized embedding is the text's own, every eta gives the same picture, bit for bit (I4)."""
    sampler, weights = await start(), stored(**{**IMAGIC, "embedding_updates": 0})

    pictures = {await png(sampler, request(weights, "imagic", eta=eta)) for eta in (0, 0.3, 1, 1.7)}

    assert len(pictures) == 1


async def test_vectors_sample_without_a_refit(start: Callable[..., Any], stored: Stored) -> None:
    """There is no loading, the engine keeps the base weights, and the placeholder changes the picture (T3)."""
    sampler, weights = await start(), stored(**VECTORS)

    found = await events(sampler, request(weights, "textual_inversion", prompt="a S* on the beach"))
    state = await anext(aiter(sampler.WatchReplica(sampler_pb2.WatchReplicaRequest())))

    kinds = [event.WhichOneof("event") for event in found]
    assert list(dict.fromkeys(kinds)) == ["step", "image", "done"]
    assert found[-1].done.refit_s == 0
    assert list(state.resident) == []
    plain = await png(sampler, request(None, "sdedit", prompt="a cat on the beach"))
    assert plain != found[-2].image.png


async def test_a_fresh_sampler_gives_the_same_picture_from_the_file(start: Callable[..., Any], stored: Stored) -> None:
    """What the file holds is all there is: two samplers agree bit for bit, and vectors of zero updates are the
    initial word (T3)."""
    weights = stored(**VECTORS)
    asked = request(weights, "textual_inversion", prompt="a S* on the beach")
    first, second = await start(), await start()

    assert await png(first, asked) == await png(second, asked)
    word = stored(**{**VECTORS, "updates": 0, "num_vectors": 1})
    placed = await png(first, request(word, "textual_inversion", prompt="a S* on the beach"))
    assert placed == await png(first, request(None, "sdedit", prompt="a cat on the beach"))


async def test_weights_of_another_method_are_refused(start: Callable[..., Any], stored: Stored) -> None:
    """Whatever the engine holds, a method does not sample with what another one made."""
    sampler, weights, vectors = await start(), stored(**IMAGIC), stored(**VECTORS)
    await png(sampler, request(weights, "imagic", eta=0.5))  # warm from here on

    nulls = stored(**{**NULLS, "updates": 0})
    for asked in (
        request(weights, "unitune"),
        request(weights, "textual_inversion", prompt="S*"),
        request(vectors, "imagic", eta=1.0),
        request(vectors, **BESIDE, inversion="null_text"),
        request(nulls, "textual_inversion", prompt="S*"),
    ):
        failed = (await events(sampler, asked))[-1].failed
        assert from_status(failed).reason in ("METHOD_MISMATCH", "WEIGHTS_CORRUPT")


async def test_loading_vectors_ahead_takes_no_engine(
    start: Callable[..., Any], stored: Stored, store: ObjectStore
) -> None:
    """Load reads a file of embeddings alone, so that its edits read nothing, and tells of no refit."""
    sampler, weights = await start(), stored(**VECTORS)

    answer = await sampler.Load(sampler_pb2.LoadRequest(weights=weights))
    store.delete_weights(weights.path)

    assert not answer.HasField("loading")
    assert await png(sampler, request(weights, "textual_inversion", prompt="S*"))
    state = await anext(aiter(sampler.WatchReplica(sampler_pb2.WatchReplicaRequest())))
    assert list(state.resident) == []


@pytest.mark.parametrize(
    ("method", "changes", "field"),
    [
        ("imagic", {}, "config.eta"),
        ("imagic", {"eta": 2.5}, "config.eta"),
        ("dreambooth", {}, "weights"),
        ("textual_inversion", {}, "weights"),
        ("prompt_to_prompt", {"inversion": "null_text", "base_prompt": PROMPT}, "weights"),
    ],
)
async def test_a_run_without_what_its_method_needs_is_refused(
    start: Callable[..., Any], method: str, changes: dict[str, Any], field: str
) -> None:
    """Imagic needs an eta, and what is not UniTune or SDEdit needs what its tuning made."""
    import grpc

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(await start(), request(None, method, **changes))

    assert from_rpc_error(caught.value).field == field


async def test_null_text_without_updates_is_ddim_inversion(start: Callable[..., Any], stored: Stored) -> None:
    """The same picture, to the last level of a pixel: the tuner's empty prompt has other last bits (P9)."""
    sampler, weights = await start(), stored(**{**NULLS, "updates": 0})

    zero = await png(sampler, request(weights, **BESIDE, inversion="null_text"))
    ddim = await png(sampler, request(None, **BESIDE, inversion="ddim"))

    np.testing.assert_allclose(images.decode(zero).astype(int), images.decode(ddim).astype(int), atol=1)


async def test_null_text_samples_without_a_refit(start: Callable[..., Any], stored: Stored) -> None:
    """From the file alone, the same picture in two samplers, another one than by DDIM inversion, from a late start
    too, and another one for another prompt."""
    first, second, weights = await start(), await start(), stored(**NULLS)
    asked = request(weights, **BESIDE, inversion="null_text", prompt="a dog on the beach")

    found = await events(first, asked)

    assert list(dict.fromkeys(event.WhichOneof("event") for event in found)) == ["step", "image", "done"]
    assert await png(second, asked) == found[-2].image.png
    pictures = {found[-2].image.png, await png(first, request(weights, **BESIDE, inversion="null_text"))}
    for strength in (1.0, 0.75):
        for given, inversion in ((weights, "null_text"), (None, "ddim")):
            changes = {"inversion": inversion, "strength": strength, "prompt": "a dog on the beach"}
            pictures.add(await png(first, request(given, **BESIDE, **changes)))
    assert len(pictures) == 5


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"num_inference_steps": 5}, "config.num_inference_steps", "5"),
        ({"guidance_scale": 4.0}, "config.guidance_scale", "4.0"),
        ({"base_prompt": "a dog"}, "config.base_prompt", "5 characters"),
    ],
)
async def test_null_text_for_another_edit_is_refused(
    start: Callable[..., Any], stored: Stored, change: dict[str, Any], field: str, value: str
) -> None:
    """Its embeddings are right for one number of steps, one guidance and one base prompt; the error tells which."""
    sampler, weights = await start(), stored(**{**NULLS, "updates": 0})

    failed = (await events(sampler, request(weights, **{**BESIDE, "inversion": "null_text", **change})))[-1].failed

    error = from_status(failed)
    assert (field, value) == (error.field, error.metadata["value"])
    assert "the tuning is for" in error.metadata["remedy"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"negative_prompt": "snow"}, "config.negative_prompt"),
        ({"automatic": True}, "config.automatic"),
        ({"only_masked": True}, "config.mask.only_masked"),
    ],
)
async def test_null_text_refuses_what_it_is_not_for(
    start: Callable[..., Any], change: dict[str, Any], field: str
) -> None:
    """Another empty text, several guidances, and a crop, before anything runs."""
    import grpc

    weights = tuning_pb2.WeightsRef(digest="0", path="tunings/default/t-000/1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events(await start(), request(weights, **BESIDE, inversion="null_text", **change))

    assert from_rpc_error(caught.value).field == field


async def test_embeddings_are_kept_up_to_a_size(
    start: Callable[..., Any], stored: Stored, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read last is sampled with from memory; what it displaced is read again, and is missed."""
    monkeypatch.setattr(stored_weights, "EXTRAS_BYTES", 1)
    sampler, kinds = await start(), [stored(**{**NULLS, "updates": updates}) for updates in (0, 1)]
    for weights in kinds:
        await png(sampler, request(weights, **BESIDE, inversion="null_text"))
        store.delete_weights(weights.path)

    reasons = [
        from_status(found[-1].failed).reason if found[-1].HasField("failed") else "done"
        for found in [await events(sampler, request(weights, **BESIDE, inversion="null_text")) for weights in kinds]
    ]

    assert reasons == ["WEIGHTS_MISSING", "done"]


async def test_a_blend_that_keeps_nothing_is_told_of(start: Callable[..., Any]) -> None:
    """The attention of a random model is nearly even: before its picture the run warns, and names word and remedy."""
    found = await events(await start(), request(None, **BESIDE, prompt="a dog on the beach", blend_words=["dog"]))

    kinds = [event.WhichOneof("event") for event in found]
    assert kinds[-3:] == ["warning", "image", "done"] and kinds.count("warning") == 1
    assert "'dog' look everywhere" in found[-3].warning.text and "mask" in found[-3].warning.text


async def test_damaged_vectors_are_refused(start: Callable[..., Any], stored: Stored, tmp_path: Path) -> None:
    """One changed byte is found by the digest, though nothing is refitted."""
    sampler, weights = await start(), stored(**VECTORS)
    path = tmp_path / "store" / weights.path / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)

    failed = (await events(sampler, request(weights, "textual_inversion", prompt="S*")))[-1].failed

    assert from_status(failed).reason == "WEIGHTS_CORRUPT"


async def test_evicted_vectors_are_forgotten(start: Callable[..., Any], stored: Stored, store: ObjectStore) -> None:
    """After an evict nothing is sampled from memory."""
    sampler, weights = await start(), stored(**VECTORS)
    asked = request(weights, "textual_inversion", prompt="S*")
    await png(sampler, asked)
    store.delete_weights(weights.path)
    assert await png(sampler, asked)  # what was read is kept

    await sampler.Evict(sampler_pb2.EvictRequest(digest=weights.digest))

    assert from_status((await events(sampler, asked))[-1].failed).reason == "WEIGHTS_MISSING"


async def test_vectors_of_another_base_model_are_refused(
    start: Callable[..., Any], stored: Stored, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, base_model: Any
) -> None:
    """Every time, though nothing is refitted that would show it."""
    from tuner_svc import probe

    monkeypatch.setattr(probe, "pack", lambda tensors, **facts: pack(tensors, **{**facts, "base_model": "other"}))
    sampler, weights = await start(), stored(**VECTORS)

    for _ in range(2):
        failed = (await events(sampler, request(weights, "textual_inversion", prompt="S*")))[-1].failed
        assert from_status(failed).reason == "BASE_MODEL_MISMATCH"


def test_embeddings_of_another_shape_are_refused(model: Model, stored: Stored, store: ObjectStore) -> None:
    """A file whose embeddings are not this base model's, or are missing, is corrupt."""
    weights = stored(**VECTORS)
    tuned: TunedWeights = store.get_weights(weights.path, weights.digest)

    for extras in ({}, {"vectors": np.zeros((2, 31), np.float32)}, {"vectors": np.zeros(32, np.float32)}):
        with pytest.raises(DataLoss, match="vectors"):
            embedding(model.graphs, replace(tuned, extras=extras), "S*", 0.0)
    for shape in ((3, 16, 32), (4, 16, 31), (4, 32)):
        with pytest.raises(DataLoss, match="nulls"):
            null_embeddings(model.graphs, replace(tuned, extras={"nulls": np.zeros(shape, np.float32)}), 4)


def test_a_prompt_with_vectors_has_the_tuners_embedding(
    model: Model, base_model: Any, stored: Stored, store: ObjectStore
) -> None:
    """The sampler's text encoder and tokenizer place the vectors as the tuner's do (T8)."""
    import torch

    from tuner_svc.methods.textual_inversion import placeholder_ids
    from tuner_svc.tuning_config import TuningConfig

    weights, config = stored(**VECTORS), TuningConfig(**VECTORS)
    tuned = store.get_weights(weights.path, weights.digest)

    for prompt in ("a S* on the beach", "S*", "A dog, by s* at NIGHT", "S* " * 30, "a cat"):
        ours = embedding(model.graphs, tuned, prompt, 0.0)(prompt)
        with torch.no_grad():
            ids = placeholder_ids(base_model, prompt, config)
            theirs = base_model.text_encoder(ids, torch.from_numpy(tuned.extras["vectors"]))[0].numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=prompt)


@pytest.mark.parametrize("codec", ["int8", "int4", "sign", "lora"])
async def test_coded_weights_of_a_method_are_proven_and_sampled(
    start: Callable[..., Any], stored: Stored, codec: str
) -> None:
    """The engine answers the probe as the tuner's decoded tensors do, and the embeddings come uncoded."""
    sampler, weights = await start(), stored(codec, **IMAGIC)

    found = await events(sampler, request(weights, "imagic", eta=0.5))

    (loading,) = [event.loading for event in found if event.WhichOneof("event") == "loading"]
    assert found[-1].WhichOneof("event") == "done" and 0 <= loading.probe_ratio < 0.1
    vectors = {codec: stored(codec, **VECTORS), "none": stored(**VECTORS)}
    assert len({await png(sampler, request(one, "textual_inversion", prompt="S*")) for one in vectors.values()}) == 1


class ReadingFilter(ClipFilter):
    """A CLIP filter that keeps the prompts which it scores by. Nothing passes it."""

    def scorer(self, base: images.Pixels, prompt: str) -> Callable[[images.Pixels], Scores]:
        score = super().scorer(base, prompt)

        def keeping(edited: images.Pixels) -> Scores:
            self.prompts = [*getattr(self, "prompts", []), prompt]
            return score(edited)

        return keeping

    def passes(self, scores: Scores) -> bool:
        return False


@pytest.mark.parametrize(
    ("tuning", "prompt", "read", "settings"),
    [
        (IMAGIC, PROMPT, PROMPT, {"eta": 0.5}),
        (DREAMBOOTH, "a beikkpic cat on the beach", "a cat on the beach", {}),
        (VECTORS, "a S* on the beach", "a on the beach", {}),
    ],
)
async def test_the_clip_filter_chooses_among_attempts_of_every_method(
    start: Callable[..., Any],
    stored: Stored,
    clip_folder: Any,
    tuning: dict[str, Any],
    prompt: str,
    read: str,
    settings: dict[str, Any],
) -> None:
    """Each attempt has the method's own embedding; the answer is what its settings give alone; the CLIP filter reads
    the prompt without the tuning's words."""
    clip_filter = ReadingFilter(clip_folder[1], Preset(), lambda picture: 0.0, threads=1)
    sampler, weights = await start(clip_filter), stored(**tuning)
    asked = request(weights, tuning["method"], prompt=prompt, automatic=True, **settings)
    asked.config.ClearField("strength")
    asked.config.ClearField("guidance_scale")

    (chosen,) = [event.image for event in await events(sampler, asked) if event.WhichOneof("event") == "image"]

    point = {"strength": chosen.strength, "guidance_scale": chosen.guidance_scale}
    assert tuple(point.values()) in Preset().automatic_points and chosen.HasField("scores")
    alone = request(weights, tuning["method"], prompt=prompt, **point, **settings)
    assert await png(sampler, alone) == chosen.png
    assert [" ".join(one.split()) for one in clip_filter.prompts] == [read] * len(Preset().automatic_points)
    asked = request(weights, tuning["method"], prompt=prompt, clip_filter=True, resamples=1, **settings)
    (chosen,) = [event.image for event in await events(sampler, asked) if event.WhichOneof("event") == "image"]
    again = request(weights, tuning["method"], prompt=prompt, seeds=[chosen.seed], **settings)
    assert await png(sampler, again) == chosen.png
