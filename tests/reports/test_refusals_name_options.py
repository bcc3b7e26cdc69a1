"""What a server refuses is told by the command line's own names: options, and not the fields of the API."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import grpc
import pytest
from google.protobuf.message import Message

from tests.reports.conftest import ROOT, Unitune
from unitune.errors import InvalidField, UniTuneError, from_rpc_error
from unitune.options import BASE_MODEL, EDIT, SAMPLING, TUNING, name_of, options_of, put_words
from unitune.v1 import edit_pb2, edit_pb2_grpc, tuning_pb2, tuning_pb2_grpc
from unitune_client import Client
from unitune_client.cli.flags import FIELDS, Flags
from unitune_client.cli.main import main
from unitune_client.local.services import LocalServices

LONG = "x" * 2001
TUNED = {"imagic": ("embedding_updates", "prompt"), "dreambooth": ("class_noun", "num_class_images", "prior_weight")}
TUNED |= {"textual_inversion": ("initial_word", "num_vectors")}
TUNED |= {"null_text": ("base_prompt", "num_inference_steps", "guidance_scale")}

# A value of each field that a server refuses. None: it is refused nowhere, or only by what it is of.
WRONG: dict[type[Message], dict[str, Any]] = {
    edit_pb2.EditRequest: {
        "image": "nonsense",
        "image_data": None,
        "prompt": "",
        "config": None,
        "tuning_config": None,
        "seeds": [-1],
        "mask": None,
        "mask_image": None,
    },
    edit_pb2.SamplingConfig: {
        "method": 99,
        "num_inference_steps": 0,
        "guidance_scale": -1,
        "strength": 2,
        "interpolation": 2,
        "scheduler": 99,
        "tcd_gamma": -1,
        "fast_lora": None,  # the model of these services has one
        "negative_prompt": LONG,
        "base_prompt": LONG,
        "prompt_guidance_scale": -1,
        "mask_source": 99,
        "mask_blur": -1,
        "mask_text": LONG,
        "inverted": True,
        "only_masked": True,
        "repeats": 0,
        "eta": -1,
        "guidance_sigma_low": -1,
        "guidance_sigma_high": -1,
        "automatic": True,
        "clip_filter": True,
        "inversion": 99,
        "cross_replace": 2,
        "self_replace": 2,
        "alignment": 99,
        "word_weights": {"cat": 99},
        "blend_words": ["cat"] * 99,
        "super_resolution": None,
        "super_resolution_width": 97,
        "second_pass": None,
        "second_pass_strength": 2,
        "second_pass_scale": 99,
        "fast": True,
        "timestep_spacing": 99,
        "guidance_rescale": 2,
    },
    tuning_pb2.CreateTuningRequest: {"image": "nonsense", "images": ["tenants/default/images/" + "0" * 64] * 9},
    tuning_pb2.TuningConfig: {
        "method": 99,
        "mode": 99,
        "updates": -1,
        "learning_rate": 0,
        "rare_tokens": "x" * 99,
        "stop_loss_ratio": 2,
        "warm_start": True,  # the model of these services has none
        "super_resolution_updates": -1,
        "super_resolution_2_updates": -1,
        "prompt": LONG,
        "embedding_updates": -1,
        "class_noun": LONG,
        "num_class_images": -1,
        "prior_weight": -1,
        "initial_word": LONG,
        "num_vectors": 0,
        "base_prompt": LONG,
        "num_inference_steps": 0,
        "guidance_scale": -1,
    },
    edit_pb2.CompareRequest: {
        "image": "nonsense",
        "image_data": None,
        "prompt": "",
        "methods": [edit_pb2.CompareRequest.Entry(method=99)],
        "seeds": [-1],
        "class_noun": LONG,
        "initial_word": LONG,
        "base_prompt": LONG,
    },
}
# Fields that no option sets.
OF_THE_API = {
    edit_pb2.EditRequest: {"parent", "tuning", "preview_every", "validate_only", "request_id"},
    edit_pb2.SamplingConfig: {
        "unconditional_model", "base_mixture", "mask_padding", "mask_keeps", "resamples", "dynamic_thresholding",
        "super_resolution_noise_level", "super_resolution_steps", "super_resolution_guidance_scale",
    },
    tuning_pb2.CreateTuningRequest: {"parent", "config", "request_id", "labels", "validate_only"},
    tuning_pb2.TuningConfig: {"batch", "seed", "embedding_learning_rate", "scale_learning_rate"},
    edit_pb2.CompareRequest: {"parent", "validate_only", "request_id"},
}  # fmt: skip
NEVER_REFUSED = {"omit_metadata"}  # --no-metadata; no value of it can be wrong
COMMANDS = {
    edit_pb2.EditRequest: "edit",
    edit_pb2.SamplingConfig: "edit",
    tuning_pb2.CreateTuningRequest: "tune",
    tuning_pb2.TuningConfig: "tune",
    edit_pb2.CompareRequest: "compare",
}
CASES = [(kind, field, value) for kind, values in WRONG.items() for field, value in values.items() if value is not None]


@pytest.fixture(scope="module")
def refused_by(services: LocalServices) -> Iterator[Callable[[type[Message], str, Any], UniTuneError]]:
    """The error with which the server refuses one field of a request that is right otherwise."""
    picture = (ROOT / "demo" / "cat.png").read_bytes()
    with Client(services.address) as client, grpc.insecure_channel(services.address) as channel:
        image = client.upload_image(picture).name
        edits, tunings = edit_pb2_grpc.EditServiceStub(channel), tuning_pb2_grpc.TuningServiceStub(channel)

        def refused(kind: type[Message], field: str, value: Any) -> UniTuneError:
            with pytest.raises(grpc.RpcError) as raised:
                if kind in (edit_pb2.EditRequest, edit_pb2.SamplingConfig):
                    request = edit_pb2.EditRequest(parent="tenants/default", image=image, prompt="a cat")
                    of = request if kind is edit_pb2.EditRequest else request.config
                    set_field(of, field, value)
                    if field == "fast":
                        request.config.method = edit_pb2.SamplingConfig.METHOD_SDEDIT
                    list(edits.Edit(request, timeout=60))
                elif kind is edit_pb2.CompareRequest:
                    request = edit_pb2.CompareRequest(parent="tenants/default", image=image, prompt="a cat")
                    set_field(request, field, value)
                    list(edits.Compare(request, timeout=60))
                else:
                    request = tuning_pb2.CreateTuningRequest(parent="tenants/default", image=image)
                    set_field(request if kind is tuning_pb2.CreateTuningRequest else request.config, field, value)
                    if field in sum(TUNED.values(), ()):
                        method = next(method for method, fields in TUNED.items() if field in fields)
                        put_words(request.config, {"method": method})
                    tunings.CreateTuning(request, timeout=60)
            return from_rpc_error(raised.value)

        yield refused


def set_field(message: Message, name: str, value: Any) -> None:
    """Put a value into any field, a choice by its number."""
    field = options_of(type(message))[name]
    if not field.choices:
        field.put(message, value)
        return
    for parent in field.parents:
        message = getattr(message, parent.descriptor.name)
    setattr(message, field.descriptor.name, value)


def command_of(kind: type[Message]) -> click.Command:
    """The command that sends such messages."""
    return main.commands[COMMANDS[kind]]


def help_of(command: click.Command) -> str:
    """What --help shows."""
    return command.get_help(click.Context(command, info_name=command.name))


@pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.DESCRIPTOR.name)
def test_every_field_is_an_option_or_of_the_api_alone(kind: type[Message]) -> None:
    """A new field of the contract has an option that refusals name, or stands here as one that has none (N17)."""
    flags, shown = Flags(command_of(kind)), help_of(command_of(kind))
    known = WRONG[kind].keys() | OF_THE_API[kind] | NEVER_REFUSED
    fields = set(options_of(kind))

    assert fields <= known, f"neither an option nor of the API alone: {fields - known}"
    for field in fields & (WRONG[kind].keys() - {"config", "tuning_config"}):
        assert (flags.option_of(field) or "none") in shown, field
    assert [] == [field for field in OF_THE_API[kind] - {"config"} if flags.option_of(field) is not None]


@pytest.mark.parametrize(("kind", "field", "value"), CASES, ids=lambda case: getattr(case, "__name__", None))
def test_a_servers_refusal_names_an_option(
    refused_by: Callable[[type[Message], str, Any], UniTuneError], kind: type[Message], field: str, value: Any
) -> None:
    """Whatever an option sets is refused under that option's name, with a remedy that the command line has (N17)."""
    error = refused_by(kind, field, value)
    flags = Flags(command_of(kind))

    option = flags.option_of(error.field or "")

    assert error.field is not None and name_of(error.field) in (field, "method")
    assert option is not None and option in help_of(command_of(kind)).split("\n  ", 1)[0] + help_of(command_of(kind))
    told = flags.message(error)
    assert told.startswith((f"{option} is ", f"{option} has "))
    assert not re.search(r"\bconfig\b|\bunset\b", told.partition(": ")[2]), told


