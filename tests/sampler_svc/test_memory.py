"""The sampler's memory over many edits: the program itself, in a process of its own."""

import subprocess
import sys
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import grpc
import pytest

from tests.configs import sampling_config
from tests.sampler_svc.pictures import mask, picture
from tests.sampler_svc.test_main import environment
from tests.sampler_svc.tunings import Tunings
from unitune.object_store import ObjectStore
from unitune.v1 import sampler_pb2_grpc, tuning_pb2
from unitune.v1.sampler_pb2 import SampleRequest

EARLY, LATE = 50, 200  # edits
GROWTH_BYTES = 8 << 20  # between the two; 150 edits that each kept one weights file would be 150 times 2 MiB


def resident_bytes(pid: int) -> int:
    """The memory that a process has in RAM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def requests(tuned: Sequence[tuning_pb2.WeightsRef]) -> list[SampleRequest]:
    """One edit of two steps for each way through the sampler; those with tuned weights need a refit each time."""
    setting = {"scheduler": "ddim", "num_inference_steps": 2, "guidance_scale": 2, "strength": 1, "interpolation": 1}
    common = {"image": picture(), "prompt": "a dog at night", "rare_tokens": "beikkpic"}
    beside = {"method": "prompt_to_prompt", "base_prompt": "a cat at night"}
    ways: list[tuple[dict[str, object], dict[str, object]]] = [
        ({"method": "unitune"}, {"weights": tuned[0], "preview_every": 1}),
        ({"method": "sdedit", "mask_source": "diffedit", "base_prompt": "a cat"}, {}),
        ({"method": "unitune", "unconditional_model": "base"}, {"weights": tuned[1]}),
        ({**beside, "blend_words": ["cat", "dog"]}, {"seeds": [1]}),
        ({"method": "sdedit", "mask_text": "the cat", "mask_source": "word", "inverted": True}, {}),
        ({"method": "sdedit", "only_masked": True, "repeats": 2}, {"mask": mask(box=(8, 8, 24, 30)), "seeds": [1, 2]}),
        ({"method": "sdedit", "mask_text": "cat", "mask_source": "attention"}, {"image": picture(60, 90)}),
    ]
    return [
        SampleRequest(config=sampling_config(**setting, **config), **{"seeds": [3], **common, **fields})
        for config, fields in ways
    ]


@pytest.mark.exhaustive  # each kind of edit is in test_sample.py, test_methods.py and their neighbours
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from Linux's /proc")
def test_memory_stays_flat_over_many_edits_of_mixed_methods(
    engine_folder: Path, tunings: Tunings, tmp_path: Path
) -> None:
    """After 200 edits the process holds at most 8 MiB more than after 50."""
    store, tuned = ObjectStore(str(tmp_path)), []
    for seed in (1, 2):
        data, manifest = tunings.file(seed)
        store.put_weights(f"tunings/default/t-{seed:03}/1", data, manifest)
        tuned.append(
            tuning_pb2.WeightsRef(key=manifest.key, digest=manifest.digest, path=f"tunings/default/t-{seed:03}/1")
        )
    settings = environment(ENGINE=str(engine_folder), STORE=str(tmp_path), SAMPLER_ADDRESS="127.0.0.1:0", THREADS="1")
    program = subprocess.Popen([sys.executable, "-m", "sampler_svc"], env=settings, stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        address = program.stdout.readline().removeprefix("listening ").strip()
        held = {}
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            sampler = sampler_pb2_grpc.SamplerServiceStub(channel)
            for count, request in enumerate(islice(cycle(requests(tuned)), LATE), start=1):
                *_, last = sampler.Sample(request, timeout=60)
                assert last.WhichOneof("event") == "done", last
                held[count] = resident_bytes(program.pid)
        growth = held[LATE] - held[EARLY]
        assert growth <= GROWTH_BYTES, {count: f"{held[count] >> 20} MiB" for count in (1, 14, EARLY, 100, LATE)}
    finally:
        program.kill()
        program.wait()
