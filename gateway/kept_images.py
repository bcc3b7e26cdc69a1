"""The pictures of an edit, put together for GetEdit, as far as one answer can hold them."""

from gateway import validation
from unitune.image_pieces import Assembly
from unitune.v1.edit_pb2 import EditEvent


class KeptImages:
    """The pictures of one edit as they come."""

    def __init__(self) -> None:
        self.images: list[EditEvent.EditedImage] = []
        self._size_bytes = 0
        self._assembly = Assembly()

    @property
    def too_large_bytes(self) -> int:
        """How large the pictures are that no answer can hold, none of which is kept; 0 where all are."""
        return self._size_bytes if self._size_bytes > validation.ANSWER_BYTES else 0

    def begin(self, image: EditEvent.EditedImage) -> None:
        """The next picture, or its first pieces."""
        self._size_bytes += max(image.size_bytes, len(image.png)) + max(image.mask_size_bytes, len(image.mask))
        if self.too_large_bytes:
            self.images.clear()
            return
        copy = EditEvent.EditedImage()
        copy.CopyFrom(image)
        self._assembly.begin([copy])
        self._keep()

    def add(self, part: EditEvent.ImagePart) -> None:
        """The next piece."""
        if not self.too_large_bytes:
            self._assembly.add(part)
            self._keep()

    def _keep(self) -> None:
        if self._assembly.is_whole:
            self.images += self._assembly.take()
