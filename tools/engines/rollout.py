"""Fast decoding on shared work: one key-value tree for a common prefix, many prompts, and many samples of each.

Plain batched generation computes a few-shot prefix once per row, copies the whole cache at every step and computes
every sample, also those that say the same. Here a batch is a tree: the common prefix is stored once for all rows, each
row holds its own prompt (the trunk), and below it grows one node per distinct beginning of an answer. Samples that
agree so far share their node, so many samples of a short answer cost little more than a few. Keys and values are never
expanded or concatenated.

Shape legend: B rows (prompts), Q new tokens per row, L tokens stored per row, P prefix tokens, G samples per prompt,
N nodes per row that still grow, H key-value heads, R query heads per key-value head, D head width, V vocabulary.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

NOTHING = -1
"""Token of a sample that has ended."""
ROWS_IN_CACHE = 16
TOKENS_PER_FORWARD = 2048
"""Prompt tokens prefilled at once: enough for the cores to reach their peak, little enough for a laptop's memory."""
KEPT_AT_LEAST = 0.75
"""Rows that have ended are dropped when fewer than this share still grow: dropping copies what the others hold."""


class KeyValueTree:
    """The keys and values of a batch, written in place. Given to the model as `past_key_values`."""

    def __init__(self, prefix: "KeyValueTree | None", trunk_BL: Tensor, capacity: int) -> None:
        self.prefix = prefix
        self.num_prefix: int = 0 if prefix is None else prefix.length
        self.capacity = capacity
        self.length: int = 0
        self.trunk_BL = trunk_BL
        """True where a column holds a token of the row's prompt, False where it pads."""
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.rows: slice = slice(None)
        """Rows that the next tokens belong to: a trunk of many rows is prefilled in parts."""
        self.first: int = 0
        """Column of the first token of these rows; what lies before it pads."""

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values (B, H, Q, D) of a layer; return all of the row's own (B, H, L, D)."""
        if layer == len(self.layers):
            shape = (len(self.trunk_BL), key.shape[1], self.capacity, key.shape[3])
            self.layers.append((key.new_empty(shape), value.new_empty(shape)))
        start, end = self.first + self.length, self.first + self.length + key.shape[2]
        keys, values = (stored[self.rows] for stored in self.layers[layer])
        keys[:, :, : self.first] = values[:, :, : self.first] = 0  # hidden, but what memory held may be NaN
        keys[:, :, start:end] = key
        values[:, :, start:end] = value
        return keys[:, :, self.first : end], values[:, :, self.first : end]

    def get_seq_length(self, *_: Any) -> int:
        """Return the number of stored tokens per row (what transformers asks of a cache)."""
        return self.num_prefix + self.length

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.trunk_BL = self.trunk_BL[rows]
        self.layers = [(self._kept(keys, rows), self._kept(values, rows)) for keys, values in self.layers]

    def _kept(self, stored: Tensor, rows: Tensor) -> Tensor:
        """Copy what is stored of these rows; the room behind it stays untouched memory."""
        kept = stored.new_empty(len(rows), *stored.shape[1:])
        kept[:, :, : self.length] = stored[rows, :, : self.length]
        return kept


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
    """Attend over the shared prefix (seen by all) and the row's own tokens (mask (B, 1, Q, L), True = visible).

    Each part is attended to by itself, the prefix by all rows as one; the parts are then weighed by their sums of
    exponentials (arXiv 2402.05099).
    """
    num_rows, num_query_heads, num_queries, width = query.shape
    heads = key.shape[1]
    groups = num_query_heads // heads
    query = query.reshape(num_rows, heads, groups * num_queries, width)
    hidden = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill_(~attention_mask, -math.inf)
    output, log_sum = _attend(query, key, value, hidden.repeat(1, 1, groups, 1), scaling)
    if tree.prefix is not None:
        prefix_key, prefix_value = tree.prefix.layers[module.layer_idx]  # (1, H, P, D) each
        flat = query.transpose(0, 1).reshape(1, heads, -1, width)
        of_prefix, log_sum_of_prefix = _attend(flat, prefix_key, prefix_value, None, scaling)
        of_prefix = of_prefix.view(heads, num_rows, groups * num_queries, width).transpose(0, 1)
        log_sum_of_prefix = log_sum_of_prefix.view(heads, num_rows, -1).transpose(0, 1)
        share = torch.sigmoid(log_sum - log_sum_of_prefix).unsqueeze(-1).to(output.dtype)
        output = of_prefix.lerp(output, share)
    return output.reshape(num_rows, num_query_heads, num_queries, width).transpose(1, 2), None


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Return the attention (B, H, Q, D) and the logarithm of each query's sum of exponentials (B, H, Q)."""
    if query.device.type != "cpu":
        return _attend_plainly(query, key, value, bias, scaling)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # whose scores never leave the cache
    output, log_sum = fused(query, key, value, 0.0, False, attn_mask=bias, scale=scaling)
    return output, log_sum


