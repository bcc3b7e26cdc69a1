"""Write unitune_client/options.py: the options of the SDK, as the contract declares them.

    python -m protos.client_options          # write it
    python -m protos.client_options --check  # say whether it is fresh

protos/generate.py calls it. The words about an option are the first sentence of its comment, as in docs/options.md.
"""

import sys
import textwrap
from collections.abc import Iterable

from protos.generated_file import ROOT, write
from protos.options_page import comments, first_sentence, place_of
from unitune.options import EDIT, SAMPLING, TUNING, Field, range_in_words

MODULE = ROOT / "unitune_client" / "options.py"
# What is said about the request itself; targets, prompts and names are arguments of their own.
REQUEST_OPTIONS = ("seeds", "mask", "omit_metadata", "preview_every")
# An edit has these as well as its tuning. A server takes what was said about the edit over.
SHARED_OPTIONS = [field.name for field in TUNING.values() if field.keyword in SAMPLING]
WIDTH = 120

HEAD = '''"""The options of edits and tunings: the keywords of the SDK.

Made of protos/unitune/v1 by `make protos`; change it there. docs/options.md tells which methods read an option.
"""

from collections.abc import Mapping
from typing import Literal, TypedDict

from unitune_client.pictures import Picture

# Options that an edit and its tuning both have: a server takes them over from the edit.
SHARED_OPTIONS = ({names})
'''
OWN = "What may be said about a tuning alone; what is absent or None is the base model's own default (`server_info`)."
TUNED = "What may be said about a tuning; what is absent or None is the base model's own default (`server_info`)."
EDITED = """What may be said about an edit; what is absent or None is the base model's own default (`server_info`).

    The options of a tuning are for a picture; a tuning that exists has its own.
    """
# Where the SDK takes more than the contract: it uploads what is too large for a request.
PICTURES = {
    "mask": "mask is a PNG, as bytes, path or uploaded image, as large as the picture: white is edited, black is kept "
    "exactly."
}
TIMEOUT = '''    timeout_s: float | None
    """timeout_s is the seconds that the whole edit, tuning included, may take."""
'''


def type_of(field: Field) -> str:
    """The Python type of an option."""
    kinds = type(field.descriptor)
    if field.name in PICTURES:
        return "Picture"
    if field.choices:
        words = ", ".join(f'"{word}"' for word in field.choices)
        return f"Literal[{words}]"
    if field.is_switch or field.descriptor.type == kinds.TYPE_BOOL:
        return "bool"
    if field.is_map:
        return "Mapping[str, float]"
    one = "str" if field.descriptor.type == kinds.TYPE_STRING else "int" if field.is_whole else "float"
    return f"list[{one}] | tuple[{one}, ...]" if field.descriptor.is_repeated else one


def entry(field: Field, comment: str) -> str:
    """An option with its type and what is said of it."""
    sentence = first_sentence(comment).replace("\\|", "|").rstrip(".").replace('"', "'")
    if sentence.startswith(f"{field.descriptor.name} "):
        sentence = field.keyword + sentence.removeprefix(field.descriptor.name)
    limits = "" if field.choices else range_in_words(field)
    notes = "; ".join(filter(None, (limits, field.declared.default and f"default: {field.declared.default}")))
    only = f"Only for {', '.join(field.methods)}." if field.methods else ""
    text = " ".join(filter(None, (f"{sentence}.", notes and f"[{notes}]", only)))
    text = PICTURES.get(field.name, text)
    lines = textwrap.wrap(text, WIDTH - 4 - 3 - 3, break_long_words=False, break_on_hyphens=False)
    quoted = f'    """{lines[0]}"""\n' if len(lines) == 1 else _block(text)
    return f"    {field.keyword}: {type_of(field)} | None\n{quoted}"


def _block(text: str) -> str:
    lines = textwrap.wrap(f'"""{text}', WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return "".join(f"    {line}\n" for line in lines) + '    """\n'


def section(name: str, base: str, doc: str, fields: Iterable[str]) -> str:
    """A TypedDict."""
    return f'\n\nclass {name}({base}, total=False):\n    """{doc}"""\n\n' + "".join(fields)


def module() -> str:
    """The whole file."""
    told = comments()

    def entries(fields: Iterable[Field]) -> list[str]:
        return [entry(field, told[place_of(field)]) for field in fields]

    own = [field for field in TUNING.values() if field.name not in SHARED_OPTIONS]
    parts = [HEAD.replace("{names}", ", ".join(f'"{name}"' for name in SHARED_OPTIONS))]
    parts.append(section("OwnTuningOptions", "TypedDict", OWN, entries(own)))
    parts.append(section("TuningOptions", "OwnTuningOptions", TUNED, entries(TUNING[name] for name in SHARED_OPTIONS)))
    of_edit = [*SAMPLING.values(), *(EDIT[name] for name in REQUEST_OPTIONS)]
    parts.append(section("EditOptions", "OwnTuningOptions", EDITED, [*entries(of_edit), TIMEOUT]))
    return "".join(parts)


if __name__ == "__main__":
    sys.exit(write(MODULE, module()))
