"""Base models that come as one `.safetensors` file, as model sites offer them: written as a diffusers folder, once.

A file is opened as safetensors alone and read through a memory map, tensor by tensor. Nothing is fetched: the
configurations and the CLIP vocabulary are here.
"""
