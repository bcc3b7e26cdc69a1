"""The options of edits and tunings: the keywords of the SDK.

Made of protos/unitune/v1 by `make protos`; change it there. docs/options.md tells which methods read an option.
"""

from collections.abc import Mapping
from typing import Literal, TypedDict

from unitune_client.pictures import Picture

# Options that an edit and its tuning both have: a server takes them over from the edit.
SHARED_OPTIONS = ("method", "base_prompt", "num_inference_steps", "guidance_scale")


class OwnTuningOptions(TypedDict, total=False):
    """What may be said about a tuning alone; what is absent or None is the base model's own default (`server_info`)."""

    mode: Literal["full", "attn_out", "lora"] | None
    """mode says which UNet weights change. [default: the base model's own] Only for unitune, imagic, dreambooth."""
    updates: int | None
    """updates counts optimizer updates; UniTune's 128 by default. 0 leaves the base model as it is. [0 to 5000;
    default: the base model's own, 128]
    """
    batch: int | None
    """batch counts noise draws of the image in one update; UniTune's 4 by default. [1 to 64; default: the base model's
    own, 4] Only for unitune, imagic, dreambooth, textual_inversion.
    """
    learning_rate: float | None
    """learning_rate of Adafactor, and of Adam for the other methods. [above 0, to 0.1; default: the base model's own,
    1e-4]
    """
    rare_tokens: str | None
    """rare_tokens are the words that tuning binds to the image; `beikkpic` by default. [1 to 32 visible characters;
    default: the base model's own] Only for unitune, dreambooth, textual_inversion.
    """
    tuning_seed: int | None
    """tuning_seed of every random draw of the tuning, 0 or more; 0 by default. [0 or more; default: 0] Only for
    unitune, imagic, dreambooth, textual_inversion.
    """
    tuning_prompt: str | None
    """tuning_prompt of `imagic`, which tunes for one text. [1 to 2000 characters] Only for imagic."""
    class_noun: str | None
    """class_noun of `dreambooth` says what kind of thing the images show, such as `dog`. [1 to 64 visible characters]
    Only for dreambooth.
    """
    num_class_images: int | None
    """num_class_images of `dreambooth` are drawn by the base model for prior preservation; 200 by default. [0 to 1000;
    default: the base model's own] Only for dreambooth.
    """
    prior_weight: float | None
    """prior_weight of `dreambooth` weighs the loss on the class images; 1 by default, 0 leaves them out. [0 to 100;
    default: the base model's own, 1] Only for dreambooth.
    """
    initial_word: str | None
    """initial_word of `textual_inversion`, from whose embedding every vector starts. [1 to 64 visible characters] Only
    for textual_inversion.
    """
    num_vectors: int | None
    """num_vectors of `textual_inversion` stand in the placeholder's place; 1 by default. [1 to 16; default: the base
    model's own, 1] Only for textual_inversion.
    """
    embedding_updates: int | None
    """embedding_updates of `imagic` move the text embedding before the UNet; 500 by default. [0 to 5000; default: the
    base model's own, 500] Only for imagic.
    """
    embedding_learning_rate: float | None
    """embedding_learning_rate of `imagic`, of Adam; 1e-3 by default. [above 0, to 0.1; default: the base model's own,
    1e-3] Only for imagic.
    """
    scale_learning_rate: bool | None
    """scale_learning_rate of `textual_inversion` multiplies learning_rate by batch; true by default, as in its paper.
    [default: the base model's own, true] Only for textual_inversion.
    """
    stop_loss_ratio: float | None
    """stop_loss_ratio of `unitune` ends the tuning before its last update once the picture is reproduced well enough.
    [0 to 1; default: 0, never] Only for unitune.
    """
    super_resolution_updates: int | None
    """super_resolution_updates of `unitune` and `imagic` tune the first stage of the base model's super-resolution on
    the picture, too, after the UNet. [0 to 5000; default: 0] Only for unitune, imagic.
    """
    super_resolution_2_updates: int | None
    """super_resolution_2_updates are the same of the second stage, which sees the first stage's result. [0 to 5000;
    default: 0] Only for unitune, imagic.
    """
    warm_start: bool | None
    """warm_start of `unitune` begins at the base model's warm start instead of at the base model itself. [default: with
    it, if the base model has one and none of mode, updates, batch, learning rate and rare tokens is given] Only for
    unitune.
    """


class TuningOptions(OwnTuningOptions, total=False):
    """What may be said about a tuning; what is absent or None is the base model's own default (`server_info`)."""

    method: Literal["unitune", "imagic", "dreambooth", "textual_inversion", "null_text"] | None
    """method of the tuning. [default: unitune]"""
    base_prompt: str | None
    """base_prompt of `null_text` describes the image as it is, 1 to 2000 characters. [1 to 2000 characters] Only for
    null_text.
    """
    num_inference_steps: int | None
    """num_inference_steps of the edits to come by `null_text`, which makes an embedding for each. [1 to 1000; default:
    the base model's own] Only for null_text.
    """
    guidance_scale: float | None
    """guidance_scale of the edits to come by `null_text`. [0 to 64; default: the base model's own] Only for null_text.
    """


