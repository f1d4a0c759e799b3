"""Generate through any OpenAI-compatible endpoint: vLLM, a hosted service, llama.cpp. Needs nothing beside httpx.

A vLLM server of your own is started as vllm_engine.py does it (`--generation-config vllm` keeps the model's own top-k
and top-p out of the sampling). Candidates are served as LoRA adapters, so the server must see the folders of the models
under the same paths.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, cycle, pairwise
from pathlib import Path
from typing import Any

from memory.records import content_id, file_sha256
from tools.engines.base import Completion, Message, Sampling
from tools.engines.chat_endpoint import RETRY_WAITS_S, ChatEndpoint, ChatReply, ChatUsage, EngineError

LORA_CURE = "start the endpoint with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"


class OpenAIEngine:
    """The Engine over an endpoint. Log-probabilities are the server's (vLLM: at temperature 1), NaN where it has none.

    Where a server gives several samples at once and no log-probabilities, their tokens are known as a sum only and
    are shared out by length of text: the sum is exact, the `num_tokens` of one sample an estimate.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None,
        api_key: str | None,
        timeout_s: float = 120,
        max_concurrent: int = 16,
        retry_waits_s: Sequence[float] = RETRY_WAITS_S,
    ) -> None:
        """Connect to nothing yet. model None = the only one that the endpoint serves, asked at first use.

        base_url: one address, or several of the same model with commas between, which share the prompts.
        """
        self.tokens_processed = 0
        self._endpoints = [ChatEndpoint(url, api_key, timeout_s, retry_waits_s) for url in base_url.split(",")]
        self._base_model = model
        self._adapter: str | None = None
        self._loaded: set[str] = set()
        self._max_concurrent = max_concurrent

    def identity(self) -> dict[str, Any]:
        """Return the engine, the addresses without credentials, and the name of the base model there."""
        urls = ",".join(endpoint.url for endpoint in self._endpoints)
        return {"engine": "openai", "base_url": urls, "model": self._served_model()}

    @property
    def usages(self) -> list[ChatUsage]:
        """Of all answers so far."""
        return [usage for endpoint in self._endpoints for usage in endpoint.usages]

    def use_model(self, model_dir: Path | None) -> None:
        """Generate with the LoRA adapter of this folder (loaded once), or with the base model for None.

        Raises ValueError for a folder without an adapter: a running endpoint cannot change its full weights.
        """
        if model_dir is None:
            self._adapter = None
            return
        name = _adapter_name(model_dir)
        if name not in self._loaded:
            for endpoint in self._endpoints:
                self._load_adapter(endpoint, name, model_dir.resolve())
            self._loaded.add(name)
        self._adapter = name

    def generate(self, prompts: list[list[Message]], sampling: Sampling) -> list[list[Completion]]:
        """Return num_samples completions for each prompt, in the order of the prompts.

        Raises EngineError when the endpoint fails for good, ValueError for a prompt longer than its context.
        """
        if not prompts:
            return []
        model = self._adapter or self._served_model()
        pool = ThreadPoolExecutor(self._max_concurrent)
        try:
            triples = zip(cycle(self._endpoints), prompts, _seeds(prompts, sampling.seed), strict=False)
            jobs = [
                pool.submit(self._sample, endpoint, model, prompt, sampling, seed) for endpoint, prompt, seed in triples
            ]
            answers = [job.result() for job in jobs]
        finally:
            pool.shutdown(cancel_futures=True)
        self.tokens_processed += sum(num_tokens for _, num_tokens in answers)
        return [completions for completions, _ in answers]

    def _sample(
        self, endpoint: ChatEndpoint, model: str, prompt: list[Message], sampling: Sampling, seed: int
    ) -> tuple[list[Completion], int]:
        """Return the samples of one prompt and the number of tokens computed for them."""
        completions: list[Completion] = []
        num_tokens = 0
        while (num_missing := sampling.num_samples - len(completions)) > 0:
            request = {
                "model": model,
                "messages": prompt,
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "seed": seed + len(completions),
                "logprobs": True,
            }
            if prompt[-1]["role"] == "assistant":  # by vLLM's names; a server that refuses them cannot continue
                request |= {"continue_final_message": True, "add_generation_prompt": False}
            if num_missing > 1:
                request["n"] = num_missing
            reply = endpoint.chat(request, optional=("n", "logprobs"))
            completions += _completions(reply)[:num_missing]
            num_tokens += reply.usage.computed_tokens
        return completions, num_tokens

    def _served_model(self) -> str:
        if self._base_model is None:
            names = {endpoint.only_model() for endpoint in self._endpoints}
            if len(names) > 1:
                raise ValueError(f"the endpoints serve different models ({', '.join(sorted(names))}); name one")
            self._base_model = names.pop()
        return self._base_model

    def _load_adapter(self, endpoint: ChatEndpoint, name: str, folder: Path) -> None:
        try:
            endpoint.request("POST", "/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except EngineError as error:
            # A name stands for a content, so an adapter that an earlier process loaded is the same one.
            if error.status == 400 and "already been loaded" in error.answer:
                return
            if error.status != 404:
                raise
            unseen = f"the server does not see {folder}: both need the same file system"
            cure = unseen if "adapter" in error.answer.lower() else LORA_CURE
            raise EngineError(f"{endpoint.url}/load_lora_adapter: 404; {cure}", 404, error.answer) from error


def _adapter_name(folder: Path) -> str:
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    if missing := [file.name for file in files if not file.is_file()]:
        cure = "train one (not full weights), or start an endpoint that serves this folder as its model"
        raise ValueError(f"{folder} has no {missing[0]}: an endpoint loads LoRA adapters only; {cure}")
    safe_name = re.sub(r"[^A-Za-z0-9_.-]", "-", folder.name)
    return f"{safe_name}-{content_id([file_sha256(file) for file in files])}"


def _seeds(prompts: list[list[Message]], seed: int) -> list[int]:
    """Return a seed per prompt that depends on its text, not on its place; equal prompts get different ones."""
    seen: Counter[str] = Counter()
    seeds = []
    for key in map(content_id, prompts):
        seeds.append(int(content_id([seed, key, seen[key]]), 16) >> 34)  # 30 bits: samples of a prompt count up from it
        seen[key] += 1
    return seeds


def _completions(reply: ChatReply) -> list[Completion]:
    counts = [len(choice.token_logprobs) for choice in reply.choices]
    if not all(counts):
        counts = _share(reply.usage.completion_tokens, [len(choice.text) for choice in reply.choices])
    return [
        Completion(
            text=choice.text,
            num_tokens=num_tokens,
            logprob=sum(choice.token_logprobs) if choice.token_logprobs else math.nan,
            # An ending that is not the model's own (a filter, an abort) counts as cut.
            finish="stop" if choice.finish_reason == "stop" else "length",
        )
        for choice, num_tokens in zip(reply.choices, counts, strict=True)
    ]


def _share(total: int, weights: list[int]) -> list[int]:
    """Split a total in proportion to the weights (each plus one), the parts adding up to it."""
    edges = [0, *accumulate(weight + 1 for weight in weights)]
    cuts = [total * edge // edges[-1] for edge in edges]
    return [end - start for start, end in pairwise(cuts)]
