"""The one thread of a process that computes with PyTorch. All computing runs there, including loading a model.

On a CPU, libgomp keeps a team of threads for every thread that needs one. If all teams together have more threads than
there are cores, threads sleep between two operators instead of spinning. Waking them takes longer than most operators
of a small model: an update takes 1.6 to 2 times as long. On a GPU, CUDA graphs are captured and replayed here, too.
"""

from concurrent.futures import ThreadPoolExecutor

import torch


class TorchThread(ThreadPoolExecutor):
    """Runs what is submitted, one after the other, in one thread.

    `num_threads` is the size of its team; 0 keeps PyTorch's default. The process ends only after running work, unless
    `unitune.serving.serve` ends it.
    """

    def __init__(self, num_threads: int = 0) -> None:
        super().__init__(1, "torch", _limit, (num_threads,))


def _limit(num_threads: int) -> None:
    if num_threads:
        torch.set_num_threads(num_threads)
