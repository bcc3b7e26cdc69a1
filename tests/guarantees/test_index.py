"""Which tests show what is promised: each is there, and none is skipped."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guarantees.md"
TEST = re.compile(r"`((?:tests/[\w/]+\.py)?)(?:::(test_\w+))?`")

# What a server of this kind must show, by its number. Those that need more than one machine are not here.
CHECKS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "A tuner that is killed loses its tuning to another one: the next attempt, weights written once.",
        (
            "tests/gateway/test_lives.py::test_another_tuner_goes_on_for_one_that_is_gone",
            "tests/gateway/test_state.py::test_a_place_that_starts_again_gives_back_at_once",
        ),
    ),
    2: (
        "One request id is one tuning and one run, ten times at once and after a restart.",
        ("tests/gateway/test_tunings.py::test_request_id_makes_a_retry_harmless",),
    ),
    3: (
        "A watch that is dropped anywhere goes on without a gap, and has one last event.",
        (
            "tests/gateway/test_tunings.py::test_watch_resumes_anywhere",
            "tests/unitune_client/test_client.py::test_watch_goes_on_where_the_connection_broke",
        ),
    ),
    4: (
        "A watch that goes on after events that are gone, or after a restart, misses nothing silently.",
        (
            "tests/gateway/test_tunings.py::test_watch_after_pruning_starts_with_a_snapshot",
            "tests/gateway/test_main.py::test_a_killed_gateway_goes_on_where_it_was",
        ),
    ),
    5: (
        "An edit whose caller goes, or whose time is over, stops before its next step.",
        (
            "tests/reports/test_cancelling.py::test_a_closed_stream_cancels",
            "tests/reports/test_cancelling.py::test_a_deadline_cancels",
            "tests/sampler_svc/test_service.py::test_closing_the_stream_stops_the_run_at_its_next_step",
        ),
    ),
    6: (
        "A cancel ends what it names and nothing else.",
        ("tests/gateway/test_sample_queue.py::test_cancels_end_only_what_they_name",),
    ),
    7: (
        "An edit whose sampler is killed is made by another one, or ends with an error that says when to try again.",
        (
            "tests/guarantees/test_lost_sampler.py::test_the_other_sampler_makes_the_same_pictures",
            "tests/guarantees/test_processes.py::test_a_killed_sampler_ends_its_edit_and_the_next_one_works",
        ),
    ),
    8: (
        "What is beyond a limit is refused at once with quota and time, and what was accepted is unharmed.",
        ("tests/gateway/test_admission.py::test_a_tenant_has_so_many_tunings",),
    ),
    9: (
        "A tuning that kills every tuner is FAILED after three, and its place is free.",
        ("tests/gateway/test_lives.py::test_a_tuning_that_kills_its_tuners_fails",),
    ),
    11: (
        "Nothing of a deleted tuning is left: store, state, journal, sampler.",
        (
            "tests/gateway/test_tunings.py::test_delete_leaves_nothing",
            "tests/gateway/test_state_file.py::test_nothing_of_a_deleted_tuning_is_left_in_the_files",
            "tests/gateway/test_evictions.py::test_a_deletion_does_not_wait_for_a_sampler_that_hangs",
            "tests/flow/test_flow.py::test_deleted_tunings_are_gone",
        ),
    ),
    12: (
        "A service that is told to end lets its calls finish and ends with status 0.",
        (
            "tests/gateway/test_main.py::test_sigterm_lets_an_edit_finish",
            "tests/unitune/test_serving.py::test_serve_drains_on_a_signal",
            "tests/sampler_svc/test_service.py::test_a_draining_replica_says_so_and_takes_no_more",
        ),
    ),
    13: (
        "A reader that stops costs little memory, no other edit's time, and is cut.",
        (
            "tests/gateway/test_slow_readers.py::test_readers_that_do_not_read_cost_little_memory",
            "tests/gateway/test_sample_queue.py::test_readers_that_do_not_read_keep_no_turn",
            "tests/unitune/test_deadlines.py::test_a_reader_that_never_reads_is_cut",
        ),
    ),
    14: (
        "Health is answered while every place is taken, and says no before the port closes.",
        ("tests/guarantees/test_processes.py::test_health_is_answered_by_a_full_server_and_says_no_before_its_end",),
    ),
    15: (
        "Every error has reason and details of at most 4 KiB, and no trace or path.",
        (
            "tests/gateway/test_fuzz.py::test_no_extreme_value_of_any_field_is_our_mistake",
            "tests/gateway/test_fuzz.py::test_extreme_values_together_are_no_mistake_either",
            "tests/unitune/test_serving.py::test_details_of_the_longest_error_arrive",
            "tests/guarantees/test_processes.py::test_changed_requests_broken_pictures_and_garbage_are_refused",
        ),
    ),
    16: (
        "What is too large, cut or wrong is refused by its code, and leaves no file and no memory behind.",
        ("tests/guarantees/test_processes.py::test_refused_uploads_leave_no_file_and_no_memory",),
    ),
    17: (
        "Another tenant's names are not found by any call, and no prompt is in metrics or logs.",
        (
            "tests/gateway/test_identity.py::test_anothers_names_are_not_found",
            "tests/unitune/test_metrics.py::test_names_and_labels_are_frozen",
            "tests/guarantees/test_processes.py::test_no_prompt_is_in_a_log_or_in_metrics",
        ),
    ),
    18: (
        "A tenant with many tunings delays another one's by one at most.",
        ("tests/gateway/test_state.py::test_tenants_take_turns",),
    ),
    19: (
        "Edits go to the sampler that has their weights, and a dead one's alone move.",
        ("tests/gateway/test_samplers.py::test_edits_go_where_their_weights_are",),
    ),
    20: (
        "A deadline that cannot be met is refused at once.",
        (
            "tests/gateway/test_admission.py::test_a_deadline_that_the_queue_cannot_meet_is_refused",
            "tests/guarantees/test_processes.py::test_a_deadline_that_cannot_be_met_starts_nothing",
        ),
    ),
    21: (
        "A tuning is READY when its weights are verified in the store, and waits for a store that is away.",
        (
            "tests/guarantees/test_processes.py::test_a_store_that_is_away_delays_ready_and_nothing_is_tuned_twice",
            "tests/gateway/test_tuner_pool.py::test_ready_needs_a_manifest_that_agrees",
            "tests/sampler_svc/test_service.py::test_damaged_weights_fail_and_the_next_edit_works",
        ),
    ),
    22: (
        "A watch without news outlives a proxy that cuts what is idle.",
        (
            "tests/guarantees/test_idle_proxy.py::test_a_watch_without_news_outlives_an_idle_proxy",
            "tests/guarantees/test_idle_proxy.py::test_a_client_pings_no_more_often_than_a_server_allows",
        ),
    ),
    23: (
        "Everything runs on one machine without a daemon and without a connection to elsewhere.",
        (
            "tests/unitune_client/test_local.py::test_three_services_run_and_know_each_other",
            "tests/flow/test_flow.py::test_one_call_tunes_and_edits_in_the_stated_order",
            "tests/gateway/test_main.py::test_a_killed_gateway_goes_on_where_it_was",
        ),
    ),
    24: (
        "Every overlay renders, passes strict schemas and policies, and has the names that the code has.",
        (
            "tests/k8s/test_manifests.py::test_what_is_rendered_is_right",
            "tests/k8s/test_manifests.py::test_only_who_has_to_reaches_a_service",
            "tests/k8s/test_scaler_role.py::test_keda_counts_the_tunings_that_are_to_run",
        ),
    ),
    25: (
        "An older client is understood, and names of metrics stay.",
        (
            "tests/test_house_rules.py::test_a_change_that_an_older_client_would_notice_is_found",
            "tests/guarantees/test_released_contract.py::test_a_client_of_the_last_release_is_understood",
            "tests/unitune/test_metrics.py::test_names_and_labels_are_frozen",
        ),
    ),
}
# Faults that were found by attack. The tests of each name it in their docstrings.
FAULTS = (*(f"R{number}" for number in range(1, 13)), *(f"r{number}" for number in range(1, 21)))
# What several gateways, their state, tuners, samplers and edge survive, by the same kind of number.
OF_FLEETS = tuple(f"F{number}" for number in range(1, 49))


class Found(NamedTuple):
    """A test as its file has it."""

    docstring: str
    decorators: tuple[str, ...]


@cache
def collected(path: Path) -> dict[str, Found]:
    """The tests of a file by name."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            decorators = tuple(ast.unparse(decorator) for decorator in node.decorator_list)
            found[node.name] = Found(ast.get_docstring(node) or "", decorators)
    return found


