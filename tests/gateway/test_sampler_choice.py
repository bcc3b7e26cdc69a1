"""Which sampler an edit goes to, by what is known of all of them."""

import random
from collections import Counter
from dataclasses import replace

from gateway.sampler_choice import FEW, TIE_S, Replica, choose

CHANCE = random.Random(1)
WEIGHTS = "a" * 64
FLEET = [Replica(f"10.0.0.{number}:50053", edit_s=1.0, refit_s=3.0) for number in range(4)]


def chosen(replicas: list[Replica], weights: str = WEIGHTS) -> int:
    """The place of the one that is chosen, the same whatever chance says."""
    (address,) = {choose(weights, replicas, random.Random(seed)).address for seed in range(8)}
    return [replica.address for replica in replicas].index(address)


def but(number: int, replicas: list[Replica] = FLEET, **fields: object) -> list[Replica]:
    """The replicas, one of them with other fields."""
    return [replace(one, **fields) if index == number else one for index, one in enumerate(replicas)]  # type: ignore[arg-type]


def held(*weights: str) -> dict[str, frozenset[str]]:
    """Fields of a replica with these in its engines."""
    return {"resident": frozenset(weights)}


def test_weights_bring_their_edits_to_them() -> None:
    """The one that holds them is chosen while its queue is shorter than a refit, wherever it is; then another one."""
    for number in range(4):
        assert chosen(but(number, **held(WEIGHTS))) == number
        assert chosen(but(number, **held(WEIGHTS), queued_s=2.9)) == number
        assert chosen(but(number, **held(WEIGHTS), queued_s=3.1)) != number


def test_what_is_half_done_is_half_as_far() -> None:
    """Weights that are being loaded, or are kept in memory, draw an edit over half a refit's queue, no further."""
    for state in ("loading", "kept"):
        there = but(2, **{state: frozenset([WEIGHTS])})
        assert chosen(there) == 2 and chosen(but(2, there, queued_s=1.4)) == 2
        assert chosen(but(2, there, queued_s=1.6)) != 2
    quick = but(2, [replace(one, kept_refit_s=0.2) for one in FLEET], kept=frozenset([WEIGHTS]))
    assert chosen(but(2, quick, queued_s=2.7)) == 2 and chosen(but(2, quick, queued_s=2.9)) != 2


def test_edits_on_their_way_count() -> None:
    """Those that a sampler has not told of yet wait there, too: each for a mean edit, by the engines."""
    warm = but(1, **held(WEIGHTS))
    assert chosen(but(1, warm, unacknowledged=2)) == 1
    assert chosen(but(1, warm, unacknowledged=4)) != 1
    assert chosen(but(1, warm, unacknowledged=4, engines=2)) == 1


def test_a_sampler_that_has_ended_no_run_has_a_queue() -> None:
    """It cannot say how long that is: each of its runs is one of the others' mean, by the engines."""
    fresh = but(1, **held(WEIGHTS), edit_s=0.0)
    assert chosen(but(1, fresh, runs=3)) == 1
    assert chosen(but(1, fresh, runs=4)) != 1
    assert chosen(but(1, fresh, runs=6, engines=2)) == 1
    assert chosen(but(1, fresh, runs=8, engines=2)) != 1
    pair = [Replica(one.address, engines=2) for one in FLEET[:2]]
    for number in range(2):
        assert chosen(but(number, pair, runs=1)) == chosen(pair)  # it has an engine left
        assert chosen(but(number, pair, runs=5, in_flight=5)) != number


def test_new_weights_drive_no_others_out_while_an_engine_is_free() -> None:
    """Of samplers that would begin at the same time, one with a free engine is chosen."""
    full = [replace(one, **held(f"{number}" * 64)) for number, one in enumerate(FLEET)]
    for number in range(4):
        assert chosen(but(number, full, resident=frozenset())) == number
        assert chosen(but(number, full, engines=2)) == number
    noisy = [replace(one, refit_s=3.0 + number) for number, one in enumerate(full)]  # what one took lately is no reason
    assert chosen(but(3, noisy, resident=frozenset())) == 3


def test_kept_weights_drive_no_others_out_while_an_engine_is_free() -> None:
    """A sampler that has refitted other weights since then would refit both in turn, again and again."""
    full = [replace(one, **held(f"{number}" * 64)) for number, one in enumerate(FLEET)]
    kept = but(1, full, kept=frozenset([WEIGHTS]))
    assert chosen(but(3, kept, resident=frozenset())) == 3
    assert chosen(but(3, kept, engines=2)) == 3
    assert chosen(but(3, kept, resident=frozenset(), queued_s=2.0)) == 1  # it would wait longer than both refits take
    assert chosen(kept) == 1


