"""What an engine promises: text from chat messages, by base model or candidate, with every token counted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict


class Message(TypedDict):
    """One chat turn; role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How to generate. Greedy when temperature is 0, which also requires num_samples == 1."""

    max_new_tokens: int
    num_samples: int = 1
    temperature: float = 0.0
    seed: int = 0
    top_k: int = 0
    """Sample from the k likeliest tokens only; 0 = from all."""

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.num_samples != 1:
            raise ValueError(f"num_samples={self.num_samples} at temperature 0 gives equal samples; set a temperature")


class Completion(NamedTuple):
    """One generated answer."""

    text: str
    num_tokens: int
    """Generated tokens, the stop token included."""
    logprob: float
    """Sum of the tokens' log-probabilities at temperature 1; NaN where an endpoint does not tell."""
    finish: str
    """"stop" (the model ended) or "length" (cut at max_new_tokens)."""


class PromptTooLongError(ValueError):
    """A prompt is longer than the model's context."""


class Engine(Protocol):
    """Generates for one model at a time; `use_model` switches. Too long a prompt raises PromptTooLongError."""

    tokens_processed: int
    """Tokens that went through the model since the start: what prompts or samples share counts once."""

    def identity(self) -> dict[str, Any]:
        """Return what decides an answer beside the weights: engine, dtype, device, library versions."""

    def use_model(self, model_dir: Path | None) -> None:
        """Generate with the model of this folder (PEFT adapter or full weights) from now on; None = the base model."""

    def generate(self, prompts: list[list[Message]], sampling: Sampling) -> list[list[Completion]]:
        """Return num_samples completions for each prompt, in the order of the prompts.

        Where the last message is the assistant's, it is a beginning: the completions are what follows it.
        """


def build_messages(question: str, shots: list[tuple[str, str]], system_prompt: str = "") -> list[Message]:
    """Return the chat for a question: the system prompt, worked examples as earlier turns, the question.

    An empty system prompt is sent as such: it keeps templates from inserting a long default of their own.
    """
    messages: list[Message] = [{"role": "system", "content": system_prompt}]
    for shot_question, shot_answer in shots:
        messages += [{"role": "user", "content": shot_question}, {"role": "assistant", "content": shot_answer}]
    return [*messages, {"role": "user", "content": question}]
