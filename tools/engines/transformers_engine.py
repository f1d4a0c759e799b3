"""The default engine: one transformers model in this process, decoded over a key-value tree (see rollout.py).

Holds the base model and at most one other (a merged adapter or full weights). Runs in the worker, never in the agent.
"""

import copy
import gc
import os
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tools.engines.base import Completion, Message, PromptTooLongError, Sampling
from tools.engines.rollout import KeyValueTree, grow_prefix, sample_branches

COLUMNS_PER_FORWARD = 16_384
"""Room for generated tokens in one forward pass, each with its keys and values."""
COLUMNS_PER_BATCH = 32_768
"""The same with the prompts. Each step reads all weights, so that wide batches cost little more than narrow ones."""


class TransformersEngine:
    """Generates with a local causal language model. `model_dir` holds config, tokenizer and safetensors weights."""

    def __init__(self, model_dir: Path, dtype: str = "auto", batch_divisor: Callable[[], int] = lambda: 1) -> None:
        """Load the base model. batch_divisor: into how many parts batches are cut at this moment, to save memory."""
        self._batch_divisor = batch_divisor
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, dtype_name(dtype))
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir)
        self.base = load_weights(model_dir, self.dtype, self.device)
        self.model = self.base
        self._model_dir: Path | None = None
        self.tokens_processed = 0
        self.context_length = int(getattr(self.base.config, "max_position_embeddings", 2048))
        self.stop_ids = torch.tensor(stop_token_ids(self.tokenizer, self.base.generation_config), device=self.device)

    def identity(self) -> dict[str, Any]:
        """Return what decides an answer beside the weights."""
        return {
            "engine": "transformers",
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        }

    def use_model(self, model_dir: Path | None) -> None:
        """Generate with this adapter or these weights from now on; None = the base model."""
        if model_dir == self._model_dir:
            return
        self.model, self._model_dir = self.base, None
        gc.collect()
        if model_dir is not None:
            self.model = self._load_variant(model_dir)
            self._model_dir = model_dir

    def _load_variant(self, model_dir: Path) -> PreTrainedModel:
        if (model_dir / "adapter_config.json").exists():
            return merge_adapter(copy.deepcopy(self.base), model_dir)
        return load_weights(model_dir, self.dtype, self.device)

    @cached_property
    def guide(self) -> Any:
        """Llguidance's view of the tokenizer, for constrained decoding."""
        import llguidance.hf

        width = self.base.config.vocab_size
        tokenizer: Any = self.tokenizer
        return llguidance.hf.from_tokenizer(tokenizer, n_vocab=width, eos_token=self.stop_ids.tolist())

    def encode(self, messages: list[Message]) -> list[int]:
        """Return the token ids of a chat, ready for the assistant to go on. Raises PromptTooLongError."""
        ids = encode_chat(self.tokenizer, messages)
        if len(ids) >= self.context_length:
            raise PromptTooLongError(
                f"a prompt has {len(ids)} tokens, the model's context is {self.context_length}; "
                "use fewer or shorter seed examples, or a model with a longer context"
            )
        return ids

    @torch.inference_mode()
    def generate(self, prompts: list[list[Message]], sampling: Sampling) -> list[list[Completion]]:
        """Return num_samples completions per prompt, in order."""
        return self._continue([self.encode(messages) for messages in prompts], sampling)

    @torch.inference_mode()
    def sample_user_turns(self, messages: list[Message], sampling: Sampling) -> list[Completion]:
        """Return samples of what the user would say after these messages.

        Raises ValueError when the tokenizer has no chat template, or one that does not end with the user's text.
        """
        return self._continue([encode_user_turn(self.tokenizer, messages)], sampling)[0]

    def _continue(self, prompt_ids: list[list[int]], sampling: Sampling) -> list[list[Completion]]:
        num_shared = shared_prefix_length(prompt_ids)
        prefix: KeyValueTree | None = None
        if num_shared:
            prefix = grow_prefix(self.model, prompt_ids[0][:num_shared])
            self.tokens_processed += num_shared
        suffixes = [ids[num_shared:] for ids in prompt_ids]
        generator = torch.Generator(device=self.device).manual_seed(sampling.seed)
        completions: list[list[Completion]] = [[] for _ in prompt_ids]
        for batch, num_samples in _batches(suffixes, sampling, self._batch_divisor()):
            tokens, logprobs, num_computed = sample_branches(
                self.model,
                prefix,
                [suffixes[index] for index in batch],
                num_samples=num_samples,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                stop_ids=self.stop_ids,
                generator=generator,
            )
            self.tokens_processed += num_computed
            for index, branches, sums in zip(batch, tokens, logprobs, strict=True):
                completions[index] += [self._completion(ids, lp) for ids, lp in zip(branches, sums, strict=True)]
        return completions

    def _completion(self, ids: list[int], logprob: float) -> Completion:
        stopped = ids[-1] in self.stop_ids
        text = self.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
        return Completion(str(text), len(ids), logprob, "stop" if stopped else "length")


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Return the token ids of a chat up to where the assistant answers: the one place where prompts become tokens.

    A last message of the assistant is the beginning of that answer. A tokenizer without a chat template gets plain
    "Question: / Answer:" lines.
    """
    if messages[-1]["role"] == "assistant":
        # As an answer follows its prompt in training. apply_chat_template(continue_final_message=True) lets the
        # template strip its ends, and merges a line end that it begins with into the template's own.
        begun = list(tokenizer(messages[-1]["content"], add_special_tokens=False).input_ids)
        return encode_chat(tokenizer, messages[:-1]) + begun
    if tokenizer.chat_template is None:
        label = {"system": "", "user": "Question: ", "assistant": "Answer: "}
        lines = [label[message["role"]] + message["content"] for message in messages if message["content"]]
        return list(tokenizer("\n".join([*lines, "Answer:"])).input_ids)
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))  # type: ignore[arg-type]


def encode_user_turn(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Return the token ids of a chat up to where the user speaks."""
    mark = "the user's turn"
    if tokenizer.chat_template is None:
        raise ValueError("the model's tokenizer has no chat template, so it never learned what users ask")
    turns: list[Message] = [*messages, {"role": "user", "content": mark}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))  # type: ignore[arg-type]
    before, found, _ = text.rpartition(mark)
    if not found:
        raise ValueError("the model's chat template changes what the user says, so no user's turn can be begun")
    return list(tokenizer(before, add_special_tokens=False).input_ids)


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> list[int]:
    """Return the ids that end an answer: the tokenizer's and the generation config's end tokens."""
    declared = getattr(generation, "eos_token_id", None)
    ids = set(declared if isinstance(declared, list) else [declared]) | {tokenizer.eos_token_id}
    return sorted(token for token in ids if token is not None)


