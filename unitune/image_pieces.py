"""Cuts edited pictures that are too large for one message into pieces, and puts them together again."""

from collections.abc import Iterable, Iterator

from unitune.errors import DataLoss
from unitune.v1.edit_pb2 import EditEvent

PIECE_BYTES = 256 << 10  # of one file in one message; a reader that stopped costs a few times as much

_SIZES = {"png": "size_bytes", "mask": "mask_size_bytes"}  # of a picture's files, in their order


def cut(
    image: EditEvent.EditedImage, first_bytes: int = PIECE_BYTES
) -> tuple[EditEvent.EditedImage, Iterator[EditEvent.ImagePart]]:
    """A picture as a message with at most `first_bytes` of each file, and further messages with the rest."""
    files = {name: getattr(image, name) for name in _SIZES}
    first = EditEvent.EditedImage(index=image.index, seed=image.seed)
    for field, value in image.ListFields():
        if field.name == "scores":
            first.scores.CopyFrom(value)
        elif field.name not in files:
            setattr(first, field.name, value)
    for name, file in files.items():
        setattr(first, name, file[:first_bytes])
        setattr(first, _SIZES[name], len(file))

    def parts() -> Iterator[EditEvent.ImagePart]:
        for name, file in files.items():
            for start in range(first_bytes, len(file), PIECE_BYTES):
                part = EditEvent.ImagePart(index=image.index)
                setattr(part, name, file[start : start + PIECE_BYTES])
                yield part

    return first, parts()


class Assembly:
    """Puts pictures together: `begin` with their messages, `add` each piece, and `take` the complete pictures."""

    def __init__(self) -> None:
        self._images: list[EditEvent.EditedImage] = []
        self._pieces: dict[tuple[int, str], list[bytes]] = {}

    def begin(self, images: Iterable[EditEvent.EditedImage]) -> None:
        """Raises DataLoss when earlier pictures are not complete."""
        if self._images:
            raise _lost()
        self._images = list(images)
        self._pieces = {(image.index, name): [getattr(image, name)] for image in self._images for name in _SIZES}

    def add(self, part: EditEvent.ImagePart) -> None:
        """Raises DataLoss for a piece of an unknown picture, and for too many bytes."""
        name = part.WhichOneof("file")
        if name is None:
            return  # a kind of file that only a newer server has
        if (part.index, name) not in self._pieces:
            raise _lost()
        self._pieces[part.index, name].append(getattr(part, name))
        if any(self._missing(image, name) < 0 for image in self._images if image.index == part.index):
            raise _lost()

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing; True before the first picture."""
        return all(self._missing(image, name) <= 0 for image in self._images for name in _SIZES)

    def take(self) -> list[EditEvent.EditedImage]:
        """The complete pictures; then begin anew. Raises DataLoss when something is missing."""
        if not self.is_whole:
            raise _lost()
        images = self._images
        for image in images:
            for name, size in _SIZES.items():
                pieces = self._pieces.pop((image.index, name))
                if len(pieces) > 1:
                    setattr(image, name, b"".join(pieces))
                setattr(image, size, len(getattr(image, name)))
        self._images = []
        return images

    def _missing(self, image: EditEvent.EditedImage, name: str) -> int:
        return int(getattr(image, _SIZES[name])) - sum(map(len, self._pieces[image.index, name]))


def _lost() -> DataLoss:
    return DataLoss("pieces of an edited picture are missing or out of order", reason="PIECES_LOST")
