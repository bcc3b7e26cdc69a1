"""Where the tiles of a second pass begin: overlapping tiles of one length, as few as overlap enough."""

import math

OVERLAP = 0.25  # least share of a tile's side that it has in common with the next one


def tile_starts(length: int, side: int, step: int = 1) -> tuple[int, ...]:
    """Where tiles of a side begin along a length, evenly spread. Overlaps are rounded up to multiples of `step`.

    Raises ValueError for a side that is longer than the length.
    """
    if side > length:
        raise ValueError(f"a tile of {side} does not fit into {length}")
    further = max(1, side - step * math.ceil(OVERLAP * side / step))
    steps = math.ceil((length - side) / further)
    return tuple(round(index * (length - side) / steps) for index in range(steps + 1)) if steps else (0,)
