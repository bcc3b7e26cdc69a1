"""Speed of every stage as ratios: ours and a peer's take turns within one run, so that the machine is the same."""
