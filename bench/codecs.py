"""Bytes and error of every codec for one real tuning of stickerbook.

    python -m bench.codecs --mode full --updates 128

Bytes are those of the stored parts against all of the denoiser in fp16; the error is the manifest's, of the probe's
answers: ||y(codec) - y(tuned)|| / ||y(tuned) - y(base)||.
"""

import argparse

from bench.inputs import MODEL, PICTURE
from bench.measure import seconds
from sampler_svc.engine import BASE, Probe, Weights
from sampler_svc.refit_weights import tuned_weights
from tuner_svc import base_model
from tuner_svc.probe import pack_tuned
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune.choices import CODECS, MODES
from unitune.weights import unpack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=MODES, default="full")
    parser.add_argument("--updates", type=int, default=128)
    options = parser.parse_args()
    model = base_model.load(MODEL)
    image = images.to_model(images.decode(PICTURE.read_bytes()), model.image_side)
    config = TuningConfig(options.mode, options.updates)
    tuned = tune(model, image, config)
    tensors = {name: tensor.numpy() for name, tensor in model.tensors().items()}
    fp16_bytes = 2 * sum(tensor.size for tensor in tensors.values())
    print(f"mode {options.mode}, {options.updates} updates; the denoiser in fp16 is {fp16_bytes / 1e6:.2f} MB")
    print(f"{'codec':8} {'MB':>8} {'of fp16':>8} {'error':>10} {'decoded in ms':>14}")
    for codec in CODECS:
        data, manifest = pack_tuned(model, tuned, config, "bench", codec)
        stored = unpack(data, manifest)
        base = Weights(BASE, tensors, Probe(0, stored.probe_base, stored.probe_base))
        decoding_s = min(seconds(lambda: tuned_weights(stored, base, model.digest)) for _ in range(5))  # noqa: B023
        share = manifest.size_bytes / fp16_bytes
        print(
            f"{manifest.codec:8} {manifest.size_bytes / 1e6:8.2f} {share:8.3f} {manifest.codec_error:10.2g} "
            f"{1e3 * decoding_s:14.1f}"
        )


if __name__ == "__main__":
    main()
