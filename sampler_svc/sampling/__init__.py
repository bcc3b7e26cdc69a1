"""Sample edited pictures from an engine that holds the weights."""
