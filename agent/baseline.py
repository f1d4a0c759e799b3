"""What a run knows before its first step: the base model's scores, whether a judge may be used, lessons of others."""

from agent.console import note_text
from agent.history import earlier_outcomes
from agent.judge_check import check_judge
from agent.nodes import Services
from memory.lessons import lessons_file
from memory.records import read_json
from memory.store import BASE, GREEDY
from tools.contract import Json
from tools.tasks.judge import JudgeScorer


def engine_text(identity: Json) -> str:
    """Return who generates, of an engine's identity: "bfloat16 on cpu", "vllm, bfloat16 on cuda", "openai"."""
    name = "" if identity["engine"] == "transformers" else identity["engine"]
    where = f"{identity['dtype']} on {identity['device']}" if "device" in identity else ""
    return ", ".join(part for part in (name, where) if part)


def take_baseline(services: Services) -> None:
    """Load the model, measure the base on the search split, recall lessons of earlier runs."""
    console = services.console
    console.begin("start-up: loading the model")
    services.jobs.run("tools.jobs.worker:warm_up", {}, {"process": services.jobs.client.pid})
    _check_judge(services)
    console.begin("measuring the base model")
    zero = services.referee.measure(BASE, "search", policy=GREEDY)
    few = services.referee.measure(BASE, "search", shots=len(services.referee.task.seed_examples()), policy=GREEDY)
    console.end()
    console.say(
        f"base model on {zero['n']} search items: zero-shot {100 * zero['score']:.1f} %, "
        f"few-shot {100 * few['score']:.1f} % ({engine_text(zero['identity'])})"
        f"{note_text(zero)}"
    )
    record = read_json(services.store.run_dir / "run.json")
    if "lessons" in record:  # what the run was told that this one goes on from or repeats, and nothing newer
        services.lessons += record["lessons"]
        if "forked_from" in record:
            services.jobs.run("tools.engines.publish:refill_memory", {})
    # With a token budget alone a run repeats exactly, so it must not depend on what ran before it.
    elif services.config.minutes is not None and lessons_file(services.store.run_dir).stat().st_size:
        recalled, _ = services.jobs.run("memory.lessons:recall", {"task": services.config.task, "count": 3})
        services.lessons += [lesson["text"] for lesson in recalled]
        services.earlier |= earlier_outcomes(services.store.run_dir)
        for lesson in recalled:
            console.say(f"recalled: {lesson['text']}")


def _check_judge(services: Services) -> None:
    """Measure a judge before its scores are used; raises ValueError when it may not be used."""
    referee = services.referee
    if isinstance(referee.scorer, JudgeScorer):
        services.console.begin("checking the judge")
        found = check_judge(referee.scorer, referee.items("search"), referee.folder)
        services.console.say(found)
        services.trace.emit("judge_checked", note=found)
