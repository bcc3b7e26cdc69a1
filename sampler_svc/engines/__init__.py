"""Engines: a denoiser in a runtime. Its weights are replaced while it is loaded, and every replacement is proven."""
