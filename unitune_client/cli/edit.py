"""`unitune edit` and `unitune tune`."""

import hashlib
import secrets
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import click

from unitune.errors import Cancelled, FailedPrecondition, InvalidArgument, InvalidField
from unitune.options import EDIT, SAMPLING, TUNING
from unitune_client import events
from unitune_client.channel import INLINE_MASK_BYTES
from unitune_client.cli.cancellation import COMMAND_LABEL, cancel, cancel_tunings_of, say_it_goes_on
from unitune_client.cli.connection import connection
from unitune_client.cli.display import Display, display
from unitune_client.cli.options import (
    PathOption,
    attention_options,
    field_option,
    output_option,
    result_options,
    second_pass_options,
    seed_option,
    server_options,
    super_resolution_option,
    tuning_options,
)
from unitune_client.cli.outputs import Outputs, folder_of, slugs
from unitune_client.cli.photo_files import read_mask, read_photo
from unitune_client.cli.record import Record
from unitune_client.cli.sheet import SheetEdit, can_show, contact_sheet, sheet_file
from unitune_client.client import Client
from unitune_client.messages import of_field
from unitune_client.options import EditOptions, TuningOptions
from unitune_client.pictures import Picture

DEFAULT_METHOD = "unitune"  # of every server
METHOD_PER_PROMPT = "imagic"  # it tunes for one text
AUTOMATIC_METHODS = ("unitune", "sdedit")  # unless asked; the others start from the noisiest level, as published
SINGLE_WORDS = 3  # from this number on, prompts of one word each are most likely one prompt
TUNING_EVENTS = (events.TuningSnapshot, events.TuningQueued, events.TuningStarted, events.TuningProgress)

EXAMPLES = """
\b
Examples:
  unitune edit cat.png "a dog on a beach"
  unitune edit cat.png "a cat at night" "a cat in the snow" --seed 1 --seed 2
  unitune edit photo.jpg "a wooden toy car" --base-model ~/models/stable-diffusion-v1-5
  unitune edit cat.png "a dog" --strength 0.95 --guidance 10 --address 127.0.0.1:50051
  unitune edit cat.png "a dog" --fast
  unitune edit cat.png "a red hat" --mask hat.png --mask-blur 4 --only-masked
  unitune edit cat.png "a dog on a beach" --mask-text "the cat"
  unitune edit cat.png "a cat in the snow" --base-prompt "a cat on a beach" --prompt-guidance 1
  unitune edit cat.png "a cat on a beach" --method imagic --eta 0.8
  unitune edit cat.png "a dog on a beach" --method prompt_to_prompt --base-prompt "a cat on a beach" --blend dog
  unitune edit cat.png "a dog" --method prompt_to_prompt --base-prompt "a cat" --inversion null_text
  unitune edit cat.png "a beikkpic cat on a beach" --method dreambooth --class-noun cat --photo cat2.png
  unitune edit cat.png "beikkpic on a beach" --method textual_inversion --initial-word cat
  unitune edit cat.png --like out/cat--a-dog--seed0.png
  unitune edit cat.png "a dog at night" --like out/cat--a-dog--seed0.png --guidance 9
"""


