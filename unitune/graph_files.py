"""Names of the files that the tuner exports and the sampler opens. `unitune.base_model` says what those of a base model
hold."""

TOKENIZER, SECOND_TOKENIZER = "tokenizer.json", "tokenizer_2.json"  # the second one only of two text encoders
TEXT_ENCODER, IMAGE_ENCODER, IMAGE_DECODER = "text_encoder.onnx", "image_encoder.onnx", "image_decoder.onnx"
DENOISER = "denoiser.onnx"
CLIP_IMAGE, CLIP_TEXT, CLIP_TOKENIZER = "clip_image.onnx", "clip_text.onnx", "clip_tokenizer.json"
# In a folder of its own, which an installation may have beside any base model.
CLIPSEG, CLIPSEG_TOKENIZER = "clipseg.onnx", "clipseg_tokenizer.json"
CONTENT_FILTER = "content_filter.onnx"
# What that one answers above this is refused: the published checker rounds to thousandths, and refuses above 0.
CONTENT_FILTER_ROUNDS_TO_ZERO = 0.0005