def shown(file: str, name: str) -> str:
    """What is wrong with a test that is named; empty where it is there and runs."""
    path = ROOT / file
    if not path.is_file():
        return f"there is no {file}"
    if name and name not in collected(path):
        return f"there is no {file}::{name}"
    chosen = [collected(path)[name]] if name else collected(path).values()
    skips = [
        decorator for test in chosen for decorator in test.decorators if re.search(r"\bmark\.(skip|xfail)\b", decorator)
    ]
    return f"{file}::{name} has {skips}" if skips or not chosen else ""


def named_by_the_page() -> Iterator[tuple[str, str]]:
    """File and test of everything that the page of guarantees names. `::test_x` alone is of the file before it."""
    file = ""
    for found in TEST.finditer(PAGE.read_text()):
        file = found[1] or file
        if found[1] or found[2]:
            yield file, found[2] or ""


def test_every_test_that_the_page_names_is_there() -> None:
    """Each guarantee is followed by tests that run; one that was renamed or is skipped is told."""
    named = list(named_by_the_page())
    assert len(named) > 150
    assert [] == [wrong for file, name in named if (wrong := shown(file, name))]


@pytest.mark.parametrize("number", CHECKS)
def test_a_check_is_shown(number: int) -> None:
    """Each check of a server has tests that run."""
    _, tests = CHECKS[number]
    assert tests and [] == [wrong for test in tests if (wrong := shown(*test.split("::")))]


def test_every_fault_has_a_test() -> None:
    """Each fault that was found, and each thing that a fleet survives, is named by a test that runs."""
    named: set[str] = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, test in collected(path).items():
            if not shown(str(path.relative_to(ROOT)), name):
                named |= set(re.findall(r"\b[RrF]\d+\b", test.docstring))
    assert [] == [fault for fault in (*FAULTS, *OF_FLEETS) if fault not in named]
