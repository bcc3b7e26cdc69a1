"""Tuned weights and an edit prompt in, edited pictures out: refit a prebuilt engine, sample."""

import os

# numpy's matrix products run on OpenBLAS, whose threads spin for milliseconds afterwards and slow down ONNX Runtime:
# the next step took twice its time. OpenBLAS reads this when numpy is loaded, so it must come first.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
