"""The inputs of the measurements: the embedded base model, a picture of the demo, and an edit prompt."""

from pathlib import Path

MODEL = Path(__file__).parents[1] / "stickerbook" / "model"
DEMO = Path(__file__).parents[1] / "demo"
PICTURE = DEMO / "cat.png"
PROMPT = "a dog in a meadow by day"
GUIDANCE = 5.0
