"""The engine: its tokens and probabilities against plain transformers, and what it switches, counts and refuses."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Gemma2Config, PreTrainedModel

from tools.engines.base import Message, Sampling, build_messages
from tools.engines.rollout import _attend, _attend_plainly, grow_prefix, sample_branches
from tools.engines.transformers_engine import (
    TransformersEngine,
    dtype_name,
    encode_chat,
    load_weights,
    shared_prefix_length,
)

QUESTIONS = ["ab", "a", "what is this long one?", "abc", "x" * 40]
NEVER = torch.tensor([], dtype=torch.long)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> TransformersEngine:
    return TransformersEngine(tiny_model, "float32")


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> PreTrainedModel:
    """The same weights under transformers' own attention."""
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="sdpa").eval()


def chats(*questions: str, shots: int = 0) -> list[list[Message]]:
    return [build_messages(question, [("in", "out")] * shots) for question in questions]


def branches(
    model: PreTrainedModel,
    prompts: list[list[int]],
    num_shared: int = 0,
    num_samples: int = 1,
    max_new_tokens: int = 8,
    temperature: float = 0.0,
    stop_ids: Tensor = NEVER,
    seed: int = 0,
) -> tuple[list[list[list[int]]], list[list[float]]]:
    """Token ids and log-probabilities by prompt and sample."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        tokens, logprobs, _ = sample_branches(
            model, grow_prefix(model, prompts[0][:num_shared]), [ids[num_shared:] for ids in prompts],
            num_samples=num_samples, max_new_tokens=max_new_tokens, temperature=temperature, stop_ids=stop_ids,
            generator=generator,
        )  # fmt: skip
    return tokens, logprobs


def plain_greedy(model: Any, prompt: list[int], max_new_tokens: int) -> list[int]:
    with torch.inference_mode():
        out = model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
    return [int(token) for token in out[0, len(prompt) :]]


def plain_logprob(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    with torch.inference_mode():
        logprobs = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return float(logprobs[range(len(answer)), answer].sum())


def plain_next(model: PreTrainedModel, prompt: list[int]) -> Tensor:
    """The probabilities of the next token."""
    with torch.inference_mode():
        return model(torch.tensor([prompt])).logits[0, -1]


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("share", [False, True])
def test_greedy_tokens_equal_those_of_transformers(
    engine: TransformersEngine, plain: PreTrainedModel, shots: int, share: bool
) -> None:
    prompts = [engine.encode(chat) for chat in chats(*QUESTIONS, shots=shots)]
    num_shared = shared_prefix_length(prompts) if share else 0
    tokens, _ = branches(engine.base, prompts, num_shared, max_new_tokens=12)
    assert [samples[0] for samples in tokens] == [plain_greedy(plain, prompt, 12) for prompt in prompts]


@pytest.fixture
def memory_full_of_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # new memory then holds NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("memory_full_of_nan")
@pytest.mark.parametrize("attend", [_attend, _attend_plainly])
def test_nothing_is_read_from_memory_that_nobody_wrote(
    engine: TransformersEngine, plain: PreTrainedModel, attend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.engines.rollout._attend", attend)
    monkeypatch.setattr("tools.engines.rollout.TOKENS_PER_FORWARD", 64)  # rows of many lengths, prefilled in parts
    prompts = [engine.encode(chat) for chat in chats(*QUESTIONS, shots=1)]
    tokens, _ = branches(engine.base, prompts, shared_prefix_length(prompts), max_new_tokens=12)
    assert [samples[0] for samples in tokens] == [plain_greedy(plain, prompt, 12) for prompt in prompts]


def test_greedy_answers_of_the_default_model_equal_those_of_transformers(default_model: Path) -> None:
    engine = TransformersEngine(default_model, "float32")
    plain = AutoModelForCausalLM.from_pretrained(default_model, dtype=torch.float32)
    prompts = [
        build_messages(question, [("What is 1 + 1?", "2"), ("What is 2 + 5?", "7")])
        for question in ("What is 3 + 4?", "What is the capital of France?", "Say hello.")
    ]
    for completion, prompt in zip(engine.generate(prompts, Sampling(8)), prompts, strict=True):
        ids = engine.encode(prompt)
        expected = plain_greedy(plain, ids, 8)
        stop = expected.index(2) + 1 if 2 in expected else 8
        assert completion[0].text == engine.tokenizer.decode(expected[:stop], skip_special_tokens=True)
        assert completion[0].num_tokens == stop
        assert completion[0].finish == ("stop" if 2 in expected else "length")
        assert completion[0].logprob == pytest.approx(plain_logprob(plain, ids, expected[:stop]), abs=1e-3)


def test_a_branch_sees_only_itself_while_others_finish(engine: TransformersEngine, plain: PreTrainedModel) -> None:
    prompts = [engine.encode(chat) for chat in chats(*QUESTIONS, shots=1)]
    stop_ids = torch.arange(0, 259, 4)  # a quarter of all tokens: branches finish at every step, whole rows too
    tokens, logprobs = branches(
        engine.base, prompts, shared_prefix_length(prompts), 6, 20, temperature=1.0, stop_ids=stop_ids
    )
    lengths = set()
    for prompt, answers, sums in zip(prompts, tokens, logprobs, strict=True):
        for answer, logprob in zip(answers, sums, strict=True):
            assert not any(token % 4 == 0 for token in answer[:-1])
            assert answer[-1] % 4 == 0 or len(answer) == 20
            assert logprob == pytest.approx(plain_logprob(plain, prompt, answer), abs=1e-3)
            lengths.add(len(answer))
    assert len(lengths) > 5


def test_greedy_branches_are_not_changed_by_those_that_leave(engine: TransformersEngine) -> None:
    prompts = [engine.encode(chat) for chat in chats(*QUESTIONS)]
    free = [samples[0] for samples in branches(engine.base, prompts, max_new_tokens=16)[0]]
    stop_ids = torch.tensor([free[0][2], free[3][5]])
    stopped = branches(engine.base, prompts, max_new_tokens=16, stop_ids=stop_ids)[0]
    for answer, samples in zip(free, stopped, strict=True):
        cut = next((place for place, token in enumerate(answer, 1) if token in stop_ids), 16)
        assert samples[0] == answer[:cut]
    assert len({len(samples[0]) for samples in stopped}) > 1


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_samples_of_the_next_token_follow_the_softmax(
    engine: TransformersEngine, plain: PreTrainedModel, temperature: float
) -> None:
    prompt = engine.encode(chats("ab")[0])
    num_samples = 20_000
    tokens, _ = branches(engine.base, [prompt], 0, num_samples, 1, temperature)
    counts = torch.bincount(torch.tensor([sample[0] for sample in tokens[0]]), minlength=259)
    expected = (plain_next(plain, prompt) / temperature).softmax(-1) * num_samples
    often = expected >= 5
    observed = torch.cat([counts[often], counts[~often].sum()[None]]).double()
    wanted = torch.cat([expected[often], expected[~often].sum()[None]]).double()
    chi_square = float(((observed - wanted) ** 2 / wanted.clamp(min=1)).sum())
    freedom = len(wanted) - 1
    assert freedom > 20
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_samples_of_the_second_token_follow_the_first(engine: TransformersEngine, plain: PreTrainedModel) -> None:
    prompt = engine.encode(chats("ab")[0])
    tokens, _ = branches(engine.base, [prompt], 0, 1000, 2, temperature=0.05)
    first = torch.bincount(torch.tensor([sample[0] for sample in tokens[0]])).argmax().item()
    second = torch.tensor([sample[1] for sample in tokens[0] if sample[0] == first])
    assert len(second) > 100
    wanted = (plain_next(plain, [*prompt, int(first)]) / 0.05).softmax(-1)
    top = wanted.topk(5).indices
    for token in top.tolist():
        share, spread = float(wanted[token]), float((wanted[token] * (1 - wanted[token]) / len(second)) ** 0.5)
        assert float((second == token).float().mean()) == pytest.approx(share, abs=5 * spread)


def test_the_same_seed_gives_the_same_samples(engine: TransformersEngine) -> None:
    prompts = chats(*QUESTIONS)
    runs = [engine.generate(prompts, Sampling(6, 4, 1.0, seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert len({sample.text for sample in runs[0][0]}) > 1


def test_answers_come_in_the_order_of_the_prompts(engine: TransformersEngine) -> None:
    together = engine.generate(chats(*QUESTIONS), Sampling(8))
    alone = [engine.generate([chat], Sampling(8))[0] for chat in chats(*QUESTIONS)]
    assert [samples[0].text for samples in together] == [samples[0].text for samples in alone]
    assert len({samples[0].text for samples in together}) > 1


@pytest.mark.parametrize("columns", [16_384, 64, 5])
def test_many_prompts_and_samples_are_done_in_parts(
    engine: TransformersEngine, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.engines.transformers_engine.COLUMNS_PER_FORWARD", columns)
    questions = [f"{number:0{1 + number % 60}d}" for number in range(120)]
    answers = engine.generate(chats(*questions), Sampling(2, 8, 1.0))
    assert len(answers) == 120 and all(len(samples) == 8 for samples in answers)


def test_a_shared_prefix_is_counted_once(engine: TransformersEngine) -> None:
    prompts = chats("a", "bcd", shots=5)
    lengths = [len(engine.encode(chat)) for chat in prompts]
    num_shared = shared_prefix_length([engine.encode(chat) for chat in prompts])
    assert num_shared > 20
    before = engine.tokens_processed
    engine.generate(prompts, Sampling(1))
    assert engine.tokens_processed - before == sum(lengths) - (len(lengths) - 1) * num_shared


def test_processed_tokens_are_those_that_went_through_the_model(engine: TransformersEngine) -> None:
    prompt = chats("abc")
    before = engine.tokens_processed
    (sample,) = engine.generate(prompt, Sampling(5))[0]
    # The last token of an answer is drawn and never read.
    assert engine.tokens_processed - before == len(engine.encode(prompt[0])) + sample.num_tokens - 1


def test_samples_that_agree_are_computed_once(engine: TransformersEngine) -> None:
    prompt = chats("abc")
    costs = []
    for num_samples in (1, 50):
        before = engine.tokens_processed
        samples = engine.generate(prompt, Sampling(5, num_samples, temperature=1e-6))[0]
        assert len(samples) == num_samples and len({sample.text for sample in samples}) == 1
        costs.append(engine.tokens_processed - before)
    assert costs[0] == costs[1]


def test_computed_nodes_are_the_distinct_beginnings_of_the_samples(engine: TransformersEngine) -> None:
    ids = engine.encode(chats("abc")[0])
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        tokens, _, num_computed = sample_branches(
            engine.model, None, [ids], num_samples=64, max_new_tokens=3, temperature=2.0, stop_ids=NEVER,
            generator=generator,
        )  # fmt: skip
    beginnings = {tuple(answer[:length]) for answer in tokens[0] for length in (1, 2)}
    assert 64 < len(beginnings) < 128, "the test needs samples that share some beginnings"
    assert num_computed == len(ids) + len(beginnings)


def test_no_prompts_give_no_answers(engine: TransformersEngine) -> None:
    assert engine.generate([], Sampling(4)) == []


def test_the_stop_token_ends_an_answer_and_is_not_in_its_text(
    engine: TransformersEngine, tiny_model: Path, tmp_path: Path
) -> None:
    prompt = chats("abc")
    free = branches(engine.base, [engine.encode(prompt[0])], max_new_tokens=6)[0][0][0]
    assert free[3] not in free[:3]
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    generation = engine.base.generation_config
    stopping = AutoModelForCausalLM.from_pretrained(tiny_model).generation_config
    assert generation is not None
    stopping.eos_token_id = [0, free[3]]
    stopping.save_pretrained(folder)
    (sample,) = TransformersEngine(folder, "float32").generate(prompt, Sampling(6))[0]
    assert (sample.finish, sample.num_tokens) == ("stop", 4)
    assert sample.text == engine.tokenizer.decode(free[:3])
    (cut,) = engine.generate(prompt, Sampling(6))[0]
    assert (cut.finish, cut.num_tokens) == ("length", 6)
    assert cut.text == engine.tokenizer.decode(free)


def test_a_prompt_beyond_the_context_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(ValueError, match=r"has \d{3} tokens, the model's context is 512; use fewer"):
        engine.generate(chats("a", "b" * 600), Sampling(2))


def test_greedy_with_several_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="set a temperature"):
        Sampling(4, num_samples=2)


def test_an_adapter_is_used_and_left_without_a_trace(
    engine: TransformersEngine, adapter: Path, tiny_model: Path
) -> None:
    from peft import PeftModel

    weights = {name: tensor.clone() for name, tensor in engine.base.state_dict().items()}
    before = engine.generate(chats(*QUESTIONS), Sampling(8))
    engine.use_model(adapter)
    adapted = engine.generate(chats(*QUESTIONS), Sampling(8))
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, str(adapter)).eval()
    engine.use_model(None)
    after = engine.generate(chats(*QUESTIONS), Sampling(8))

    for chat, samples in zip(chats(*QUESTIONS), adapted, strict=True):
        ids = engine.encode(chat)
        assert samples[0].text == engine.tokenizer.decode(plain_greedy(expected, ids, 8), skip_special_tokens=True)
    assert before != adapted
    assert before == after
    assert all(torch.equal(weights[name], tensor) for name, tensor in engine.base.state_dict().items())


def test_full_weights_are_used(engine: TransformersEngine, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    torch.manual_seed(7)
    other = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model), dtype=torch.float32)
    other.save_pretrained(folder)
    before = engine.generate(chats("ab"), Sampling(8))
    engine.use_model(folder)
    (sample,) = engine.generate(chats("ab"), Sampling(8))[0]
    engine.use_model(None)
    assert sample.text == engine.tokenizer.decode(plain_greedy(other, engine.encode(chats("ab")[0]), 8))
    assert engine.generate(chats("ab"), Sampling(8)) == before


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([], 0),
        ([[1, 2, 3]], 0),
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2], [1, 2, 3]], 1),  # each keeps a token of its own
        ([[1, 2], [1, 2]], 1),
        ([[1], [1, 2]], 0),
        ([[], [1]], 0),
        ([[5, 1], [6, 1]], 0),
        ([[1, 9, 1], [1, 2, 9], [1, 5, 0]], 1),
    ],
)
def test_the_shared_prefix_leaves_each_prompt_a_token(prompts: list[list[int]], length: int) -> None:
    assert shared_prefix_length(prompts) == length


def test_a_model_with_another_kind_of_attention_is_refused(tmp_path: Path) -> None:
    small: Any = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    config = Gemma2Config(vocab_size=64, num_key_value_heads=1, **small)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"attention of gemma2 models .* choose another model"):
        load_weights(tmp_path, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(("quicker", "chosen"), [(1.0, "float32"), (6.0, "bfloat16")])
def test_auto_takes_the_dtype_that_multiplies_faster(
    quicker: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {torch.float32: 100.0, torch.bfloat16: 100.0 * quicker}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("tools.engines.transformers_engine.product_rate", rates.__getitem__)
    assert dtype_name("auto") == chosen
    assert dtype_name("float16") == "float16"


def test_the_identity_names_the_dtype(engine: TransformersEngine) -> None:
    assert {"dtype": "float32", "torch": "2.13.0"}.items() <= engine.identity().items()


def test_a_tokenizer_without_a_template_gets_plain_lines(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "chat_template.jinja").unlink()
    engine = TransformersEngine(folder, "float32")
    ids = engine.encode(build_messages("How?", [("Why?", "So.")], "Be brief."))
    assert engine.tokenizer.decode(ids) == "Be brief.\nQuestion: Why?\nAnswer: So.\nQuestion: How?\nAnswer:"
    assert engine.tokenizer.decode(engine.encode(chats("How?")[0])) == "Question: How?\nAnswer:"
    assert engine.generate(chats("How?"), Sampling(3))[0][0].num_tokens <= 3
    assert engine.tokenizer.decode(engine.encode([*chats("How?")[0], begun(" So")])) == "Question: How?\nAnswer: So"


def begun(text: str) -> Message:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("text", ["", "First, ", "First.\n", "if x:\n    ", "\n x", "  a", "\n\n", "gr\u00fcn"])
@pytest.mark.parametrize("trims", [False, True])
def test_a_begun_answer_follows_its_chat_as_it_is(default_model: Path, text: str, trims: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default_model)
    if trims:
        tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", "(message['content'] | trim)")
    chat = build_messages("How?", [("Why?", "So.")])
    ids = encode_chat(tokenizer, chat)
    assert encode_chat(tokenizer, [*chat, begun(text)]) == ids + tokenizer(text).input_ids
    assert str(tokenizer.decode(ids + tokenizer(text).input_ids)).endswith("<|im_start|>assistant\n" + text)


def test_a_begun_answer_is_continued(engine: TransformersEngine, plain: PreTrainedModel) -> None:
    [chat] = chats("ab")
    (found,) = engine.generate([[*chat, begun("So: \n")]], Sampling(8))[0]
    expected = plain_greedy(plain, engine.encode(chat) + engine.tokenizer("So: \n").input_ids, 8)
    assert found.text == engine.tokenizer.decode(expected, skip_special_tokens=True)
    assert found != engine.generate([chat], Sampling(8))[0][0]
