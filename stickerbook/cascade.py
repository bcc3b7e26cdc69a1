"""What super-resolution adds: figures on held-out scenes, and a sheet of edits with their ground truth.

    python -m stickerbook.cascade                                    # figures of each stage, no services
    python -m stickerbook.cascade --tuned 12                         # what tuning a stage on the picture adds
    python -m stickerbook.cascade --speed                            # seconds and memory of each stage on the CPU
    python -m stickerbook.cascade --sheet docs/methods/cascade.png   # edits through the services, and no figures
    python -m stickerbook.cascade --large-sheet docs/methods/cascade-1024.png   # one edit at 1024 px, its middle

The figures compare enlarged pictures with the same scenes painted at that size: PSNR, structural similarity, and the
share in which the judge reads the object right. The small pictures are renders after the autoencoder's round trip, as
soft as edits; those of the second stage are the first one's results. The sheet's rows are edits of demo pictures
painted at 256 px: the small picture enlarged, the same by super-resolution, by super-resolution tuned on the picture,
and the ground truth. Nothing of the base image is mixed back.
"""

import argparse
import io
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from skimage.metrics import structural_similarity
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from sampler_svc.model import Model
from sampler_svc.sampling.super_resolution import SuperResolution, SuperResolutionOptions
from stickerbook import train_super_resolution_2 as second_stage
from stickerbook.captions import caption
from stickerbook.demo import load_cases, say
from stickerbook.judge import Judge
from stickerbook.pictures import as_pixels
from stickerbook.render import render
from stickerbook.samples import contact_sheet
from stickerbook.save_model import MODEL
from stickerbook.train_super_resolution import (
    SIDE,
    HeldOut,
    enlarge,
    new_noise_schedule,
    psnr_of,
    super_resolution_unet,
)
from stickerbook.world import FIRST_HELD_OUT_SEED, draw_scene
from tuner_svc.adafactor import Adafactor
from tuner_svc.base_model import load
from tuner_svc.progress_tracker import ProgressTracker
from tuner_svc.super_resolution import enlarged_by, pair_of, tune_stage
from tuner_svc.tuning_config import TuningConfig
from unitune import images
from unitune_client import Client, EditOptions
from unitune_client.local.services import LocalServices

TRIED = ((0, 1), (50, 1), (100, 1), (200, 1), (50, 2), (50, 8))  # noise level, steps
TRIED_AT_1024 = ((0, 1), (50, 1), (100, 1))
BATCH = 24
UPDATES = 64  # of super-resolution, in the sheet's third column
CROP = 512  # pixels of a side that the large sheet shows
STRENGTH, GUIDANCE_SCALE = 0.9, 5.0  # of the sheet's edits


class Nearness:
    """Prints how near enlarged pictures are to their ground truth."""

    def __init__(self, truth: torch.Tensor) -> None:
        """`truth` is of the held-out scenes from the first one on, (n, 3, side, side) in [-1, 1]."""
        self._truth, self._judge = truth, Judge.load()
        seeds = range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + len(truth))
        self._objects = [draw_scene(seed, "held_out").object for seed in seeds]
        self._of_bicubic: torch.Tensor | None = None

    def tell(self, what: str, large: torch.Tensor) -> None:
        """A line of figures; the first pictures that it is given are those which others are better or worse than."""
        found = psnr_of(large, self._truth)
        pairs = zip(as_pixels(large), as_pixels(self._truth), strict=True)
        similar = np.mean([structural_similarity(*pair, channel_axis=2, data_range=255) for pair in pairs])
        small = as_pixels(functional.interpolate(large.clamp(-1, 1), size=(64, 64), mode="area"))
        right = np.mean(
            [read["object"] == word for read, word in zip(self._judge.read(small), self._objects, strict=True)]
        )
        line = f"{found.mean():.2f} dB, SSIM {similar:.4f}, object right in {right:.1%}"
        if self._of_bicubic is None:
            self._of_bicubic = found
        else:
            line += f"; better than bicubic in {float((found > self._of_bicubic).float().mean()):.0%}"
        print(f"  {what}: {line}", flush=True)


