"""Prompt-to-Prompt on the tiny base model: its two branches, its controls, its inversions, its local blend."""

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from sampler_svc.engines.cpu_controlled import Controlled, ControlledEngine
from sampler_svc.model import Model
from sampler_svc.sampling import local_blend
from sampler_svc.sampling.alignment import Piece, TokenizedPrompt, align, refined, replaced
from sampler_svc.sampling.local_blend import LocalBlend, Word, blended
from sampler_svc.sampling.prompt_to_prompt import AttentionEdit, Controller, PromptToPrompt
from tests.sampler_svc.pictures import picture
from unitune import images
from unitune.attention import Controls, no_controls
from unitune.diffusion.denoiser import predict
from unitune.diffusion.inversion import inverted
from unitune.diffusion.solvers import SCHEDULERS, FirstOrder
from unitune.errors import InvalidField

STEPS = 5
CAT, DOG, SNOW = "a cat on the beach", "a dog on the beach", "a cat on the snow beach"
ALL, NOTHING = AttentionEdit(1, 1), AttentionEdit(0, 0)


@pytest.fixture(scope="module")
def loaded(engine_folder) -> Iterator[tuple[Model, ControlledEngine]]:
    """The tiny model, and its engine with control over attention on the base weights."""
    model = Model.open(engine_folder, threads=1)
    with model.controlled.lease("base", lambda: model.base) as lease:
        yield model, cast(ControlledEngine, lease.engine)


class Walk:
    """One edit of one picture, and everything that the denoiser was asked and answered on the way."""

    def __init__(
        self, loaded, edit, base=CAT, prompt=DOG, *, guidance=3.0, steps=STEPS, is_off=False, keep=None, strength=1.0
    ):
        model, engine = loaded
        self.calls: list[tuple[np.ndarray, Controls, Controlled]] = []
        self.contexts: list[np.ndarray] = []

        def run(latents, timesteps, contexts, controls) -> Controlled:
            controls = no_controls(len(latents), contexts.shape[1]) if is_off else controls
            self.contexts.append(contexts)
            self.calls.append((latents, controls, engine.run_controlled(latents, timesteps, contexts, controls)))
            return self.calls[-1][2]

        graphs = model.graphs
        run_of_steps = SCHEDULERS["ddim"].run(model.schedule, steps).late(strength)
        texts = graphs.text(base), graphs.text(prompt)
        words = [Word(graphs.text(word), graphs.embed(word)) for word in edit.blend_words]
        self.blend = LocalBlend(words, *texts, len(run_of_steps)) if words else None
        self.latent = graphs.encode(images.to_model(images.decode(picture()), model.spec.image_side))
        self.num_steps = 0

        def on_step(denoised: np.ndarray) -> None:
            self.num_steps += 1

        branches = PromptToPrompt(
            run_of_steps,
            run,
            edit,
            texts,
            tuple(graphs.embed(text) for text in (base, prompt, "")),
            graphs.spec.context_tokens,
            guidance,
            model.schedule.prediction_type,
            self.blend,
        )
        self.edited = branches.edit(self.latent, keep or (lambda base, edited: edited), on_step)
        self.branches = [call for call in self.calls if len(call[0]) > 1]  # without the inversion

    def base_branch(self) -> list[np.ndarray]:
        """The base branch's latents at every step."""
        return [latents[:1] for latents, _, _ in self.branches]


def text(*words: tuple[str, int]) -> TokenizedPrompt:
    """A text of words, each with so many tokens, whose ids are made from word and number."""
    pieces, prompt = [], ""
    for word, tokens in words:
        start = len(prompt) + bool(prompt)
        prompt = f"{prompt} {word}".strip()
        ends = np.linspace(start, start + len(word), tokens + 1).astype(int)
        pieces += [Piece(hash((word, at)), int(ends[at]), int(ends[at + 1])) for at in range(tokens)]
    return TokenizedPrompt(prompt, pieces)