def _attend_plainly(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    scores = ((query * scaling) @ key.transpose(2, 3)).float()
    if bias is not None:
        scores += bias
    log_sum = scores.logsumexp(-1)
    return (scores - log_sum.unsqueeze(-1)).exp_().to(value.dtype) @ value, log_sum


AttentionInterface.register("key_value_tree", tree_attention)


def extend(
    model: PreTrainedModel,
    tree: KeyValueTree,
    tokens_BQ: Tensor,
    seen_BQL: Tensor,
    position_BQ: Tensor,
    num_kept: int,
) -> Tensor:
    """Append Q tokens to each row and return the logits (B, num_kept, V) of the last ones.

    seen_BQL: which of the row's own columns each new token sees, itself included (L = stored + Q). All see the prefix.
    """
    num_new = tokens_BQ.shape[1]
    assert tree.length + num_new <= tree.capacity, "the tree is full: it was made for fewer tokens"
    logits = model(
        input_ids=tokens_BQ,
        position_ids=position_BQ,
        attention_mask=seen_BQL.unsqueeze(1),
        past_key_values=tree,
        use_cache=True,
        # An index, not a count: it copies the last positions together, and a linear layer over a strided slice would
        # expand the whole vocabulary matrix once per row.
        logits_to_keep=torch.arange(num_new - num_kept, num_new, device=tokens_BQ.device),
        tree=tree,
    ).logits
    tree.length += num_new
    return logits


def grow_prefix(model: PreTrainedModel, prefix: list[int]) -> KeyValueTree | None:
    """Compute the keys and values of a prefix once; None for an empty prefix."""
    return grow_trunks(model, None, [prefix], room=0)[0] if prefix else None


def grow_trunks(
    model: PreTrainedModel, prefix: KeyValueTree | None, suffixes: list[list[int]], room: int, num_kept: int = 1
) -> tuple[KeyValueTree, Tensor, Tensor]:
    """Prefill one row per suffix (left-padded), some rows at a time; room = tokens per row to be added later.

    Returns the tree, the logits (B, num_kept, V) after each row's last tokens, and the next token's position (B,).
    """
    device = model.device
    num_prefix = 0 if prefix is None else prefix.length
    longest = max(map(len, suffixes))
    lengths = torch.tensor([len(suffix) for suffix in suffixes], device=device)
    trunk = torch.arange(longest, device=device)[None] >= (longest - lengths)[:, None]
    tree = KeyValueTree(prefix, trunk, longest + room)
    logits = []
    for start, stop in _parts([len(suffix) for suffix in suffixes]):
        tokens, seen, offset = _left_padded(suffixes[start:stop], device)
        tree.rows, tree.first = slice(start, stop), longest - tokens.shape[1]
        logits.append(extend(model, tree, tokens, seen, offset.clamp(min=0) + num_prefix, num_kept))
        tree.length = 0
    tree.rows, tree.first, tree.length = slice(None), 0, longest
    return tree, torch.cat(logits), num_prefix + lengths


def _parts(lengths: list[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of neighbouring rows that hold at most TOKENS_PER_FORWARD tokens, padding included."""
    start, longest = 0, 0
    for stop, length in enumerate(lengths):
        longest = max(longest, length)
        if stop > start and (stop + 1 - start) * longest > TOKENS_PER_FORWARD:
            yield start, stop
            start, longest = stop, length
    yield start, len(lengths)


def _left_padded(suffixes: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens (B, Q), what each sees (B, Q, Q), and its place in its row (B, Q), negative for padding."""
    longest = max(map(len, suffixes))
    tokens = torch.tensor([[0] * (longest - len(suffix)) + suffix for suffix in suffixes], device=device)
    padding = torch.tensor([longest - len(suffix) for suffix in suffixes], device=device)
    offset = torch.arange(longest, device=device)[None] - padding[:, None]
    itself = torch.eye(longest, dtype=torch.bool, device=device)
    # A pad query would see nothing and turn into NaN: let it see itself, nobody reads it.
    seen = ((offset >= 0)[:, None, :] & torch.ones_like(itself).tril()) | itself
    return tokens, seen, offset


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
    """Generate num_samples answers for each suffix, independent draws from the model.

    Returns token ids and summed log-probabilities, both [prompt][sample], and the number of tokens computed.
    """
    num_prompts, device = len(suffixes), model.device
    tree, logits_BNV, position_B = grow_trunks(model, prefix, suffixes, (max_new_tokens - 1) * num_samples)
    num_computed = sum(map(len, suffixes))
    answers = torch.full((num_prompts, num_samples, max_new_tokens), NOTHING, device=device)
    logprobs = torch.zeros(num_prompts, num_samples, device=device)
    row_B = torch.arange(num_prompts, device=device)
    node_BG = torch.zeros(num_prompts, num_samples, dtype=torch.long, device=device)
    active_BG = torch.ones_like(node_BG, dtype=torch.bool)
    seen_BNL = tree.trunk_BL.unsqueeze(1)
    for step in range(max_new_tokens):
        token_BG, logprob_BG = _choose(logits_BNV, node_BG, temperature, top_k, generator)
        answers[row_B, :, step] = token_BG.where(active_BG, NOTHING)
        logprobs[row_B] += logprob_BG.where(active_BG, 0.0)
        active_BG = active_BG & ~torch.isin(token_BG, stop_ids)
        rows = active_BG.any(1).nonzero()[:, 0]
        if step + 1 == max_new_tokens or not len(rows):
            break
        if len(rows) < KEPT_AT_LEAST * len(row_B):
            tree.keep_rows(rows)
            row_B, position_B, seen_BNL = row_B[rows], position_B[rows], seen_BNL[rows]
            node_BG, token_BG, active_BG = node_BG[rows], token_BG[rows], active_BG[rows]
        node_BG, parent_BN, token_BN, num_nodes = _grow_nodes(node_BG, token_BG, active_BG)
        num_computed += num_nodes
        ancestors_BNL = seen_BNL.gather(1, parent_BN.unsqueeze(-1).expand(-1, -1, tree.length))
        itself_BNN = torch.eye(parent_BN.shape[1], dtype=torch.bool, device=device).expand(len(row_B), -1, -1)
        seen_BNL = torch.cat([ancestors_BNL, itself_BNN], dim=-1)
        position_BN = (position_B + step).unsqueeze(1).expand_as(token_BN)
        logits_BNV = extend(model, tree, token_BN, seen_BNL, position_BN, num_kept=token_BN.shape[1])
    tokens = [[[t for t in answer if t != NOTHING] for answer in samples] for samples in answers.tolist()]
    return tokens, logprobs.tolist(), num_computed


def _grow_nodes(node_BG: Tensor, token_BG: Tensor, active_BG: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Give every distinct (node, token) of a row's active samples one new node.

    Returns the new node of each sample (B, G), each new node's parent and token (B, N), and how many nodes there are.
    Rows with fewer nodes than the widest are filled up with tokens 0 below node 0, which no sample reads.
    """
    base = int(token_BG.max()) + 1
    ended = base * (int(node_BG.max()) + 1)  # sorts behind all pairs
    pair_BG, order_BG = (node_BG * base + token_BG).where(active_BG, ended).sort(dim=1)
    first_BG = pair_BG.diff(dim=1, prepend=pair_BG.new_full((len(pair_BG), 1), -1)) != 0
    number_BG = first_BG.long().cumsum(1) - 1
    num_nodes_B = (first_BG & (pair_BG != ended)).sum(1)
    width = int(num_nodes_B.max())
    pair_BN = pair_BG.new_zeros(len(pair_BG), width + 1)
    pair_BN = pair_BN.scatter(1, number_BG.clamp(max=width), pair_BG)[:, :width]
    pair_BN = pair_BN.where(pair_BN != ended, 0)
    node_BG = torch.empty_like(node_BG).scatter(1, order_BG, number_BG.clamp(max=width - 1))
    return node_BG, pair_BN // base, pair_BN % base, int(num_nodes_B.sum())


def _choose(
    logits_BNV: Tensor, node_BG: Tensor, temperature: float, top_k: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the next token of every sample (B, G) and its log-probability at temperature 1.

    Greedy decoding is sampling from the single most likely token. The draw inverts the cumulative distribution with one
    random number per sample: torch.multinomial draws one per vocabulary entry, which costs as much as a forward pass.
    """
    num_allowed = 1 if temperature == 0 else top_k or logits_BNV.shape[-1]
    # On a CPU few rows at a time stay in its cache; all at once are read from memory three times.
    logits_MV = logits_BNV.flatten(0, 1)
    totals, tops = [], []
    for rows in logits_MV.split(ROWS_IN_CACHE if logits_MV.device.type == "cpu" else len(logits_MV)):
        rows = rows.float()
        totals.append(rows.logsumexp(-1))
        tops.append(rows.topk(num_allowed))
    shape = (*logits_BNV.shape[:2], num_allowed)
    allowed_BNK = torch.cat([top.values for top in tops]).view(shape)
    token_BNK = torch.cat([top.indices for top in tops]).view(shape)
    log_total_BN = torch.cat(totals).view(shape[:2])
    cumulative_BNK = (allowed_BNK / (temperature or 1)).softmax(-1).cumsum_(-1)
    draw_BG = torch.rand(node_BG.shape, generator=generator, device=node_BG.device)
    target_BNG = draw_BG.unsqueeze(1) * cumulative_BNK[..., -1:]
    found_BNG = torch.searchsorted(cumulative_BNK, target_BNG, right=True).clamp_(max=num_allowed - 1)
    logprob_BNG = allowed_BNK.gather(-1, found_BNG) - log_total_BN.unsqueeze(-1)
    own_B1G = node_BG.unsqueeze(1)
    token_BG = token_BNK.gather(-1, found_BNG).gather(1, own_B1G).squeeze(1)
    return token_BG, logprob_BNG.gather(1, own_B1G).squeeze(1)
