"""The pictures of an edit, assembled for GetEdit. Nothing is kept if they are too large for one answer."""

from gateway import validation
from unitune.image_pieces import Assembly
from unitune.v1.edit_pb2 import EditEvent


class KeptImages:
    """Collects the pictures of one edit."""

    def __init__(self) -> None:
        self.images: list[EditEvent.EditedImage] = []
        self._size_bytes = 0
        self._assembly = Assembly()

    @property
    def too_large_bytes(self) -> int:
        """The size of pictures that are too large for one answer, so that none is kept. 0 if all are kept."""
        return self._size_bytes if self._size_bytes > validation.ANSWER_BYTES else 0

    def begin(self, image: EditEvent.EditedImage) -> None:
        """Add the next picture, or its first pieces."""
        self._size_bytes += max(image.size_bytes, len(image.png)) + max(image.mask_size_bytes, len(image.mask))
        if self.too_large_bytes:
            self.images.clear()
            return
        copy = EditEvent.EditedImage()
        copy.CopyFrom(image)
        self._assembly.begin([copy])
        self._keep()

    def add(self, part: EditEvent.ImagePart) -> None:
        """Add the next piece."""
        if not self.too_large_bytes:
            self._assembly.add(part)
            self._keep()

    def _keep(self) -> None:
        if self._assembly.is_whole:
            self.images += self._assembly.take()
