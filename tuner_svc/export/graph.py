"""Exports a module as an ONNX graph through torch.export, with a dynamic batch size and no trace of the machine."""

import contextlib
import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import rewriter
from torch import Tensor, nn

from tuner_svc.export.exported_folder import ExportError

EXAMPLES = 2
MOST_INSIDE = 16 << 20  # bytes of weights in a graph's own file
COLLECTED_AFTER = 50_000  # new objects, instead of 700
SLOW_RULE = "SlicesSplit"
OPSET = 20  # ONNX Runtime splits newer operators on a CPU, where they are then slower


def to_graph(
    module: nn.Module,
    inputs: dict[str, Tensor],
    output: str,
    opset: int = OPSET,
    translations: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    step: int | None = None,
) -> ir.Model:
    """Export a module with one output. The first axis of each input is dynamic. Inputs whose example has EXAMPLES rows
    share the batch dimension `n`; one other input may have its own, `k`. With a `step` the first input is a picture or
    a latent (n, channels, height, width), of any height and width that are multiples of the step.

    `translations` replaces the exporter's versions of some torch operators, in onnxscript. Raises ExportError when
    PyTorch cannot export the module.
    """
    batch, free = torch.export.Dim("n"), torch.export.Dim("k")
    axes: list[dict[int, Any]] = [{0: batch if len(one) == EXAMPLES else free} for one in inputs.values()]
    if step is not None:
        axes[0] |= {axis: step * torch.export.Dim(name) for axis, name in ((2, "h"), (3, "w"))}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of a package that these graphs do not need
    with warnings.catch_warnings(), _tracing_alone(), _quick_rules():
        warnings.simplefilter("ignore")  # of deprecations within torch
        try:
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=tuple(axes),
                custom_translation_table=dict(translations or {}),
                optimize=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"PyTorch cannot export it: {_first_line_of_cause(error)}") from error
    model: ir.Model = program.model
    _write_shapes_out(model.graph)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with paths
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    return model


@contextlib.contextmanager
def _tracing_alone() -> Iterator[None]:
    """Without what PyTorch and Python do beside the trace: a cache of shapes, which compares symbols at length, the
    arithmetic of symbols within a norm, the stack of each node, which no graph of ours keeps, and a collection of
    garbage every few hundred objects."""
    emits, thresholds = not torch.fx.config.do_not_emit_stack_traces, gc.get_threshold()
    shapes_by, norm = torch._decomp.decomposition_table, torch.ops.aten.native_group_norm.default
    norms_own = shapes_by[norm]
    torch.fx.config.do_not_emit_stack_traces = True
    gc.set_threshold(COLLECTED_AFTER, *thresholds[1:])
    shapes_by[norm] = _shapes_of_group_norm
    try:
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = not emits
        gc.set_threshold(*thresholds)
        shapes_by[norm] = norms_own


def _shapes_of_group_norm(
    values: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rows: int,
    channels: int,
    inner: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors of the shapes of its output, means and deviations: a trace needs no more of it."""
    return values.new_empty(values.shape), values.new_empty((rows, groups)), values.new_empty((rows, groups))


@contextlib.contextmanager
def _quick_rules() -> Iterator[None]:
    """Without the exporter's one rule (two Slices that are a Split) that looks through the whole graph at each of its
    nodes: of SDXL's denoiser that takes minutes. No graph here has such Slices."""
    rules = rewriter._DEFAULT_REWRITE_RULES
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in rules if rule.name != SLOW_RULE)
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = rules


def weights_size(graph: ir.Model) -> int:
    """Bytes of the graph's initializers."""
    return sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)


def save(graph: ir.Model, path: Path) -> None:
    """Write a graph with its weights: large ones into a data file beside it, since a graph's own file ends at 2 GiB and
    is copied in memory when it is read."""
    ir.save(graph, path, external_data=f"{path.name}.data" if weights_size(graph) > MOST_INSIDE else None)


def _write_shapes_out(graph: ir.Graph) -> None:
    """Give each Reshape whose shape is computed a constant one where that says the same: 0 copies a size of the input,
    -1 is what is left."""
    nodes = list(graph)
    constants: dict[tuple[int, ...], ir.Value] = {}  # shared, as fuse_attention expects
    for node in nodes:
        if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].const_value is not None:
            continue
        before, after = node.inputs[0].shape if node.inputs[0] is not None else None, node.outputs[0].shape
        if before is None or after is None:
            continue
        sizes = tuple(
            size if isinstance(size, int) else 0 if size.value is not None and size in before[axis : axis + 1] else -1
            for axis, size in enumerate(after)
        )
        if sizes.count(-1) > 1:
            continue
        if sizes not in constants:
            constant = ir.node("Constant", [], {"value_ints": sizes})
            graph.insert_before(nodes[0], constant)
            constants[sizes] = constant.outputs[0]
        node.replace_input_with(1, constants[sizes])
        node.attributes.pop("allowzero", None)


def _first_line_of_cause(error: BaseException) -> str:
    """The exporter's message is pages long; the real error is at the end of its chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().split("\n")[0]
