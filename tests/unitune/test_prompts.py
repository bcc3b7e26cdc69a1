"""The wording of prompts."""

import pytest

from unitune.prompts import (
    ids_with_vectors,
    mentions,
    unknown_words,
    with_rare_tokens,
    with_words_before,
    with_words_instead,
    without,
)

VOCABULARY = ("a", "cat", "dog", "beach", "on", "the", "at", "sunset")


def test_rare_tokens_come_first_and_once() -> None:
    """Applying the rare tokens to a prompt that has them changes nothing (check U4)."""
    prompt = with_rare_tokens("beikkpic", "a dog on the beach")

    assert prompt == "beikkpic a dog on the beach"
    assert with_rare_tokens("beikkpic", prompt) == prompt


def test_rare_tokens_alone_are_the_tuning_prompt() -> None:
    """An empty prompt leaves the rare tokens without a space."""
    assert with_rare_tokens("beikkpic", "") == "beikkpic"
    assert with_rare_tokens("beikkpic", "beikkpic") == "beikkpic"


def test_no_rare_tokens_leave_the_prompt() -> None:
    """A tuning without rare tokens adds nothing, not even a space."""
    assert with_rare_tokens("", " a dog ") == "a dog"


def test_a_word_that_only_begins_like_the_rare_tokens_is_not_taken_for_them() -> None:
    """Rare tokens are matched as whole words."""
    assert with_rare_tokens("be", "bears on the beach") == "be bears on the beach"


def test_unknown_words_come_in_order_with_their_nearest() -> None:
    """Each unknown word comes once, lower-case, with what may have been meant first."""
    unknown = unknown_words("A Catt, a zeppelin and the catt at sunset!", VOCABULARY)

    assert [word for word, _ in unknown] == ["catt", "zeppelin", "and"]
    assert unknown[0][1][0] == "cat"
    assert unknown[1][1] == ()


def test_an_open_vocabulary_knows_every_word() -> None:
    """An empty vocabulary means that nothing can be said about words."""
    assert unknown_words("zeppelin", ()) == []


@pytest.mark.parametrize(
    ("prompt", "words", "is_there"),
    [
        ("a beikkpic dog", "beikkpic", True),
        ("a Beikkpic dog", "beikkpic", True),
        ("a beikkpics dog", "beikkpic", False),
        ("S* on a beach", "S*", True),
        ("on aS* beach", "S*", False),
        ("a toy  car, red", "toy car", True),
        ("a car toy", "toy car", False),
        ("a dog", "dog.", False),
    ],
)
def test_words_are_found_whole(prompt: str, words: str, is_there: bool) -> None:
    """Case and spaces do not count, letters that touch do, and no sign is a pattern (check D7)."""
    assert mentions(prompt, words) is is_there


def test_words_are_taken_out() -> None:
    """What is left are the other words; no words leave the prompt."""
    assert without("a beikkpic dog", "beikkpic").split() == ["a", "dog"]
    assert without("a dog", "") == "a dog"


def test_vectors_take_the_placeholders_place() -> None:
    """Consecutive ids from -1 down at each placeholder, the whole as long as the empty prompt's ids (check T8)."""

    def encode(text: str) -> list[int]:
        return [100 + len(word) for word in text.split()]

    empty = [1, 2, 3, 3, 3, 3, 3, 3]

    assert ids_with_vectors("a S* dog", "S*", 2, encode, empty) == [1, 101, -1, -2, 103, 2, 3, 3]
    assert ids_with_vectors("s* S*", "S*", 1, encode, empty) == [1, -1, -1, 2, 3, 3, 3, 3]
    assert ids_with_vectors("a b c d e f S*", "S*", 1, encode, empty) == [1, *[101] * 6, 2]
    assert ids_with_vectors("", "S*", 1, encode, empty) == empty


@pytest.mark.parametrize(
    ("prompt", "before", "instead"),
    [
        ("a cat on a beach", "a beikkpic cat on a beach", "a beikkpic on a beach"),
        ("Cat, and another cat", "beikkpic Cat, and another cat", "beikkpic, and another cat"),
        ("a Beikkpic cat", "a Beikkpic cat", "a Beikkpic cat"),
        ("a catfish, some cats", "a catfish, some cats", "a catfish, some cats"),
        ("", "", ""),
    ],
)
def test_words_are_put_at_the_first_mention(prompt: str, before: str, instead: str) -> None:
    """Before the noun or in its place, whole words alone, once, and not where the prompt has them already (D7)."""
    assert before == with_words_before(prompt, " beikkpic", "cat")
    assert instead == with_words_instead(prompt, "beikkpic ", "cat")


def test_what_a_method_binds_is_no_pattern() -> None:
    """Signs that mean something to a regular expression are put in as they are."""
    assert r"a \1 c++ x" == with_words_before("a c++ x", r"\1", "c++")
    assert r"a \g<0> x" == with_words_instead("a c++ x", r"\g<0>", "c++")
