"""Fast decoding on shared work: one key-value tree for a common prefix, many prompts, and several samples of each.

Plain batched generation computes a few-shot prefix once per row, copies the whole cache at every step and keeps a
copy of it per sample. Here a batch is a tree: the common prefix is stored once for all rows, each row holds its own
prompt (the trunk), and the samples of a prompt are branches inside the row. A branch sees the prefix, the trunk and
itself. Nothing is expanded or concatenated, so a decoding step costs its matrix products.

Shape legend: B rows (prompts), Q new tokens per row, L tokens stored per row, P prefix tokens, G samples per prompt,
H key-value heads, R query heads per key-value head, D head width, V vocabulary.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

TRUNK = -1
"""Owner of a token that every branch of its row sees."""
PAD = -2
"""Owner of a column that nobody sees."""


class KeyValueTree:
    """The keys and values of a batch, written in place. Given to the model as `past_key_values`."""

    def __init__(self, prefix: "KeyValueTree | None", owner_BL: Tensor, capacity: int) -> None:
        self.prefix = prefix
        self.num_prefix: int = 0 if prefix is None else prefix.length
        self.capacity = capacity
        self.length: int = 0
        self.owner_BL = owner_BL
        self.layers: list[tuple[Tensor, Tensor]] = []

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values (B, H, Q, D) of a layer; return all of the row's own (B, H, L, D)."""
        end = self.length + key.shape[2]
        if layer == len(self.layers):
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self.layers.append((key.new_empty(shape), value.new_empty(shape)))
        keys, values = self.layers[layer]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self, *_: Any) -> int:
        """Return the number of stored tokens per row (what transformers asks of a cache)."""
        return self.num_prefix + self.length

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.owner_BL = self.owner_BL[rows]
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    tree: KeyValueTree,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend over the shared prefix (seen by all) and the row's own tokens (mask (B, 1, Q, L), True = visible)."""
    num_rows, num_query_heads, num_queries, width = query.shape
    heads = key.shape[1]
    groups = num_query_heads // heads
    query = (query * scaling).reshape(num_rows, heads, groups * num_queries, width)
    scores = query @ key.transpose(2, 3)
    visible = attention_mask.unsqueeze(2)
    scores = scores.view(num_rows, heads, groups, num_queries, -1).masked_fill_(~visible, -math.inf).flatten(2, 3)
    if tree.prefix is not None:
        prefix_key, prefix_value = (part[0] for part in tree.prefix.layers[module.layer_idx])  # (H, P, D) each
        flat = query.transpose(0, 1).reshape(heads, -1, width)  # (H, B*R*Q, D)
        prefix_scores = (flat @ prefix_key.transpose(1, 2)).view(heads, num_rows, groups * num_queries, -1)
        weights = torch.cat([prefix_scores.transpose(0, 1), scores], dim=-1).softmax(-1, dtype=torch.float32)
        weights = weights.to(query.dtype)
        prefix_weights = weights[..., : tree.num_prefix].transpose(0, 1).reshape(heads, -1, tree.num_prefix)
        output = (prefix_weights @ prefix_value).view(heads, num_rows, groups * num_queries, width).transpose(0, 1)
        output = output + weights[..., tree.num_prefix :] @ value
    else:
        output = scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value
    output = output.reshape(num_rows, num_query_heads, num_queries, width)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register("key_value_tree", tree_attention)


def extend(
    model: PreTrainedModel,
    tree: KeyValueTree,
    tokens_BQ: Tensor,
    owner_BQ: Tensor,
    position_BQ: Tensor,
    keep_last: bool = False,
) -> Tensor:
    """Append Q tokens to each row and return their logits (B, Q, V), or (B, 1, V) of the last when keep_last.

    A token sees the prefix, the trunk, and earlier tokens of its own branch; owner PAD is seen by none.
    """
    start, num_new = tree.length, tokens_BQ.shape[1]
    assert start + num_new <= tree.capacity, "the tree is full: it was made for fewer tokens"
    tree.owner_BL = torch.cat([tree.owner_BL, owner_BQ], dim=1)
    column_owner = tree.owner_BL[:, None, :]
    own = (column_owner == TRUNK) | (column_owner == owner_BQ[:, :, None])
    causal = torch.arange(start + num_new, device=own.device) <= torch.arange(
        start, start + num_new, device=own.device
    ).unsqueeze(1)
    # A pad query would see nothing and turn into NaN: let it see itself, nobody reads it.
    itself = torch.arange(start + num_new, device=own.device) == torch.arange(
        start, start + num_new, device=own.device
    ).unsqueeze(1)
    visible = ((own & (column_owner != PAD) & causal) | itself).unsqueeze(1)
    logits = model(
        input_ids=tokens_BQ,
        position_ids=position_BQ,
        attention_mask=visible,
        past_key_values=tree,
        use_cache=True,
        # An index, not a count: it copies the last positions together, and a linear layer over a strided slice would
        # expand the whole vocabulary matrix once per row.
        logits_to_keep=torch.tensor([num_new - 1], device=tokens_BQ.device) if keep_last else 0,
        tree=tree,
    ).logits
    tree.length += num_new
    return logits


