"""One edit in this process, by what the sampler's service runs."""

from collections.abc import Callable

from sampler_svc.engines.cpu_controlled import ControlledEngine
from sampler_svc.engines.engine import Engine
from sampler_svc.model import Model
from sampler_svc.sampling.events import EditedImage, Event
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.sample import sample
from sampler_svc.sampling.tools import Tools
from unitune import images
from unitune.diffusion.guidance import Context
from unitune.images import Pixels


def edited(model: Model, engine: Engine, request: Request, embed: Callable[[str], Context] | None = None) -> Pixels:
    """The edited picture of a request for one seed, by an engine that holds the weights."""
    controlled = engine.run_controlled if isinstance(engine, ControlledEngine) else None
    (result,) = results(request, model.tools(engine.run, embed=embed, controlled=controlled))
    return images.decode(result.png)


def results(request: Request, tools: Tools) -> list[EditedImage]:
    """The results of an edit, one for each seed."""
    events: list[Event] = []
    sample(request, tools, events.append)
    return [event for event in events if isinstance(event, EditedImage)]
