"""The one thread of a process that computes with PyTorch: whatever computes is given to it, loading a model included.

On a CPU, libgomp keeps a team of threads for every thread that asked for one. Once all teams together have more threads
than there are cores, they sleep between two operators instead of spinning; waking them takes longer than most operators
of a small model, and an update takes 1.6 to 2 times as long. On a GPU, CUDA graphs are captured and replayed here, too.
"""

from concurrent.futures import ThreadPoolExecutor

import torch


class TorchThread(ThreadPoolExecutor):
    """Runs what is submitted, one after the other, in one thread.

    `num_threads` are those of its team; 0 leaves PyTorch's own number. What it has begun, the end of the process waits
    for, unless `unitune.serving.serve` ends the process.
    """

    def __init__(self, num_threads: int = 0) -> None:
        super().__init__(1, "torch", _limit, (num_threads,))


def _limit(num_threads: int) -> None:
    if num_threads:
        torch.set_num_threads(num_threads)
