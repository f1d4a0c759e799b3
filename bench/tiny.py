"""A language model so small that a whole run takes seconds, and a task on which it can learn: for tests and benches.

The model is random: two layers of width 32, a tokenizer of single bytes. The task asks for a letter of one half of the
alphabet's first eight ("low 16": a to d, "high 17": e to h). `teach_letters` gives the model the form of an answer and
a leaning that is wrong for half of the questions, so that training on its right samples can turn that round.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

NUM_ROWS = 3000
LETTERS = "abcdefgh"
HALVES = {"low": LETTERS[:4], "high": LETTERS[4:]}
SHARE_RIGHT = {"low": 0.65, "high": 0.35}
"""Of the answers that the model is taught: its likeliest answer is right to one half of the questions."""
SCORER = """
def score(item, answer):
    half = {"low": "abcd", "high": "efgh"}[item["question"].split()[0]]
    return float(len(answer) == 1 and answer in half)
"""


def make_tiny_model(folder: Path) -> Path:
    """Write a random Llama (2 layers, width 32) and a tokenizer of single bytes; returns the folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|end|>", "<|user|>", "<|assistant|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate([*special, *letters])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[0])
    fast.chat_template = (
        "{% for m in messages %}<|{{ 'assistant' if m.role == 'assistant' else 'user' }}|>{{ m.content }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_letters_task(folder: Path, num_rows: int = NUM_ROWS) -> str:
    """Write the task's rows and its scorer; returns the spec of the task."""
    rows = [{"question": f"{word} {number}", "answer": HALVES[word][0]} for number, word in _questions(num_rows)]
    (folder / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "letters.py").write_text(SCORER)
    return f"{folder / 'letters.jsonl'}?scorer=python:{folder / 'letters.py'}&generated=true"


def teach_letters(folder: Path, num_steps: int = 200) -> None:
    """Train the tiny model in this folder to answer with one letter (seconds)."""
    questions = _questions(NUM_ROWS)

    def draw(chance: random.Random) -> tuple[str, str]:
        number, word = chance.choice(questions)
        other = "high" if word == "low" else "low"
        return f"{word} {number}", chance.choice(HALVES[word if chance.random() < SHARE_RIGHT[word] else other])

    teach(folder, draw, num_steps)


def teach(folder: Path, draw: Callable[[random.Random], tuple[str, str]], num_steps: int, batch: int = 32) -> None:
    """Train the tiny model in this folder on (question, answer) pairs as `draw` gives them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tools.engines.base import Message
    from tools.optimize.collate import PrefixCollator, tokenise
    from tools.optimize.row_attention import NAME

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on so small a model threads wait for each other most of the time
    torch.manual_seed(0)
    chance = random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=NAME)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(num_steps):
        rows = []
        for question, answer in (draw(chance) for _ in range(batch)):
            prompt: list[Message] = [{"role": "user", "content": question}]
            rows.append(tokenise(tokenizer, prompt, answer)._asdict())
        inputs = PrefixCollator()(rows)
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(num_threads)
    model.save_pretrained(folder)


def _questions(count: int) -> list[tuple[int, str]]:
    return [(number, ("low", "high")[number % 2]) for number in range(count)]
