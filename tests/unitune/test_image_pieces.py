"""Pictures cut into pieces and put together: the same bytes, or an error."""

import pytest

from unitune.errors import DataLoss
from unitune.image_pieces import PIECE_BYTES, Assembly, cut
from unitune.v1.edit_pb2 import EditEvent, Scores


def image(png: int, mask: int, index: int = 0) -> EditEvent.EditedImage:
    """A picture of so many bytes."""
    files = {"png": bytes(range(256)) * (png // 256), "mask": b"m" * mask}
    return EditEvent.EditedImage(index=index, seed=7, scores=Scores(prompt=0.5), strength=0.25, **files)


@pytest.mark.parametrize("png", [0, 256, PIECE_BYTES, PIECE_BYTES + 256, 5 * PIECE_BYTES])
@pytest.mark.parametrize("mask", [0, 10, PIECE_BYTES + 1])
def test_a_picture_comes_back_as_it_was(png: int, mask: int) -> None:
    """Files, seed and scores are those that were cut; no message is larger than its pieces (N3)."""
    wanted = image(png, mask)
    first, parts = cut(wanted)
    assembly = Assembly()
    assembly.begin([first])
    for part in parts:
        assert not assembly.is_whole and part.ByteSize() <= PIECE_BYTES + 100
        assembly.add(part)
    (found,) = assembly.take()

    assert (found.png, found.mask, found.seed, found.strength) == (wanted.png, wanted.mask, 7, 0.25)
    assert found.scores == wanted.scores and found.size_bytes == len(wanted.png)
    assert assembly.take() == []


def test_several_pictures_may_be_begun_at_once() -> None:
    """As a comparison does, with first pieces of any length."""
    wanted = [image(PIECE_BYTES, 100, index) for index in range(3)]
    halves = [cut(one, 1000) for one in wanted]
    assembly = Assembly()
    assembly.begin(first for first, _ in halves)
    for _, parts in halves:
        for part in parts:
            assembly.add(part)

    assert [one.png for one in assembly.take()] == [one.png for one in wanted]


def test_a_picture_without_its_length_is_whole() -> None:
    """As a server that cuts nothing sends it."""
    assembly = Assembly()
    assembly.begin([EditEvent.EditedImage(png=b"png", mask=b"mask")])

    assert assembly.is_whole and assembly.take()[0].png == b"png"


def test_lost_pieces_are_an_error() -> None:
    """Neither a hole, nor a piece too many, nor one of another picture makes a file (N3)."""
    first, parts = cut(image(3 * PIECE_BYTES, 0))
    one, two = parts
    for wrong in ([one], [one, two, two], [EditEvent.ImagePart(index=5, png=b"x")]):
        assembly = Assembly()
        copy = EditEvent.EditedImage()
        copy.CopyFrom(first)
        with pytest.raises(DataLoss) as lost:
            assembly.begin([copy])
            for part in wrong:
                assembly.add(part)
            assembly.take()
        assert lost.value.reason == "PIECES_LOST"
