"""CheckSample over a real connection, and readers of real tokenizers: which words no text encoder reads."""

import itertools
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from tokenizers import Tokenizer

from sampler_svc.engines.engine import BASE
from sampler_svc.model import Model
from sampler_svc.sampling.clip_filter import ClipFilter
from sampler_svc.sampling.text_reader import reader_of
from sampler_svc.service import SamplerService
from tests.configs import sampling_config, tuning_config
from tests.sampler_svc.pictures import picture
from tests.tiny_model import CONTEXT_TOKENS, WORDS
from unitune import serving
from unitune.errors import InvalidField, from_rpc_error
from unitune.object_store import ObjectStore
from unitune.options import SAMPLING
from unitune.prompts import with_rare_tokens
from unitune.reading import Reader
from unitune.v1.sampler_pb2 import CheckTuningRequest, SampleRequest
from unitune.v1.sampler_pb2_grpc import SamplerServiceStub
from unitune.v1.tuning_pb2 import WeightsRef

ROOM = CONTEXT_TOKENS - 2
RARE, RARE_TOKENS = "beikkpic", 7  # as the tiny tokenizer has it: be, then each letter


def request(prompt: str = "a cat", **changes: object) -> SampleRequest:
    """What the gateway asks about an edit whose tuning is not made yet; options of the config may be given by name."""
    names = SAMPLING
    config = {"method": "unitune", "scheduler": "ddim", "num_inference_steps": 8, "guidance_scale": 4.0}
    config |= {"strength": 0.75, "interpolation": 0.0}
    config |= {name: changes.pop(name) for name in list(changes) if name in names}
    fields = {"prompt": prompt, "seeds": [0], **changes}
    return SampleRequest(config=sampling_config(**config), **fields)


@pytest.fixture
def serve(model: Model, tmp_path: Path) -> Callable[..., object]:
    """Starts a sampler with the tiny model, parts of it exchanged."""

    async def start(**parts: object) -> AsyncIterator[SamplerServiceStub]:
        service = SamplerService(replace(model, **parts), ObjectStore(str(tmp_path / "store")))
        server = await serving.start("127.0.0.1:0", service.register)
        async with serving.channel(server.address) as channel:
            yield SamplerServiceStub(channel)
        await server.stop()

    return start


@pytest.fixture
async def sampler(serve) -> AsyncIterator[SamplerServiceStub]:
    """A sampler with the tiny model, whose tokenizer knows every byte."""
    async for stub in serve():
        yield stub


@pytest.fixture(scope="session")
def stickerbook_reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """By stickerbook's own tokenizer, as its export writes it: it knows a list of words, and letters."""
    from stickerbook.tokenizer import MAX_TOKENS, new_tokenizer
    from tuner_svc.export.frozen import save_tokenizer

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    save_tokenizer(new_tokenizer(), MAX_TOKENS, path)
    return reader_of(Tokenizer.from_file(str(path)), is_closed=True)


@pytest.fixture
async def of_stickerbook(serve, model: Model, stickerbook_reader: Reader) -> AsyncIterator[SamplerServiceStub]:
    """A sampler that reads by stickerbook's tokenizer."""
    model.graphs.reader = stickerbook_reader
    async for stub in serve():
        yield stub


async def warnings(sampler: SamplerServiceStub, asked: SampleRequest) -> list[str]:
    """What is warned of."""
    return list((await sampler.CheckSample(asked, timeout=60)).warnings)