@click.command("edit", epilog=EXAMPLES)
@click.argument("photo", type=PathOption())
@click.argument("prompts", metavar='"PROMPT" ...', nargs=-1)
@output_option
@click.option(
    "--like",
    metavar="PICTURE",
    type=PathOption(),
    help="A picture that UniTune made: take its prompt, seed and every setting, except what is given here beside it. "
    "With the same PHOTO and nothing else it is made again. Another --method takes only its seed.",
)
@result_options
@field_option(SAMPLING["method"], type=str)
@field_option(SAMPLING["strength"])
@field_option(SAMPLING["guidance_scale"])
@field_option(SAMPLING["automatic"], default=None)
@field_option(SAMPLING["clip_filter"])
@field_option(SAMPLING["interpolation"])
@field_option(SAMPLING["negative_prompt"], metavar="TEXT")
@field_option(SAMPLING["base_prompt"], metavar="TEXT")
@field_option(SAMPLING["prompt_guidance_scale"])
@field_option(EDIT["mask"], metavar="PNG", type=PathOption())
@field_option(SAMPLING["mask_source"])
@field_option(SAMPLING["mask_text"], metavar="TEXT")
@field_option(SAMPLING["inverted"])
@field_option(SAMPLING["mask_blur"])
@field_option(SAMPLING["only_masked"])
@field_option(SAMPLING["repeats"])
@field_option(SAMPLING["num_inference_steps"])
@field_option(SAMPLING["fast"])
@field_option(SAMPLING["scheduler"], type=str)
@field_option(SAMPLING["timestep_spacing"], type=str)
@field_option(SAMPLING["guidance_rescale"])
@field_option(SAMPLING["eta"])
@field_option(
    SAMPLING["guidance_sigma_low"],
    "guidance_interval",
    metavar="LOW HIGH",
    nargs=2,
)
@super_resolution_option
@second_pass_options
@seed_option
@attention_options
@tuning_options
@server_options
def edit_command(
    photo: str,
    prompts: tuple[str, ...],
    output: str,
    like: str | None,
    overwrite: bool,
    omit_metadata: bool,
    method: str | None,
    strength: float | None,
    guidance_scale: float | None,
    automatic: bool | None,
    clip_filter: bool,
    interpolation: float | None,
    negative_prompt: str | None,
    base_prompt: str | None,
    prompt_guidance_scale: float | None,
    mask: str | None,
    mask_source: str | None,
    mask_blur: float | None,
    mask_text: str | None,
    inverted: bool,
    only_masked: bool,
    repeats: int | None,
    num_inference_steps: int | None,
    fast: bool,
    scheduler: str | None,
    timestep_spacing: str | None,
    guidance_rescale: float | None,
    eta: float | None,
    guidance_interval: tuple[float, float] | None,
    super_resolution: bool,
    second_pass: bool,
    second_pass_strength: float | None,
    second_pass_scale: float | None,
    seeds: tuple[int, ...],
    cross_replace: float | None,
    self_replace: float | None,
    inversion: str | None,
    alignment: str | None,
    word_weights: tuple[tuple[str, float], ...],
    blend_words: tuple[str, ...],
    further_photos: tuple[str, ...],
    address: str | None,
    base_model: str | None,
    as_json: bool,
    **tuning: Any,
) -> None:
    """Edit PHOTO, a PNG, JPEG, WebP, AVIF or HEIC file, by each PROMPT, which describes the picture you want to see.

    The model is tuned on the photo once. All prompts, and later commands with the same photo, use that tuning; imagic
    makes one for each prompt. Without --address the services run here for as long as the command does. The pictures,
    and a sheet of all of them, go into OUT, and their paths are printed. Before the first tuning the server checks
    every prompt and every option; refusals and warnings come then.

    Each picture says how it was made: `unitune show PICTURE` prints it, and --like PICTURE does the same again.

    When an edit starts, its settings are told, with defaults filled in. `unitune doctor` shows a server's defaults.
    """
    record = Record.read(like, "--like") if like is not None else None
    prompts = prompts or ((record.prompt,) if record is not None else ())
    if not prompts:
        raise InvalidField("PROMPT", "unset", "describe the picture that you want to see, or give --like PICTURE")
    data, further = read_photo(photo), [read_photo(one, "--photo") for one in further_photos]
    mask_data = read_mask(mask)
    outputs = Outputs(folder_of(output), photo, overwrites=overwrite)
    said = {
        "strength": strength,
        "guidance_scale": guidance_scale,
        "interpolation": interpolation,
        "negative_prompt": negative_prompt,
        "base_prompt": base_prompt,
        "prompt_guidance_scale": prompt_guidance_scale,
        "mask": mask_data,
        "mask_source": mask_source,
        "mask_text": mask_text,
        "inverted": inverted or None,
        "mask_blur": mask_blur,
        "only_masked": only_masked or None,
        "repeats": repeats,
        "num_inference_steps": num_inference_steps,
        "fast": fast or None,
        "scheduler": scheduler,
        "timestep_spacing": timestep_spacing,
        "guidance_rescale": guidance_rescale,
        "eta": eta,
        "guidance_sigma_low": guidance_interval[0] if guidance_interval else None,
        "guidance_sigma_high": guidance_interval[1] if guidance_interval else None,
        "seeds": list(dict.fromkeys(seeds)),
        "cross_replace": cross_replace,
        "self_replace": self_replace,
        "inversion": inversion,
        "alignment": alignment,
        "word_weights": dict(word_weights) or None,
        "blend_words": list(blend_words) or None,
        "clip_filter": clip_filter or None,
        "super_resolution": super_resolution or None,
        "second_pass": second_pass or None,
        "second_pass_strength": second_pass_strength,
        "second_pass_scale": second_pass_scale,
        "omit_metadata": omit_metadata or None,
    }
    options = cast(EditOptions, said)  # a server knows the words that it takes
    with display(as_json) as show:
        warn_of_single_words(prompts, show)
        with connection(address, base_model, show.say) as client:
            info = client.server_info()
            if record is not None:
                check_like(record, info, data, further, options, show)
                options = record.options(cast(EditOptions, {**options, "method": method, "automatic": automatic}))
                tuning = dict(record.tuning_options(cast(TuningOptions, tuning), method))
                method, automatic = options.get("method"), options.get("automatic")
            method = method or info.sampling_defaults.method or DEFAULT_METHOD
            if automatic is None:
                is_open = not clip_filter and not fast and strength is None and guidance_scale is None
                automatic = info.base_model.has_clip_filter and is_open and method in AUTOMATIC_METHODS
            tunes = method in (DEFAULT_METHOD, *info.method_tuning_defaults)
            if further and not tunes:
                raise InvalidField("--photo", "given", f"leave it out: {method} tunes on no further photos")
            say_what_the_model_knows(info, show)
            image = client.upload_image(data)
            options["mask"] = uploaded_if_large(client, options.get("mask"))
            options["automatic"] = automatic or None
            options = cast(EditOptions, {**options, "method": method})
            asked = cast(EditOptions, {**options, **tuning})
            named = slugs(prompts)
            since = validate(client, image, named, asked, show)
            target: events.Image | events.Tuning = image
            if method != DEFAULT_METHOD:
                tuning["method"] = method
            if tunes and method != METHOD_PER_PROMPT:
                made = tune(client, image, show, further_images=further, **tuning)
                if further:  # which no request of an edit can name
                    target, asked = made, options
            edits: list[SheetEdit] = []
            paths: list[Path] = []
            captions = captions_of(named, show)
            for prompt, slug in named.items():
                if method == METHOD_PER_PROMPT:
                    tune(client, image, show, further_images=further, tuning_prompt=prompt, **tuning)
                for edited in edit(client, target, prompt, asked, show, since=since):
                    if edited.blocked:
                        show.warn(f"{captions[prompt]} (seed {edited.seed}): {events.BLOCKED}")
                        continue
                    path = outputs.save(edited.png, slug, f"seed{edited.seed}")
                    show.result(str(path), kind="picture", prompt=prompt, seed=edited.seed)
                    caption = f"{captions[prompt]} (seed {edited.seed})" if len(seeds) > 1 else captions[prompt]
                    edits.append((caption + sampled_at(edited, info.base_model), edited.png, edited.mask or b""))
                    paths.append(path)
            if not paths:
                raise FailedPrecondition("the content filter refused every picture", reason="BLOCKED")
            file = sheet_file(contact_sheet([(data, edits)]), paths, omit_metadata=omit_metadata)
            show.result(str(outputs.save(file, "sheet")), kind="sheet")


