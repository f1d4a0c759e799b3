"""Money, processors and disk as limits of a run, and what is removed from the disk after a verdict."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.budget import FINAL_GIB, FINAL_MARGIN, Budget, Shortage, check_tokens, open_budget
from agent.config import RunConfig
from agent.disk import folder_bytes, free, freeable, needed_gib
from agent.follow import follow, follow_text
from agent.identity import check_model
from agent.nodes import begun_calls, end_text
from agent.prices import Prices, load_prices
from agent.replay import NO_LIMIT_MINUTES
from agent.replay import _config as replay_settings
from agent.situation import build_menu
from agent.state import StopReason
from agent.trace import Event
from agent.views import budget_text
from memory.records import write_json
from memory.store import BASE, REMOVED, RunStore
from tools.contract import ToolError
from tools.engines.chat_endpoint import ChatUsage
from tools.jobs.job import Usage
from tools.jobs.worker import Resident

PRICES = """
machine_per_hour = 3.6
[tokens."some-model"]
input = 1.0
output = 10.0
"""


def test_a_spent_budget_says_what_it_lacked() -> None:
    budget = Budget(None, 1000)
    assert budget.shortage(800, 100) is None
    shortage = Shortage("tokens", 900, FINAL_MARGIN * 100, 1000)
    assert budget.shortage(900, 100) == shortage
    lacking = {"tool": "finetune_model", "args": {"epochs": 1}} | shortage._asdict()
    events: list[Event] = [{"kind": "observed"}, {"kind": "observed", "too_dear": lacking}]
    told = "finetune_model(epochs=1), would take about 900 tokens beside 125 tokens for the final evaluation, and 1,000"
    assert told in end_text(StopReason.BUDGET, events)
    assert end_text(StopReason.STEPS, events) == StopReason.STEPS.sentence
    assert end_text(StopReason.BUDGET, events[:1]) == StopReason.BUDGET.sentence


def test_a_token_budget_below_any_use_is_refused() -> None:
    check_tokens(RunConfig(budget_tokens=100_000))
    with pytest.raises(ValueError, match="--budget-tokens 10 is too few: 1456 answers"):
        check_tokens(RunConfig(budget_tokens=10))


def test_a_call_counts_from_where_it_first_began() -> None:
    first, again = {"seconds": 1.0, "tokens": 5.0}, {"seconds": 9.0, "tokens": 50.0}
    began: list[Event] = [{"kind": "tool_started", "job": "0001-a", "spent": spent} for spent in (first, again)]
    assert begun_calls([*began, {"kind": "tool_started", "job": "0002-b"}]) == {"0001-a": first}


@pytest.fixture
def prices(tmp_path: Path) -> str:
    (tmp_path / "prices.toml").write_text(PRICES)
    return str(tmp_path / "prices.toml")


def decisions_of(usd: float) -> list[Event]:
    return [{"kind": "run_started"}, {"kind": "decided", "usage": {"tokens": 10, "cost_usd": usd}}]


def test_an_endpoint_and_the_machine_cost_money(prices: str, tmp_path: Path) -> None:
    config = RunConfig(engine="openai:http://127.0.0.1:1/v1#some-model", prices=prices, budget_usd=1.0)
    budget = open_budget(tmp_path, config, 100.0, decisions_of(0.2))
    budget.add(Usage(10.0, 10.0, 1000, 0.0, 100_000, 30_000), "generation")
    spent = budget.spent()["usd"]
    assert spent == pytest.approx(100 * 0.001 + 0.2 + 0.1 + 0.3, abs=0.01)
    # A thousand tokens took 0.4 dollars of the endpoint and 10 seconds of the machine, and a decision takes 0.2 more.
    assert not budget.affords(400, 0, "generation")
    assert budget.affords(200, 0, "generation")
    assert not budget.affords(200, 400 / FINAL_MARGIN, "generation"), "the final evaluation is kept back"


@pytest.mark.parametrize(
    ("unit", "used"), [("cpu_seconds", Usage(1.0, 30.0, 100)), ("gpu_seconds", Usage(1.0, 0.0, 100, 30.0))]
)
def test_processors_limit_a_run_at_the_measured_rate(unit: str, used: Usage) -> None:
    budget = Budget(None, None, more={unit: 60.0})
    budget.add(used, "evaluation")
    assert budget.share_left() == pytest.approx(0.5)
    assert budget.tokens_left() == pytest.approx(100)
    assert budget.affords(99, 0) and not budget.affords(101, 0)
    assert not budget.affords(60, 40)


def test_decisions_of_an_api_planner_cost_money_also_before_a_resume(prices: str, tmp_path: Path) -> None:
    config = RunConfig(planner="chat:openai:some-model", prices=prices, budget_usd=1.0)
    budget = open_budget(tmp_path, config, 0.0, [])
    usage = budget.add_decision({"tokens": 1100.0, "input_tokens": 1000.0})
    assert usage["cost_usd"] == pytest.approx(0.002)
    again = open_budget(tmp_path, config, 0.0, decisions_of(usage["cost_usd"]))
    assert again.spent()["usd"] == pytest.approx(budget.spent()["usd"], abs=1e-4)


def test_tokens_of_an_api_planner_count_once_and_those_of_the_model_itself_with_its_jobs(tmp_path: Path) -> None:
    config = RunConfig(planner="chat:openai:some-model", budget_tokens=2000)
    budget = open_budget(tmp_path, config, 0.0, [])
    budget.add(Usage(1.0, 1.0, 300))
    told = budget.add_decision({"tokens": 500.0, "input_tokens": 400.0})
    assert budget.spent()["tokens"] == 800
    assert budget.affords(700, 0) and not budget.affords(701, 0), "the next decision is expected to cost as much"
    own = budget.add_decision({"tokens": 90.0, "input_tokens": 0.0})
    assert budget.spent()["tokens"] == 800, "the tokens of its own thinking are a job's"
    again = open_budget(tmp_path, config, 0.0, [{"kind": "decided", "usage": usage} for usage in (told, own)])
    assert again.spent()["tokens"] == 500


def test_a_teacher_costs_money_and_is_asked_only_what_can_be_paid(prices: str, tmp_path: Path) -> None:
    config = RunConfig(teacher="http://127.0.0.1:1/v1#some-model", prices=prices, budget_usd=1.0)
    budget, store = open_budget(tmp_path, config, 0.0, []), store_of(tmp_path)
    offer: dict[str, Any] = {"tool": "distil_answers", "stage": "acquire", "summary": "", "tokens": [1, 1]}
    offers = [offer | {"grid": {"num_items": [128, 2048]}}]
    # Nothing was measured: 8 times 40 tokens read and 32 written, 0.00064 dollars a question.
    assert build_menu(offers, store, budget)[0]["arguments"] == {"num_items": [128]}
    usage = Usage(1.0, 1.0, 100, teacher_input_tokens=100_000, teacher_output_tokens=20_000)
    budget.add(usage, "generation")
    assert budget.spent()["usd"] == pytest.approx(0.3, abs=0.01)
    assert budget.needed(100, "generation")["usd"] == pytest.approx(0.001), "other generation asks no teacher"
    store.put("data", "asked", {"kind": "samples", "method": "distil_answers", "num_items": 100})
    assert budget.affords(1, 0, usd=0.6) and not budget.affords(1, 0, usd=0.75)
    assert budget.teacher_usd(128, 100, (1.0, 1.0)) == pytest.approx(0.384)
    offers[0]["grid"]["num_items"] = [128, 256]
    assert build_menu(offers, store, budget)[0]["arguments"] == {"num_items": [128]}


def test_a_teacher_without_a_price_is_refused_when_money_is_limited(prices: str) -> None:
    config = RunConfig(teacher="http://127.0.0.1:1/v1#wise-1", prices=prices, budget_usd=1.0)
    with pytest.raises(ValueError, match=r"no price of 'wise-1' \(--teacher\)"):
        load_prices(config)


def test_the_worker_counts_what_engine_and_teacher_read_and_wrote(tmp_path: Path) -> None:
    write_json(tmp_path / "worker.json", {"engine": "transformers"})
    resident = Resident(tmp_path)
    assert resident.paid_tokens == (0, 0, 0, 0)
    for name, count in (("engine", 1), ("teacher", 10)):
        usages = [ChatUsage(prompt_tokens=2 * count, completion_tokens=count)] * 2
        resident.__dict__[name] = SimpleNamespace(usages=usages)
    assert resident.paid_tokens == (4, 2, 40, 20)


def test_a_replay_has_none_of_the_limits_of_its_run(tmp_path: Path, prices: str) -> None:
    limits: dict[str, Any] = {
        "budget_cpu_minutes": 1.0,
        "budget_gpu_minutes": 1.0,
        "budget_usd": 1.0,
        "budget_gib": 1.0,
    }
    config = replay_settings(tmp_path, {"config": RunConfig(prices=prices, budget_tokens=5, **limits).to_json()})
    assert open_budget(tmp_path, config, 0.0, []).limits == {"seconds": 60 * NO_LIMIT_MINUTES}
    assert config.prices is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no price of 'some-model'"), ("machine_per_hour = 'much'", "could not convert"),
        ('[tokens."some-model"]\ninput = 1', "'output'"), ("per_day = 3", "unknown: per_day"), ("=", "TOML"),
        ("machine_per_hour = -1", "below 0"),
    ],
)  # fmt: skip
def test_prices_that_are_not_understood_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "prices.toml").write_text(text)
    config = RunConfig(
        planner="chat:http://127.0.0.1:1/v1#some-model", budget_usd=1, prices=str(tmp_path / "prices.toml")
    )
    with pytest.raises(ValueError, match=said):
        load_prices(config)


def test_other_limits_are_told_and_leave_time_unlimited_when_they_end_a_run() -> None:
    assert budget_text(RunConfig(budget_gib=2.0).to_json()) == "10 minutes and 2.0 gib"
    assert RunConfig(budget_gib=2.0).minutes == 10.0
    config = RunConfig(budget_cpu_minutes=5.0, budget_tokens=100)
    assert config.minutes is None and budget_text(config.to_json()) == "100 tokens and 5.0 cpu minutes"


def test_an_action_that_the_disk_does_not_hold_is_not_on_the_menu(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    write_json(store.run_dir / "worker.json", {"model_dir": str(tmp_path)})
    offer: dict[str, Any] = {"tool": "finetune_model", "stage": "optimize", "summary": "", "grid": {"method": ["lora"]}}
    needed = needed_gib(store, "optimize", "lora")
    assert needed == pytest.approx(7 * 2000 / 2**30)
    there = folder_bytes(store.run_dir) / 2**30
    for room, tools in ((needed, ["finetune_model"]), (0.5 * needed, [])):
        budget = Budget(None, None, more={"gib": there + FINAL_GIB + room + 1e-9}, folder=store.run_dir)
        assert [choice["tool"] for choice in build_menu([offer | {"tokens": [10]}], store, budget)] == tools


def test_what_is_offered_second_comes_where_the_budget_affords_nothing_of_the_first(tmp_path: Path) -> None:
    offer: dict[str, Any] = {"tool": "work", "stage": "acquire", "summary": ""}
    offers = [offer | {"grid": {"n": [10, 20]}, "tokens": [100, 200]}, offer | {"grid": {"n": [1]}, "tokens": [10]}]
    for limit, arguments in ((300, [{"n": [10, 20]}]), (150, [{"n": [10]}]), (50, [{"n": [1]}]), (5, [])):
        menu = build_menu(offers, store_of(tmp_path / str(limit)), Budget(None, limit))
        assert [choice["arguments"] for choice in menu] == arguments


def store_of(tmp_path: Path) -> RunStore:
    """Three models: one rejected, its child accepted, and a second rejected one from the base."""
    store = RunStore(tmp_path / "run")
    for name, parent in (("m1", BASE), ("m2", "m1"), ("m3", BASE)):
        settings = {"method": "lora", "start_from": "base"}
        (store.folder("models", name)).mkdir(parents=True)
        (store.folder("models", name) / "adapter_model.safetensors").write_bytes(b"w" * 2000)
        (store.folder("models", name) / "adapter_config.json").write_text("{}")
        about = {"parent": parent, "dataset": "d", "datasets": [], "settings": settings, "num_examples": 4, "seed": 0}
        store.put("models", name, about)
    for number, (name, accepted, score) in enumerate((("m1", False, 0.2), ("m2", True, 0.5), ("m3", False, 0.4))):
        split = {"split": "search", "shots": 0, "score": score, "ci95": [0.1, 0.6], "n": 20}
        store.put("evals", f"s{number}", {"model": name} | split)
        judged = {"split": "gate", "shots": 0, "accepted": accepted, "champion": BASE, "n": 20, "refused_by": []}
        store.put("evals", f"g{number}", {"model": name} | judged)
    return store


def test_after_a_verdict_only_weights_that_can_matter_are_left(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    folder = store.run_dir / "jobs" / "key" / "checkpoints" / "checkpoint-3"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"o" * 500)
    manifest = store.folder("models", "m3") / "model.json"
    before = manifest.stat().st_mtime_ns
    found = freeable(store, 0)
    assert found == {"models": {"m3": 2000}, "checkpoints": 1, "bytes": 2000 + folder_bytes(folder.parent)}
    free(store, 0)
    assert freeable(store, 0) is None, "twice frees nothing more"
    assert [path.parent.name for path in sorted(store.run_dir.glob("models/*/*.safetensors"))] == ["m1", "m2"]
    assert manifest.stat().st_mtime_ns == before, "the manifest is as it was written"
    removed = store.get("models", "m3")
    assert removed is not None and removed["removed"] == {"bytes": 2000}
    assert "were removed after the verdict" in follow_text(follow(store.run_dir, "m3"))
    with pytest.raises(ToolError, match="m3 were removed"):
        check_model(store, "m3")


def test_the_newest_rejected_model_that_was_better_stays(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    better = {"model": "m3", "split": "search", "shots": 0, "score": 0.6, "ci95": [0.1, 0.6], "n": 20}
    store.put("evals", "s9", better)
    assert freeable(store, 0) is None


def test_the_newest_rejected_models_stay_as_many_as_asked_for(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    store.folder("models", "m4").mkdir(parents=True)
    store.put("models", "m4", (store.get("models", "m3") or {}) | {"id": "m4"})
    (store.folder("models", "m4") / "adapter_model.safetensors").write_bytes(b"w" * 3000)
    judged = {"model": "m4", "split": "gate", "shots": 0, "accepted": False, "champion": "m2", "n": 20}
    store.put("evals", "s4", judged | {"split": "search", "score": 0.3, "ci95": [0.1, 0.6]})
    store.put("evals", "g4", judged | {"refused_by": []})
    gone = [set((freeable(store, keep) or {"models": {}})["models"]) for keep in (0, 1, 2)]
    assert gone == [{"m3", "m4"}, {"m3"}, set()]


def test_a_kill_between_mark_and_removal_is_made_good(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    write_json(store.folder("models", "m3") / REMOVED, {"bytes": 2000})
    assert freeable(store, 0) == {"models": {"m3": 2000}, "checkpoints": 0, "bytes": 2000}
    free(store, 0)
    assert not any(store.folder("models", "m3").glob("*.safetensors"))


def test_tokens_alone_are_exact_whatever_was_measured() -> None:
    budget = Budget(None, 1000)
    budget.add(Usage(0.3, 0.1, 7), "generation")
    budget.add(Usage(0.3, 0.1, 0, 0.0, 3, 4))
    assert budget.affords(993, 0) and not budget.affords(994, 0)
    assert Prices().of_tokens("some-model", 1, 1) == 0.0
