"""Speed of every stage as ratios: ours and a peer's take turns within one run, so that the machine is the same."""

import sampler_svc  # noqa: F401  before numpy, whose threads it limits, as in the sampler's own process
