"""Log-probabilities and divergences along given answers, against plain transformers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tools.engines.base import build_messages
from tools.engines.likelihood import AnswerReader
from tools.engines.transformers_engine import TransformersEngine, merge_adapter

QUESTIONS = ["ab", "what is this long one?", "x" * 30, *("abc" + letter for letter in "defghijk")]
ANSWERS = ["yes", "", "a longer answer", *("no" * number for number in range(1, 9))]

STOPPED = [number % 3 != 2 for number in range(len(ANSWERS))]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> TransformersEngine:
    return TransformersEngine(tiny_model, "float32")


def test_they_equal_what_transformers_says(engine: TransformersEngine, tiny_model: Path, adapter: Path) -> None:
    chats = [build_messages(question, []) for question in QUESTIONS]
    engine.use_model(adapter)
    reader = AnswerReader(engine, chats, ANSWERS, STOPPED)
    logprobs, divergences = reader.base_logprobs(), reader.divergences()
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="sdpa").eval()
    copy = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="sdpa")
    tuned = merge_adapter(copy, adapter)
    for number, (chat, text) in enumerate(zip(chats, ANSWERS, strict=True)):
        prompt = engine.encode(chat)
        answer = list(engine.tokenizer(text, add_special_tokens=False).input_ids)
        answer += [engine.tokenizer.eos_token_id] if STOPPED[number] else []
        with torch.inference_mode():
            base, model = (
                net(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                for net in (plain, tuned)
            )
        wanted = base.gather(-1, torch.tensor(answer)[:, None]).mean()
        divergence = (base.exp() * (base - model)).sum(-1).mean()
        assert logprobs[number] == pytest.approx(float(wanted), abs=1e-4)
        assert divergences[number] == pytest.approx(float(divergence), abs=1e-4)
        assert divergences[number] > 0.01


def test_the_base_model_does_not_differ_from_itself(engine: TransformersEngine) -> None:
    engine.use_model(None)
    chats = [build_messages(question, []) for question in QUESTIONS]
    assert AnswerReader(engine, chats, ANSWERS, STOPPED).divergences() == pytest.approx(
        [0.0] * len(QUESTIONS), abs=1e-6
    )
