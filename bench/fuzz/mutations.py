"""Changed requests, drawn by a seed from a valid one: extreme fields, several at once, and damaged bytes."""

from collections.abc import Iterator, Sequence
from random import Random

from google.protobuf.message import Message

from bench.fuzz.extremes import extremes

MAX_BYTES = 3 << 20  # below the limit of a message, which grpc itself refuses


class Mutations:
    """Endless changed requests of one type, as bytes, each with what was done in words."""

    def __init__(self, base: Message, draws: Random) -> None:
        self._base, self._draws = base, draws
        self._changed = list(extremes(base))

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        while True:
            of_fields = (self._one_field, self._several_fields) if self._changed else ()
            what, data = self._draws.choice((*of_fields, self._damaged_bytes, self._noise))()
            yield f"{type(self._base).__name__} {what}", data[:MAX_BYTES]

    def _one_field(self) -> tuple[str, bytes]:
        what, message = self._draws.choice(self._changed)
        return what, message.SerializeToString()

    def _several_fields(self) -> tuple[str, bytes]:
        chosen = self._draws.choices(self._changed, k=self._draws.randint(2, 4))
        return " ".join(what for what, _ in chosen), merged([message for _, message in chosen])

    def _damaged_bytes(self) -> tuple[str, bytes]:
        data = bytearray(self._base.SerializeToString() or self._draws.randbytes(8))
        for _ in range(self._draws.randint(1, 4)):
            place = self._draws.randrange(len(data) + 1)
            match self._draws.randrange(4):
                case 0:
                    data[place : place + 1] = self._draws.randbytes(1)
                case 1:
                    del data[place:]
                case 2:
                    data[place:place] = self._draws.randbytes(self._draws.randint(1, 20))
                case 3:
                    data += data[:place]
        return f"damaged: {bytes(data[:60])!r}", bytes(data)

    def _noise(self) -> tuple[str, bytes]:
        data = self._draws.randbytes(self._draws.randint(0, 300))
        return f"noise: {data[:60]!r}", data


def merged(messages: Sequence[Message]) -> bytes:
    """One request with the fields of all; of a field that several set, the last one's value."""
    request = type(messages[0])()
    for message in messages:
        request.MergeFrom(message)
    return request.SerializeToString()
