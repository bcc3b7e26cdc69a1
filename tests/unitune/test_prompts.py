"""The wording of prompts."""

from unitune.prompts import unknown_words, with_rare_tokens

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