def test_identical_prompts_give_the_base_branch(loaded) -> None:
    """With all controls on, the edit of a prompt into itself is its base branch bit for bit (P1)."""
    for guidance in (1.0, 3.0):
        walk = Walk(loaded, replace(ALL, inversion="ddim"), CAT, CAT, guidance=guidance)
        for latents, _, answer in walk.branches:
            assert np.array_equal(latents[0], latents[1])
            assert np.array_equal(answer.output[0], answer.output[1])


def test_the_base_branch_does_not_see_the_edit(loaded) -> None:
    """It is bit for bit the same with controls on and off, and for any edit prompt (P2)."""
    first, *others = (
        Walk(loaded, replace(ALL, inversion="ddim"), CAT, prompt, is_off=is_off).base_branch()
        for prompt, is_off in ((DOG, False), (DOG, True), (SNOW, False))
    )
    for other in others:
        assert all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def test_shares_of_0_are_an_ordinary_run(loaded) -> None:
    """Nothing is taken over: the edit is bit for bit the same batch with controls off (P3); with shares it is not."""
    ordinary = Walk(loaded, ALL, is_off=True).edited

    assert np.array_equal(ordinary, Walk(loaded, NOTHING).edited)
    assert not np.array_equal(ordinary, Walk(loaded, AttentionEdit(0.4, 0)).edited)
    assert not np.array_equal(ordinary, Walk(loaded, AttentionEdit(0, 0.4)).edited)


def test_shares_of_1_take_every_map(loaded) -> None:
    """After a swap of one word of one token all cross-attention is the base branch's, at every step (P4)."""
    walk = Walk(loaded, ALL)
    ordinary = Walk(loaded, NOTHING)

    assert len(walk.branches) == STEPS
    assert all(np.array_equal(answer.maps[0], answer.maps[1]) for _, _, answer in walk.branches)
    assert not any(np.array_equal(answer.maps[0], answer.maps[1]) for _, _, answer in ordinary.branches)


def test_a_share_counts_whole_steps(loaded) -> None:
    """Of 5 steps 0.4 takes cross-attention over in the first 2, and 0.6 self-attention in the first 3."""
    walk = Walk(loaded, AttentionEdit(0.4, 0.6))

    assert [True, True, False, False, False] == [bool(controls.mapper[1].any()) for _, controls, _ in walk.branches]
    assert [1, 1, 1, 0, 0] == [controls.share[1] for _, controls, _ in walk.branches]


def test_a_weight_of_1_changes_nothing(loaded) -> None:
    """Reweighting by 1 is bit-equal to none (P5); another weight changes the edit, and the word's map by just that."""
    plain = Walk(loaded, ALL).edited
    once = Walk(loaded, replace(ALL, word_weights={"dog": 1.0}))
    twice = Walk(loaded, replace(ALL, word_weights={"dog": 2.0}))

    assert np.array_equal(plain, once.edited) and not np.array_equal(plain, twice.edited)
    maps = twice.branches[0][2].maps
    np.testing.assert_allclose(2 * maps[0, 2], maps[1, 2], rtol=1e-6)
    assert np.array_equal(np.delete(maps[0], 2, axis=0), np.delete(maps[1], 2, axis=0))


def test_refining_a_prompt_into_itself_is_the_identity(loaded) -> None:
    """Every token takes from itself (P6)."""
    cat = loaded[0].graphs.text(CAT)
    alignment = refined(cat, cat, 16)

    np.testing.assert_array_equal(np.eye(16), alignment.mapper)
    np.testing.assert_array_equal(np.ones(16), alignment.taken)


def test_refinement_keeps_what_is_new() -> None:
    """Shared tokens take from each other wherever they moved to, a new word has nothing to take from."""
    base, edited = text(("a", 1), ("cat", 1), ("sits", 2)), text(("a", 1), ("red", 2), ("cat", 1), ("sits", 2))
    alignment = align(base, edited, 10)

    assert [1, 1, 0, 0, 1, 1, 1, 1, 1, 1] == alignment.taken.tolist()
    #  begin a, red red, cat sits sits, end and padding; the last padding has two takers
    sources = [0, 1, None, None, 2, 3, 4, 5, 6, 7]
    for column, source in enumerate(sources):
        expected = np.zeros(10) if source is None else np.eye(10)[source]
        np.testing.assert_array_equal(expected, alignment.mapper[:, column])


