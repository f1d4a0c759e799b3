"""A teacher's endpoint (see tools/acquire/teacher.py): failures cost one question each and end nothing."""

import os
from typing import Any

from tools.engines.base import Message, Sampling
from tools.engines.chat_endpoint import ChatEndpoint, EngineError
from tools.engines.openai_engine import OpenAIEngine

API_KEY = "TEACHER_API_KEY"
TIMEOUT_S = 120.0
RETRY_WAITS_S = (1.0, 4.0)


class Teacher(OpenAIEngine):
    """An OpenAI-compatible endpoint; a question that it does not answer has no completions."""

    def __init__(
        self, address: str, model: str, timeout_s: float = TIMEOUT_S, retry_waits_s: tuple[float, ...] = RETRY_WAITS_S
    ) -> None:
        super().__init__(address, model, os.environ.get(API_KEY), timeout_s, retry_waits_s=retry_waits_s)
        self.failures: list[str] = []
        """What went wrong since it was made, with the cure and without secrets."""

    def _sample(
        self, endpoint: ChatEndpoint, model: str, prompt: list[Message], sampling: Sampling, seed: int
    ) -> tuple[list[Any], int]:
        try:
            return super()._sample(endpoint, model, prompt, sampling, seed)
        except (EngineError, ValueError) as error:
            self.failures.append(str(error))
            return [], 0