def load_weights(model_dir: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load a model for inference: safetensors only, no remote code, progress bars off.

    Raises ValueError for a model whose attention is more than a softmax over products (caps on scores, sinks).
    """
    transformers.utils.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=dtype, use_safetensors=True, attn_implementation="key_value_tree"
    )
    if not model._supports_sdpa:
        raise ValueError(
            f"{model_dir}: the attention of {model.config.model_type} models caps its scores or adds sinks, which is "
            "not computed here; choose another model"
        )
    model.to(device)  # type: ignore[arg-type]  # the stub of transformers wants a model here
    return model.eval()


def merge_adapter(model: PreTrainedModel, adapter_dir: Path) -> PreTrainedModel:
    """Return the model with a PEFT adapter merged into its weights (in place); the sum is made in fp32."""
    from peft import PeftModel

    merged = PeftModel.from_pretrained(model, adapter_dir, torch_device=str(model.device)).merge_and_unload()
    return merged.eval()


def shared_prefix_length(prompt_ids: list[list[int]]) -> int:
    """Return how many first tokens all prompts share, leaving each at least one token of its own."""
    if len(prompt_ids) < 2:
        return 0
    first, last = min(prompt_ids), max(prompt_ids)  # all prompts lie between these two in order
    limit = min(map(len, prompt_ids)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), max(limit, 0))


def _batches(suffixes: list[list[int]], sampling: Sampling, divisor: int = 1) -> Iterator[tuple[list[int], int]]:
    """Yield indices of prompts, sorted by length, in batches of bounded size, and how many samples to draw of each.

    Long answers with many samples are drawn in several passes over the same prompts.
    """
    most_with_prompts, most_columns = COLUMNS_PER_BATCH // divisor, COLUMNS_PER_FORWARD // divisor
    order = sorted(range(len(suffixes)), key=lambda index: len(suffixes[index]))
    per_pass = min(sampling.num_samples, max(1, most_columns // sampling.max_new_tokens))
    passes = [min(per_pass, sampling.num_samples - drawn) for drawn in range(0, sampling.num_samples, per_pass)]
    batch: list[int] = []
    for index in order:
        room = per_pass * sampling.max_new_tokens
        full = (len(batch) + 1) * (len(suffixes[index]) + room) > most_with_prompts
        if batch and (full or (len(batch) + 1) * room > most_columns):
            yield from ((batch, num_samples) for num_samples in passes)
            batch = []
        batch.append(index)
    if batch:
        yield from ((batch, num_samples) for num_samples in passes)


def dtype_name(asked: str) -> str:
    """Return the dtype to generate in. "auto": bf16 on a GPU; on a CPU whichever multiplies faster here, measured.

    Only processors with bf16 units (AMX, AVX-512 BF16) are faster in bf16, where measured three times or more.
    """
    if asked != "auto":
        return asked
    quick = torch.cuda.is_available() or product_rate(torch.bfloat16) > 2 * product_rate(torch.float32)
    return "bfloat16" if quick else "float32"


def product_rate(dtype: torch.dtype, rows: int = 1024, width: int = 1024, repeats: int = 6) -> float:
    """Return the GFLOP/s of a matrix product on this machine, the best of a few."""
    left, right = torch.ones(rows, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * rows * width * width / best / 1e9


def limit_threads() -> None:
    """Use as many threads as there are cores this process may run on."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
