"""What a caller may choose, by the names of the contract's options, and what follows from a choice."""

from collections.abc import Sized

from unitune.base_model import Preset
from unitune.options import EDIT, SAMPLING, TUNING, options_of
from unitune.v1.tuning_pb2 import CreateTuningRequest

NULL_TEXT = "null_text"  # a tuning for Prompt-to-Prompt, and the inversion that it makes
PROMPT_TO_PROMPT = "prompt_to_prompt"
TUNING_METHODS = TUNING["method"].choices
EDIT_METHODS = SAMPLING["method"].choices
TUNED_EDITS = tuple(method for method in EDIT_METHODS if method in TUNING_METHODS)  # whose tuning has their own method
MODES = TUNING["mode"].choices
MASK_SOURCES = SAMPLING["mask_source"].choices
MASKS_BEFORE = ("given", "diffedit", "word")  # known before the first step
MASKS_OF_WORDS = ("word", "attention")  # which find what mask_text names
INVERSIONS = SAMPLING["inversion"].choices
ALIGNMENTS = SAMPLING["alignment"].choices
UNCONDITIONAL_MODELS = SAMPLING["unconditional_model"].choices
CODECS = ("none", "int8", "int4", "sign", "lora")  # of stored weights: unitune.codecs

# An edit with null-text's tuning has these in common with it: its embeddings are right for no others.
BOUND_TO_NULL_TEXT = ("base_prompt", "num_inference_steps", "guidance_scale")
# Of one tuning; one for every other method.
MOST_IMAGES = {"dreambooth": 1 + options_of(CreateTuningRequest)["images"].limits.max_items}
GUIDANCE_INTERVAL = ("guidance_sigma_low", "guidance_sigma_high")  # its ends, as options are named
# Why Prompt-to-Prompt is refused, and null-text's tuning for it.
NO_ATTENTION_OF_INPAINTING = (
    "choose another method: this one takes the layout of a whole picture over, and this base model is for inpainting"
)
NO_SECOND_PASS_OF_INPAINTING = (
    "leave it unset: this base model is for inpainting, which sees the rest of a picture only at its working size; "
    "with only_masked a part is edited at a larger scale"
)
DEFAULT_MASK_PADDING = 32  # pixels of the base image
DEFAULT_RESAMPLES = 3  # other seeds that the CLIP filter may try
DEFAULT_SECOND_PASS_STRENGTH, DEFAULT_SECOND_PASS_SCALE = Preset.second_pass_strength, 2.0  # of most base models
MAX_SEEDS = EDIT["seeds"].limits.max_items  # pictures of one edit
MAX_SIGMA = SAMPLING["guidance_sigma_low"].most


def tuned_by(method: str, inversion: str = "") -> str:
    """The method of the tuning that an edit samples with; empty for an edit without one."""
    if method == PROMPT_TO_PROMPT:
        return NULL_TEXT if inversion == NULL_TEXT else ""
    return method if method in TUNED_EDITS else ""


def mask_source_of(chosen: str, mask: Sized, mask_text: str) -> str:
    """The mask source in force: a mask that is sent is given, and a text finds words, unless one is chosen."""
    return chosen or ("given" if mask else "word" if mask_text else "difference")
