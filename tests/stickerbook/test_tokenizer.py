import numpy as np
import pytest

from stickerbook.captions import caption, training_caption
from stickerbook.tokenizer import MAX_TOKENS, new_tokenizer, words
from stickerbook.world import draw_scene


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer()


def test_every_world_word_is_one_token(tokenizer):
    """Start, the word, end: nothing in the world is split."""
    assert [word for word in words() if len(tokenizer(word).input_ids) != 3] == []


def test_a_rare_word_is_a_few_tokens_of_its_own(tokenizer):
    """The rare tokens are known pieces, none of them a world word, none of them unknown."""
    ids = tokenizer("beikkpic").input_ids[1:-1]

    world_ids = {tokenizer(word).input_ids[1] for word in words()}
    assert 2 <= len(ids) <= 8
    assert not world_ids & set(ids)
    assert tokenizer.eos_token_id not in ids


def test_the_rare_word_keeps_its_tokens_before_a_prompt(tokenizer):
    """Tuning and sampling see the same ids for the rare tokens."""
    alone = tokenizer("beikkpic").input_ids[1:-1]

    assert tokenizer("beikkpic a cat on a beach").input_ids[1 : 1 + len(alone)] == alone


def test_captions_fit(tokenizer):
    """The longest captions of training keep their end token within the limit."""
    rng = np.random.default_rng(0)
    lengths = [len(tokenizer(training_caption(draw_scene(seed), rng)).input_ids) for seed in range(500)]

    assert max(lengths) <= MAX_TOKENS


def test_building_twice_gives_the_same_ids(tokenizer):
    """The vocabulary does not depend on anything but the world."""
    text = caption(draw_scene(9))

    assert new_tokenizer()(text).input_ids == tokenizer(text).input_ids
    assert new_tokenizer().get_vocab() == tokenizer.get_vocab()
