"""Tuned weights and an edit prompt in, edited pictures out: refit a prebuilt engine, sample."""

import os

# Threads of OpenBLAS, which numpy's products run on, spin for milliseconds after each and hold up ONNX Runtime's: a
# step after such a product took twice its time. It is read when numpy is loaded, so it stands before everything else.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
