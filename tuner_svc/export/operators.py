"""Exports a few torch operators of denoisers as the nodes that ONNX Runtime runs fastest on a CPU.

The exporter's own versions are right for any input. These assume that channels are fixed; batch, height and width may
be free. They keep the model's matrices in PyTorch's layout, so that none is transposed at run time or at a refit. They
raise ValueError for other cases.
"""

import math
from collections.abc import Callable, Sequence
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
    """softmax(q k^T / sqrt(width)) v over (n, heads, tokens, width). Raises ValueError for other forms.

    The exporter's version reads the keys' shape at run time to transpose them: nine more nodes.
    """
    width = query.shape[-1] if query.shape is not None else None
    if attn_mask is not None or is_causal or enable_gqa or dropout_p or not isinstance(width, int):
        raise ValueError("only attention without a mask and of a fixed width is exported")
    # Each side gets the root of the scale, as in the exporter's version: otherwise fp16 could overflow.
    root = op.Constant(value_float=math.sqrt(scale or 1 / math.sqrt(width)))
    root = op.CastLike(root, query)
    scores = op.MatMul(op.Mul(query, root), op.Mul(op.Transpose(key, perm=[0, 1, 3, 2]), root))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def plain_linear(values: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> Any:
    """x W^T + b over the last axis, as one matrix product with bias."""
    rows = _sizes(values, least=2, fixed=[-1])[1:-1]
    outputs, inputs = _sizes(weight, least=2, fixed=[0, 1])
    flat = op.Reshape(values, op.Constant(value_ints=[-1, inputs])) if rows else values
    product = op.Gemm(flat, weight, bias, transB=1) if bias is not None else op.Gemm(flat, weight, transB=1)
    if not rows:
        return product
    if None in rows:
        shape = op.Concat(op.Shape(values, start=0, end=-1), op.Constant(value_ints=[outputs]), axis=0)
        return op.Reshape(product, shape)
    return op.Reshape(product, op.Constant(value_ints=[-1, *rows, outputs]))


def plain_group_norm(
    values: ir.Value,
    num_groups: int,
    weight: ir.Value | None = None,
    bias: ir.Value | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """Normalises groups of channels of (n, channels, ...) to mean 0 and deviation 1, then computes w x + b for each
    channel as a depthwise 1x1 convolution: one pass over the values instead of two."""
    channels, *sides = _sizes(values, least=3, fixed=[1])[1:]
    ones = op.Constant(value_floats=[1.0] * num_groups)
    zeros = op.Constant(value_floats=[0.0] * num_groups)
    groups = op.Reshape(values, op.Constant(value_ints=[0, num_groups, -1]))
    alike = op.InstanceNormalization(groups, ones, zeros, epsilon=eps)
    shape = op.Shape(values) if None in sides else op.Constant(value_ints=[-1, channels, *sides])
    alike = op.Reshape(alike, shape)
    if weight is None:
        return alike
    kernel = op.Reshape(weight, op.Constant(value_ints=[channels, 1, *(1 for _ in sides)]))
    return op.Conv(alike, kernel, *([] if bias is None else [bias]), group=channels, kernel_shape=[1 for _ in sides])


def _sizes(value: ir.Value, least: int, fixed: Sequence[int]) -> list[Any]:
    """The shape, with None for a free axis. Raises ValueError if one of the `fixed` axes is free, or for fewer axes."""
    shape = [size if isinstance(size, int) else None for size in value.shape or ()]
    if len(shape) < least or any(shape[axis] is None for axis in fixed):
        raise ValueError(
            f"only operators of fixed channels, of {least} axes and more, are exported: not of {value.shape}"
        )
    return shape


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: plain_attention,
    torch.ops.aten.linear.default: plain_linear,
    torch.ops.aten.group_norm.default: plain_group_norm,
}