def measure(model: Path, scenes: int) -> None:
    """Print the figures of the first stage at some noise levels and numbers of steps, and of enlargement by filters."""
    fp32 = {"torch_dtype": torch.float32, "use_safetensors": True}
    held_out = HeldOut(
        scenes,
        AutoencoderKL.from_pretrained(model, subfolder="vae", **fp32).eval(),
        CLIPTextModel.from_pretrained(model, subfolder="text_encoder", **fp32).eval(),
        CLIPTokenizer.from_pretrained(model, subfolder="tokenizer"),
    )
    unet, figures = super_resolution_unet(model).eval(), Nearness(held_out.truth)
    print(f"first stage, {scenes} held-out scenes at {SIDE} px")
    figures.tell("bicubic", held_out.bicubic)
    figures.tell("Lanczos", held_out.lanczos)
    for level, steps in TRIED:
        batches = zip(held_out.context.split(BATCH), held_out.small.split(BATCH), strict=True)
        large = [
            enlarge(unet, context, small, new_noise_schedule(), noise_level=level, steps=steps, seed=index)
            for index, (context, small) in enumerate(batches)
        ]
        figures.tell(f"noise level {level:3}, {steps} steps", torch.cat(large))


def measure_second(model: Path, scenes: int) -> None:
    """The same of the second stage."""
    held_out, unet = second_stage.LargeHeldOut(scenes, model), second_stage.second_stage_unet(model).eval()
    figures = Nearness(held_out.truth)
    print(f"second stage, {scenes} held-out scenes at {second_stage.SIDE} px")
    figures.tell("bicubic", held_out.bicubic)
    figures.tell("Lanczos", held_out.lanczos)
    for level, steps in TRIED_AT_1024:
        large = held_out.enlarged_by(unet, new_noise_schedule(), noise_level=level, steps=steps)
        figures.tell(f"noise level {level:3}, {steps} steps", large)


def measure_tuned(folder: Path, scenes: int) -> None:
    """Print how near the stages come to a held-out picture's own detail, as they are and tuned on it (UPDATES each).

    Each enlarges the autoencoder's round trip of the picture, or the first stage's result of that.
    """
    model = load(folder)
    gains: dict[str, list[tuple[float, float]]] = {stage.spec.name: [] for stage in model.super_resolution}
    for seed in range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + scenes):
        scene, config = draw_scene(seed, "held_out"), TuningConfig.from_preset(model.preset)
        config = replace(config, **{f"{name}_updates": UPDATES for name in gains})  # type: ignore[arg-type]
        contexts = [model.encode_prompt(f"{words}{caption(scene)}") for words in ("", f"{config.rare_tokens} ")]
        bound = model.encode_prompt(config.rare_tokens)
        latent = model.encode_image(images.to_model(render(scene), model.image_side))
        with torch.no_grad():
            small = [model.image_decoder(latent)] * 2
        tracker = ProgressTracker(UPDATES * len(gains), lambda progress: None, lambda: False)
        for stage in model.super_resolution:
            truth = torch.from_numpy(images.to_model(render(scene, stage.spec.side[0]), stage.spec.side))
            tuned = tune_stage(model, stage, pair_of(stage.spec, truth, small[1]), bound, config, tracker, Adafactor)
            small = [
                enlarged_by(stage, image, context, tensors, seed=0)
                for image, context, tensors in zip(small, contexts, ({}, tuned), strict=True)
            ]
            plain, own = (float(psnr_of(image, truth)[0]) for image in small)
            gains[stage.spec.name].append((plain, own))
            print(f"{caption(scene)}, {stage.spec.name}: {plain:.2f} dB, tuned {own:.2f} dB", flush=True)
    for name, pairs in gains.items():
        plain, own = np.mean(pairs, axis=0)
        better = np.mean([after > before for before, after in pairs])
        print(f"{name}, {scenes} scenes: {plain:.2f} dB, tuned {own:.2f} dB; better in {better:.0%}")


