"""The pictures of one method of a comparison, until its result: those that fit into one message are in memory, others
where their edit stores them."""

from collections.abc import AsyncGenerator

from gateway import validation
from gateway.stored_edits import EditPictures, Load
from unitune.image_pieces import PIECE_BYTES, cut
from unitune.v1.edit_pb2 import CompareEvent, EditEvent


class ComparedPictures:
    """Takes the events that bring pictures, and gives the messages of the result."""

    def __init__(self, most_pictures: int) -> None:
        self._most_bytes = min(PIECE_BYTES, validation.ANSWER_BYTES)  # of all pictures in the result's message
        self._first_bytes = self._most_bytes // (4 * most_pictures)  # of each file in it, if they are more
        self.stored: EditPictures | None = None  # where the edit stores them, once it is accepted
        self._images: list[EditEvent.EditedImage] = []
        self._sources: list[EditEvent | Load] = []
        self._size_bytes = 0

    def add(self, event: EditEvent) -> None:
        """The next event. If the store did not take it, it stays in memory."""
        load = self.stored.load(len(self._sources) + 1) if self.stored is not None else None
        self._sources.append(load or event)
        self._size_bytes += event.ByteSize()
        if event.HasField("image"):
            image = EditEvent.EditedImage()
            image.CopyFrom(event.image)
            self._images.append(image)
        if not self._is_small:
            self._images = [self._shortened(image) for image in self._images]

    async def messages(self, result: CompareEvent.Result) -> AsyncGenerator[CompareEvent, None]:
        """The result, followed by the pieces of its pictures that do not fit into its message.

        Raises DataLoss (EDIT_NOT_KEPT) when a stored picture is gone meanwhile.
        """
        result.images.extend(self._images)
        yield CompareEvent(result=result)
        for source in () if self._is_small else self._sources:
            event = source if isinstance(source, EditEvent) else await source()
            if event.HasField("image"):
                for part in cut(event.image, self._first_bytes)[1]:
                    yield CompareEvent(image_part=part)
            else:
                yield CompareEvent(image_part=event.image_part)

    @property
    def _is_small(self) -> bool:
        return self._size_bytes <= self._most_bytes

    def _shortened(self, image: EditEvent.EditedImage) -> EditEvent.EditedImage:
        """The picture with the beginning of its files, and their whole sizes."""
        first, _ = cut(image, self._first_bytes)
        first.size_bytes = max(image.size_bytes, len(image.png))
        first.mask_size_bytes = max(image.mask_size_bytes, len(image.mask))
        return first
