"""`unitune edit` and `unitune tune`."""

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import click

from unitune.errors import Cancelled, FailedPrecondition, InvalidArgument, InvalidField
from unitune.options import TUNING
from unitune_client import events
from unitune_client.channel import INLINE_MASK_BYTES
from unitune_client.cli.cancellation import COMMAND_LABEL, cancel, say_it_goes_on
from unitune_client.cli.connection import connection
from unitune_client.cli.display import Display, display
from unitune_client.cli.flags import OWN_TUNING_OPTIONS
from unitune_client.cli.options import (
    SwitchCommand,
    field_option,
    output_option,
    result_options,
    sampling_of,
    sampling_options,
    seed_option,
    server_options,
    tuning_options,
)
from unitune_client.cli.outputs import Outputs, folder_of, slugs
from unitune_client.cli.path_option import PathOption
from unitune_client.cli.photo_files import read_mask, read_photo
from unitune_client.cli.quotes import refuse_forgotten_quotes, warn_of_single_words
from unitune_client.cli.record import Record
from unitune_client.cli.sheet import SheetEdit, can_show, contact_sheet, sheet_file
from unitune_client.client import Client
from unitune_client.messages import file_error
from unitune_client.options import EditOptions, TuningOptions
from unitune_client.pictures import Picture

DEFAULT_METHOD = "unitune"  # of every server
# Automatic settings are on where they are possible, unless one of these is given.
NOT_BESIDE_AUTOMATIC = ("strength", "guidance_scale", "clip_filter", "fast", "fast_lora")
AUTOMATIC_METHODS = ("unitune", "sdedit")  # unless asked; the others start from the noisiest level, as published

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


@click.command("edit", cls=SwitchCommand, epilog=EXAMPLES)
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
@sampling_options
@seed_option
@tuning_options
@server_options
def edit_command(
    photo: str,
    prompts: tuple[str, ...],
    output: str,
    like: str | None,
    overwrite: bool,
    omit_metadata: bool,
    mask: str | None,
    seeds: tuple[int, ...],
    further_photos: tuple[str, ...],
    address: str | None,
    base_model: str | None,
    as_json: bool,
    **given: Any,
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
    refuse_forgotten_quotes(prompts)
    data, further = read_photo(photo), [read_photo(one, "--photo") for one in further_photos]
    said = {
        **sampling_of(given),
        "mask": read_mask(mask),
        "seeds": list(dict.fromkeys(seeds)),
        "omit_metadata": omit_metadata or None,
    }
    options = cast(EditOptions, said)  # a server knows the words that it takes
    tuning = {name: value for name, value in given.items() if name in OWN_TUNING_OPTIONS}
    outputs = Outputs(folder_of(output), photo, overwrites=overwrite)
    with display(as_json) as show:
        warn_of_single_words(prompts, show)
        with connection(address, base_model, show.say) as client:
            info = client.server_info()
            if record is not None:
                check_like(record, info, data, further, options, show)
                asked_method = options.get("method")
                options = record.options(options, has_fast_lora=bool(info.base_model.fast_lora))
                tuning = dict(record.tuning_options(cast(TuningOptions, tuning), asked_method))
            method = options.get("method") or info.sampling_defaults.method or DEFAULT_METHOD
            automatic = options.get("automatic")
            if automatic is None:
                is_open = all(options.get(name) is None for name in NOT_BESIDE_AUTOMATIC)
                automatic = info.base_model.has_clip_filter and is_open and method in AUTOMATIC_METHODS
            say_what_the_model_knows(info, show, address)
            image = client.upload_image(data)
            options["mask"] = uploaded_if_large(client, options.get("mask"))
            options = cast(EditOptions, {**options, "method": method, "automatic": automatic or None})
            asked = cast(EditOptions, {**options, **tuning})
            named = slugs(prompts)
            needed = validate(client, image, named, asked, show)
            if further and all(config is None for config in needed.values()):
                raise InvalidField("--photo", "given", f"leave it out: {method} tunes on no further photos")
            target: events.Image | events.Tuning = image
            tuned_with: Mapping[str, Any] | None = None
            edits: list[SheetEdit] = []
            paths: list[Path] = []
            captions = captions_of(named, show)
            for prompt, slug in named.items():
                if (config := needed[prompt]) is not None and config != tuned_with:
                    made, tuned_with = tune(client, image, show, further_images=further, **config), config
                    if further:  # which no request of an edit can name
                        target, asked = made, options
                for edited in edit(client, target, prompt, asked, show):
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
@field_option(TUNING["method"])
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
        say_what_the_model_knows(client.server_info(), show, address)
        image, images = client.upload_image(data), [client.upload_image(one) for one in further]
        asked = [{**tuning, "method": method, "tuning_prompt": prompt} for prompt in dict.fromkeys(prompts) or [None]]
        for later in asked[1:]:  # so that all that is refused is refused before the first tuning
            client.check_tuning(image, further_images=images, **later)
        for one in asked:
            made = tune(client, image, show, further_images=images, **one)
            show.result(made.name, kind="tuning", tuning=made)


def validate(
    client: Client, image: events.Image, prompts: Iterable[str], asked: EditOptions, show: Display
) -> dict[str, Mapping[str, Any] | None]:
    """Have the server check the edit by each prompt, and show its warnings; the options of the tuning that each needs.

    Raises what any of the edits would be refused with, before the first tuning begins.
    """
    needed = {}
    for prompt in prompts:
        accepted = client.check_edit(image, prompt, **asked)
        for warning in accepted.warnings:
            show.warn(warning, prompt=prompt)
        needed[prompt] = accepted.tuning_options
    return needed


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
        raise file_error(error, "mask") from None


def edit(
    client: Client,
    target: events.Image | events.Tuning,
    prompt: str,
    options: EditOptions,
    show: Display,
) -> list[events.EditedImage]:
    """The pictures of an edit, with its progress on show. An interrupt cancels it."""
    name, images, tried = "", list[events.EditedImage](), 0
    try:
        for event in client.edit(target, prompt, **options):
            show.event(event, prompt=prompt)
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
        raise
    for image in images:
        if image.scores is not None:
            is_exact = len(images) == 1 or image.strength is not None  # a seed that passed is not tried again
            show.say(choice_in_words(image, image.scores, tried, is_exact=is_exact))
    return images


def say_what_the_model_knows(info: events.ServerInfo, show: Display, address: str | None) -> None:
    """One line if the base model has a small world of its own. A server at an address has the one of its operator."""
    if info.base_model.vocabulary:
        remedy = "its operator has to give it another base model" if address else "give --base-model"
        show.say(
            f"the model {info.base_model.name} knows only its own world of stickers (unitune doctor --vocabulary); "
            f"for photographs {remedy}: see docs/photographs.md"
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
