"""EditBench: the paper's comparison on pictures whose edits have an exact ground truth."""
