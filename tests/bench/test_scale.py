"""The simulation of a fleet: what must hold exactly, and a queue whose answer is known."""

import math
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import pytest

from bench.fleet.load import Load, User, rush, visits
from bench.fleet.report import Costs as Measured
from bench.fleet.report import Outcome, Phase, Report
from bench.scale.__main__ import main
from bench.scale.capacity import Ceilings, asked
from bench.scale.check import simulated
from bench.scale.costs import ASSUMED
from bench.scale.demand import DAY_S, Demand
from bench.scale.policies import PolicyName
from bench.scale.samplers import Refit
from bench.scale.simulation import Scaling, Setup, Simulation

BARE = replace(ASSUMED, refit_s=0.0, kept_refit_s=0.0, overhead_s=0.0)  # nothing but the edit itself
MEASURED = Measured(
    edit_s=0.34, sampling_s=0.3, samplings_s=(0.25, 0.3, 0.35), computes=1.0, crowding=1.2, refit_s=0.04,
    kept_refit_s=0.03, tuning_s=3.0, gateway_cpu_s=0.01, database_cpu_s=0.002, client_cpu_s=0.01, commits=3.0,
    idle_commits_per_s=2.0,
)  # fmt: skip


@pytest.mark.parametrize("policy", list(PolicyName))
def test_what_begins_ends_once(policy: PolicyName) -> None:
    """Of all visits every edit ends, at one sampler; the number of open edits over the time is the sum of their seconds
    (Little's law, exact where a run begins and ends empty); no engine computes for longer than there is time."""
    setup = Setup(ASSUMED, policy, samplers=5, tuners=20, engines=2, keeps=3, gateways=3)
    demand = Demand(visits_per_day=0.4 * DAY_S, edits=5, looks_s=4.0)
    result = Simulation(setup, seed=3).serve(demand, 0.0, 300.0)
    assert result.visits > 80 and result.began == result.ended == len(result.seconds) == 5 * result.visits
    assert result.tuned == result.visits and result.open == 0
    assert math.isclose(result.open_edit_s, sum(result.seconds), rel_tol=1e-9)
    assert result.busy_s <= 2 * result.sampler_s and math.isclose(result.sampler_s, 5 * result.wall_s)
    assert min(result.seconds) > ASSUMED.edit_s + ASSUMED.overhead_s - 1e-9
    refits = Counter(result.refits)
    least_s = result.ended * ASSUMED.edit_s + refits[Refit.KEPT] * ASSUMED.kept_refit_s + refits[Refit.COLD] * 3.0
    assert math.isclose(result.busy_s, least_s, rel_tol=1e-9)
    assert Simulation(setup, seed=3).serve(demand, 0.0, 300.0).seconds == result.seconds


@pytest.mark.parametrize(("engines", "load"), [(1, 0.5), (4, 0.7)])
def test_a_known_queue_is_as_known(engines: int, load: float) -> None:
    """One sampler whose edits come and last at random is the queue M/M/c: its mean wait is that of Erlang's formula."""
    setup = Setup(
        BARE, PolicyName.RANDOM, engines=engines, loads_ahead=False, draws_edit_s=lambda draws: draws.expovariate(1.0)
    )
    demand = Demand(visits_per_day=load * engines * DAY_S, edits=1)
    result = Simulation(setup, seed=1).serve(demand, 0.0, 16_000 / engines)
    offered = load * engines
    top = offered**engines / math.factorial(engines) / (1 - load)
    waits = top / (sum(offered**number / math.factorial(number) for number in range(engines)) + top)
    mean_s = sum(result.seconds) / result.ended
    assert mean_s == pytest.approx(1.0 + waits / (engines * (1 - load)), rel=0.06)
    assert result.busy_s / (result.wall_s * engines) == pytest.approx(load, rel=0.05)


def test_the_gateways_choice_keeps_edits_where_their_weights_are() -> None:
    """With as many tunings as engines every edit but the first of each finds its weights, over two gateways; by chance
    most do not."""
    load = Load(tuple(User(tuning, (0.0,) + (2.0,) * 19) for tuning in range(4)))
    shares = {}
    for policy in PolicyName:
        result = Simulation(Setup(ASSUMED, policy, samplers=4, gateways=2)).replay(load)
        shares[policy] = result.refits.count(Refit.WARM) / result.ended
    assert shares[PolicyName.GATEWAY] >= 0.9 and shares[PolicyName.RANDOM] < 0.5


def test_a_load_finds_its_weights_loaded_ahead() -> None:
    """Its first edits find them in engines, as the first after a tuning do, and time counts from those edits."""
    load = Load(tuple(User(tuning, (0.0,)) for tuning in range(4)))
    result = Simulation(Setup(ASSUMED, samplers=4, gateways=2)).replay(load)
    assert result.refits == [Refit.WARM] * 4
    assert result.wall_s == pytest.approx(ASSUMED.edit_s + ASSUMED.overhead_s)
    assert result.sampler_s == pytest.approx(4 * result.wall_s) and result.busy_s <= result.sampler_s


