"""Replaces the dozen nodes of an attention by one node of ONNX Runtime, which is faster on a CPU."""

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.pattern import RewriteRule

DOMAIN = "com.microsoft"
HEADS_IN_FRONT = [0, 2, 1, 3]  # of (n, tokens, heads, width), or back


def fuse_attention(model: ir.Model) -> ir.Model:
    """The model with one node for each attention that has the form of plain_attention within diffusers' blocks. Other
    attention does not change."""
    return rewrite(model, [RewriteRule(_written_out, _one_node, _is_fixed)])


def _written_out(op: Any, query: Any, key: Any, value: Any, heads: Any, key_heads: Any, root: Any, shape: Any) -> Any:
    queries = op.Transpose(op.Reshape(query, heads), perm=HEADS_IN_FRONT)
    keys = op.Transpose(op.Reshape(key, key_heads), perm=[0, 2, 3, 1])
    values = op.Transpose(op.Reshape(value, key_heads), perm=HEADS_IN_FRONT)
    maps = op.Softmax(op.MatMul(op.Mul(queries, root), op.Mul(keys, root)), axis=-1)
    return op.Reshape(op.Transpose(op.MatMul(maps, values), perm=HEADS_IN_FRONT), shape)


def _is_fixed(context: object, heads: ir.Value, key_heads: ir.Value, root: ir.Value, **_: object) -> bool:
    """Whether heads and width are constants; batch and tokens may be free."""
    shapes = [shape.const_value for shape in (heads, key_heads)]
    scale = root.const_value
    return scale is not None and scale.size == 1 and all(s is not None and (s.numpy()[2:] > 0).all() for s in shapes)


def _one_node(
    op: Any,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    heads: ir.Value,
    key_heads: ir.Value,
    root: ir.Value,
    shape: ir.Value,
) -> Any:
    *_, count, width = heads.const_value.numpy()

    def together(values: ir.Value, sizes: ir.Value) -> Any:
        """(n, tokens, heads * width), from the sizes (n, tokens, heads, width)."""
        rows = [int(size) for size in sizes.const_value.numpy()[:2]]
        return op.Reshape(values, op.Constant(value_ints=[*rows, int(count * width)]))

    result = op.MultiHeadAttention(
        together(query, heads),
        together(key, key_heads),
        together(value, key_heads),
        num_heads=int(count),
        scale=float(root.const_value.numpy()) ** 2,
        _domain=DOMAIN,
        _version=1,
    )
    return op.Reshape(result, shape)
