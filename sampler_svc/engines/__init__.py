"""Engines: a denoiser in a runtime, whose weights are replaced while it is loaded, and proven."""
