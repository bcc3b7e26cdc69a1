"""What a caller may choose, said once: the gateway checks it first, tuner and sampler hold to it by themselves.

The schedulers are those of `unitune.diffusion.solvers`.
"""

TUNING_METHODS = ("unitune",)
EDIT_METHODS = ("unitune", "sdedit")
MODES = ("full", "attn_out", "lora")
CODECS = ("none", "int8", "int4", "lora")  # of stored weights: unitune.codecs

MAX_UPDATES, MAX_BATCH, MAX_LEARNING_RATE, MAX_RARE_TOKENS_CHARACTERS = 5000, 64, 0.1, 32
MAX_GUIDANCE_SCALE = 64
MAX_SEEDS = 8  # pictures of one edit
