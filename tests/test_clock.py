"""The run's clock: what a kill must not give back, and where the time of a whole run went."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.budget import Budget
from agent.clock import PARENT, REST, UNTOLD, earlier_clock, read_clock, time_table, write_clock
from agent.mending import MADE_AGAIN
from agent.metering import MeteredJobs
from agent.trace import Event
from agent.views import run_status
from memory.records import write_json
from tests.test_views import make_run
from tools.jobs.client import WorkerClient
from tools.jobs.job import Usage

EVENTS: list[Event] = [{"kind": "run_started", "spent_s": 1.0}, {"kind": "tool_started", "spent_s": 20.0}]


def test_a_run_killed_in_a_long_job_goes_on_at_its_last_sign_of_life(tmp_path: Path) -> None:
    write_clock(tmp_path, 7200.0, {"training": 7180.0})
    earlier = earlier_clock(tmp_path, EVENTS)
    assert (earlier["spent_s"], earlier["time_s"]) == (7200.0, {"training": 7180.0})
    later: Event = {"kind": "tool_finished", "spent_s": 7201.0}
    assert earlier_clock(tmp_path, [*EVENTS, later])["spent_s"] == 7201.0
    assert "clock.json" in MADE_AGAIN


def test_the_clock_of_status_does_not_run_backwards_at_a_kill(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, ended=None)
    told = run_status(run_dir)["spent_s"]
    write_clock(run_dir, told + 28.0, {}, 0.376)
    status = run_status(run_dir)
    assert status["state"] == "killed" and status["spent_s"] == told + 28.0
    assert status["budget_left_percent"] == 38, "what is left now, not when the last step began"


def test_the_table_counts_all_processes_and_the_job_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    seen: list[dict[str, float]] = []

    def run(function: str, *_: Any) -> tuple[Any, Usage]:
        now[0] += 30
        seen.append(jobs.time_s())
        folder = tmp_path / "jobs" / function
        write_json(folder / "spec.json", {"function": function})
        write_json(folder / "result.json", {"usage": Usage(30.0, 1.0, 10)._asdict()})
        return {}, Usage(30.0, 1.0, 10)

    client: Any = SimpleNamespace(
        run_dir=tmp_path, fingerprint="", run=run, folder=lambda name, *_: tmp_path / "jobs" / name
    )
    jobs = MeteredJobs(cast(WorkerClient, client), Budget(None, None), {"training": 60.0, "generation": 10.0})
    jobs.run("tools.optimize.sft_worker:train", {})
    assert seen == [{"training": 90.0, "generation": 10.0}] and jobs.time_s() == seen[0]
    table, overhead = time_table(jobs.time_s(), 125.0)
    assert table == {"training": 90.0, "generation": 10.0, REST: 25.0} and overhead == pytest.approx(0.2)


@pytest.mark.parametrize(("kind", "row"), [("forked", PARENT), ("run_resumed", UNTOLD)])
def test_time_that_a_run_did_not_spend_itself_is_a_row_and_no_overhead(tmp_path: Path, kind: str, row: str) -> None:
    clock = earlier_clock(tmp_path, [*EVENTS, {"kind": kind, "spent_s": 20.0}])
    assert clock == {"spent_s": 20.0, "time_s": {row: 20.0}}
    table, overhead = time_table(clock["time_s"] | {"evaluation": 6.0}, 30.0)
    assert sum(table.values()) == 30.0 and table[row] == 20.0
    assert overhead == pytest.approx(0.4), "four of the ten seconds of its own"


def test_a_person_who_thinks_takes_no_time_of_the_run_also_while_thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = Budget(None, None)
    now[0] = 20.0
    with budget.paused():
        now[0] = 500.0
        assert budget.spent_s == 20.0
    now[0] = 501.0
    assert budget.spent_s == 21.0


def test_a_run_has_no_clock_before_it_works(tmp_path: Path) -> None:
    assert json.dumps(read_clock(tmp_path)) == '{"spent_s": 0.0, "time_s": {}}'
    assert earlier_clock(tmp_path, [])["time_s"] == {}
