"""The tuner: tunes weights on a picture (PyTorch), and exports a base model for the sampler."""

import os

# Otherwise transformers reads a model's tensors in several threads, each with its own team (tuner_svc.torch_thread).
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")
