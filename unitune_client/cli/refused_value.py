"""How a refusal shows the value that it refuses: in quotes what the user typed, in plain words what is said of it."""

import re
from collections.abc import Collection

MISSING = ("", "unset")
GIVEN = re.compile(r"given|set|true")
SIZE = re.compile(r"\d+ (characters|bytes)")
TIMES = re.compile(r"(\d+) (seed|weight|word)s?")
MOST_SHOWN = 80  # characters of a text that is repeated


def problem_of(shown: str, value: str, texts: Collection[str]) -> str:
    """What stands between an option and the remedy, such as ` is 'pndm': ` or ` is missing: `.

    `shown` is that part of the server's message, `value` the refused value, `texts` what the user gave the option. A
    server repeats no prompt and tells its length, by which the user's own text is found.
    """
    parts = {part for text in texts for part in re.split(r"[\s,]+", text) if part}
    sayings = f" is {value!r}: ", f" is {value}: ", f" has {value}: "
    if shown not in sayings or value in texts or value in parts:
        return shown
    if SIZE.fullmatch(value):
        number, unit = value.split(" ")
        said = [text for text in texts if unit == "characters" and len(text) == int(number) <= MOST_SHOWN]
        return f" is {said[0]!r}: " if len(said) == 1 else f" has {value}: "
    if times := TIMES.fullmatch(value):
        return f" is given {times[1]} times: " if times[1] != "1" else " cannot be given: "
    if value in MISSING:
        return " is missing: "
    if GIVEN.fullmatch(value):
        return " cannot be given: "
    return shown if shown == sayings[-1] else f" is {value}: "
