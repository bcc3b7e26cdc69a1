"""Prompts that are read in part or not at all, through the real services: said before a tuning, not after."""

from pathlib import Path

import pytest

from tests.reports.conftest import Unitune
from unitune_client import Client, EditAccepted, EditDone, EditedImage, InvalidField

# With the rare tokens, 7 of the tiny base model's tokens, its text encoder has no room for what comes after it.
LONG = "a cat on the beach in snow"
FEW = {"updates": 1, "batch": 1}


def test_words_that_are_not_read_are_named_before_the_tuning(client: Client, photo: Path) -> None:
    """Prompts with other ends give equal pictures, and each is told its own end before it is tuned (N5)."""
    told, pictures = [], []
    for end in ("by night", "at sunset"):
        events = list(client.edit(photo.read_bytes(), f"{LONG} {end}", strength=0.5, omit_metadata=True, **FEW))
        assert isinstance(events[0], EditAccepted) and isinstance(events[-1], EditDone)
        told.append(events[0].warnings)
        pictures.append([event.png for event in events if isinstance(event, EditedImage)])

    assert pictures[0] == pictures[1]
    assert ["'by night'" in " ".join(told[0]), "'at sunset'" in " ".join(told[0])] == [True, False]
    assert ["'by night'" in " ".join(told[1]), "'at sunset'" in " ".join(told[1])] == [False, True]


def test_a_prompt_of_nothing_costs_no_tuning(client: Client, photo: Path) -> None:
    """A prompt of which the tokenizer leaves nothing is refused before a tuning is made (N14)."""
    before = {tuning.name for tuning in client.list_tunings()}

    with pytest.raises(InvalidField) as caught:
        list(client.edit(photo.read_bytes(), "<|endoftext|>", **FEW))

    assert caught.value.field == "prompt" and "13 characters" in caught.value.message
    assert {tuning.name for tuning in client.list_tunings()} == before


def test_a_tuning_tells_what_of_its_prompt_is_not_read(client: Client, photo: Path) -> None:
    """CreateTuning of Imagic answers with the words that its text encoder has no room for (N5)."""
    image = client.upload_image(photo.read_bytes())
    prompt = f"{LONG} the snow by day by night at sunset dog cow"

    tuning = client.create_tuning(image, method="imagic", tuning_prompt=prompt, embedding_updates=1, **FEW)

    (warning,) = tuning.warnings
    assert "dog cow'" in warning and "prompt" in warning


def test_rare_tokens_that_are_not_read_whole_are_refused(unitune: Unitune, photo: Path) -> None:
    """`unitune tune` says so at once, with what to do: bound to half a word a tuning would serve nobody (N5)."""
    done = unitune("tune", photo, "--rare-tokens", "qzxqzxqzxqzxqzxqzx", "--updates", 1)

    assert done.returncode != 0
    assert "qzxqzxqzxqzxqzxqzx" in done.stderr and "use fewer letters" in done.stderr


def test_a_model_that_knows_no_pictures_warns_of_none(client: Client, photo: Path) -> None:
    """Only a base model that says which pictures it knows warns of others (the end of N25)."""
    accepted = next(iter(client.edit(photo.read_bytes(), "a cat", **FEW)))

    assert isinstance(accepted, EditAccepted) and not accepted.warnings
