"""The CPU's own layout: which value lies where, and that the build keeps it only where it finds every tensor."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from sampler_svc.build.folder import build
from sampler_svc.engines.cpu import OrtEngine
from sampler_svc.engines.cpu_in_place import IN_PLACE, InPlaceEngine
from sampler_svc.engines.cpu_layout import LAID_OUT, LAYOUT_FILE, Blocked, read_layouts
from sampler_svc.engines.engine import EngineSpec, WeightSet
from sampler_svc.engines.folder import EngineManifest
from sampler_svc.engines.layout import GraphLayout
from sampler_svc.engines.onnx_file import initializers
from tests.sampler_svc.tunings import Tunings, answers
from unitune.base_model import BaseModelSpec
from unitune.graph_files import DENOISER


@pytest.mark.parametrize(("outputs", "inputs"), [(4, 4), (4, 1)])
def test_a_kernel_lies_in_blocks_of_channels_padded_to_whole_ones(outputs: int, inputs: int) -> None:
    """Six outputs in blocks of four are two blocks, the last half zeros; every value is where the block's axes say."""
    kernel = np.random.default_rng(0).standard_normal((6, 8, 3, 3), dtype=np.float32)
    form = Blocked("reorder", outputs, inputs)

    view = form.view(kernel)

    assert view.shape == (2, 8 // inputs, 3, 3, inputs, 4) and form.shape_in_graph(kernel.shape) == (8, 8, 3, 3)
    for out, into, y, x in product(*(range(side) for side in (8, *kernel.shape[1:]))):
        wanted = kernel[out, into, y, x] if out < 6 else 0
        assert view[out // outputs, into // inputs, y, x, into % inputs, out % outputs] == wanted


def test_a_bias_is_padded_to_whole_blocks() -> None:
    """Its own values come first, zeros after them."""
    form = Blocked("reorder", 4)

    np.testing.assert_array_equal(form.view(np.array([1, 2, 3, 4, 5], np.float32)), [1, 2, 3, 4, 5, 0, 0, 0])
    assert form.shape_in_graph((5,)) == (8,)


def test_an_engine_in_place_runs_the_graph_of_this_cpu(
    engine_folder: Path, spec: BaseModelSpec, base: WeightSet, tunings: Tunings
) -> None:
    """Every tensor is one initializer of it, none twice, and its answers are a new session's to rounding."""
    layouts = read_layouts(engine_folder)
    assert layouts is not None
    found = initializers((engine_folder / LAID_OUT).read_bytes())
    names = {layouts[name].initializer if name in layouts else name for name in spec.tensors}
    assert len(names) == len(spec.tensors) and names <= found.keys()
    engine_spec = EngineSpec.from_model(spec)
    layout = GraphLayout(engine_spec, base.tensors)
    ours, other = (kind(engine_folder, engine_spec, 1, layout) for kind in (InPlaceEngine, OrtEngine))

    for weights in (base, tunings.weights(1), base):
        ours.refit(weights)
        other.refit(weights)
        np.testing.assert_allclose(answers(ours), answers(other), rtol=0, atol=2e-5)


def test_without_every_tensor_in_it_there_is_no_such_graph(
    tiny_graphs: Path, spec: BaseModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU with blocks of a size unknown here is refitted in place all the same, over the plain graph."""
    monkeypatch.setattr("sampler_svc.build.cpu_layout.BLOCKS", ())

    folder = build(tiny_graphs, tmp_path / "engine")

    assert (
        read_layouts(folder) is None and not list(folder.glob(f"{LAID_OUT}*")) and not (folder / LAYOUT_FILE).exists()
    )
    assert IN_PLACE in EngineManifest.load(folder).refit_modes
    assert InPlaceEngine(folder, EngineSpec.from_model(spec))._path == folder / DENOISER