@click.command("tune")
@click.argument("photo", type=PathOption())
@field_option(TUNING["method"], type=str)
@field_option(TUNING["prompt"], "prompts", multiple=True)
@field_option(TUNING["base_prompt"], metavar="TEXT")
@field_option(TUNING["num_inference_steps"])
@field_option(TUNING["guidance_scale"])
@tuning_options
@server_options
def tune_command(
    photo: str,
    method: str | None,
    prompts: tuple[str, ...],
    further_photos: tuple[str, ...],
    address: str | None,
    base_model: str | None,
    as_json: bool,
    **tuning: Any,
) -> None:
    """Tune on PHOTO and print the tuning's name. Edits of the same photo then start at once.

    \b
    Examples:
      unitune tune cat.png --updates 256 --address 127.0.0.1:50051
      unitune tune cat.png --method imagic --prompt "a cat on a beach" --address 127.0.0.1:50051
    """
    data, further = read_photo(photo), [read_photo(one, "--photo") for one in further_photos]
    with display(as_json) as show, connection(address, base_model, show.say) as client:
        say_what_the_model_knows(client.server_info(), show)
        image = client.upload_image(data)
        for prompt in dict.fromkeys(prompts) or [None]:
            asked = {**tuning, "method": method, "tuning_prompt": prompt}
            made = tune(client, image, show, further_images=further, **asked)
            show.result(made.name, kind="tuning", tuning=made)


