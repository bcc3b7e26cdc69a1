"""One edit in this process, by what the sampler's service runs."""

from collections.abc import Callable

from sampler_svc.engines.cpu_controlled import ControlledEngine
from sampler_svc.engines.engine import Engine
from sampler_svc.model import Model
from sampler_svc.sampling.request import Request
from sampler_svc.sampling.sample import EditedImage, sample
from unitune import images
from unitune.diffusion.guidance import Context
from unitune.images import Pixels


def edited(model: Model, engine: Engine, request: Request, embed: Callable[[str], Context] | None = None) -> Pixels:
    """The edited picture of a request for one seed, by an engine that holds the weights."""
    controlled = engine.run_controlled if isinstance(engine, ControlledEngine) else None
    events = sample(
        model.graphs, model.schedule, engine.run, request, lambda: False, embed=embed, controlled=controlled
    )
    (png,) = (event.png for event in events if isinstance(event, EditedImage))
    return images.decode(png)
