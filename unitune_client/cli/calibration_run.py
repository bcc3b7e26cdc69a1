"""The edits of a calibration: what is tuned, edited and measured, within a time."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar, cast

from unitune.errors import FailedPrecondition
from unitune_client import events
from unitune_client.cli.calibration import EditFigures, kept_db, mean
from unitune_client.cli.display import Display
from unitune_client.cli.edit import DEFAULT_METHOD, tune
from unitune_client.client import Client
from unitune_client.options import EditOptions


class TuningSetting(NamedTuple):
    """One way to tune."""

    updates: int
    learning_rate: float

    def __str__(self) -> str:
        return f"{self.updates} updates at {self.learning_rate:g}"


class Point(NamedTuple):
    """One way to sample."""

    strength: float
    guidance_scale: float

    def __str__(self) -> str:
        return f"strength {self.strength:g}, guidance {self.guidance_scale:g}"


class MeasuredEdit(NamedTuple):
    """One edited picture of a photograph, and its figures."""

    photo: int
    prompt: str
    seed: int
    png: bytes
    figures: EditFigures


Setting = TypeVar("Setting", TuningSetting, Point)


@dataclass
class Trial(Generic[Setting]):
    """A setting that was tried on all photographs."""

    setting: Setting
    edits: list[MeasuredEdit]
    reconstructed_db: float | None = None  # of a tuning: how well the rare tokens alone give the photographs back

    @property
    def figures(self) -> EditFigures:
        """The means of all edits."""
        return mean(one.figures for one in self.edits)

    def of_seed(self, seed: int) -> EditFigures:
        """The means of the edits of one seed."""
        return mean(one.figures for one in self.edits if one.seed == seed)


@dataclass
class CalibrationRun:
    """Tunes and edits on one server. A setting that was tried is kept whole in `tunings` or `points`."""

    client: Client
    info: events.ServerInfo
    photos: Sequence[bytes]
    prompts: Sequence[str]
    seeds: Sequence[int]
    options: Mapping[str, Any]  # of every edit
    ends_at_s: float  # of the monotonic clock
    show: Display
    tunings: list[Trial[TuningSetting]] = field(default_factory=list)
    points: list[Trial[Point]] = field(default_factory=list)
    left_out: list[TuningSetting | Point] = field(default_factory=list)
    _images: list[events.Image] = field(default_factory=list)
    _tuned: dict[TuningSetting, list[events.Tuning]] = field(default_factory=dict)  # of all photographs

    @property
    def own_point(self) -> Point:
        """Where the base model's preset samples."""
        return Point(self.info.sampling_defaults.strength, self.info.sampling_defaults.guidance_scale)

    def check(self, settings: Iterable[TuningSetting], points: Iterable[Point]) -> None:
        """Upload the photographs and have the server check every edit, with its warnings on show. Raises what one of
        them would be refused with."""
        self._images = [self.client.upload_image(photo) for photo in self.photos]
        asked = [one._asdict() | self._edit_options(self.own_point) for one in settings]
        asked += [self._edit_options(point) for point in points]
        for image in self._images:
            for prompt in self.prompts:
                for options in asked:
                    for warning in self.client.check_edit(image, prompt, **cast(EditOptions, options)).warnings:
                        self.show.warn(warning)

    def try_tunings(self, settings: Sequence[TuningSetting], share: float) -> None:
        """Tune by every setting and edit at the preset's own point, while `share` of the time lasts. The first setting
        is tried in any case."""
        ends_at_s = time.monotonic() + share * (self.ends_at_s - time.monotonic())
        cost_s = 0.0  # of an update, with all that comes with it
        for number, setting in enumerate(settings):
            began_s = time.monotonic()
            if self.tunings and began_s + cost_s * setting.updates > ends_at_s:
                self.left_out.append(setting)
                continue
            self.show.say(f"tuning {number + 1} of {len(settings)}: {setting}{_until(cost_s * setting.updates)}")
            trial = Trial(setting, [])
            reconstructed = []
            tunings = [tune(self.client, image, self.show, **setting._asdict()) for image in self._images]
            for photo, tuning in enumerate(tunings):
                trial.edits += self._edit(photo, tuning, self.own_point)
                reconstructed.append(self._reconstructed_db(photo, tuning))
            trial.reconstructed_db = sum(reconstructed) / len(reconstructed)
            self.tunings.append(trial)
            self._tuned[setting] = tunings
            cost_s = max(cost_s, (time.monotonic() - began_s) / max(setting.updates, 1))

    def try_points(self, points: Sequence[Point], setting: TuningSetting) -> None:
        """Edit at every point with the tunings of one setting, while the time lasts."""
        done = next(trial for trial in self.tunings if trial.setting == setting)
        self.points.append(Trial(self.own_point, done.edits))
        others, cost_s = [point for point in points if point != self.own_point], 0.0
        for number, point in enumerate(others):
            began_s = time.monotonic()
            if began_s + cost_s > self.ends_at_s:
                self.left_out.append(point)
                continue
            self.show.say(f"edits {number + 1} of {len(others)}: {point}{_until(cost_s)}")
            trial = Trial(point, [])
            for photo, tuning in enumerate(self._tuned[setting]):
                trial.edits += self._edit(photo, tuning, point)
            self.points.append(trial)
            cost_s = max(cost_s, time.monotonic() - began_s)

    def _edit(self, photo: int, tuning: events.Tuning, point: Point) -> list[MeasuredEdit]:
        measured = []
        for prompt in self.prompts:
            for image in self._pictures(tuning, prompt, self._edit_options(point)):
                gained = None if image.scores is None else image.scores.prompt - image.scores.base_prompt
                figures = EditFigures(kept_db(self.photos[photo], image.png), gained)
                measured.append(MeasuredEdit(photo, prompt, image.seed, image.png, figures))
        return measured

    def _reconstructed_db(self, photo: int, tuning: events.Tuning) -> float:
        """How well the rare tokens alone give a photograph back, in dB."""
        options = {**self._edit_options(self.own_point), "clip_filter": None, "resamples": None}
        pictures = self._pictures(tuning, tuning.config.rare_tokens, options)
        return sum(kept_db(self.photos[photo], image.png) for image in pictures) / len(pictures)

    def _pictures(
        self, tuning: events.Tuning, prompt: str, options: Mapping[str, Any]
    ) -> tuple[events.EditedImage, ...]:
        def on_event(event: events.EditEvent) -> None:
            if isinstance(event, events.EditStep | events.Heartbeat):
                self.show.event(event, prompt=prompt)

        result = self.client.edit_to_end(tuning, prompt, on_event=on_event, **cast(EditOptions, options))
        self.show.end_stage()
        if any(image.blocked for image in result.images):
            raise FailedPrecondition(f"{prompt}: {events.BLOCKED}; give another prompt", reason="BLOCKED")
        return result.images

    def _edit_options(self, point: Point) -> dict[str, Any]:
        scored = {"clip_filter": True, "resamples": 0} if self.info.base_model.has_clip_filter else {}
        own = {"method": DEFAULT_METHOD, "seeds": list(self.seeds), "omit_metadata": True}
        return {**self.options, **own, **scored, **point._asdict()}


def _until(seconds: float) -> str:
    """About how long it takes; empty while nothing is known."""
    return "" if seconds == 0 else f", about {seconds:.0f} s" if seconds < 120 else f", about {seconds / 60:.0f} min"
