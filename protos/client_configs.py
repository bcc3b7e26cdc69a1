"""Write unitune_client/configs.py: the settings in force, as a server tells them, with a field for each option.

    python -m protos.client_configs          # write it
    python -m protos.client_configs --check  # say whether it is fresh

protos/generate.py calls it.
"""

import sys
from collections.abc import Iterable

from protos.generated_file import ROOT, write
from unitune.options import SAMPLING, TUNING, Field

MODULE = ROOT / "unitune_client" / "configs.py"
NOT_TOLD = ("fast",)  # a server tells the number of steps that it stands for
OWN_DEFAULT = "the base model's own"

HEAD = '''"""The settings of edits and tunings in force, as a server tells them.

Made of protos/unitune/v1 by `make protos`; change it there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """How a tuning is made, every default filled in. `batch` counts noise draws of the picture in one update.

    Fields of other methods than `method` are empty or 0.
    """

'''
TOTAL_UPDATES = '''
    @property
    def total_updates(self) -> int:
        """Optimizer updates of all phases together, as progress counts them."""
        runs = self.num_inference_steps if self.method == "null_text" else 1
        large = self.super_resolution_updates + self.super_resolution_2_updates
        return self.embedding_updates + self.updates * runs + large
'''
SAMPLED = '''

@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How an edit is sampled, every default filled in. `strength` is 0 to 1, a `guidance_scale` of 1 is none.

    What the edit does not read, such as an option of another method, is None; `strength` and `guidance_scale` are 0
    where `automatic` chooses them. `EditOptions` says what each one means.
    """

'''


def is_always_there(field: Field) -> bool:
    """Whether every edit has it: the method, and what each method reads and each base model has a default of."""
    is_of_all = not (field.methods or field.needs or field.parents)
    return field.name == "method" or (is_of_all and field.declared.default.startswith(OWN_DEFAULT))


def entry(field: Field, *, may_be_none: bool) -> str:
    """A field with its type, and what it is where a server says nothing."""
    kinds = type(field.descriptor)
    if field.is_map:
        return f"    {field.name}: Mapping[str, float] = field(default_factory=dict)\n"
    is_text = bool(field.choices) or field.descriptor.type == kinds.TYPE_STRING
    is_switch = field.is_switch or field.descriptor.type == kinds.TYPE_BOOL
    kind, nothing = ("str", '""') if is_text else ("bool", "False") if is_switch else ("float", "0.0")
    if not is_text and not is_switch and field.is_whole:
        kind, nothing = "int", "0"
    if field.descriptor.is_repeated:
        return f"    {field.name}: tuple[{kind}, ...] = ()\n"
    if may_be_none and is_always_there(field):
        return f"    {field.name}: {kind}\n"
    if may_be_none and field.descriptor.has_presence and not field.is_switch:
        return f"    {field.name}: {kind} | None = None\n"
    return f"    {field.name}: {kind} = {nothing}\n"


def entries(fields: Iterable[Field], *, may_be_none: bool) -> str:
    """All fields that a server tells."""
    return "".join(entry(field, may_be_none=may_be_none) for field in fields if field.name not in NOT_TOLD)


def module() -> str:
    """The whole file."""
    tuning, sampling = entries(TUNING.values(), may_be_none=False), entries(SAMPLING.values(), may_be_none=True)
    return f"{HEAD}{tuning}{TOTAL_UPDATES}{SAMPLED}{sampling}"


if __name__ == "__main__":
    sys.exit(write(MODULE, module()))
