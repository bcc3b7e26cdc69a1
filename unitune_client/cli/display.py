"""What a command shows while it runs: bars on a terminal, plain lines elsewhere, JSON lines for machines.

Progress and words go to standard error; standard output has only results: paths and tables, or one JSON object per
line.
"""

import dataclasses
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from unitune.errors import UniTuneError
from unitune_client import events
from unitune_client.cli import streams
from unitune_client.cli.flags import Flags, in_words

SHOWN_PROMPT = 40  # characters beside a bar
LINES_PER_STAGE = 8  # where there is no bar
ACTIVITY_AFTER_S = 4.0  # what is over sooner is not worth a line; servers tell it again every 5 s
ACTIVITY_AGAIN_S = 14.0
TUNING_STAGES = {
    "preparing": "preparing the tuning",
    "packing": "packing the tuned weights",
    "storing": "storing the tuned weights",
}
EDIT_STAGES = {
    "waiting": "waiting for an engine",
    "loading": "loading the weights into the engine",
    "preparing": "encoding picture and prompt",
    "sampling": "sampling",
    "decoding": "decoding the pictures",
}


class Display(AbstractContextManager["Display"]):
    """Plain lines."""

    def __init__(self) -> None:
        self._shown = ("", -1)  # the stage, and how many of its lines
        self._warned: set[str] = set()
        self._activity, self._activity_due_s = "", 0.0
        self._steps = ("", 0, 0.0)  # name, number and time of the first step that was shown

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_stage()

    def say(self, line: str) -> None:
        """A sentence for people."""
        streams.print_message(line)

    def event(self, event: events.EditEvent | events.CompareEvent, **context: object) -> None:
        """Show an event of a stream."""
        method = context.get("method")
        match event:
            case events.TuningQueued():
                ahead = f"{event.position} ahead of it" if event.position else "it is next"
                self.say(f"the tuning waits; {ahead}")
            case events.TuningProgress():
                self._tuning(f"{method}: " if method else "", event.progress)
            case events.TuningReady():
                self.end_stage()
            case events.EditAccepted():
                self.say(_in_words(event))
                for warning in event.warnings:
                    self.warn(warning)
            case events.EditStep():
                name = str(method or _shortened(str(context.get("prompt", "editing"))))
                if event.attempts > 1:
                    name += f" (attempt {event.attempt} of {event.attempts})"
                self.stage(name, event.index + 1, event.total, self._steps_left(name, event.index + 1, event.total))
            case events.Heartbeat():
                if event.stage in EDIT_STAGES:
                    note = ", ".join(filter(None, (f"{event.stage_s:.0f} s so far", _left(event.stage_left_s))))
                    self.activity(EDIT_STAGES[event.stage], note)
            case events.EditWarning():
                self.end_stage()
                self.warn(event.text)
            case events.Retrying():
                self.end_stage()
                self.say(f"{in_words(event.error)}: asking again, with the same seeds")
            case events.EditDone():
                self.end_stage()
            case events.CompareAccepted():
                self.say(f"comparing {', '.join(event.methods)}")
                for warning in event.warnings:
                    self.warn(warning)
            case events.CompareResult():
                self.end_stage()
                if event.error is not None:
                    self.say(f"{event.method}: failed: {in_words(event.error)}")

    def _tuning(self, method: str, progress: events.Progress) -> None:
        if progress.warning:
            self.warn(progress.warning)
        if progress.stage in TUNING_STAGES:
            self.activity(method + TUNING_STAGES[progress.stage], _left(progress.left_s))
        else:
            left = "stopped early" if progress.stopped_early else _left(progress.left_s)
            note = ", ".join(filter(None, (f"loss {progress.loss:.4f}", left)))
            self.stage(f"{method}tuning", progress.update, progress.total, note)

    def _steps_left(self, name: str, done: int, total: int) -> str:
        """What is left of the steps of that name, by the steps since the first one that was shown."""
        now_s = time.monotonic()
        if self._steps[0] != name or done <= self._steps[1]:
            self._steps = name, done, now_s
            return ""
        _, first, first_s = self._steps
        left_s = (now_s - first_s) / (done - first) * (total - done)
        return _left(left_s) if left_s >= 1 else ""

    def activity(self, name: str, note: str) -> None:
        """Show what goes on without a count of its own: if it lasts, and then every ACTIVITY_AGAIN_S."""
        now_s = time.monotonic()
        if name != self._activity:
            self._activity, self._activity_due_s = name, now_s + ACTIVITY_AFTER_S
        if now_s >= self._activity_due_s:
            self._activity_due_s = now_s + ACTIVITY_AGAIN_S
            self.say(f"{name}{', ' + note if note else ''}")

    def warn(self, text: str, **context: object) -> None:
        """Show a warning by the command's own names, once however often it comes."""
        text = in_words(text)
        if text not in self._warned:
            self._warned.add(text)
            self.say(f"warning: {text}")

    def result(self, text: str, **context: object) -> None:
        """Print a result: a path or a name."""
        self.end_stage()
        streams.print_result(text)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Print results in columns. The first row has their names."""
        self.end_stage()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            streams.print_result("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def error(self, message: str, error: Exception, flags: Flags | None = None) -> None:
        """Show the error that ends the command. `flags` are those of the command, for an error that refuses one."""
        self.end_stage()
        streams.print_message(f"error: {message}")

    def stage(self, name: str, done: int, total: int, note: str) -> None:
        """Show how much of a stage is done: a line at every eighth."""
        shown = name, done * LINES_PER_STAGE // max(1, total)
        if shown != self._shown:
            self._shown = shown
            self.say(f"{name}: {done}/{total}{', ' + note if note else ''}")

    def end_stage(self) -> None:
        """End the stage."""
        self._shown = ("", -1)


class BarDisplay(Display):
    """Bars that move, one per stage."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True, highlight=False)
        self._bars: Progress | None = None
        self._bar = TaskID(0)
        self._name = ""

    def say(self, line: str) -> None:
        """A sentence for people, above the bar."""
        self._console.print(line, markup=False, soft_wrap=True)

    def stage(self, name: str, done: int, total: int, note: str) -> None:
        """Show how much of a stage is done; another name is another bar."""
        if name != self._name:
            self.end_stage()
        if self._bars is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            self._bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console)
            self._bars.start()
            self._bar = self._bars.add_task(name, total=total, note=note)
            self._name = name
        self._bars.update(self._bar, completed=done, total=total, note=note)

    def end_stage(self) -> None:
        """Leave the bar as it is."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


class JsonDisplay(Display):
    """One JSON object per line on standard output: events, then results. Pictures are in files, not in the lines."""

    def event(self, event: events.EditEvent | events.CompareEvent, **context: object) -> None:
        """Print the event: its name, such as `edit_step`, and its fields."""
        fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
        self._print({"event": _snake(type(event).__name__), **context, **fields})

    def warn(self, text: str, **context: object) -> None:
        """Print the warning as an event of its own, `warning`."""
        self._print({"event": "warning", "text": in_words(text), **context})

    def result(self, text: str, **context: object) -> None:
        """Print the result under its kind."""
        self._print({"event": "result", "value": text, **context})

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Print nothing: the events had all of it."""

    def error(self, message: str, error: Exception, flags: Flags | None = None) -> None:
        """Show the error on standard error, and print it with its reason; `option` is the one that it refuses."""
        super().error(message, error)
        told: dict[str, Any] = {"event": "error", "reason": "LOCAL", "message": message, "metadata": {}}
        if isinstance(error, UniTuneError):
            told |= {"reason": error.reason, "metadata": error.metadata}
            if flags is not None and error.field is not None and (option := flags.option_of(error.field)) is not None:
                told["option"] = option
        self._print(told)

    def _print(self, fields: Mapping[str, Any]) -> None:
        streams.print_result(json.dumps(plain(fields)))


