"""Runs an edit to its end in the test's own thread."""

from sampler_svc.sampling.events import Event
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.sample import sample
from sampler_svc.sampling.tools import Tools


def edit_events(request: Request, tools: Tools) -> list[Event]:
    """All events of an edit. Raises what `sample` raises."""
    events: list[Event] = []
    sample(request, tools, events.append)
    return events
