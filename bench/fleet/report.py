"""What a run of the fleet measured: costs, the load, and what came of it; as JSON and as a table."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.fleet.load import Load, User
from bench.fleet.users import Lost, Made
from bench.measure import percentile


@dataclass(frozen=True)
class Costs:
    """What one edit and one tuning take, measured one at a time: before, between and after the loads."""

    edit_s: float  # at its user, without a refit
    sampling_s: float  # of that, at the sampler
    samplings_s: tuple[float, ...]  # the same of each edit, whose mean that is
    computes: float  # the share of it for which a core computes
    crowding: float  # how many times as long that takes while all cores compute: they share memory and caches
    refit_s: float  # from the store
    kept_refit_s: float  # with weights that the sampler keeps in its memory
    tuning_s: float  # of all tunings together, divided by their number for each tuner
    gateway_cpu_s: float  # of an edit
    database_cpu_s: float  # of an edit
    client_cpu_s: float  # of an edit, in the process of the users
    commits: float  # of an edit, without those that gateways make by themselves
    idle_commits_per_s: float  # those


@dataclass(frozen=True)
class Outcome:
    """What came of a load."""

    edits: int
    lost: int
    warm_share: float
    p50_s: float
    p95_s: float
    mean_s: float
    edits_per_s: float
    wall_s: float

    @classmethod
    def of(cls, ended: Sequence[Made | Lost], wall_s: float) -> "Outcome":
        """Of all edits of a load."""
        made = [edit for edit in ended if isinstance(edit, Made)]
        seconds = [edit.seconds for edit in made] or [float("inf")]
        return cls(
            len(ended),
            len(ended) - len(made),
            round(sum(edit.warm for edit in made) / max(1, len(made)), 4),
            round(percentile(seconds, 0.5), 4),
            round(percentile(seconds, 0.95), 4),
            round(statistics.fmean(seconds), 4),
            round(len(made) / wall_s, 4),
            round(wall_s, 3),
        )


@dataclass(frozen=True)
class Phase:
    """A load, and what came of it on the fleet and on one sampler."""

    load: Load
    fleet: Outcome
    one_sampler: Outcome


@dataclass(frozen=True)
class Report:
    """A whole run."""

    command: str
    model: str
    cores: int
    threads: int  # of each service
    gateways: int
    samplers: int
    tunings: int
    steps: int
    costs: Costs
    phases: Mapping[str, Phase]
    differing: int  # pictures that one sampler made otherwise than the fleet

    def write(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Report":
        """What `write` wrote. Raises ValueError for a report of an earlier version."""
        read = json.loads(path.read_text())
        if "samplings_s" not in read["costs"]:
            raise ValueError(f"{path} is of an earlier version: run python -m bench.fleet again")
        phases = {
            name: Phase(
                Load(tuple(User(user["tuning"], tuple(user["pauses_s"])) for user in phase["load"]["users"])),
                Outcome(**phase["fleet"]),
                Outcome(**phase["one_sampler"]),
            )
            for name, phase in read["phases"].items()
        }
        costs = Costs(**{**read["costs"], "samplings_s": tuple(read["costs"]["samplings_s"])})
        return cls(**{**read, "costs": costs, "phases": phases})

    @property
    def lost(self) -> int:
        """Edits that were lost, of all."""
        return sum(outcome.lost for phase in self.phases.values() for outcome in (phase.fleet, phase.one_sampler))

    def table(self) -> str:
        """For people."""
        rows = ["| load | on | edits | lost | warm | p50 | p95 | edits/s |", "|---|---|---|---|---|---|---|---|"]
        for name, phase in self.phases.items():
            for where, outcome in ((f"{self.samplers} samplers", phase.fleet), ("1 sampler", phase.one_sampler)):
                rows.append(
                    f"| {name} | {where} | {outcome.edits} | {outcome.lost} | {outcome.warm_share:.0%} "
                    f"| {outcome.p50_s:.2f} s | {outcome.p95_s:.2f} s | {outcome.edits_per_s:.2f} |"
                )
        return "\n".join(rows)
