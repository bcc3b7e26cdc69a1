"""An edit with the base weights, up to its latents."""

import numpy as np

from sampler_svc.sampling.edit_steps import EditSteps
from sampler_svc.sampling.request import Request, guidance_by_timestep
from sampler_svc.sampling.sample import denoise
from sampler_svc.sampling.tools import PreparedEdit, Tools


def edited_latents(tools: Tools, request: Request) -> np.ndarray:
    """The latents of an edit."""
    edit = PreparedEdit(request, tools)
    terms = guidance_by_timestep(request, tools.embed, tools.schedule)
    return denoise(edit.latent, request, edit, terms, EditSteps(edit, request, lambda event: None))
