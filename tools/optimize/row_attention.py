"""Attention within each row of a batch that PrefixCollator laid out as one sequence.

A mask over the whole sequence hides nearly all of it, and is computed all the same: with sixteen rows sixteen times too
much. Here the rows are put beside each other for the attention alone, each behind the tokens that all of them share.

Shape legend: T tokens of the batch, P of them shared, N rows of at most L own tokens, H query and K key-value heads,
D head width, C = heads times width.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "rows_of_a_batch"
"""Of this attention, for a model's set_attn_implementation. Other batches get the attention "sdpa"."""
PADDING = -1
MOST_SCORES = 4_000_000
"""Of a layer, for keeping them: on a CPU, going backward through the fused attention of short rows takes two to four
times as long as through plain products."""


def row_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """Return (1, T, H, D) for query (1, H, T, D), key and value (1, K, T, D) and PrefixCollator's mask and columns.

    Without dropout of attention weights.
    """
    columns_NL = more.pop("columns", None)
    if columns_NL is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    assert attention_mask is not None, "the collator's mask (1, 1, L, P + L)"
    (num_rows, longest), num_heads, num_key_heads = columns_NL.shape, query.shape[1], key.shape[1]
    num_shared, groups = attention_mask.shape[-1] - longest, num_heads // num_key_heads

    def in_rows(x: Tensor) -> Tensor:
        """(1, heads, T - P, D) -> (N, heads, L, D)."""
        own = ToRows.apply(x[0].transpose(0, 1).flatten(1), columns_NL)
        return own.unflatten(-1, (x.shape[1], -1)).transpose(1, 2)

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """(n, H, q, D), (n, K, k, D) twice and mask (n, 1, q, k) -> (n, q, C)."""
        grouped = query.reshape(len(query), num_key_heads, -1, query.shape[-1])
        output = _attend(grouped, key, value, mask.repeat(1, 1, groups, 1), more["scaling"])
        return output.reshape(query.shape).transpose(1, 2).flatten(2)

    # One split of each: its gradient is one copy, that of two slices two sums over all tokens.
    parts = [x.split([num_shared, x.shape[2] - num_shared], dim=2) for x in (query, key, value)]
    (query_of_shared, query), (shared_key, key), (shared_value, value) = parts
    keys, values = (
        torch.cat([shared.expand(num_rows, -1, -1, -1), in_rows(own)], dim=2)
        for shared, own in ((shared_key, key), (shared_value, value))
    )
    flat_TC = ToSequence.apply(attend(in_rows(query), keys, values, attention_mask), columns_NL)
    if num_shared:
        causal = torch.ones(1, 1, num_shared, num_shared, dtype=torch.bool, device=query.device).tril()
        flat_TC = torch.cat([attend(query_of_shared, shared_key, shared_value, causal)[0], flat_TC])
    return flat_TC.view(1, len(flat_TC), num_heads, -1), None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    num_scores = query.shape[:-1].numel() * key.shape[2]
    if query.device.type != "cpu" or num_scores > MOST_SCORES:
        return scaled_dot_product_attention(query, key, value, mask, scale=scale)
    hidden = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -math.inf)
    return ((query * scale) @ key.transpose(2, 3) + hidden).softmax(-1) @ value


class ToRows(torch.autograd.Function):
    """(tokens, C) -> (N, L, C) by columns (N, L): which token stands there, PADDING where none does."""

    @staticmethod
    def forward(ctx: Any, flat_TC: Tensor, columns_NL: Tensor) -> Tensor:
        """Return the rows; what stands at padding is any token."""
        ctx.save_for_backward(columns_NL)
        return flat_TC.index_select(0, columns_NL.clamp(min=0).flatten()).unflatten(0, columns_NL.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Each token stands in one place, so its gradient is looked up there: adding up is slow on a CPU."""
        (columns_NL,) = ctx.saved_tensors
        return _of_real_tokens(grads[0], columns_NL), None


class ToSequence(torch.autograd.Function):
    """The reverse of ToRows: (N, L, C) -> (tokens, C)."""

    @staticmethod
    def forward(ctx: Any, rows_NLC: Tensor, columns_NL: Tensor) -> Tensor:
        """Return the tokens, row after row; padding is left out."""
        ctx.save_for_backward(columns_NL)
        return _of_real_tokens(rows_NLC, columns_NL)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Padding gets no gradient."""
        (columns_NL,) = ctx.saved_tensors
        found = grads[0].index_select(0, columns_NL.clamp(min=0).flatten()).unflatten(0, columns_NL.shape)
        return found.masked_fill_((columns_NL == PADDING).unsqueeze(-1), 0), None


def _of_real_tokens(rows_NLC: Tensor, columns_NL: Tensor) -> Tensor:
    return rows_NLC.flatten(0, 1).index_select(0, (columns_NL.flatten() != PADDING).nonzero()[:, 0])


AttentionInterface.register(NAME, row_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
