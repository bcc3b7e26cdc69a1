"""Tuned weights and an edit prompt in, edited pictures out: refit a prebuilt engine, sample."""
