"""What Ctrl-C of a command does on the server: what the command began is cancelled, and what others began goes on."""

from collections.abc import Callable
from datetime import datetime

from unitune.errors import UniTuneError
from unitune_client import events
from unitune_client.cli.display import Display
from unitune_client.client import Client

COMMAND_LABEL = "command"  # of a tuning, which tells the command that made it from those that found it
UNFINISHED = (events.TuningState.RUNNING, events.TuningState.QUEUED)
TUNING_EVENTS = (events.TuningSnapshot, events.TuningQueued, events.TuningStarted, events.TuningProgress)


def cancel(show: Display, what: str, name: str, call: Callable[[str], object]) -> None:
    """Cancel on the server and say so, whatever the answer is."""
    show.end_stage()
    try:
        call(name)
        show.say(f"cancelled {what} {name}")
    except UniTuneError as error:
        show.say(f"could not cancel {what} {name}: {error}")


def cancel_tunings_of(client: Client, image: str, since: datetime | None, show: Display) -> None:
    """Cancel the tunings of an image that the server itself began for a request, and say which others go on.

    A server tells no name of a tuning that an edit waits for. Such a tuning has no label, and was made after `since`,
    a time by the server's clock.
    """
    show.end_stage()
    try:
        found = [one for state in UNFINISHED for one in client.list_tunings(state=state) if one.image == image]
    except UniTuneError as error:
        show.say(f"a tuning may go on: the server cannot be asked which: {error}")
        return
    for tuning in found:
        is_later = since is not None and tuning.create_time is not None and tuning.create_time >= since
        if is_later and COMMAND_LABEL not in tuning.labels:
            cancel(show, "tuning", tuning.name, client.cancel_tuning)
        else:
            say_it_goes_on(tuning.name, show)


def say_it_goes_on(name: str, show: Display) -> None:
    """Say that a tuning of another command is not cancelled."""
    show.end_stage()
    show.say(f"{name} goes on: another command made it")
