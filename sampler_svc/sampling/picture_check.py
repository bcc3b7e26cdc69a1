"""Checks, before a tuning, whether the base model knows pictures like the base image."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock

from sampler_svc.sampling.base_graphs import BaseGraphs
from sampler_svc.sampling.clip_filter import ClipFilter
from unitune import images
from unitune.known_pictures import KnownPictures

ANSWERS_KEPT = 256  # pictures; each edit asks about its picture


@dataclass(frozen=True)
class PictureCheck:
    """Compares a picture with the limits of a base model's known pictures. Thread-safe."""

    known: KnownPictures
    clip_filter: ClipFilter
    graphs: BaseGraphs
    # SHA-256 of a picture's file to whether it is known, the oldest first.
    _answers: OrderedDict[bytes, bool] = field(default_factory=OrderedDict, init=False, repr=False, compare=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def warnings_of(self, image: bytes) -> list[str]:
        """At most one warning for a picture's file. Raises what `images.decode` raises."""
        if self._is_known(image):
            return []
        return [
            f"the picture is unlike what {self.graphs.spec.name} knows ({self.known.shows}): edits of it will look "
            "nothing like it; for photographs give a Stable Diffusion model (--base-model): see docs/photographs.md"
        ]

    def _is_known(self, image: bytes) -> bool:
        digest = hashlib.sha256(image).digest()
        with self._lock:
            answer = self._answers.pop(digest, None)
        if answer is None:
            answer = self._measured(image)
        with self._lock:
            self._answers[digest] = answer
            if len(self._answers) > ANSWERS_KEPT:
                self._answers.popitem(last=False)
        return answer

    def _measured(self, image: bytes) -> bool:
        picture = images.decode(image)
        round_trip = self.graphs.round_trip_error(picture)
        return self.known.strangeness(self.clip_filter.embed_picture(picture), round_trip) <= 1