def test_replacement_shares_out_tokens() -> None:
    """A word of one token becomes one of two: each takes half of it; the words behind it move along."""
    base, edited = text(("a", 1), ("cat", 1), ("sits", 1)), text(("a", 1), ("crocodile", 2), ("sits", 1))
    alignment = replaced(base, edited, 8)

    np.testing.assert_array_equal([0, 0, 1 / 2, 1 / 2, 0, 0, 0, 0], alignment.mapper[2])
    np.testing.assert_array_equal(np.eye(8)[4], alignment.mapper[3])
    np.testing.assert_array_equal(np.eye(8)[5], alignment.mapper[4])  # the end takes from the end
    back = replaced(edited, base, 8)
    np.testing.assert_array_equal([0, 0, 1, 1, 0, 0, 0, 0], back.mapper[:, 2])


def test_a_replacement_needs_as_many_words() -> None:
    """Asked for, it is refused with both numbers; left open, such prompts are refined."""
    one, two = text(("a", 1), ("cat", 1)), text(("a", 1), ("red", 1), ("cat", 1))
    with pytest.raises(InvalidField, match="the base prompt has 2 words and the prompt 3"):
        align(one, two, 8, "replace")
    assert align(one, two, 8).taken.tolist() == refined(one, two, 8).taken.tolist()


def test_words_are_found_by_their_characters(loaded) -> None:
    """Columns of a word are those of its tokens, begin not counted as a word; of every mention; case does not count."""
    found = loaded[0].graphs.text("A cat by the zebra, Cat")

    assert [2, len(found.pieces)] == found.columns_of("cat")
    assert [found.pieces[column - 1].start for column in found.columns_of("zebra")] == list(range(13, 18))
    assert [] == found.columns_of("dog")


def test_words_that_the_prompts_lack_are_refused(loaded) -> None:
    """Weights are for words of the prompt, blend words for words of either; the error names the word."""
    cat, dog = (loaded[0].graphs.text(prompt) for prompt in (CAT, DOG))
    with pytest.raises(InvalidField, match=r"""word_weights\["cat"\] is 'cat'"""):
        Controller(replace(ALL, word_weights={"cat": 2.0}), cat, dog, 16, STEPS)
    with pytest.raises(InvalidField, match=r"blend_words\[0\] is 'cow'"):
        Walk(loaded, replace(ALL, blend_words=("cow",)))


def test_a_blend_keeps_the_base_latents_outside_bit_for_bit() -> None:
    """An all-ones mask changes nothing, all zeros give the base (P7), and half a mask gives halves."""
    base, edited = np.zeros((1, 4, 6, 6), dtype=np.float32), np.ones((1, 4, 6, 6), dtype=np.float32)
    half = np.arange(6) < 3

    assert np.array_equal(edited, blended(base, edited, np.ones((6, 6), bool)))
    assert np.array_equal(base, blended(base, edited, np.zeros((6, 6), bool)))
    assert np.array_equal(blended(base, edited, np.broadcast_to(half, (6, 6))), half * edited)


def test_local_blend_is_where_either_prompts_words_look() -> None:
    """Each word as a prompt of its own, on the branch whose prompt has it: attention in two places gives the union of
    both, one place wider on each side, on latents twice as large; one word's strength does not hide another."""
    latents = np.stack([np.full((4, 16, 16), branch, dtype=np.float32) for branch in range(2)])
    asked: list[tuple[float, float]] = []

    def look(latents: np.ndarray, context: np.ndarray) -> np.ndarray:
        word, maps = context[0, 0], np.full((len(latents), 5, 8, 8), 9, dtype=np.float32)
        asked.extend((word, latent[0, 0, 0]) for latent in latents)
        maps[:, 1] = 0
        maps[:, 1, *((1, 1) if word == 0 else (6, 6))] = 1 + 99 * word
        return maps

    words = [Word(text((name, 1)), np.full((5, 2), at, dtype=np.float32)) for at, name in enumerate(("cat", "dog"))]
    blend = LocalBlend(words, text(("a", 1), ("cat", 1)), text(("a", 1), ("dog", 1)), steps=10)
    expected = np.zeros((16, 16), bool)
    expected[0:6, 0:6] = expected[10:16, 10:16] = True

    assert blend.mask(0, latents, look) is None and blend.mask(1, latents, look) is None
    np.testing.assert_array_equal(expected, blend.mask(2, latents, look))
    assert [(0, 0), (1, 1)] * 3 == asked


