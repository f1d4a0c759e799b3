"""End the run. The final split is opened after it, once, by the referee."""

from tools.contract import Grid, Json, ToolContext, ToolRun, tool

PLATEAU_REJECTIONS = 3


def legal_finish(context: ToolContext) -> Grid | None:
    """Nothing waits to be judged or trained, and the last candidates brought nothing."""
    store = context.store
    last = [verdict["accepted"] for verdict in store.verdicts()[-PLATEAU_REJECTIONS:]]
    pending = store.candidate() is not None or bool(store.untrained_datasets())
    return {} if not pending and len(last) == PLATEAU_REJECTIONS and not any(last) else None


@tool(stage="evaluate", when=legal_finish)
def finish_run(run: ToolRun) -> Json:
    """End the run and keep the champion. Use it when the last candidates were all rejected."""
    return {"champion": run.context.store.champion()}
