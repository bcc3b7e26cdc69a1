"""The denoiser's graph with controls of its attention maps as inputs, and averaged maps as an output
(unitune.attention).

It is the plain graph with a few nodes after every softmax. So it has the same initializers in the same data file, and
is refitted in the same way; nothing is traced again.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from unitune.attention import MAPS, MAX_POSITIONS, no_controls

CONTEXT = "encoder_hidden_states"
# Nodes that may lie between the text embedding and its keys.
OF_KEYS = {"Add", "Cast", "Gemm", "MatMul", "Mul", "Reshape", "Transpose"}


class NoAttention(Exception):
    """The graph has no attention that can be controlled. The message says what is missing."""


def add_controls(graph: ir.Graph, latent_side: tuple[int, int], tokens: int) -> None:
    """Change the denoiser's graph in place into its controlled one.

    The output maps are those that were used, (n, tokens, h, w): the mean over heads and over the cross-attention layers
    of one size, the largest with at most MAX_POSITIONS, or else the smallest, whose self-attention is controlled then,
    too. Height and width may be free: then layers are chosen by their sizes at `latent_side`. Raises NoAttention when
    there is no cross-attention, or when a layer's size is not the latent's, halved some times.
    """
    softmaxes = [node for node in graph if node.op_type == "Softmax"]
    cross = [node for node in softmaxes if _is_cross(node)]
    if not cross:
        raise NoAttention("the denoiser's graph has no softmax over keys made from the text embedding")
    positions = {node.outputs[0]: _positions(node.outputs[0], _sides(graph, latent_side)) for node in softmaxes}
    most = max(MAX_POSITIONS, min(positions.values()))
    inputs = _inputs(tokens)
    graph.inputs.extend(inputs)
    source, mapper, own, share = inputs
    rows = _prepared(graph, softmaxes[0], mapper, own, share)
    used = [(positions[node.outputs[0]], _controlled_cross(graph, node, source, *rows[:2])) for node in cross]
    for node in softmaxes:
        if node not in cross and positions[node.outputs[0]] <= most:
            _controlled_self(graph, node, source, *rows[2:])
    graph.outputs.append(_averaged(graph, used, latent_side, tokens))
    graph.sort()


def _inputs(tokens: int) -> list[ir.Value]:
    batch = ir.SymbolicDim("n")
    return [
        ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape([batch, *array.shape[1:]]),
        )
        for name, array in no_controls(1, tokens)._asdict().items()
    ]


def _prepared(
    graph: ir.Graph, first: ir.Node, mapper: ir.Value, own: ir.Value, share: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
    """Controls with the axes of a map, (n, heads, positions, keys): mapper, own, share, and 1 - share."""
    own_axes = _constant(graph, "controls.axes_of_columns", np.array([1, 2]))
    all_axes = _constant(graph, "controls.axes_of_rows", np.array([1, 2, 3]))
    head_axis = _constant(graph, "controls.axis_of_heads", np.array([1]))
    one = _constant(graph, "controls.one", np.array(1, dtype=np.float32))
    share_of_rows = _node(graph, first, "Unsqueeze", [share, all_axes])
    return (
        _node(graph, first, "Unsqueeze", [mapper, head_axis]),
        _node(graph, first, "Unsqueeze", [own, own_axes]),
        share_of_rows,
        _node(graph, first, "Sub", [one, share_of_rows]),
    )


def _controlled_cross(graph: ir.Graph, softmax: ir.Node, source: ir.Value, mapper: ir.Value, own: ir.Value) -> ir.Value:
    """map[source] @ mapper + map * own, in place of the map."""
    (weights,), users = softmax.outputs, list(softmax.outputs[0].uses())
    taken = _node(graph, softmax, "Gather", [weights, source], axis=0)
    mapped = _node(graph, softmax, "MatMul", [taken, mapper])
    kept = _node(graph, softmax, "Mul", [weights, own])
    return _instead(users, _node(graph, softmax, "Add", [mapped, kept]), weights)


def _controlled_self(graph: ir.Graph, softmax: ir.Node, source: ir.Value, share: ir.Value, rest: ir.Value) -> None:
    """share * map[source] + (1 - share) * map, in place of the map."""
    (weights,), users = softmax.outputs, list(softmax.outputs[0].uses())
    taken = _node(graph, softmax, "Gather", [weights, source], axis=0)
    theirs = _node(graph, softmax, "Mul", [taken, share])
    kept = _node(graph, softmax, "Mul", [weights, rest])
    _instead(users, _node(graph, softmax, "Add", [theirs, kept]), weights)


def _averaged(
    graph: ir.Graph, used: Sequence[tuple[int, ir.Value]], latent_side: tuple[int, int], tokens: int
) -> ir.Value:
    """From the number of positions of each map that was used, and the map."""
    sizes = {positions for positions, _ in used}
    size = max((size for size in sizes if size <= MAX_POSITIONS), default=min(sizes))
    maps = [value for positions, value in used if positions == size]
    _, width = _side(size, latent_side)
    after = maps[-1].producer()
    assert after is not None
    heads = _constant(graph, "controls.heads", np.array([1]))
    total, *others = (_node(graph, after, "ReduceMean", [value, heads], keepdims=0) for value in maps)
    for other in others:
        total = _node(graph, after, "Add", [total, other])
    layers = _constant(graph, "controls.layers", np.array(len(maps), dtype=np.float32))
    mean = _node(graph, after, "Div", [total, layers])
    latent_width = _node(graph, after, "Shape", [graph.inputs[0]], start=3)
    shrink = _constant(graph, "controls.shrink", np.array([latent_side[1] // width]))
    first_sizes = _constant(graph, "controls.maps_sizes", np.array([0, tokens, -1]))  # 0 keeps the batch
    shape = _node(graph, after, "Concat", [first_sizes, _node(graph, after, "Div", [latent_width, shrink])], axis=0)
    found = _node(graph, after, "Reshape", [_node(graph, after, "Transpose", [mean], perm=[0, 2, 1]), shape])
    found.name, found.dtype = MAPS, ir.DataType.FLOAT
    found.shape = ir.Shape([ir.SymbolicDim("n"), tokens, ir.SymbolicDim("map_h"), ir.SymbolicDim("map_w")])
    return found


def _is_cross(softmax: ir.Node) -> bool:
    """Whether the keys are made only from the text embedding and weights."""
    scores = softmax.inputs[0].producer() if softmax.inputs[0] is not None else None
    value = scores.inputs[1] if scores is not None and scores.op_type == "MatMul" else None
    while value is not None and (made := value.producer()) is not None and made.op_type in OF_KEYS:
        value = made.inputs[0]
    return value is not None and value.name == CONTEXT


def _sides(graph: ir.Graph, latent_side: tuple[int, int]) -> dict[str, int]:
    """The values of the symbols in the graph's shapes where its latents are of `latent_side`.

    The exporter has several symbols for one size: those of a picture's third axis are its height's, of the fourth its
    width's.
    """
    free = [size for size in graph.inputs[0].shape or () if isinstance(size, ir.SymbolicDim)][1:]
    if not free:
        return {}
    # A latent's height is a number times its symbol.
    units = [
        side // (size.evaluate(dict.fromkeys(size.free_symbols(), 1)) or 1)
        for side, size in zip(latent_side, free, strict=True)
    ]
    found: dict[str, int] = {}
    for node in graph:
        shape = node.outputs[0].shape
        if shape is None or len(shape) != 4 or not isinstance(shape[1], int):
            continue
        for size, unit in zip(shape[2:], units, strict=True):
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                found |= dict.fromkeys(size.free_symbols(), unit)
    return found


def _positions(weights: ir.Value, sides: dict[str, int]) -> int:
    """Of a map (n, heads, positions, keys)."""
    size = weights.shape[2] if weights.shape is not None and len(weights.shape) == 4 else None
    if isinstance(size, ir.SymbolicDim) and size.value is not None:
        size = size.evaluate(sides)
    if not isinstance(size, int):
        raise NoAttention(f"an attention map of the denoiser's graph has shape {weights.shape}")
    return size


def _side(positions: int, latent_side: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer: those of the latents, repeatedly halved and rounded up."""
    height, width = latent_side
    while height * width > positions:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != positions:
        raise NoAttention(f"a layer with {positions} positions is no size of {latent_side} halved")
    return height, width


def _node(
    graph: ir.Graph, after: ir.Node, op_type: str, inputs: list[ir.Value], **attributes: int | list[int]
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes)
    graph.insert_after(after, node)  # graph.sort() orders the nodes later
    (output,) = node.outputs
    return output


def _constant(graph: ir.Graph, name: str, value: np.ndarray) -> ir.Value:
    """A small initializer, stored inside the graph."""
    tensor = ir.Tensor(value, name=name)
    found = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(value.shape))
    graph.initializers[name] = found
    return found


def _instead(users: list[tuple[ir.Node, int]], value: ir.Value, of: ir.Value) -> ir.Value:
    """Replace `of` by `value` for these users."""
    for node, index in users:
        node.replace_input_with(index, value)
    value.shape, value.type = of.shape, of.type
    return value
