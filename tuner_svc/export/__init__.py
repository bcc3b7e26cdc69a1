"""Export a base model to ONNX graphs for the sampler."""
