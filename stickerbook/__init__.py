"""stickerbook: the embedded base model and the procedural world that it is trained on.

Stickers stand in painted places, at a time of day, in a picture style. Every scene has an exact caption and an exact
layout, and so an exact ground truth for every edit.
"""