def validate(
    client: Client, image: events.Image, prompts: Iterable[str], asked: EditOptions, show: Display
) -> datetime | None:
    """Have the server check the edit by each prompt, and show its warnings; the time of the first check, by its clock.

    Raises what any of the edits would be refused with, before the first tuning begins.
    """
    times = []
    for prompt in prompts:
        accepted = client.check_edit(image, prompt, **asked)
        for warning in accepted.warnings:
            show.warn(warning, prompt=prompt)
        times.append(accepted.create_time)
    return times[0]


def tune(client: Client, image: events.Image, show: Display, **config: Any) -> events.Tuning:
    """The picture's tuning, READY, with its progress on show. An interrupt cancels it, unless another made it."""
    asked_s, mark = time.monotonic(), secrets.token_hex(4)
    tuning = client.create_tuning(image, labels={COMMAND_LABEL: mark}, **config)
    is_ours = tuning.labels.get(COMMAND_LABEL) == mark
    for warning in tuning.warnings:
        show.warn(warning)
    if tuning.config.total_updates == 0:
        show.warn("the tuning has no updates, so edits are those of the base model; --updates says how many it has")
    if tuning.state == events.TuningState.READY:
        show.say("this picture was tuned on before")
        return tuning
    began_s = None
    try:
        for event in client.watch_tuning(tuning.name):
            show.event(event)
            if isinstance(event, events.TuningStarted) and began_s is None:
                began_s = time.monotonic()
            elif isinstance(event, events.TuningReady):
                tuning = event.tuning
    except KeyboardInterrupt:
        if is_ours:
            cancel(show, "tuning", tuning.name, client.cancel_tuning)
        else:
            say_it_goes_on(tuning.name, show)
        raise
    except Cancelled as error:
        if error.reason != "TUNING_CANCELLED":
            raise
        message = f"{tuning.name} was cancelled by another command; run this one again"
        raise Cancelled(message, reason=error.reason, metadata=error.metadata) from None
    began_s = began_s or asked_s
    show.say(f"waited {began_s - asked_s:.1f} s for a turn, tuned in {time.monotonic() - began_s:.1f} s")
    return tuning


def uploaded_if_large(client: Client, mask: Picture | None) -> Picture | None:
    """The mask, or its upload if it is too large for a request: one upload serves all prompts."""
    if not isinstance(mask, bytes) or len(mask) <= INLINE_MASK_BYTES:
        return mask
    try:
        return client.upload_image(mask)
    except InvalidArgument as error:
        raise of_field(error, "mask") from None


def edit(
    client: Client,
    target: events.Image | events.Tuning,
    prompt: str,
    options: EditOptions,
    show: Display,
    *,
    since: datetime | None,
) -> list[events.EditedImage]:
    """The pictures of an edit, with its progress on show.

    An interrupt cancels it, and a tuning of an image that the server has made for it, after the time `since`.
    """
    name, images = "", list[events.EditedImage]()
    is_tuning, tried = False, 0
    try:
        for event in client.edit(target, prompt, **options):
            show.event(event, prompt=prompt)
            is_tuning = isinstance(event, TUNING_EVENTS) or (is_tuning and isinstance(event, events.Heartbeat))
            if isinstance(event, events.EditAccepted):
                name = event.edit
            elif isinstance(event, events.EditStep):
                tried = max(tried, event.attempt)
            elif isinstance(event, events.EditedImage):
                images.append(event)
            elif isinstance(event, events.EditDone):
                show.say(in_words(event.timings))
    except KeyboardInterrupt:
        if name:
            cancel(show, "edit", name, client.cancel_edit)
        if is_tuning and isinstance(target, events.Image):
            cancel_tunings_of(client, target.name, since, show)
        raise
    for image in images:
        if image.scores is not None:
            is_exact = len(images) == 1 or image.strength is not None  # a seed that passed is not tried again
            show.say(choice_in_words(image, image.scores, tried, is_exact=is_exact))
    return images


def warn_of_single_words(prompts: Sequence[str], show: Display) -> None:
    """Warn of prompts that look like one whose quotes were forgotten."""
    if len(prompts) >= SINGLE_WORDS and all(len(prompt.split()) == 1 for prompt in prompts):
        show.warn(f"{len(prompts)} prompts of one word each; put quotes around a prompt of several words")


