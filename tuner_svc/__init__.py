"""The tuner: a picture in, tuned weights out (PyTorch); and the export of a base model for the sampler."""

import os

# transformers would read a model's tensors in several threads, each with a team of its own (tuner_svc.torch_thread).
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")
