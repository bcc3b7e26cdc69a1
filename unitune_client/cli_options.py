"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from unitune.errors import InvalidField
from unitune_client.channel import checked_address
from unitune_client.streams import is_text

F = TypeVar("F", bound=Callable[..., Any])


class Text(click.ParamType):
    """Words for the server, which takes Unicode alone; an argument that is not UTF-8 is refused here."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text. Raises InvalidField naming the option."""
        text = str(value)
        if not is_text(text):
            remedy = "it has bytes that are no text in this terminal's encoding; type it again as UTF-8"
            raise InvalidField(shown(param), text, remedy)
        return text


class PathOption(click.ParamType):
    """A path, of any bytes that the system has in one."""

    name = "path"


class Address(Text):
    """HOST:PORT."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The address. Raises InvalidField naming the option."""
        return checked_address(super().convert(value, param, ctx), shown(param))


def refuse_other_than_text(command: click.Command) -> None:
    """Have every argument and option of plain words, of this command and those below it, be Text."""
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        refuse_other_than_text(below)
    for param in command.params:
        if param.type is click.STRING:
            param.type = Text()
        elif isinstance(param.type, click.Tuple):
            param.type.types = [Text() if kind is click.STRING else kind for kind in param.type.types]


def shown(param: click.Parameter | None) -> str:
    """What --help calls it: `--seed`, or PROMPT, of which there may be several."""
    if isinstance(param, click.Argument):
        return (param.name or "").upper().removesuffix("S")
    return param.opts[-1] if param is not None else "value"


class Between(click.ParamType):
    """A number from `low` to `high`, or above `low` if that itself is not allowed; whole if both are."""

    def __init__(self, low: float, high: float, *, above_low: bool = False) -> None:
        self._low, self._high, self._above_low = low, high, above_low
        self._kind: type[int] | type[float] = int if isinstance(low, int) and isinstance(high, int) else float
        self.name = "whole number" if self._kind is int else "number"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """How --help shows the value."""
        return "N" if self._kind is int else "X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Raises InvalidField naming the option."""
        try:
            number = self._kind(value)
        except ValueError:
            number = None
        is_low = number is not None and number == self._low and self._above_low
        if number is None or is_low or not self._low <= number <= self._high:  # not a number is not between either
            span = f"above {self._low:g}, to {self._high}" if self._above_low else f"from {self._low} to {self._high}"
            raise InvalidField(shown(param), value, f"give a {self.name} {span}")
        return number