def say_what_the_model_knows(info: events.ServerInfo, show: Display) -> None:
    """One line if the base model has a small world of its own."""
    if info.base_model.vocabulary:
        show.say(
            f"the model {info.base_model.name} knows only its own world of stickers (unitune doctor --vocabulary); "
            "for photographs give --base-model: see docs/photographs.md"
        )


def choice_in_words(image: events.EditedImage, scores: events.Scores, tried: int, *, is_exact: bool) -> str:
    """Which picture the CLIP filter took, of how many, and why. `is_exact`: this seed was tried as often as that."""
    settings = f" at strength {image.strength:g} and guidance {image.guidance_scale:g}" if image.strength else ""
    number = f"{'' if is_exact else 'at most '}{tried} that were tried"
    among = f", the best of {number}" if tried > 1 else ", the only one that was tried"
    verdict = "It passes the CLIP filter" if scores.passed else "It does not pass the CLIP filter"
    return (
        f"seed {image.seed}: the picture{settings} was taken{among}. {verdict}: likeness to PROMPT {scores.prompt:.2f} "
        f"(of PHOTO {scores.base_prompt:.2f}), likeness to PHOTO {scores.kept:.2f} (1 is the same)"
    )


def sampled_at(image: events.EditedImage, model: events.BaseModel) -> str:
    """The end of a caption: the size at which the picture was sampled, where that is not the model's own."""
    size = image.working_width, image.working_height
    return "" if size in ((0, 0), (model.width, model.height)) else f", sampled at {size[0]}x{size[1]}"


def captions_of(prompts: Iterable[str], show: Display) -> dict[str, str]:
    """The caption of each prompt: the prompt, or its number where no font has its letters, which is said."""
    captions = {}
    for number, prompt in enumerate(prompts, start=1):
        captions[prompt] = prompt if can_show(prompt) else f"prompt {number}"
        if captions[prompt] != prompt:
            show.say(
                f"no font of this machine has the letters of prompt {number}, so the sheet has its number: {prompt}"
            )
    return captions


def check_like(
    record: Record, info: events.ServerInfo, data: bytes, further: Sequence[bytes], asked: EditOptions, show: Display
) -> None:
    """Warn of what makes another picture than the recorded one. Raises InvalidField for missing files."""
    if hashlib.sha256(data).hexdigest() != record.photo:
        show.warn("PHOTO is not the file that the picture of --like was made from; the result will be another")
    if info.base_model.digest != record.base_model:
        show.warn(
            f"the picture of --like was made with the base model {record.base_model_name} ({record.base_model[:12]}), "
            f"this server has {info.base_model.name} ({info.base_model.digest[:12]}); the result will be another"
        )
    if (asked.get("method") or record.method) != record.method:
        return
    mask, source = asked.get("mask"), asked.get("mask_source") or record.sampling.get("mask_source")
    if record.mask and not isinstance(mask, bytes) and source == "given" and not asked.get("mask_text"):
        raise InvalidField("--mask", "unset", "the picture of --like was made with a mask; give its file")
    if record.mask and isinstance(mask, bytes) and hashlib.sha256(mask).hexdigest() != record.mask:
        show.warn("--mask is not the file that the picture of --like was made with; the result will be another")
    if len(further) < len(record.further_photos):
        remedy = f"the picture of --like was made with {len(record.further_photos)} further photos; give them all"
        raise InvalidField("--photo", f"{len(further)} files", remedy)
    if [hashlib.sha256(one).hexdigest() for one in further] != list(record.further_photos):
        show.warn("the files of --photo are not those that the picture of --like was made with, in their order")


def in_words(timings: events.Timings) -> str:
    """The seconds of each stage that took any."""
    stages = {
        "queue": timings.queue_s,
        "tune": timings.tune_s,
        "refit": timings.refit_s,
        "encode": timings.encode_s,
        "denoise": timings.denoise_s,
        "decode": timings.decode_s,
        "super-resolution": timings.super_resolution_s,
    }
    told = [f"{name} {seconds:.2f} s" for name, seconds in stages.items() if seconds >= 0.005]
    return f"edited in {timings.total_s:.2f} s ({', '.join(told)})" if told else f"edited in {timings.total_s:.2f} s"
