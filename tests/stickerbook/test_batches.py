"""Training data made ahead."""

from functools import partial

import torch

from stickerbook.batches import batches
from stickerbook.train import drawn, split_by_objects
from stickerbook.world import NONE, draw_scene


def test_worker_processes_change_nothing():
    """Two workers hand out the very batches, in their order, that are made without any."""
    make = partial(drawn, 6, 0.5, *split_by_objects(300))

    alone, ahead = list(batches(make, range(3, 8))), list(batches(make, range(3, 8), workers=2))

    assert len(alone) == len(ahead) == 5
    for (seeds, tokens), (seeds_ahead, tokens_ahead) in zip(alone, ahead, strict=True):
        assert torch.equal(seeds, seeds_ahead) and torch.equal(tokens, tokens_ahead)


def test_a_batch_depends_on_its_update_alone():
    """A run that is taken up at an update sees what an uninterrupted one sees there."""
    make = partial(drawn, 6, 0.5, *split_by_objects(300))

    whole, resumed = list(batches(make, range(6))), list(batches(make, range(4, 6)))

    assert torch.equal(whole[5][0], resumed[1][0]) and torch.equal(whole[5][1], resumed[1][1])
    assert not torch.equal(whole[4][0], whole[5][0])


def test_the_share_of_second_objects_is_kept():
    """A share of 1 draws scenes with two objects only, one of 0 scenes with one."""
    singles, pairs = split_by_objects(300)

    for share in (0.0, 1.0):
        seeds, _ = drawn(20, share, singles, pairs, update=1)
        assert all((draw_scene(int(seed)).second != NONE) == bool(share) for seed in seeds)
