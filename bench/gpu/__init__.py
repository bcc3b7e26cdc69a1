"""The tuner's update and the sampler's step on one NVIDIA GPU, at the shape of Stable Diffusion 1.5, weights random."""
