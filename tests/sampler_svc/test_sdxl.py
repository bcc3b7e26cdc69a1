"""SDXL's edits against diffusers' own pipelines, and with what tunings of it made, on a tiny random model."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from diffusers.pipelines.stable_diffusion_xl import (
    pipeline_stable_diffusion_xl_img2img,
    pipeline_stable_diffusion_xl_inpaint,
)

from sampler_svc.build.folder import build
from sampler_svc.engines import engine as engines
from sampler_svc.engines.cpu_controlled import Controlled, ControlledEngine
from sampler_svc.engines.engine import BASE
from sampler_svc.engines.weights import tuned_weights
from sampler_svc.model import Model
from sampler_svc.sampling.base_graphs import BaseGraphs
from sampler_svc.sampling.conditioning import embedding, null_embeddings
from sampler_svc.sampling.edit_steps import EditSteps
from sampler_svc.sampling.prompt_to_prompt import AttentionEdit
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.sample import denoise_beside
from sampler_svc.sampling.tools import PreparedEdit, Tools
from tests.sampler_svc.pictures import mask, picture
from tests.sampler_svc.untuned_edit import edited_latents
from tests.tiny_sdxl import POOLED_WIDTH, WIDTHS
from tuner_svc.base_model import BaseModel, load
from tuner_svc.probe import pack_tuned
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune.graph_files import TEXT_ENCODER
from unitune.weights import TunedWeights, unpack

REQUEST = Request(
    image=picture(),
    prompt="a cat at the beach",
    scheduler="euler",
    num_inference_steps=10,
    guidance_scale=5.0,
    strength=0.6,
    seeds=(5,),
)
THEIRS = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tiny_sdxl_graphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SDXL model's engine."""
    return build(tiny_sdxl_graphs, tmp_path_factory.mktemp("engines") / "sdxl")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    """The engine, loaded."""
    return Model.open(folder, threads=1)


@pytest.fixture
def theirs(tiny_sdxl: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch) -> Callable[..., np.ndarray]:
    """The same edit by diffusers' pipeline: latents and picture in about [0, 1]. Only the noise is given to it."""

    def run(request: Request, *, mask_image: np.ndarray | None = None, **more: object) -> tuple[np.ndarray, np.ndarray]:
        kind = StableDiffusionXLImg2ImgPipeline if mask_image is None else StableDiffusionXLInpaintPipeline
        pipeline = kind.from_pretrained(tiny_sdxl, local_files_only=True)
        pipeline.scheduler = THEIRS[request.scheduler].from_config({**pipeline.scheduler.config, "clip_sample": False})
        pipeline.set_progress_bar_config(disable=True)
        latent = PreparedEdit(request, tools).latent
        noise = np.random.default_rng(request.seeds[0]).standard_normal(latent.shape[1:], dtype=np.float32)[None]
        for module in (pipeline_stable_diffusion_xl_img2img, pipeline_stable_diffusion_xl_inpaint):
            monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(noise))
        asked = {
            "prompt": request.prompt,
            "image": torch.from_numpy(latent),
            "strength": request.strength,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "output_type": "latent",
            **({} if mask_image is None else {"mask_image": mask_image}),
            **({"negative_prompt": request.negative_prompt} if request.negative_prompt else {}),
            **more,
        }
        with torch.no_grad():
            latents = pipeline(**asked).images
            shown = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        return latents.numpy(), shown.numpy()

    return run


def test_a_text_encoder_with_its_weights_outside_answers_as_with_them_inside(
    folder: Path, model: Model, tiny_sdxl: Path, tmp_path: Path
) -> None:
    """Where they are too large for the graph's own file: the answer is the same to the bit, and PyTorch's up to
    rounding (M21)."""
    prompt, inside = "a cat at the beach", Path(shutil.copytree(folder, tmp_path / "inside"))
    data = inside / f"{TEXT_ENCODER}.data"
    assert data.stat().st_size > 5 * (inside / TEXT_ENCODER).stat().st_size
    graph = onnx.load(inside / TEXT_ENCODER)
    for path in (data, inside / TEXT_ENCODER):
        path.unlink()
    onnx.save(graph, inside / TEXT_ENCODER)
    data.touch()  # as that of a large graph it is opened without packing, which rounds otherwise

    found = model.graphs.embed(prompt)

    assert np.array_equal(found, BaseGraphs(inside, model.spec, 1).embed(prompt))
    theirs = load(tiny_sdxl).encode_prompt(prompt)[0].numpy()
    np.testing.assert_allclose(found, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())


