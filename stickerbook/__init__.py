"""stickerbook: the embedded base model and the procedural world that it is trained on.

Stickers stand in painted places at some time of day, in some picture style. Every scene has an
exact caption, an exact layout and therefore an exact ground truth for every edit.
"""