async def refused(sampler: SamplerServiceStub, asked: SampleRequest) -> InvalidField:
    """What is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await sampler.CheckSample(asked, timeout=60)
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidField), error
    return error


TUNINGS = {
    "unitune": {"rare_tokens": RARE, "mode": "attn_out", "updates": 1, "batch": 1, "learning_rate": 1e-3},
    "textual_inversion": {
        "rare_tokens": RARE,
        "initial_word": "dog",
        "num_vectors": 1,
        "updates": 1,
        "batch": 1,
        "learning_rate": 1e-3,
    },
    "null_text": {"base_prompt": "a dog", "num_inference_steps": 5, "updates": 1, "learning_rate": 0.01},
}


@pytest.mark.parametrize(
    ("method", "changed", "field"),
    [
        ("unitune", {}, ""),
        ("unitune", {"super_resolution_updates": 1}, "super_resolution_updates"),
        ("unitune", {"super_resolution_2_updates": 1}, "super_resolution_2_updates"),
        ("textual_inversion", {}, ""),
        ("textual_inversion", {"rare_tokens": "dog"}, "rare_tokens"),
        ("textual_inversion", {"rare_tokens": "two words"}, "rare_tokens"),
        ("textual_inversion", {"initial_word": "a dog"}, "initial_word"),
        ("null_text", {}, ""),
    ],
)
async def test_a_sampler_says_of_a_tuning_what_its_tuner_would(
    sampler, tiny_model: Path, method: str, changed: dict[str, object], field: str
) -> None:
    """CreateTuning needs no tuner: what words and base model forbid is refused alike by both, by field (F23)."""
    from tuner_svc.base_model import load
    from tuner_svc.tune import check
    from tuner_svc.tuning_config import TuningConfig

    words = {**TUNINGS[method], **changed}
    asked, own = tuning_config(method=method, **words), TuningConfig(method=method, **words)

    if not field:
        assert list((await sampler.CheckTuning(CheckTuningRequest(config=asked), timeout=60)).warnings) == []
        assert check(load(tiny_model), own) == []
        return
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await sampler.CheckTuning(CheckTuningRequest(config=asked), timeout=60)
    told = from_rpc_error(caught.value)
    with pytest.raises(InvalidField) as raised:
        check(load(tiny_model), own)
    assert (told.field, told.message) == (f"config.{field}", raised.value.message)


async def test_a_prompt_that_fits_has_no_warning(sampler) -> None:
    """As many tokens as there is room for are read, with the rare tokens among them (N5)."""
    fits = " ".join(itertools.islice(itertools.cycle(WORDS), ROOM - RARE_TOKENS))

    assert await warnings(sampler, request(fits, rare_tokens=RARE)) == []
    assert len(await warnings(sampler, request(f"{fits} dog", rare_tokens=RARE))) == 1


async def test_the_words_beyond_the_context_are_named(sampler) -> None:
    """Of two prompts that differ after the last token that is read each is warned of its own end (N5)."""
    for end in ("by night", "at sunset"):
        (warning,) = await warnings(sampler, request(f"a cat on the beach in snow {end}", rare_tokens=RARE))

        assert f"'{end}'" in warning and "prompt" in warning and str(ROOM) in warning
    assert (
        await warnings(sampler, request("a cat on the beach in snow by night")) == []
    )  # without the rare tokens it fits


async def test_what_is_warned_of_is_what_changes_nothing(sampler, model: Model) -> None:
    """The embedding of a prompt is that of the part that no warning names, whatever its words (N5)."""
    draw = random.Random(0)
    for _ in range(30):
        words = [draw.choice([*WORDS, "quick", "é", "日本", "don't"]) for _ in range(draw.randint(1, 22))]
        prompt = " ".join(words)
        reading = model.graphs.reader.read(prompt, RARE)
        read = prompt.removesuffix(reading.unread).rstrip()
        whole, part = (model.graphs.tokens(with_rare_tokens(RARE, text)) for text in (prompt, read))
        pieces = model.graphs.reader.encode(with_rare_tokens(RARE, prompt))
        if not reading.unread:
            end = whole[-1]
            assert [piece.token for piece in pieces] == [token for token in whole[1:] if token != end]
            continue
        last = len(model.graphs.reader.encode(with_rare_tokens(RARE, read)))
        assert len(pieces) > ROOM and whole[: 1 + last] == part[: 1 + last]
        other = f"{read} {reading.unread.split()[0]} {'dog ' * 20}".strip()
        embeddings = [model.graphs.embed(with_rare_tokens(RARE, text)) for text in (prompt, other)]
        np.testing.assert_array_equal(*embeddings)


async def test_every_text_that_is_read_is_looked_at(sampler) -> None:
    """Negative prompt, base prompt and mask text are warned of by their own names (N5)."""
    long = "a cat on the beach in the snow by day by night at sunset drawing"
    found = await warnings(
        sampler,
        request(
            rare_tokens="",
            negative_prompt=long + " cow",
            base_prompt=long + " dog",
            prompt_guidance_scale=1.0,
            mask_source="attention",
            mask_text=f"{long} cat in the snow",
        ),
    )

    assert [warning.split()[0] for warning in found] == [
        "config.negative_prompt",
        "config.base_prompt",
        "config.mask.text",
    ]
    assert all("'" in warning for warning in found)


async def test_a_placeholder_takes_the_room_of_its_vectors(sampler) -> None:
    """Textual Inversion's placeholder is so many tokens as it has vectors, not its letters (N5)."""
    prompt = f"{RARE} in the snow"
    tuning = {"method": "textual_inversion", "rare_tokens": RARE, "initial_word": "cat"}

    for vectors, is_cut in ((ROOM - 3, False), (ROOM - 2, True)):
        config = tuning_config(num_vectors=vectors, **tuning)
        asked = request(prompt, method="textual_inversion", tuning_config=config)
        assert [("'snow'" in warning) for warning in await warnings(sampler, asked)] == [True] * is_cut


