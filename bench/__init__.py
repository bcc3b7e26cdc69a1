"""Speed of every stage as a ratio: ours and a peer's run in turns, so that the machine is the same."""

import sampler_svc  # noqa: F401  before numpy, whose threads it limits, as in the sampler's process
