"""SDXL's edits against diffusers' own pipelines, on a tiny random model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
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
from sampler_svc.engines.engine import BASE
from sampler_svc.model import Model
from sampler_svc.sampling.edit_steps import EditSteps
from sampler_svc.sampling.request import Request, guidance_by_timestep
from sampler_svc.sampling.sample import denoise
from sampler_svc.sampling.tools import PreparedEdit, Tools
from tests.sampler_svc.pictures import picture

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
def tools(model: Model) -> Tools:
    """The tools of an edit with the base weights."""
    with model.pool.lease(BASE, lambda: model.base) as lease:
        yield model.tools(lease.engine.run, base_denoiser=model.pool.run_base)


def edited(tools: Tools, request: Request) -> np.ndarray:
    """The latents of an edit."""
    edit = PreparedEdit(request, tools)
    terms = guidance_by_timestep(request, tools.embed, tools.schedule)
    return denoise(edit.latent, request, edit, terms, EditSteps(edit, request, lambda event: None))


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


@pytest.mark.parametrize("scheduler", sorted(THEIRS))
@pytest.mark.parametrize("negative", ["", "a dog by night"])
def test_an_edit_is_that_of_diffusers(
    tools: Tools, theirs: Callable[..., tuple[np.ndarray, np.ndarray]], scheduler: str, negative: str
) -> None:
    """Latents and picture are those of diffusers' img2img, with zeros for no negative prompt and with one (M16)."""
    request = replace(REQUEST, scheduler=scheduler, negative_prompt=negative)
    latents, shown = theirs(request)
    ours = edited(tools, request)
    np.testing.assert_allclose(ours, latents, rtol=0, atol=TOLERANCE * np.abs(latents).max())
    np.testing.assert_allclose(tools.graphs.decode(ours), shown, rtol=0, atol=TOLERANCE * np.abs(shown).max())