def speed(model: Path) -> None:
    """Print the seconds and the peak of memory of each stage in ONNX Runtime, of one picture and one step."""
    engine = LocalServices(str(model), log=say).build()
    for number in range(len(Model.open(engine).super_resolution)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, megabytes = pool.apply(one_picture, (engine, number))
        print(f"stage {number + 1}: {seconds:.2f} s, {megabytes:.0f} MB more at the peak than before", flush=True)


def one_picture(engine: Path, number: int) -> tuple[float, float]:
    """The seconds of a stage for one picture, the best of three, and the megabytes by which memory grew meanwhile."""
    model = Model.open(engine)
    stage, context = model.super_resolution[number], model.graphs.embed("a cat on a beach")
    wanted = SuperResolutionOptions(stage.spec.noise_level, 1, 1.0)
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, *stage.spec.image_side)).astype(np.float32)
    before, times = _memory_mb("VmRSS"), []
    with stage.pool.lease("base", stage.base_weights) as lease:
        own = SuperResolution(stage.spec, lease.engine.run, wanted, context, context, lambda: False)
        for _ in range(3):
            began = time.perf_counter()
            own.enlarge(image, 0)
            times.append(time.perf_counter() - began)
    return min(times), _memory_mb("VmHWM") - before


def _memory_mb(name: str) -> float:
    """A figure of this process, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def edits(cases: int) -> np.ndarray:
    """The sheet, uint8: a row per edit, with the columns above."""
    rows = []
    with LocalServices(log=say) as services, Client(services.address) as client:
        for case in load_cases()[:cases]:
            file = io.BytesIO()
            Image.fromarray(render(case.scene, SIDE)).save(file, "PNG")
            plain = client.tune(file.getvalue())
            tuned = client.tune(file.getvalue(), super_resolution_updates=UPDATES)
            for wanted in case.edits:
                for tuning, is_enlarged in ((plain, None), (plain, True), (tuned, True)):
                    options = EditOptions(strength=STRENGTH, guidance_scale=GUIDANCE_SCALE, interpolation=0.0)
                    options["super_resolution"] = is_enlarged
                    result = client.edit_to_end(tuning, caption(wanted), **options)
                    rows.append(images.decode(result.images[0].png, max_bytes=None))
                rows.append(render(wanted, SIDE))
                say(caption(wanted))
    return contact_sheet(np.stack(rows), 4, enlarge=1)


def large_edit() -> np.ndarray:
    """One edit of a demo picture at the second stage's size, uint8: the middle of the first stage's picture enlarged by
    Lanczos, of the second stage's, and of the ground truth."""
    case, side = load_cases()[0], second_stage.SIDE
    wanted = case.edits[0]
    file = io.BytesIO()
    Image.fromarray(render(case.scene)).save(file, "PNG")
    shown = []
    with LocalServices(log=say) as services, Client(services.address) as client:
        tuning = client.tune(file.getvalue())
        for width in (SIDE, side):
            options = EditOptions(super_resolution=True, super_resolution_width=width, interpolation=0.0)
            options |= EditOptions(strength=STRENGTH, guidance_scale=GUIDANCE_SCALE)
            result = client.edit_to_end(tuning, caption(wanted), **options)
            shown.append(images.resized(images.decode(result.images[0].png, max_bytes=None), (side, side)))
    shown.append(render(wanted, side))
    middle = slice((side - CROP) // 2, (side + CROP) // 2)
    return np.concatenate([one[side - CROP - CROP // 4 : side - CROP // 4, middle] for one in shown], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--scenes", type=int, default=240)
    parser.add_argument("--large-scenes", type=int, default=24, help="of the second stage")
    parser.add_argument("--tuned", type=int, metavar="SCENES", help="compare stages that are tuned on these, too")
    parser.add_argument("--speed", action="store_true", help="measure seconds and memory instead")
    parser.add_argument("--sheet", type=Path, metavar="PNG")
    parser.add_argument("--large-sheet", type=Path, metavar="PNG")
    parser.add_argument("--cases", type=int, default=2, help="of the demo's pictures, for the sheet")
    options = parser.parse_args()
    if options.speed:
        speed(options.model)
    elif options.tuned:
        measure_tuned(options.model, options.tuned)
    elif options.large_sheet is not None:
        Image.fromarray(large_edit()).save(options.large_sheet)
    elif options.sheet is None:
        measure(options.model, options.scenes)
        if (options.model / second_stage.FOLDER).is_dir():
            measure_second(options.model, options.large_scenes)
    else:
        Image.fromarray(edits(options.cases)).save(options.sheet)


if __name__ == "__main__":
    main()
