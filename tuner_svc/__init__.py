"""The tuner: a picture in, tuned weights out (PyTorch); and the export of a base model for the sampler."""