def remedies() -> list[str]:
    """Every text of the servers that tells to leave a field unset or to set one, with X for what it fills in."""
    texts = []
    servers = ("gateway", "sampler_svc", "tuner_svc")
    of_servers = [path for server in servers for path in ROOT.glob(f"{server}/**/*.py")]
    for path in [*of_servers, ROOT / "unitune" / "sampling_rules.py"]:
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if id(node) in docstrings | inner:
                continue
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(p.value if isinstance(p, ast.Constant) else "X" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    for fields in (EDIT, SAMPLING, TUNING, BASE_MODEL):
        texts += [field.limits.remedy for field in fields.values()]
        texts += [f"leave it unset: {why}" for field in fields.values() for why in field.declared.refused_with.values()]
    return [text for text in texts if re.search(r" unset\b|\bset [a-z]+_?[a-z]*\b[^:]|^set ", text)]


def test_every_remedy_of_the_servers_can_be_said_in_options() -> None:
    """No remedy in the source of a server keeps a field's name, or `unset`, where there is an option (N17)."""
    flags = Flags(main.commands["edit"])
    found = remedies()
    wrong = []
    for remedy in found:
        told = flags.message(InvalidField("config.strength", 0.5, remedy)).partition(": ")[2]
        names = {name for name in re.findall(r"(?<![-\w])[a-z]+(?:_[a-z]+)+\b", told) if name in FIELDS}
        if re.search(r"leave .* unset", told) or [name for name in names if flags.option_of(name)]:
            wrong.append((remedy, told))

    assert len(found) > 30, "the search finds nothing any more"
    assert [] == wrong


@pytest.mark.parametrize(
    ("remedy", "told"),
    [
        ("leave it unset: automatic chooses it", "leave it out: automatic chooses it"),
        ("leave automatic unset", "give --no-automatic"),
        (
            "say more, or leave automatic and clip_filter unset",
            "say more, or give --no-automatic and leave out --clip-filter",
        ),
        ("for no guidance at all set guidance_scale to 1", "for no guidance at all give --guidance 1"),
        ("it must be above guidance_sigma_low, 3", "it must be above --guidance-interval, 3"),
        ("leave it unset, or set clip_filter, too", "leave it out, or give --clip-filter, too"),
    ],
)
def test_remedies_are_worded_in_options(remedy: str, told: str) -> None:
    """What is to be left unset is left out, or switched off where it is on by itself (N17)."""
    assert f"--strength is 0.5: {told}" == Flags(main.commands["edit"]).message(
        InvalidField("config.strength", 0.5, remedy)
    )


def test_an_option_that_is_on_by_itself_is_switched_off() -> None:
    """`leave it unset` of --automatic is --no-automatic (N17)."""
    error = InvalidField(
        "config.automatic", "true", "leave it unset: this base model has no CLIP filter (a clip folder)"
    )

    told = Flags(main.commands["edit"]).message(error)

    assert "--automatic is 'true': give --no-automatic: this base model has no CLIP filter (a clip folder)" == told


def test_the_program_names_options(unitune: Unitune, photo: Path) -> None:
    """What only the server misses is refused under its option, on one line, and in JSON with the option (N17)."""
    done = unitune("tune", photo, "--method", "textual_inversion")
    told = unitune("edit", photo, "a dog", "--method", "sdedit", "--automatic", "--json")
    whole = unitune("edit", photo, "a dog", "--method", "sdedit", "--updates", "3")

    assert (2, "error: --initial-word is missing: give one word that says what the picture shows, such as dog") == (
        done.returncode,
        done.stderr.strip().splitlines()[-1],
    )
    assert told.stderr.splitlines()[-1].startswith("error: --automatic cannot be given: give --no-automatic: ")
    assert '"option": "--automatic"' in told.stdout.splitlines()[-1]
    assert whole.stderr.splitlines()[-1].startswith("error: --updates cannot be given: leave it out: ")


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("seeds", 3, "give a list of whole numbers, such as [0, 1]"),
        ("seeds", "12", "give a list of whole numbers, such as [0, 1]"),
        ("blend_words", "dog", "give a list of texts, such as ['dog']"),
        ("word_weights", ["dog"], "give a mapping from words to numbers, such as {'dog': 2.0}"),
        ("negative_prompt", "a\udcff", "give a text; this one has bytes that are no Unicode"),
    ],
)
def test_a_value_of_a_wrong_kind_is_told_what_would_be_right(
    client: Client, option: str, value: Any, remedy: str
) -> None:
    """The SDK says what the option takes, and not what one of its values is (N17)."""
    picture = (ROOT / "demo" / "cat.png").read_bytes()

    with pytest.raises(InvalidField) as raised:
        list(client.edit(picture, "a dog", **{option: value}))
    assert (option, remedy) == (raised.value.field, raised.value.metadata["remedy"])


def test_a_comparison_says_it_too(client: Client) -> None:
    """`seeds=3` of a comparison is an InvalidField as that of an edit is, and no bare TypeError (N17)."""
    with pytest.raises(InvalidField, match=r"^seeds is 3: give a list of whole numbers, such as \[0, 1\]$"):
        list(client.compare(b"", "a dog", seeds=3))  # type: ignore[arg-type]
