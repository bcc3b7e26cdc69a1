"""Attention as the plain product of matrices that it is, for the denoiser's graph.

The exporter's own version transposes the keys by way of their run-time shape: nine more nodes for each attention, all
of them run at every step.
"""

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset20 as op


def plain_attention(
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    attn_mask: ir.Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(q k^T / sqrt(width)) v over (n, heads, tokens, width). Raises ValueError where more is asked."""
    width = query.shape[-1] if query.shape is not None else None
    if attn_mask is not None or is_causal or enable_gqa or dropout_p or not isinstance(width, int):
        raise ValueError("only attention without a mask and of a fixed width is exported")
    # Each side gets the root of the scale, as in the exporter's own version: fp16 has no room for more.
    root = op.Constant(value_float=math.sqrt(scale or 1 / math.sqrt(width)))
    root = op.CastLike(root, query)
    scores = op.MatMul(op.Mul(query, root), op.Mul(op.Transpose(key, perm=[0, 1, 3, 2]), root))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: plain_attention
}
