"""Write docs/options.md: every option of a request, as the contract declares it.

    python -m protos.options_page          # write it
    python -m protos.options_page --check  # say whether it is fresh

The words about an option are the first sentence of its comment, which only the compiler reads.
"""

import re
import sys

from google.protobuf.message import Message

from protos.contract import described
from protos.generated_file import ROOT, write
from unitune.options import Field, options_of, range_in_words
from unitune.v1 import edit_pb2, tuning_pb2

PAGE = ROOT / "docs" / "options.md"
REQUESTS: dict[type[Message], str] = {
    edit_pb2.EditRequest: "An edit.",
    edit_pb2.SamplingConfig: "How an edit is sampled: `config` of an EditRequest.",
    tuning_pb2.TuningConfig: "How to tune: `config` of a CreateTuningRequest, `tuning_config` of an EditRequest.",
    tuning_pb2.CreateTuningRequest: "A tuning.",
    edit_pb2.CompareRequest: "A comparison of methods.",
}
HEAD = """# Options

What each option of a request takes. This page is made of `protos/unitune/v1` by `make protos`; change it there. The
comments there say more, and `GetServerInfo` tells the defaults of a server's base model.

A value out of its range is refused with INVALID_ARGUMENT (INVALID_FIELD), which names field, value and what would be
right. So is an option that the method does not read, one without what it needs, and one beside what excludes it. In a
list or a map the range is that of each number. A text with a control character, other than a tab or the end of a line,
is refused alike.

`option` is the SDK's keyword and the name in a picture's record (but `tuning_seed` and `tuning_prompt` of a
TuningConfig), `path` where a message has it, if that is another place: `mask_blur` is `mask.blur`. `clip_filter` and
`super_resolution` are messages, which turn something on when they are set. A choice is an enum: `ddim` is
`SCHEDULER_DDIM`.
"""


def comments() -> dict[str, str]:
    """The comment of each field, by `Message.field`."""
    files = described(("unitune/v1/edit.proto", "unitune/v1/tuning.proto"), "--include_source_info").file
    found = {}
    for file in files:
        at = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}
        for number, message in enumerate(file.message_type):
            for place, field in enumerate(message.field):
                found[f"{message.name}.{field.name}"] = " ".join(at.get((4, number, 2, place), "").split())
    return found


def first_sentence(comment: str) -> str:
    """What is before the first full stop or colon that ends a sentence, on one line of a table."""
    return re.split(r"(?<=[^.\s]{2})[.:] (?=[A-Z`])|\.$|: ", comment, maxsplit=1)[0].replace("|", "\\|")


def place_of(field: Field) -> str:
    """`Mask.blur`: where its comment is."""
    return field.descriptor.full_name.removeprefix("unitune.v1.")


def row(field: Field, comment: str) -> str:
    """One line of a table."""
    declared = field.declared
    limits = [range_in_words(field).replace("one of ", "")]
    if field.limits.max_items:
        limits.append(f"at most {field.limits.max_items} of them")
    base_model = f"the base model's `{declared.needs_base_model}`" if declared.needs_base_model else ""
    needs = [f"`{field.needs}`" if field.needs else "", base_model]
    without = [f"not with `{name}`" for name in sorted(declared.refused_with)]
    cells = (
        f"`{field.name}`",
        f"`{field.path}`" if field.path != field.name else "",
        ", ".join(filter(None, limits)),
        ", ".join(field.methods),
        ", ".join(filter(None, [*needs, *without])),
        declared.default,
        f"`{declared.flag}`" if declared.flag else "",
        first_sentence(comment),
    )
    return f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")


def page() -> str:
    """The whole page."""
    told, parts = comments(), [HEAD]
    for kind, title in REQUESTS.items():
        name = kind.DESCRIPTOR.name
        parts += [f"\n## {name}\n", f"{title}\n"]
        columns = ("option", "path", "range", "only for", "needs", "default", "flag", "in words")
        parts.append(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        parts += [row(field, told[place_of(field)]) for field in options_of(kind).values()]
        parts[-1] += "\n"
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(write(PAGE, page()))