class EditOptions(OwnTuningOptions, total=False):
    """What may be said about an edit; what is absent or None is the base model's own default (`server_info`).

    The options of a tuning are for a picture; a tuning that exists has its own.
    """

    method: Literal["unitune", "imagic", "dreambooth", "textual_inversion", "sdedit", "prompt_to_prompt"] | None
    """method of the tuning, or `sdedit` or `prompt_to_prompt`, which use none, except inversion `null_text`. [default:
    unitune]
    """
    scheduler: Literal["ddim", "euler", "dpmpp_2m", "lcm", "euler_ancestral", "tcd"] | None
    """scheduler of the steps. [default: the base model's own]"""
    num_inference_steps: int | None
    """num_inference_steps of a run from pure noise; strength leaves the later part of them. [1 to 1000; default: the
    base model's own]
    """
    guidance_scale: float | None
    """guidance_scale weighs the prompt against the empty prompt; 1 is no guidance. [0 to 64; default: the base model's
    own]
    """
    strength: float | None
    """strength says how far up the noise schedule the edit starts. 1 starts from the noisiest level; a value that
    leaves no step answers with the picture as the autoencoder sees it. [0 to 1; default: the base model's own]
    """
    interpolation: float | None
    """interpolation mixes the base image back where the mask is 0. [0 to 1; default: the base model's own for an edit
    without a mask; 1 with every mask_source except difference]
    """
    negative_prompt: str | None
    """negative_prompt takes the empty prompt's place in guidance. [at most 2000 characters; default: nothing]"""
    base_prompt: str | None
    """base_prompt describes the base image as it is, at most 2000 characters. prompt_guidance_scale and mask source
    `diffedit` read it; refused when neither is set. [at most 2000 characters]
    """
    prompt_guidance_scale: float | None
    """prompt_guidance_scale pushes the edit away from base_prompt. [0 to 64; default: 0]"""
    unconditional_model: Literal["tuned", "base"] | None
    """unconditional_model says whose weights predict the empty or negative prompt. [default: tuned] Only for unitune.
    """
    base_mixture: float | None
    """base_mixture is the share of the prompt's prediction that comes from the base model's weights, with the prompt
    alone, in the noisier half of the schedule (SINE, arXiv 2212.04489). [0 to 1; default: 0] Only for unitune.
    """
    mask_source: Literal["given", "difference", "diffedit", "word", "attention"] | None
    """mask_source of the mask. [default: given with --mask, word with --mask-text, else difference]"""
    mask_text: str | None
    """mask_text names what the mask is of, such as 'the cat'; several things are separated by commas, as in 'cat,
    tree', and the mask has all of them. [at most 2000 characters]
    """
    mask_blur: float | None
    """mask_blur is the radius of a Gaussian that softens the mask's edge, in pixels of the base image. [0 to 256;
    default: 0]
    """
    only_masked: bool | None
    """only_masked edits a crop around the given mask at the model's full size and pastes it back."""
    mask_padding: int | None
    """mask_padding is how many pixels of the base image around the mask the crop of only_masked shows. [0 to 1024;
    default: 32]
    """
    mask_keeps: bool | None
    """mask_keeps says that the given mask is of SDEdit's own polarity."""
    repeats: int | None
    """repeats is how often the whole edit is done, each time from the last one's picture with fresh noise. [1 to 10;
    default: 1] Only for sdedit.
    """
    inverted: bool | None
    """inverted starts from the base image inverted by DDIM, unconditionally, and keeps every step outside of the mask
    to the inversion's own latents (DiffEdit, arXiv 2210.11427, section 3.3) instead of the base image noised at random.
    """
    eta: float | None
    """eta of `imagic` mixes the embeddings. [0 to 2; default: the base model's own, 0.7] Only for imagic."""
    guidance_sigma_low: float | None
    """guidance_sigma_low end of the interval, below high; the steps of this sigma and less are not guided. [0 to 10000;
    default: the base model's own; every step with --guidance and with automatic settings]
    """
    guidance_sigma_high: float | None
    """guidance_sigma_high end of the interval, above low; the steps of more than this sigma are not guided. [0 to
    10000; default: the base model's own; every step with --guidance and with automatic settings]
    """
    automatic: bool | None
    """automatic tries the base model's own points of strength and guidance_scale and answers with the picture that the
    CLIP filter ranks highest. [default: yes for unitune and sdedit, where the base model has a CLIP filter and neither
    of them nor --fast is given]
    """
    clip_filter: bool | None
    """clip_filter, when it is set, scores every picture and tries other seeds in place of one that does not pass; the
    best is the answer, with its scores.
    """
    resamples: int | None
    """resamples is how many other seeds may be tried for one picture. [0 to 8; default: 3]"""
    inversion: Literal["direct", "ddim", "null_text"] | None
    """inversion says how the base image's own branch is kept to it. [default: direct] Only for prompt_to_prompt."""
    cross_replace: float | None
    """cross_replace is the share of the steps, from the first, in which the edit takes its cross-attention maps from
    the base image's branch. [0 to 1; default: the base model's own] Only for prompt_to_prompt.
    """
    self_replace: float | None
    """self_replace is the same for self-attention, in layers of at most 16 x 16 positions, or in the smallest where all
    are larger. [0 to 1; default: the base model's own] Only for prompt_to_prompt.
    """
    alignment: Literal["replace", "refine"] | None
    """alignment says which word takes whose maps. [default: replace where they have as many words] Only for
    prompt_to_prompt.
    """
    word_weights: Mapping[str, float] | None
    """word_weights multiply the attention to words of the prompt at every step, -10 to 10. [-10 to 10] Only for
    prompt_to_prompt.
    """
    blend_words: list[str] | tuple[str, ...] | None
    """blend_words confine the edit to where these words look, each as a prompt of its own, in the branch of the base
    image or the edit whose prompt has it (local blend). Only for prompt_to_prompt.
    """
    super_resolution: bool | None
    """super_resolution, when it is set, has the base model's super-resolution enlarge each edited picture (a cascade,
    as Imagen's).
    """
    super_resolution_noise_level: int | None
    """super_resolution_noise_level is the timestep to which the picture is noised that super-resolution sees, and which
    it is told. [0 to 999; default: 50]
    """
    super_resolution_steps: int | None
    """super_resolution_steps of its DDIM for each picture. [1 to 1000; default: 1]"""
    super_resolution_guidance_scale: float | None
    """super_resolution_guidance_scale weighs the prompt against the empty prompt in super-resolution; 1, the default,
    is no guidance and costs one pass a step. [0 to 64; default: 1]
    """
    dynamic_thresholding: bool | None
    """dynamic_thresholding scales what super-resolution predicts back to a picture's range at every step (Imagen, arXiv
    2205.11487, section 2.3). [default: true]
    """
    super_resolution_width: int | None
    """super_resolution_width in pixels of what its last stage makes of a square picture. [1 to 65536; default: what the
    first stage makes]
    """
    fast: bool | None
    """fast takes the base model's fast_steps (see BaseModel) for num_inference_steps, and `accepted` tells them there.
    Only for unitune.
    """
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None
    """timestep_spacing of the run. [default: the base model's own] Only for unitune, imagic, dreambooth,
    textual_inversion, sdedit.
    """
    guidance_rescale: float | None
    """guidance_rescale is the share of the guided prediction that is scaled to the standard deviation of the prompt's
    own prediction (arXiv 2305.08891, section 3.4). [0 to 1; default: the base model's own, 0] Only for unitune, imagic,
    dreambooth, textual_inversion, sdedit.
    """
    second_pass: bool | None
    """second_pass, when it is set, samples the edited places of a photograph that is larger than its working size once
    more, at several times that size, in overlapping tiles of the model's own size and under the same mask. Only for
    unitune, imagic, dreambooth, textual_inversion, sdedit.
    """
    second_pass_strength: float | None
    """second_pass_strength says how far up the noise schedule it starts. [0 to 1; default: the base model's own, 0.2]
    Only for unitune, imagic, dreambooth, textual_inversion, sdedit.
    """
    second_pass_scale: float | None
    """second_pass_scale is how many times the working size it samples at, along each side; at most the photograph's own
    size. [above 1, to 16; default: 2] Only for unitune, imagic, dreambooth, textual_inversion, sdedit.
    """
    tcd_gamma: float | None
    """tcd_gamma of scheduler `tcd` is how much of a step's way is fresh noise. [0 to 1; default: 0.3] Only for unitune,
    imagic, dreambooth, textual_inversion, sdedit.
    """
    fast_lora: bool | None
    """fast_lora adds the base model's fast LoRA, which distils it to few steps, to the weights of the edit, tuned ones
    or the base model's. Only for unitune, imagic, dreambooth, textual_inversion, sdedit.
    """
    seeds: list[int] | tuple[int, ...] | None
    """seeds, 0 or more each, one picture each, at most 8; empty means one picture from seed 0. Same seed, same picture.
    [0 or more; default: 0]
    """
    mask: Picture | None
    """mask is a PNG, as bytes, path or uploaded image, as large as the picture: white is edited, black is kept exactly.
    """
    omit_metadata: bool | None
    """omit_metadata leaves out of each PNG what it otherwise says of its making."""
    preview_every: int | None
    """preview_every is the number of steps from one preview to the next, at most 1000; 0 means no previews. [0 to 1000;
    default: 0, none]
    """
    timeout_s: float | None
    """timeout_s is the seconds that the whole edit, tuning included, may take."""
