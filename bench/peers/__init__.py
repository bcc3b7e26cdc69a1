"""What others offer for the same job, written around their public interfaces."""
