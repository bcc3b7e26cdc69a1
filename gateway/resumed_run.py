"""What a caller has of a run, so that another sampler's run of the same request goes on from there."""

from unitune.v1.sampler_pb2 import SampleEvent


class ResumedRun:
    """The events of one sampler after the other, in which no picture comes twice.

    A picture's messages are held back until all are there: half a picture could not be completed with the pieces of
    another one, which may differ in its last bits.
    """

    def __init__(self) -> None:
        self._passed: set[int] = set()  # pictures, by their index
        self._held: list[SampleEvent] = []
        self._missing_bytes = 0

    def passed(self, event: SampleEvent) -> list[SampleEvent]:
        """What to pass on, now that this event has come."""
        match event.WhichOneof("event"):
            case "heartbeat":
                return [event]
            case "image":
                self._held, image = [event], event.image
                self._missing_bytes = image.size_bytes + image.mask_size_bytes - len(image.png) - len(image.mask)
            case "image_part":
                self._held.append(event)
                self._missing_bytes -= len(event.image_part.png) + len(event.image_part.mask)
            case _:
                return [event]
        if self._missing_bytes > 0:
            return []
        whole, self._held = self._held, []
        index = whole[0].image.index
        if index in self._passed:
            return []
        self._passed.add(index)
        return whole