def server_options(command: F) -> F:
    """--address, --base-model and --json."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object per event on standard output."),
        click.option(
            "--base-model",
            metavar="PATH",
            type=PathOption(),
            help="Folder of a Stable Diffusion model in diffusers layout, for services that are started here.  "
            "[env: UNITUNE_BASE_MODEL; default: the embedded model]",
        ),
        click.option(
            "--address",
            metavar="HOST:PORT",
            type=Address(),
            envvar="UNITUNE_ADDRESS",
            help="A running server.  [env: UNITUNE_ADDRESS; default: run the services here]",
        ),
    ):
        command = option(command)
    return command


output_option = click.option(
    "-o",
    "--out",
    "--output",
    "output",
    metavar="OUT",
    type=PathOption(),
    default="out",
    show_default=True,
    help="Folder for what is written.",
)


def result_options(command: F) -> F:
    """--overwrite and --no-metadata."""
    for option in (
        click.option(
            "--no-metadata",
            "omit_metadata",
            is_flag=True,
            help="Leave out of the pictures how they were made, which `unitune show` prints and `edit --like` reads.",
        ),
        click.option(
            "--overwrite",
            is_flag=True,
            help="Replace files of the same name; without it another picture gets a name of its own, as ...--2.png.",
        ),
    ):
        command = option(command)
    return command


super_resolution_option = click.option(
    "--super-resolution",
    is_flag=True,
    help="Have the base model's second stage enlarge the pictures, where it has one: stickerbook's makes 128x128.",
)


def attention_options(command: F) -> F:
    """What prompt_to_prompt alone has."""
    for option in (
        click.option(
            "--blend",
            "blend_words",
            metavar="WORD",
            multiple=True,
            help="prompt_to_prompt: edit only where WORD looks, a word of PROMPT or of --base-prompt; may be repeated.",
        ),
        click.option(
            "--weight",
            "word_weights",
            metavar="WORD X",
            type=(str, Between(-10.0, 10.0)),
            multiple=True,
            help="prompt_to_prompt: show X times as much of WORD of PROMPT; may be repeated.",
        ),
        click.option(
            "--alignment",
            type=click.Choice(("replace", "refine")),
            help="prompt_to_prompt: compare the prompts word by word, or by the words that both have.  [default: "
            "replace where they have as many words]",
        ),
        click.option(
            "--inversion",
            type=click.Choice(("direct", "ddim", "null_text")),
            help="prompt_to_prompt: put the photo's branch back on the photo at every step, or not, or tune an "
            "embedding for each step that keeps it near, with --updates for each, 10 by default.  [default: direct]",
        ),
        click.option(
            "--self-replace",
            type=Between(0.0, 1.0),
            help="prompt_to_prompt: share of the steps that keep the photo's layout.  [default: the base model's own]",
        ),
        click.option(
            "--cross-replace",
            type=Between(0.0, 1.0),
            help="prompt_to_prompt: share of the steps in which words look where the photo's do.  [default: the base "
            "model's own]",
        ),
    ):
        command = option(command)
    return command


def tuning_options(command: F) -> F:
    """--updates, --mode and --rare-tokens, and what single methods need."""
    for option in (
        click.option(
            "--stop-loss-ratio",
            type=Between(0.0, 1.0),
            help="unitune: end the tuning early when its loss has fallen to this share of the first updates'.  "
            "[default: 0, never]",
        ),
        click.option(
            "--super-resolution-updates",
            type=Between(0, 5000),
            help="unitune and imagic: tune the second stage, too, for --super-resolution. PHOTO must be at least as "
            "large as what that makes.  [default: 0]",
        ),
        click.option(
            "--vectors",
            "num_vectors",
            type=Between(1, 16),
            help="textual_inversion: vectors in the placeholder's place.  [default: the base model's own, 1]",
        ),
        click.option(
            "--initial-word",
            metavar="WORD",
            help="textual_inversion: one word for what the photo shows. Prompts must have the placeholder "
            "(--rare-tokens) in them.",
        ),
        click.option(
            "--prior-weight",
            type=Between(0.0, 100.0),
            help="dreambooth: weight of the class images.  [default: the base model's own, 1]",
        ),
        click.option(
            "--class-images",
            "num_class_images",
            type=Between(0, 1000),
            help="dreambooth: pictures of the class that the base model draws first.  [default: the base model's own]",
        ),
        click.option(
            "--photo",
            "further_photos",
            metavar="FILE",
            type=PathOption(),
            multiple=True,
            help="dreambooth: a further photo of the same subject; up to 4.",
        ),
        click.option(
            "--class-noun",
            metavar="NOUN",
            help="dreambooth: what kind of thing the photos show. Prompts must have --rare-tokens and NOUN in them.",
        ),
        click.option(
            "--embedding-updates",
            type=Between(0, 5000),
            help="imagic: updates of the text embedding, before --updates.  [default: the base model's own, 500]",
        ),
        click.option(
            "--rare-tokens",
            metavar="T",
            help="Words that the tuning binds to the photo, at most 32 characters.  [default: the base model's own]",
        ),
        click.option(
            "--mode",
            metavar="M",
            help="Which UNet weights change: full, attn_out or lora.  [default: the base model's own]",
        ),
        click.option(
            "--updates",
            type=Between(0, 5000),
            help="Optimizer updates of the tuning: more keeps more of the photo.  [default: the base model's own, 128]",
        ),
        click.option(
            "--learning-rate",
            type=Between(0.0, 0.1, above_low=True),
            help="Of these updates: a higher one needs fewer.  [default: the base model's own, 1e-4]",
        ),
    ):
        command = option(command)
    return command