def display(as_json: bool) -> Display:
    """The display for JSON, for a terminal, or for plain lines."""
    if as_json:
        return JsonDisplay()
    return BarDisplay() if sys.stderr is not None and sys.stderr.isatty() else Display()


def plain(value: Any) -> Any:
    """The value as JSON has it; bytes are left out, an error is its reason and message."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items() if not isinstance(one, bytes)}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UniTuneError):
        return {"reason": value.reason, "message": value.message, "metadata": value.metadata}
    return value


def _left(seconds: float | None) -> str:
    """What is left; empty while there is no estimate."""
    return "" if seconds is None else f"{seconds:.0f} s left"


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= SHOWN_PROMPT else prompt[: SHOWN_PROMPT - 1] + "…"


def _in_words(accepted: events.EditAccepted) -> str:
    config = accepted.config
    eta = "" if config.eta is None else f"eta {config.eta:g}, "
    chosen, share = f"strength {config.strength:g}, guidance {config.guidance_scale:g}", accepted.effective_strength
    if config.automatic:
        chosen = "strength and guidance automatic"
    return (
        f"{config.method}: {eta}{chosen}, interpolation {config.interpolation:g}{_mask_in_words(config)}, "
        f"{config.num_inference_steps} {config.scheduler} steps"
        + ("" if config.automatic else f" of which {share:.0%} run")
    )


def _mask_in_words(config: events.SamplingConfig) -> str:
    """The mask of the interpolation, unless it is the difference, which is the default."""
    if config.mask_source in ("", "difference"):
        return ""
    return f" outside of the mask ({config.mask_source}{', only masked' if config.only_masked else ''})"
