"""What a caller may choose, said once: the gateway checks it first, tuner and sampler hold to it by themselves.

The schedulers are those of `unitune.diffusion.solvers`.
"""

TUNED_EDITS = ("unitune", "imagic", "dreambooth", "textual_inversion")  # whose tuning has the edit's own method
NULL_TEXT = "null_text"  # a tuning for Prompt-to-Prompt, and the inversion that it makes
PROMPT_TO_PROMPT = "prompt_to_prompt"
TUNING_METHODS = (*TUNED_EDITS, NULL_TEXT)
EDIT_METHODS = (*TUNED_EDITS, "sdedit", PROMPT_TO_PROMPT)
MODES = ("full", "attn_out", "lora")
MASK_SOURCES = ("given", "difference", "diffedit", "word", "attention")
MASKS_BEFORE = ("given", "diffedit", "word")  # known before the first step
MASKS_OF_WORDS = ("word", "attention")  # which find what mask_text names
INVERSIONS = ("direct", "ddim", NULL_TEXT)
ALIGNMENTS = ("replace", "refine")
UNCONDITIONAL_MODELS = ("tuned", "base")
CODECS = ("none", "int8", "int4", "sign", "lora")  # of stored weights: unitune.codecs

# Sampling options that some edit methods alone have.
METHODS_WITH = {
    "fast": ("unitune",),
    "unconditional_model": ("unitune",),
    "base_mixture": ("unitune",),
    "repeats": ("sdedit",),
    "eta": ("imagic",),
    "inversion": ("prompt_to_prompt",),
    "cross_replace": ("prompt_to_prompt",),
    "self_replace": ("prompt_to_prompt",),
    "alignment": ("prompt_to_prompt",),
    "word_weights": ("prompt_to_prompt",),
    "blend_words": ("prompt_to_prompt",),
}

# The fields of a TuningConfig, by who has them.
OPTIONS_OF_ALL = ("method", "updates", "learning_rate")
DRAWS = ("batch", "seed")  # of the methods that draw timesteps and noise
# An edit with null-text's tuning has these in common with it: its embeddings are right for no others.
BOUND_TO_NULL_TEXT = ("base_prompt", "num_inference_steps", "guidance_scale")
TUNING_OPTIONS = {
    "unitune": (*DRAWS, "mode", "rare_tokens", "stop_loss_ratio", "super_resolution_updates"),
    "imagic": (*DRAWS, "mode", "prompt", "embedding_updates", "embedding_learning_rate", "super_resolution_updates"),
    "dreambooth": (*DRAWS, "mode", "rare_tokens", "class_noun", "num_class_images", "prior_weight"),
    "textual_inversion": (*DRAWS, "rare_tokens", "initial_word", "num_vectors", "scale_learning_rate"),
    NULL_TEXT: BOUND_TO_NULL_TEXT,
}
MOST_IMAGES = {"dreambooth": 5}  # of one tuning; one for every other method

MAX_UPDATES, MAX_BATCH, MAX_LEARNING_RATE, MAX_RARE_TOKENS_CHARACTERS = 5000, 64, 0.1, 32
MAX_PROMPT_CHARACTERS, MAX_WORD_CHARACTERS = 2000, 64
MAX_CLASS_IMAGES, MAX_PRIOR_WEIGHT, MAX_VECTORS, MAX_ETA = 1000, 100, 16, 2
MAX_GUIDANCE_SCALE, MAX_SIGMA = 64, 10_000
GUIDANCE_INTERVAL = ("guidance_sigma_low", "guidance_sigma_high")  # its ends, as options are named
# Of the second stage: its steps and its noise level are timesteps of a schedule of 1000.
SUPER_RESOLUTION_OPTIONS = (
    "super_resolution_noise_level",
    "super_resolution_steps",
    "super_resolution_guidance_scale",
    "dynamic_thresholding",
)
MAX_NOISE_LEVEL, MAX_SUPER_RESOLUTION_STEPS = 999, 1000
# Beyond it pixels leave their range unless they are thresholded. Imagen's super-resolution is best at 7 to 10.
MAX_UNTHRESHOLDED_GUIDANCE = 10
MAX_SEEDS = 8  # pictures of one edit
MAX_MASK_BLUR, MAX_MASK_PADDING, DEFAULT_MASK_PADDING = 256, 1024, 32  # pixels of the base image
MAX_REPEATS = 10
MAX_WORD_WEIGHT, MAX_WORDS = 10, 16  # of Prompt-to-Prompt; the paper's weights are -2 to 2
MAX_STEPS = 1000
MAX_RESAMPLES, DEFAULT_RESAMPLES = 8, 3  # other seeds that the gate may try


def tuned_by(method: str, inversion: str = "") -> str:
    """The method of the tuning that an edit samples with; empty for an edit without one."""
    if method == PROMPT_TO_PROMPT:
        return NULL_TEXT if inversion == NULL_TEXT else ""
    return method if method in TUNED_EDITS else ""


def mask_source_of(chosen: str, mask: bytes, mask_text: str) -> str:
    """The mask source in force: a mask that is sent is given, and a text finds words, unless one is chosen."""
    return chosen or ("given" if mask else "word" if mask_text else "difference")