@pytest.mark.parametrize("scheduler", sorted(THEIRS))
@pytest.mark.parametrize("negative", ["", "a dog by night"])
def test_an_edit_is_that_of_diffusers(
    tools: Tools, theirs: Callable[..., tuple[np.ndarray, np.ndarray]], scheduler: str, negative: str
) -> None:
    """Latents and picture are those of diffusers' img2img, with zeros for no negative prompt and with one (M16)."""
    request = replace(REQUEST, scheduler=scheduler, negative_prompt=negative)
    latents, shown = theirs(request)
    ours = edited_latents(tools, request)
    np.testing.assert_allclose(ours, latents, rtol=0, atol=TOLERANCE * np.abs(latents).max())
    np.testing.assert_allclose(tools.graphs.decode(ours), shown, rtol=0, atol=TOLERANCE * np.abs(shown).max())


def test_an_empty_negative_prompt_is_encoded_where_the_model_says_so(
    tools: Tools, folder: Path, theirs: Callable[..., tuple[np.ndarray, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `force_zeros_for_empty_prompt` it is what the text encoders say of no text: another edit (M16)."""
    zeros, _ = theirs(REQUEST)
    monkeypatch.setattr(
        StableDiffusionXLImg2ImgPipeline, "encode_prompt", _encoding_empty(StableDiffusionXLImg2ImgPipeline)
    )
    latents, _ = theirs(REQUEST)
    graphs = BaseGraphs(folder, replace(tools.graphs.spec, empty_is_zeros=False), threads=1)
    ours = edited_latents(replace(tools, graphs=graphs, embed=graphs.embed), REQUEST)
    size = np.abs(latents).max()
    np.testing.assert_allclose(ours, latents, rtol=0, atol=TOLERANCE * size)
    assert np.abs(latents - zeros).max() > 100 * TOLERANCE * size


def _encoding_empty(kind: type) -> Callable[..., Any]:
    """diffusers' own encoding of prompts, for a pipeline whose configuration is other than its folder's."""
    plain = kind.encode_prompt

    def encode_prompt(self: Any, *arguments: Any, **more: Any) -> Any:
        self.register_to_config(force_zeros_for_empty_prompt=False)
        return plain(self, *arguments, **more)

    return encode_prompt


@pytest.mark.parametrize(("height", "width"), [(48, 48), (48, 96), (90, 40)])
def test_the_denoiser_is_told_the_working_size(
    tools: Tools, theirs: Callable[..., tuple[np.ndarray, np.ndarray]], height: int, width: int
) -> None:
    """Whatever the picture's shape, its size is told as diffusers does, and it matters (M16)."""
    request = replace(REQUEST, image=picture(height, width))
    latents, _ = theirs(request)
    size = np.abs(latents).max()
    ours = edited_latents(tools, request)
    np.testing.assert_allclose(ours, latents, rtol=0, atol=TOLERANCE * size)
    assert (ours.shape[2] == ours.shape[3]) == (height == width)
    otherwise, _ = theirs(request, original_size=(16, 16), target_size=(16, 16))
    assert np.abs(otherwise - latents).max() > 100 * TOLERANCE * size


def test_a_masked_edit_is_that_of_diffusers(tools: Tools, theirs: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    """With a mask of whole latent positions the latents are those of their inpainting by a plain denoiser (M17)."""
    box = (8, 12, 32, 40)
    white = np.zeros((48, 48), np.float32)
    white[box[0] : box[2], box[1] : box[3]] = 1
    request = replace(REQUEST, mask_source="given", mask=mask(box=box))
    latents, _ = theirs(request, mask_image=torch.from_numpy(white)[None, None])
    ours = edited_latents(tools, request)
    size = np.abs(latents).max()
    np.testing.assert_allclose(ours, latents, rtol=0, atol=TOLERANCE * size)
    assert np.abs(ours - edited_latents(tools, REQUEST)).max() > 100 * TOLERANCE * size


@pytest.fixture(scope="module")
def base_model(tiny_sdxl: Path) -> BaseModel:
    """The tiny SDXL model as the tuner has it."""
    return load(tiny_sdxl)


def made_by(base_model: BaseModel, **fields: Any) -> TunedWeights:
    """What a tuning makes, as the sampler reads it."""
    config = TuningConfig(**{"batch": 2, "learning_rate": 1e-3, "updates": 3, **fields})
    image = images.to_model(images.decode(picture()), base_model.image_side)
    return unpack(*pack_tuned(base_model, tune(base_model, image, config), config, "key", "none"))


def with_weights(model: Model, tuned: TunedWeights, request: Request, embed: Any = None) -> np.ndarray:
    """The latents of an edit with tuned weights, whose probe must pass first."""
    weights = tuned_weights(tuned, model.base, model.spec.digest)
    with model.pool.lease(weights.id, lambda: weights) as lease:
        return edited_latents(model.tools(lease.engine.run, embed=embed), request)


def without_tuning(model: Model, request: Request) -> np.ndarray:
    """The latents of an edit with the base weights, which leaves the engine free for others."""
    with model.pool.lease(BASE, lambda: model.base) as lease:
        return edited_latents(model.tools(lease.engine.run), request)


@pytest.mark.parametrize("mode", ["full", "attn_out", "lora"])
def test_no_updates_are_the_base_model_and_refits_come_back(model: Model, base_model: BaseModel, mode: str) -> None:
    """A tuning of zero updates is the base model bit for bit (M20); after A and B comes A again, bit for bit (M18)."""
    request = replace(REQUEST, prompt="beikkpic a cat")
    none = made_by(base_model, mode=mode, updates=0)
    one, other = (made_by(base_model, mode=mode, seed=seed) for seed in (1, 2))
    base = without_tuning(model, request)

    first = [with_weights(model, tuned, request) for tuned in (none, one, other)]
    again = [with_weights(model, tuned, request) for tuned in (none, one, other)]

    assert np.array_equal(base, first[0])
    assert all(np.array_equal(now, before) for now, before in zip(again, first, strict=True))
    assert not np.array_equal(first[1], base) and not np.array_equal(first[1], first[2])


def test_dreambooth_keeps_its_class(model: Model, base_model: BaseModel) -> None:
    """It tunes on the subject and on pictures that the base model makes of the class, and its probe passes."""
    tuned = made_by(base_model, method="dreambooth", mode="attn_out", class_noun="cat", num_class_images=1)
    request = replace(REQUEST, prompt="a beikkpic cat")
    assert not np.array_equal(with_weights(model, tuned, request), without_tuning(model, request))


def test_imagic_moves_both_embeddings(model: Model, base_model: BaseModel) -> None:
    """The text's and the pooled embedding are optimized, the padding beside that stays zero; eta mixes both (M19)."""
    tuned = made_by(
        base_model, method="imagic", mode="attn_out", prompt="a cat", embedding_updates=3, embedding_learning_rate=1e-2
    )
    target, optimized = (tuned.extras[name] for name in ("prompt", "optimized"))
    moved = target != optimized

    assert moved[:-1].any() and moved[-1, :POOLED_WIDTH].any() and not moved[-1, POOLED_WIDTH:].any()
    np.testing.assert_allclose(target, model.graphs.embed("a cat"), rtol=0, atol=1e-5)
    ends = {
        eta: with_weights(model, tuned, REQUEST, embedding(model.graphs, tuned, REQUEST.prompt, eta)).tobytes()
        for eta in (0.0, 0.5, 1.0)
    }
    assert 3 == len(set(ends.values()))


def test_textual_inversion_learns_a_vector_for_each_text_encoder(model: Model, base_model: BaseModel) -> None:
    """A vector is as wide as both vocabularies' together, and both parts are learnt; none learnt is the word itself."""
    fields = {"method": "textual_inversion", "rare_tokens": "S*", "initial_word": "cat"}
    word, learnt = (made_by(base_model, updates=updates, **fields) for updates in (0, 3))
    moved = word.extras["vectors"] != learnt.extras["vectors"]

    assert (1, sum(WIDTHS)) == moved.shape
    assert moved[:, : WIDTHS[0]].any() and moved[:, WIDTHS[0] :].any()
    placed, of_learnt = (embedding(model.graphs, each, "a S* by day", 1.0)("a S* by day") for each in (word, learnt))
    assert np.array_equal(placed, model.graphs.embed("a cat by day"))
    assert (placed[-1] != of_learnt[-1]).any()  # the pooled embedding sees the vector, too


def test_tuning_and_sampling_tell_the_denoiser_the_same(
    model: Model, base_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture's size is equal, and so is the pooled embedding of the rare tokens, up to rounding (M19)."""
    tuning: list[dict[str, np.ndarray]] = []
    sampling: list[dict[str, Any]] = []

    def see(module: Any, arguments: Any, inputs: dict[str, torch.Tensor]) -> None:
        tuning.append({name: value.detach().numpy() for name, value in inputs.items()})

    hook = base_model.denoiser.register_forward_pre_hook(see, with_kwargs=True)
    try:
        tuned = made_by(base_model, mode="attn_out", updates=1)
    finally:
        hook.remove()
    of_graph = engines.denoiser_inputs

    def spy(*arguments: Any) -> dict[str, Any]:
        sampling.append(of_graph(*arguments))
        return sampling[-1]

    monkeypatch.setattr(engines, "denoiser_inputs", spy)
    with_weights(model, tuned, replace(REQUEST, prompt="beikkpic", guidance_scale=1.0))

    update, edit = tuning[0], sampling[-1]
    assert [[48, 48, 0, 0, 48, 48]] == np.unique(update["time_ids"], axis=0).tolist()
    assert [[48, 48, 0, 0, 48, 48]] == np.unique(edit["time_ids"], axis=0).tolist()
    for name in ("text_embeds", "encoder_hidden_states"):
        np.testing.assert_allclose(update[name][:1], edit[name][:1], rtol=0, atol=1e-5)


def test_prompt_to_prompt_takes_maps_from_the_base_image(model: Model) -> None:
    """With all controls on a prompt edited into itself is the base branch, bit for bit; for another prompt its maps
    matter, and named words are found."""
    asked = replace(REQUEST, scheduler="ddim", base_prompt="a cat", strength=1.0, num_inference_steps=4)
    calls: list[tuple[np.ndarray, np.ndarray]] = []
    with model.controlled.lease(BASE, lambda: model.base) as lease:
        engine = cast(ControlledEngine, lease.engine)

        def run(latents: np.ndarray, *more: Any) -> Controlled:
            answer = engine.run_controlled(latents, *more)
            calls.append((latents, answer.output))
            return answer

        tools = model.tools(engine.run, controlled=run)

        def beside(prompt: str, replaced: float, **more: Any) -> np.ndarray:
            attention = AttentionEdit(cross_replace=replaced, self_replace=replaced, **more)
            request = replace(asked, prompt=prompt, attention=attention)
            edit = PreparedEdit(request, tools)
            steps = EditSteps(edit, request, lambda event: None)
            return denoise_beside(edit.latent, request, edit, steps, lambda event: None)

        beside("a cat", 1.0, inversion="ddim")
        branches = [call for call in calls if len(call[0]) > 1]
        assert 4 == len(branches)
        assert all(np.array_equal(pair[0], pair[1]) for call in branches for pair in call)
        taken, own = beside("a dog", 1.0), beside("a dog", 0.0)
        assert not np.array_equal(taken, own)
        assert np.isfinite(beside("a dog", 0.5, blend_words=("cat",))).all()


def test_null_text_finds_an_embedding_for_every_step(model: Model, base_model: BaseModel) -> None:
    """The picture comes back under guidance nearer with its embeddings than with zeros, which they start from."""
    fields = {"method": "null_text", "base_prompt": "a cat", "num_inference_steps": 4, "guidance_scale": 3.0}
    asked = replace(
        REQUEST, scheduler="ddim", base_prompt="a cat", prompt="a cat", strength=1.0, num_inference_steps=4,
        guidance_scale=3.0,
    )  # fmt: skip
    losses = []
    with model.controlled.lease(BASE, lambda: model.base) as lease:
        engine = cast(ControlledEngine, lease.engine)
        tools = model.tools(engine.run, controlled=engine.run_controlled)
        for updates in (0, 10):
            tuned = made_by(base_model, updates=updates, learning_rate=1e-2, **fields)
            nulls = null_embeddings(model.graphs, tuned, 4)
            assert (updates == 0) == (not nulls.any())
            request = replace(asked, attention=AttentionEdit(inversion="null_text", nulls=nulls))
            edit = PreparedEdit(request, tools)
            steps = EditSteps(edit, request, lambda event: None)
            found = denoise_beside(edit.latent, request, edit, steps, lambda event: None)
            losses.append(float(np.square(found - edit.latent).mean()))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("source", ["word", "diffedit"])
def test_masks_that_the_denoiser_finds_work(model: Model, tools: Tools, source: str) -> None:
    """DiffEdit's and the base model's own search run on conditioning with a pooled embedding."""
    from sampler_svc.sampling.masks.contrast import finder

    find = finder(tools.graphs, tools.schedule, tools.denoiser, ["cat"], "a dog", lambda: False)
    request = replace(REQUEST, mask_source=source, mask_text="cat", base_prompt="a cat")
    edit = PreparedEdit(request, replace(tools, find=find))
    found = edit.mask
    assert found is not None and (48, 48) == found.shape and 0 <= found.min() <= found.max() <= 1
    assert np.isfinite(edited_latents(replace(tools, find=find), request)).all()