def test_scaling_follows_the_load() -> None:
    """Samplers and tuners that come late and go are counted by their time; edits of those that go end all the same."""
    scaling = Scaling(least=1, most=50, start_s=60.0, keeps_s=120.0)
    setup = Setup(
        ASSUMED, samplers=1, tuners=1, keeps=4, sampler_scaling=scaling, tuner_scaling=replace(scaling, target=1)
    )
    demand = Demand(visits_per_day=0.5 * DAY_S, edits=4, looks_s=2.0)
    result = Simulation(setup).serve(demand, 0.0, 1200.0)
    assert result.ended == 4 * result.visits == 4 * result.tuned
    samplers = result.series["samplers"]
    assert max(samplers) > 3 and samplers[-1] < max(samplers) and samplers[0] == 1
    assert result.busy_s <= result.wall_s * max(samplers) and result.wall_s < result.sampler_s


def test_a_days_users_come_when_they_should() -> None:
    """As many as asked for, and at the peak as many times the mean as asked for."""
    demand = Demand(visits_per_day=3e4, peak=4.0)
    hours = [0] * 24
    for time_s in demand.arrivals(0.0, DAY_S, Random(1)):
        hours[int(time_s // 3600)] += 1
    assert sum(hours) == pytest.approx(3e4, rel=0.02) and demand.rate(DAY_S / 2) == pytest.approx(12e4 / DAY_S)
    assert max(hours) / sum(hours) * 24 == pytest.approx(4.0, rel=0.1) and hours.index(max(hours)) in (11, 12)


def test_limits_are_what_is_asked_over_what_can_be_done() -> None:
    """Ten times the users ask for ten times as much of the database; what can be added has no limit."""
    demand, ceilings = Demand(1e6, peak=4.0), Ceilings(3000.0, 600.0)
    few, many = (
        {one.what: one for one in asked(d, ASSUMED, ceilings)} for d in (demand, replace(demand, visits_per_day=1e7))
    )
    assert (
        few["samplers that compute"].amount == pytest.approx(4e6 / DAY_S * 8)
        and few["samplers that compute"].share is None
    )
    ratio = many["objects written/s"].share / few["objects written/s"].share  # type: ignore[operator]
    assert ratio == pytest.approx(10.0) and many["commits/s"].share > 1  # type: ignore[operator]


def report(tmp_path: Path, change: float) -> Path:
    """A report of a fleet whose real figures are the simulated ones, times `change`."""
    loads = {"visits": visits(4, 2, 4, 1), "rush": rush(4, 8, 4)}
    nothing = Outcome(0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    made = Report(
        command="", model="tiny", cores=2, threads=1, gateways=2, samplers=4, tunings=4, steps=20, costs=MEASURED,
        phases={name: Phase(load, nothing, nothing) for name, load in loads.items()}, differing=0,
    )  # fmt: skip

    def real(load: Load, samplers: int) -> Outcome:
        ours = simulated(made, load, samplers)
        return replace(ours, mean_s=ours.mean_s * change)

    phases = {name: Phase(load, real(load, 4), real(load, 1)) for name, load in loads.items()}
    path = tmp_path / "report.json"
    replace(made, phases=phases).write(path)
    assert asdict(Report.read(path)) == asdict(replace(made, phases=phases))
    return path


@pytest.mark.parametrize(("change", "status"), [(1.0, 0), (1.3, 1)])
def test_a_real_run_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: float, status: int) -> None:
    """A run that the simulation does not tell within 15 % fails the check, which names load and figure."""
    assert main(["--check", str(report(tmp_path, change))]) == status
    output = capsys.readouterr().out
    assert ("mean_s" in output) and ("too far" in output) == bool(status)


def report_of(costs: Measured) -> Report:
    """A report with these costs and without loads."""
    return Report(
        command="", model="tiny", cores=2, threads=1, gateways=2, samplers=4, tunings=4, steps=20, costs=costs,
        phases={}, differing=0,
    )  # fmt: skip


def test_a_single_edit_takes_what_was_measured() -> None:
    """One at a time edits take what single ones took, each as long as one of them: what gateways and clients compute
    meanwhile is not counted twice."""
    costs = replace(MEASURED, gateway_cpu_s=0.08)
    alone = Load((User(0, (1.0,) * 60),))
    ours = simulated(report_of(costs), alone, 1)
    assert ours.mean_s == pytest.approx(costs.edit_s, rel=0.03)
    assert ours.p50_s == pytest.approx(0.34, abs=0.005) and ours.p95_s == pytest.approx(0.39, abs=0.005)


def test_a_report_of_an_earlier_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It lacks the seconds of single edits: the error says what to run again."""
    path = report(tmp_path, 1.0)
    path.write_text(path.read_text().replace('"samplings_s"', '"sampling_cpu_s"'))
    with pytest.raises(SystemExit):
        main(["--check", str(path)])
    assert "run python -m bench.fleet again" in capsys.readouterr().err


def test_four_samplers_on_two_cores_are_as_fast_as_two() -> None:
    """The machine's cores bound a fleet that shares them: without pauses it serves what two cores can, each edit for as
    much longer as was measured where both had one."""
    made = report_of(MEASURED)
    four, one = (simulated(made, rush(4, 8, 10), samplers) for samplers in (4, 1))
    assert four.edits_per_s == pytest.approx(2 / (0.3 * 1.2 + 0.022), rel=0.1)
    assert one.edits_per_s == pytest.approx(1 / 0.34, rel=0.2) and one.edits_per_s < four.edits_per_s


def test_the_page_is_made(tmp_path: Path) -> None:
    """The program writes its report and a picture."""
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "scale.png").stat().st_size > 20_000 and (tmp_path / "report.json").stat().st_size > 1000