@pytest.mark.parametrize("option", ["blend_words", "word_weights"])
async def test_a_word_that_the_model_cuts_is_refused_before_the_tuning(sampler, option: str) -> None:
    """Prompt-to-Prompt's words must be where the text encoder reads them (N5)."""
    prompt = "a cat on the beach in the snow by day by night at sunset cow"
    words = {"blend_words": ["cow"]} if option == "blend_words" else {"word_weights": {"cow": 2.0}}
    asked = request(prompt, method="prompt_to_prompt", base_prompt="a cat", alignment="refine", **words)

    place = {"blend_words": "blend_words[0]", "word_weights": 'word_weights["cow"]'}[option]
    assert (await refused(sampler, asked)).field == f"config.prompt_to_prompt.{place}"


@pytest.mark.parametrize("prompt", ["🦊", "...", "\u200b\u200b", "?!", "日本", "<|endoftext|>", "🦊 🐶 …"])
async def test_a_prompt_of_which_nothing_is_left_is_refused(of_stickerbook, prompt: str) -> None:
    """A tokenizer of a list of words leaves nothing of emoji, dots and zero-width characters (N14)."""
    error = await refused(of_stickerbook, request(prompt, rare_tokens=RARE))

    assert error.field == "prompt" and error.metadata["value"] == f"{len(prompt)} characters"
    assert "words" in error.metadata["remedy"]


@pytest.mark.parametrize("prompt", ["🦊", "\u200b\u200b", "日本", "..."])
async def test_a_tokenizer_that_knows_every_byte_reads_emoji(sampler, prompt: str) -> None:
    """What is nothing to one tokenizer is tokens to another: no rule of ours decides (N14)."""
    assert await warnings(sampler, request(prompt, rare_tokens=RARE)) == []


async def test_begin_and_end_are_no_words(sampler) -> None:
    """A prompt of the tokenizer's own end sign has nothing to read (N14)."""
    assert (await refused(sampler, request("<|endoftext|>"))).field == "prompt"


async def test_signs_that_are_left_out_are_named(of_stickerbook) -> None:
    """An emoji beside words is no reason to refuse, but is told; the rare tokens alone are a prompt (N14)."""
    (warning,) = await warnings(of_stickerbook, request("a cat 🦊 in the snow 🐶"))

    assert "🦊🐶" in warning and "prompt" in warning
    assert await warnings(of_stickerbook, request(RARE, rare_tokens=RARE)) == []


async def test_a_negative_prompt_may_be_empty_but_not_of_nothing(of_stickerbook) -> None:
    """An empty one is fine, one of which nothing is left is warned of (N14)."""
    assert await warnings(of_stickerbook, request(negative_prompt="")) == []
    (warning,) = await warnings(of_stickerbook, request(negative_prompt="🦊"))
    assert warning.startswith("config.negative_prompt")


@pytest.mark.parametrize(
    "changes",
    [
        {"base_prompt": "🦊", "prompt_guidance_scale": 1.0},
        {"mask_source": "word", "mask_text": "the cat, 🦊"},
        {"method": "prompt_to_prompt", "base_prompt": "..."},
    ],
)
async def test_other_texts_of_nothing_are_refused_by_name(of_stickerbook, changes: dict[str, object]) -> None:
    """Base prompt and mask text are needed where they are read (N14)."""
    error = await refused(of_stickerbook, request(**changes))

    assert error.field == ("config.mask.text" if "mask_text" in changes else "config.base_prompt")


async def test_texts_of_a_tuning_are_checked_until_it_is_made(of_stickerbook) -> None:
    """Rare tokens of nothing, or too long to be read, cannot be bound; a tuning that is there is not judged (N14)."""
    for rare in ("🦊", "qzxqzxqzxqzxqzxqzxqzxqzxqzxqzxqz"):
        asked = request(rare_tokens="", tuning_config=tuning_config(method="unitune", rare_tokens=rare))
        assert (await refused(of_stickerbook, asked)).field == "tuning_config.rare_tokens"
        asked.weights.CopyFrom(WeightsRef(digest="0" * 64, path="tunings/default/t-000/1"))
        assert await warnings(of_stickerbook, asked) == []


async def test_the_clip_filter_is_told_of_only_where_it_reads_less(
    serve, model: Model, clip_folder, tmp_path: Path
) -> None:
    """A CLIP filter that reads as much as the text encoder says nothing; one that does not names the rest (N5)."""
    clip_filter = ClipFilter(clip_folder[1], model.spec.preset, lambda picture: 0.0, threads=1)
    prompt = "a cat on the beach in the snow by day"
    async for sampler in serve(clip_filter=clip_filter):
        assert await warnings(sampler, request(prompt, clip_filter=True)) == []
        clip_filter.reader = replace(clip_filter.reader, max_tokens=5)
        (warning,) = await warnings(sampler, request(prompt, clip_filter=True))
        assert "CLIP filter" in warning and "'in the snow by day'" in warning
        assert await warnings(sampler, request(prompt)) == []


async def test_a_check_waits_for_no_engine(sampler, model: Model) -> None:
    """It answers while the only engine is leased to somebody else (N5)."""
    with model.pool.lease(BASE, lambda: model.base):
        assert await warnings(sampler, request("a cat", image=picture())) == []
