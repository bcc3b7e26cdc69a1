"""Bytes and error of every codec for one real tuning of stickerbook.

    python -m bench.codecs --mode full --updates 128

Bytes are those of the stored parts, relative to the whole denoiser in fp16. The error is the manifest's:
||y(codec) - y(tuned)|| / ||y(tuned) - y(base)|| of the probe's answers y. Edits are compared with those of the exact
weights, at the preset without a mask: the median and smallest PSNR in dB, of six prompts with eight seeds each.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from bench.editbench.run import engine_folder
from bench.edits import results
from bench.inputs import MODEL, PICTURE
from bench.measure import psnr_db, seconds
from sampler_svc.engines.engine import WeightSet
from sampler_svc.engines.weights import tuned_weights
from sampler_svc.model import Model
from sampler_svc.sampling.request import Request
from tuner_svc import base_model
from tuner_svc.probe import pack_tuned
from tuner_svc.tune import tune
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune.choices import CODECS, MAX_SEEDS, MODES
from unitune.prompts import with_rare_tokens
from unitune.weights import unpack

PROMPTS = (
    "a dog in a meadow by day",
    "a cat on a beach by day",
    "a cat in a meadow at night",
    "a cat in a meadow by day in fog",
    "a pencil sketch of a cat in a meadow by day",
    "a cat with a tree on the right in a meadow by day",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=MODES, default="full")
    parser.add_argument("--updates", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("out/codecs"), help="where the engine lies, or is built")
    options = parser.parse_args()
    model, sampler = base_model.load(MODEL), Model.open(engine_folder(MODEL, options.out), threads=1)
    image = images.to_model(images.decode(PICTURE.read_bytes()), model.image_side)
    config = TuningConfig(options.mode, options.updates)
    tuned = tune(model, image, config)
    tensors = {name: tensor.numpy() for name, tensor in model.tensors().items()}
    fp16_bytes = 2 * sum(tensor.size for tensor in tensors.values())
    print(f"mode {options.mode}, {options.updates} updates; the denoiser in fp16 is {fp16_bytes / 1e6:.2f} MB")
    print(f"{'codec':8} {'MB':>8} {'of fp16':>8} {'error':>10} {'decoded in ms':>14} {'edits, dB':>10} {'least':>6}")
    exact: list[np.ndarray] = []
    for codec in CODECS:
        data, manifest = pack_tuned(model, tuned, config, "bench", codec)
        stored = unpack(data, manifest)
        weights = tuned_weights(stored, sampler.base, model.digest)
        decoding_s = min(seconds(partial(dict, weights.tensors)) for _ in range(5))
        found = edits(sampler, weights)
        exact = exact or found
        alike_db = [psnr_db(ours, theirs) for ours, theirs in zip(found, exact, strict=True)]
        print(
            f"{manifest.codec:8} {manifest.size_bytes / 1e6:8.2f} {manifest.size_bytes / fp16_bytes:8.3f} "
            f"{manifest.codec_error:10.2g} {1e3 * decoding_s:14.1f} {np.median(alike_db):10.1f} {min(alike_db):6.1f}"
        )


def edits(model: Model, weights: WeightSet) -> list[np.ndarray]:
    """Edited pictures of all prompts and seeds."""
    preset, found = model.spec.preset, []
    with model.pool.lease(weights.id, lambda: weights) as lease:
        for prompt in PROMPTS:
            request = Request(
                image=PICTURE.read_bytes(),
                prompt=with_rare_tokens(preset.rare_tokens, prompt),
                scheduler=preset.scheduler,
                num_inference_steps=preset.num_inference_steps,
                guidance_scale=preset.guidance_scale,
                strength=preset.strength,
                seeds=tuple(range(MAX_SEEDS)),
                interpolation=0.0,
                guidance_sigma_low=preset.guidance_sigma_low,
                guidance_sigma_high=preset.guidance_sigma_high,
            )
            found += [images.decode(result.png) for result in results(request, model.tools(lease.engine.run))]
    model.pool.evict(weights.id)
    return found


if __name__ == "__main__":
    main()