def test_driving_out_other_weights_counts_as_their_refit() -> None:
    """An edit waits for its own weights as long as it and the others' next edit would wait for their refits."""
    full = [replace(one, **held(f"{number}" * 64)) for number, one in enumerate(FLEET)]
    warm = but(2, full, **held(WEIGHTS))
    assert chosen(but(2, warm, queued_s=5.9)) == 2
    assert chosen(but(2, warm, queued_s=6.1)) != 2


def test_an_edit_without_weights_takes_an_engine_without_any() -> None:
    """It needs no refit there; and where all are taken, the queues decide."""
    full = [replace(one, **held(f"{number}" * 64)) for number, one in enumerate(FLEET)]
    assert chosen(but(2, full, resident=frozenset(), queued_s=2.0), "") == 2
    assert chosen(but(1, [replace(one, queued_s=1.0) for one in full], queued_s=0.5), "") == 1


def test_equals_are_ranked_by_the_weights() -> None:
    """All gateways choose the same of equals, another one for other weights, and few move when a sampler comes."""
    names = [f"{number:064x}" for number in range(400)]
    fleet = [*FLEET, Replica("10.0.0.9:50053", edit_s=1.0, refit_s=3.0)]

    def first(weights: str, replicas: list[Replica]) -> str:
        return choose(weights, replicas, random.Random(weights)).address

    before = {name: first(name, FLEET) for name in names}
    assert before == {name: first(name, FLEET[::-1]) for name in names}
    assert min(Counter(before.values()).values()) > 60
    after = {name: first(name, fleet) for name in names}
    moved = [name for name in names if before[name] != after[name]]
    assert 40 < len(moved) < 130 and {after[name] for name in moved} == {"10.0.0.9:50053"}
    late = but(0, [replace(one, queued_s=TIE_S / 2) for one in FLEET], queued_s=0.0)
    assert before == {name: first(name, late) for name in names}  # less than a tie


def test_few_of_many_are_looked_at() -> None:
    """Of a thousand, weights that one holds find it; new ones go to one of four, though all others are idle as well."""
    many = [Replica(f"10.0.{number >> 8}.{number & 255}:50053", edit_s=1.0, refit_s=3.0) for number in range(1000)]
    assert choose(WEIGHTS, but(617, many, **held(WEIGHTS)), CHANCE).address == many[617].address
    busy = [replace(one, queued_s=9.0) for one in many]
    hashed = {choose(WEIGHTS, many, random.Random(seed)).address for seed in range(20)}
    assert len(hashed) == 1
    by_chance = {choose(WEIGHTS, but(0, busy, queued_s=0.0), random.Random(seed)).address for seed in range(20)}
    assert hashed <= by_chance  # the idle one is hardly ever among the candidates


def test_no_sampler_has_much_more_than_its_share() -> None:
    """However popular weights are, no sampler gets more than twice the mean and one of a gateway's edits, but for a
    few: three edits of one tuning among forty samplers go to the one that has it."""
    idle = [replace(FLEET[0], address=f"10.0.1.{number}:1") for number in range(40)]
    for count in range(FEW + 1):
        holder = replace(idle[7], in_flight=count, **held(WEIGHTS))
        assert choose(WEIGHTS, [*idle[:7], holder, *idle[8:]], CHANCE) == holder
    counts = [0, 0, 0, 0]
    for _ in range(40):
        replicas = [
            replace(one, in_flight=count, **held(WEIGHTS) if number == 2 else {})
            for number, (one, count) in enumerate(zip(FLEET, counts, strict=True))
        ]
        number = [one.address for one in replicas].index(choose(WEIGHTS, replicas, CHANCE).address)
        counts[number] += 1
        assert counts[number] <= max(FEW + 1, 2 * sum(counts) / 4 + 1)
    assert counts[2] == max(counts) >= 20
    alone = [replace(FLEET[0], in_flight=1000)]
    assert choose(WEIGHTS, alone, CHANCE) == alone[0]
    pair = [replace(FLEET[0], in_flight=9), FLEET[1]]
    assert choose(WEIGHTS, but(0, pair, **held(WEIGHTS)), CHANCE).address == FLEET[0].address


def test_nothing_is_known_at_first() -> None:
    """Before any sampler has made an edit, weights that are there count all the same."""
    fresh = [Replica(one.address) for one in FLEET]
    assert chosen(but(3, fresh, **held(WEIGHTS))) == 3
    assert chosen(but(3, fresh, **held(WEIGHTS), unacknowledged=2)) != 3
