"""Names of edited pictures."""

import pytest

from unitune_client.cli.outputs import slug, slugs


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a dog on a beach", "a-dog-on-a-beach"),
        ("  A Dog -- at NIGHT!  ", "a-dog-at-night"),
        ("../../etc/passwd", "etc-passwd"),
        ("3 cats", "3-cats"),
    ],
)
def test_a_prompt_becomes_a_readable_name(prompt: str, wanted: str) -> None:
    """Letters and digits stay, everything else is one dash; no path can be built."""
    assert wanted == slug(prompt)


@pytest.mark.parametrize(
    "prompts", [("ein Bär", "ein Bar"), ("猫", "犬"), ("x" * 100 + "a", "x" * 100 + "b"), ("?", "!")]
)
def test_what_a_name_cannot_hold_is_told_apart_by_a_digest(prompts: tuple[str, str]) -> None:
    """Prompts that shorten to the same letters get different, short names."""
    first, second = (slug(prompt) for prompt in prompts)

    assert first != second
    assert all(0 < len(name) < 80 and name.isascii() for name in (first, second))


def test_names_of_one_command_never_clash() -> None:
    """Prompts that differ in signs alone get different names; the same prompt is named once."""
    named = slugs(["a dog", "a dog!", "A dog?", "a dog"])

    assert ["a dog", "a dog!", "A dog?"] == list(named)
    assert 3 == len(set(named.values())) and "a-dog" == named["a dog"]