def grow_prefix(model: PreTrainedModel, prefix: list[int]) -> KeyValueTree | None:
    """Compute the keys and values of a prefix once; None for an empty prefix."""
    if not prefix:
        return None
    device = model.device
    tree = KeyValueTree(None, torch.empty(1, 0, dtype=torch.long, device=device), len(prefix))
    tokens = torch.tensor([prefix], device=device)
    extend(model, tree, tokens, torch.full_like(tokens, TRUNK), torch.arange(len(prefix), device=device)[None], True)
    return tree


def grow_trunks(
    model: PreTrainedModel, prefix: KeyValueTree | None, suffixes: list[list[int]], room: int
) -> tuple[KeyValueTree, Tensor, Tensor]:
    """Prefill one row per suffix (left-padded); room = tokens per row to be added later.

    Returns the tree, the logits (B, V) of each row's next token, and that token's position (B,).
    """
    device = model.device
    num_prefix = 0 if prefix is None else prefix.length
    longest = max(map(len, suffixes))
    lengths = torch.tensor([len(suffix) for suffix in suffixes], device=device)
    tokens = torch.tensor([[0] * (longest - len(suffix)) + suffix for suffix in suffixes], device=device)
    offset = torch.arange(longest, device=device)[None] - (longest - lengths)[:, None]
    owner = torch.where(offset >= 0, TRUNK, PAD)
    tree = KeyValueTree(prefix, owner[:, :0], longest + room)
    logits = extend(model, tree, tokens, owner, offset.clamp(min=0) + num_prefix, keep_last=True)
    return tree, logits[:, -1], num_prefix + lengths


def sample_branches(
    model: PreTrainedModel,
    prefix: KeyValueTree | None,
    suffixes: list[list[int]],
    *,
    num_samples: int,
    max_new_tokens: int,
    temperature: float,
    stop_ids: Tensor,
    generator: torch.Generator,
    top_k: int = 0,
) -> tuple[list[list[list[int]]], list[list[float]], int]:
    """Generate num_samples branches for each suffix.

    Returns token ids and summed log-probabilities, both [prompt][sample], and the number of tokens read and written.
    """
    num_prompts, groups, device = len(suffixes), num_samples, model.device
    tree, logits_BV, position_B = grow_trunks(model, prefix, suffixes, max_new_tokens * groups)
    tokens: list[list[list[int]]] = [[[] for _ in range(groups)] for _ in range(num_prompts)]
    logprobs = [[0.0] * groups for _ in range(num_prompts)]
    row_B = torch.arange(num_prompts, device=device)
    branch_BG = torch.arange(groups, device=device).expand(num_prompts, groups)
    active_BG = torch.ones_like(branch_BG, dtype=torch.bool)
    logits_BGV = logits_BV.unsqueeze(1).expand(-1, groups, -1)
    for step in range(max_new_tokens):
        chosen_BG, chosen_logprob_BG = _choose(logits_BGV, temperature, top_k, generator)
        for row, branches, alive, ids, lps in zip(
            row_B.tolist(), branch_BG.tolist(), active_BG.tolist(), chosen_BG.tolist(), chosen_logprob_BG.tolist(),
            strict=True,
        ):  # fmt: skip
            for branch, is_alive, token, logprob in zip(branches, alive, ids, lps, strict=True):
                if is_alive:
                    tokens[row][branch].append(token)
                    logprobs[row][branch] += logprob
        active_BG = active_BG & ~torch.isin(chosen_BG, stop_ids)
        if step + 1 == max_new_tokens or not active_BG.any():
            break
        # Finished branches leave: rows without any are dropped, and in the others the active ones move to the front.
        rows = active_BG.any(1).nonzero()[:, 0]
        if len(rows) < len(row_B):
            tree.keep_rows(rows)
            row_B, position_B, active_BG = row_B[rows], position_B[rows], active_BG[rows]
            branch_BG, chosen_BG = branch_BG[rows], chosen_BG[rows]
        width = int(active_BG.sum(1).max())
        order = active_BG.int().argsort(dim=1, descending=True, stable=True)[:, :width]
        branch_BG, chosen_BG, active_BG = (part.gather(1, order) for part in (branch_BG, chosen_BG, active_BG))
        position_BG = (position_B + step)[:, None].expand(-1, width)
        logits_BGV = extend(model, tree, chosen_BG, branch_BG, position_BG)
    num_generated = sum(len(branch) for branches in tokens for branch in branches)
    return tokens, logprobs, sum(map(len, suffixes)) + num_generated


def _choose(logits_BGV: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the chosen tokens (B, G) and their log-probabilities at temperature 1.

    Sampling inverts the cumulative distribution with one random number per row: torch.multinomial draws one per
    vocabulary entry, which costs as much as a small model's forward pass.
    """
    logits_BGV = logits_BGV.float()
    log_total_BG = logits_BGV.logsumexp(-1)
    if temperature == 0:
        chosen = logits_BGV.argmax(-1)
    else:
        allowed_BGV, token_BGV = logits_BGV.topk(top_k) if top_k else (logits_BGV, None)
        cumulative = (allowed_BGV / temperature).softmax(-1).cumsum_(-1)
        draw = torch.rand(logits_BGV.shape[:2], generator=generator, device=logits_BGV.device)
        target = (draw * cumulative[..., -1]).unsqueeze(-1)
        chosen = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
        chosen = chosen.clamp_(max=allowed_BGV.shape[-1] - 1)
        if token_BGV is not None:
            chosen = token_BGV.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    return chosen, logits_BGV.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - log_total_BG