def test_a_word_of_both_prompts_is_looked_for_in_both_branches(loaded) -> None:
    """And costs a pass of two rows for each step; a word of one prompt costs one row."""
    walk = Walk(loaded, replace(NOTHING, blend_words=("beach", "dog")), guidance=3.0)

    assert [1] * STEPS + [4, 2, 1] * STEPS == [len(latents) for latents, _, _ in walk.calls]


def test_local_blend_confines_the_edit(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of its last mask the edited latents are the base image's, bit for bit, inside they are not."""
    monkeypatch.setattr(local_blend, "THRESHOLD", 0.97)  # the attention of a random model is nearly even
    plain, local = (Walk(loaded, AttentionEdit(0, 0, blend_words=words)) for words in ((), ("cat", "dog")))
    is_kept = (local.edited == local.latent).all(axis=1)

    assert not (plain.edited == plain.latent).all(axis=1).any()
    assert 0 < is_kept.mean() < 1


def test_local_blend_warns_of_a_mask_that_keeps_nothing_or_everything() -> None:
    """With the words that are to blame and a remedy, by the last step's mask; a mask of some places is no reason."""
    latents = np.zeros((2, 4, 8, 8), dtype=np.float32)
    whole, some, none = np.ones((8, 8)), np.zeros((8, 8)), np.zeros((8, 8))
    some[:, :3] = 1

    def warning(*seen: np.ndarray) -> str:
        words = [Word(text((name, 1)), np.full((5, 2), at)) for at, name in enumerate(("cat", "dog")[: len(seen)])]
        blend = LocalBlend(words, text(("cat", 1)), text(("dog", 1)), steps=2)
        assert blend.warning() == ""  # there is no mask yet
        for step in range(2):
            blend.mask(step, latents, lambda _, context: np.tile(seen[int(context[0, 0])], (1, 5, 1, 1)))
        return blend.warning()

    assert "keeps nothing of the picture, since 'dog' look everywhere: name smaller" in warning(some, whole)
    assert "since 'cat' and 'dog' look everywhere" in warning(some, 1 - some)
    assert "keeps all of the picture, since 'cat' and 'dog' look nowhere: name what" in warning(none, none)
    assert warning(some) == warning(some, none) == ""


def test_null_texts_embeddings_stand_in_the_empty_prompts_place(loaded) -> None:
    """Each at its own step; where all are the empty prompt's the walk is plain DDIM inversion's, bit for bit (P9); a
    late start takes the last ones."""
    graphs = loaded[0].graphs
    empty, beach = graphs.embed(""), graphs.embed("beach")
    ddim = Walk(loaded, replace(ALL, inversion="ddim"))
    same = Walk(loaded, replace(ALL, inversion="null_text", nulls=np.stack([empty] * STEPS)))
    assert np.array_equal(ddim.edited, same.edited)

    nulls = np.stack([empty + np.float32(step) * beach for step in range(STEPS)])
    for strength, first in ((1.0, 0), (0.6, 2)):
        walk = Walk(loaded, replace(ALL, inversion="null_text", nulls=nulls), strength=strength)
        guided = [contexts for contexts in walk.contexts if len(contexts) == 4]
        assert len(guided) == STEPS - first
        for step, contexts in enumerate(guided, start=first):
            assert np.array_equal(contexts[2], nulls[step]) and np.array_equal(contexts[3], nulls[step])
        assert not np.array_equal(walk.edited, ddim.edited)


def test_null_texts_base_branch_is_what_the_tuner_found(loaded, tiny_model) -> None:
    """The sampler inverts again and denoises with the tuner's embeddings to where these led in the tuner, which
    is nearer to the picture's latent than plain DDIM inversion comes."""
    import torch  # slow to import

    from tuner_svc.base_model import load
    from tuner_svc.methods import null_text
    from tuner_svc.tune import tune
    from tuner_svc.tuning_config import TuningConfig

    model, landed = load(tiny_model), []

    class Watched(null_text.GuidedStep):
        def landing(self, null: torch.Tensor) -> torch.Tensor:
            landed.append(super().landing(null))
            return landed[-1]

    config = TuningConfig(
        method="null_text", base_prompt=CAT, num_inference_steps=STEPS, guidance_scale=3.0, updates=8,
        learning_rate=0.01,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(null_text, "GuidedStep", Watched)
        nulls = tune(model, images.to_model(images.decode(picture()), model.image_side), config).extras["nulls"]

    tuned = Walk(loaded, replace(ALL, inversion="null_text", nulls=nulls.numpy()), CAT, CAT)
    ddim = Walk(loaded, replace(ALL, inversion="ddim"), CAT, CAT)

    np.testing.assert_allclose(tuned.edited, landed[-1].numpy(), atol=1e-3)
    assert np.linalg.norm(tuned.edited - tuned.latent) < 0.9 * np.linalg.norm(ddim.edited - ddim.latent)


def test_direct_inversion_keeps_the_base_branch_on_the_picture(loaded) -> None:
    """Its branch is at every step what inversion found there, so its end is the picture; plain DDIM's drifts away."""
    direct, drifting = (Walk(loaded, replace(ALL, inversion=inversion)) for inversion in ("direct", "ddim"))
    # the inversion's own calls: each is asked about the latents at the quieter end of a step
    found = [latents for latents, _, _ in direct.calls if len(latents) == 1][::-1]

    assert np.array_equal(direct.latent, found[-1])
    assert all(np.array_equal(one, two) for one, two in zip(direct.base_branch()[1:], found[:-1], strict=True))
    assert not np.array_equal(direct.base_branch()[-1], drifting.base_branch()[-1])


def test_inversion_comes_back_nearer_with_more_steps(loaded) -> None:
    """There and back without guidance, the distance to the picture's latent falls from 20 to 50 to 200 steps (P10)."""
    model, engine = loaded
    latent = model.graphs.encode(images.to_model(images.decode(picture()), model.spec.image_side))
    context, kind = model.graphs.embed(CAT)[None], model.schedule.prediction_type

    def output(latents: np.ndarray, timestep: int) -> np.ndarray:
        return engine.run(latents, np.array([timestep]), context)

    errors = []
    for steps in (20, 50, 200):
        run = SCHEDULERS["ddim"].run(model.schedule, steps)
        *_, latents = inverted(latent, run, output, kind)
        for timestep, level, next_level in run:
            prediction = predict(output(latents, timestep), latents, level, kind)
            latents = FirstOrder().step(latents, prediction, level, next_level)
        errors.append(np.linalg.norm(latents - latent) / np.linalg.norm(latent))

    assert errors[0] > errors[1] > errors[2], errors
    assert errors[2] < 0.5 * errors[0], errors


def test_steps_are_counted_through_both_ways(loaded) -> None:
    """Inversion and edit are 2 * 5 steps, and cost 5 passes of one row and 5 of four, or of two without guidance."""
    for guidance, rows in ((3.0, 4), (1.0, 2)):
        walk = Walk(loaded, ALL, guidance=guidance)
        assert 2 * STEPS == walk.num_steps
        assert [1] * STEPS + [rows] * STEPS == [len(latents) for latents, _, _ in walk.calls]


def test_what_is_outside_of_a_mask_is_the_base_branch(loaded) -> None:
    """`keep` has the last word at each step: keeping all of the base branch gives the picture's latent back."""
    walk = Walk(loaded, NOTHING, keep=lambda base, edited: base)
    assert np.array_equal(walk.latent, walk.edited)
