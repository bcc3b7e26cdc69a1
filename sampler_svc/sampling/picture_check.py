"""Says whether a base image is one of those that the base model knows, before a tuning is made of it."""

from dataclasses import dataclass

from sampler_svc.sampling.base_graphs import BaseGraphs
from sampler_svc.sampling.gate import Gate
from unitune import images
from unitune.known_pictures import KnownPictures


@dataclass(frozen=True)
class PictureCheck:
    """The limits of a base model's known pictures, and what measures a picture."""

    known: KnownPictures
    gate: Gate
    graphs: BaseGraphs

    def warnings_of(self, image: bytes) -> list[str]:
        """At most one warning for a picture's file. Raises what `images.decode` raises."""
        picture = images.decode(image)
        round_trip = self.graphs.round_trip_error(picture)
        if self.known.strangeness(self.gate.embed_picture(picture), round_trip) <= 1:
            return []
        return [
            f"the picture is unlike what {self.graphs.spec.name} knows ({self.known.shows}): edits of it will look "
            "nothing like it; for photographs give a Stable Diffusion model (--base-model): see docs/photographs.md"
        ]
