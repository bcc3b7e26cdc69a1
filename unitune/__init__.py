"""Shared by all services: the contract, errors, images, weights and the mathematics of diffusion."""

__version__ = "0.1.0"
