"""EditBench: its cases, what it measures, and its statistics."""

import argparse
import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from bench.editbench import cases as cases_module
from bench.editbench import rivals
from bench.editbench.__main__ import methods_of, on_same_cases
from bench.editbench.cases import CATEGORIES, Case, Picture, drawn, load
from bench.editbench.intervals import estimate, preference
from bench.editbench.pictures import chosen
from bench.editbench.results import Result, result_file, save
from bench.editbench.scores import MAX_PSNR_DB, Score, score
from bench.editbench.settings import automatic_points, setting_of
from bench.editbench.sweep import GRIDS, cases_for, expected, settings_of
from bench.editbench.worker import Worker
from sampler_svc.build.folder import build
from stickerbook.judge import Judge
from stickerbook.render import kept_pixels, render
from stickerbook.world import is_held_out
from unitune.base_model import Preset


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


def all_cases(split: str = "test") -> list[Case]:
    return [case for picture in load(split) for case in picture.cases]


def test_cases_on_disk_are_those_that_the_code_draws():
    """The versioned file and the program that draws it agree."""
    assert json.loads(cases_module.FILE.read_text()) == drawn()


def test_a_file_of_another_version_is_refused(tmp_path):
    """Cases of another version are not read as if they were ours."""
    (tmp_path / "cases.json").write_text('{"version": 99, "pictures": []}')

    with pytest.raises(ValueError, match="version 99"):
        load("test", path=tmp_path / "cases.json")


def test_splits_are_held_out_and_share_no_picture():
    """No picture of either split could have been drawn in training, and none is in both."""
    test, development = load("test"), load("development")

    assert all(is_held_out(p.scene.object, p.scene.place) for p in [*test, *development])
    assert not {p.scene for p in test} & {p.scene for p in development}


def test_there_are_enough_cases_of_every_category():
    """At least 200 edits in all, 24 quick ones, every category in each."""
    quick = [case for picture in load("test", quick=True) for case in picture.cases]

    assert len(all_cases()) >= 200 and len(quick) == 24
    assert {c.category for c in all_cases()} == {c.category for c in quick} == set(CATEGORIES)


def test_an_edit_changes_what_it_says_and_is_aligned_when_most_pixels_stay():
    """Each case asks for something new, and its split is the ground truth's."""
    for case in all_cases("development"):
        assert case.wanted != case.scene
        kept = kept_pixels(render(case.scene), render(case.wanted)).mean()
        assert case.aligned == (kept >= cases_module.ALIGNED_SHARE)


def test_the_ground_truth_itself_is_the_best_edit(judge):
    """Nearly every ground truth is read as a success, keeps its pixels and has distance 0."""
    scores = [score(case, render(case.wanted), judge) for case in all_cases("development")]

    assert np.mean([s.success for s in scores]) > 0.9
    assert all(s.distance == 0 for s in scores)
    assert min(s.kept_psnr_db for s in scores if s.kept_psnr_db is not None) > 30
    assert max(s.kept_psnr_db for s in scores if s.kept_psnr_db is not None) <= MAX_PSNR_DB


def test_the_base_image_left_alone_is_no_success(judge):
    """An edit that does nothing fails, however well it keeps the pixels."""
    scores = [score(case, render(case.scene), judge) for case in all_cases("development")]

    assert np.mean([s.success for s in scores]) < 0.1
    assert all(s.change == 0 and s.distance > 0 for s in scores)


def test_intervals_draw_whole_pictures():
    """Ten equal edits of one picture are one observation, not ten."""
    same = estimate([("a", 1.0)] * 10 + [("b", 0.0)] * 10)
    apart = estimate([(str(i), float(i % 2)) for i in range(20)])

    assert same.mean == apart.mean == 0.5
    assert (same.low, same.high) == (0.0, 1.0)
    assert apart.low > 0.2 and apart.high < 0.8
    assert estimate([]) is None


def result(case: str, distance: float, *, aligned: bool = True, success: bool = True) -> Result:
    found = Score(success, 1.0, 30.0, 0.9, distance, 0.1)
    return Result(case, case[:3], "object", aligned, "x", "a cat", "x.png", found, 0.1, 1.0, 7)


def test_preference_counts_the_nearer_picture_and_halves_ties():
    """Closer to the ground truth wins; the same distance is half a win; aligned and unaligned are told apart."""
    ours = [result("t01", 0.1), result("t02", 0.2), result("t03", 0.3, aligned=False)]
    theirs = [result("t01", 0.2), result("t02", 0.2), result("t03", 0.1, aligned=False)]

    wins = preference(ours, theirs)

    assert (wins["all"].mean, wins["aligned"].mean, wins["unaligned"].mean) == (0.5, 0.75, 0.0)


def test_sheets_take_failures_as_the_worst():
    """A success that is far from the truth still ranks before a failure that is near."""
    cases = all_cases("development")[:3]
    found = [result(cases[0].id, 0.5), result(cases[1].id, 0.1, success=False), result(cases[2].id, 0.2)]

    assert [c.id for c in chosen(cases, found, "best", 1)] == [cases[2].id]
    assert [c.id for c in chosen(cases, found, "worst", 1)] == [cases[1].id]


def test_a_result_is_found_again_under_the_same_setting_only(tmp_path):
    """Results on disk are keyed by all that they follow from, and not by the setting's name."""
    case, setting = all_cases("development")[0], setting_of(Preset(), "unitune")
    path = result_file(tmp_path, "model", case, setting)
    path.parent.mkdir()
    fields = {key: value for key, value in vars(result(case.id, 0.1)).items() if key not in ("image", "score")}
    save(path, render(case.scene), fields, Score(True, 1.0, None, None, 0.1, 0.2))

    again = Result.read(result_file(tmp_path, "model", case, replace(setting, name="other name")), "other name")

    assert again.setting == "other name" and again.score == Score(True, 1.0, None, None, 0.1, 0.2)
    assert not result_file(tmp_path, "model", case, replace(setting, strength=0.11)).exists()
    assert not result_file(tmp_path, "another model", case, setting).exists()


def test_sdedit_runs_at_its_own_settings_of_the_preset():
    """Its strength and guidance are not UniTune's, and nothing is mixed back, as in its paper."""
    preset = Preset(strength=0.9, interpolation=1.0, methods={"sdedit": {"strength": 0.4, "guidance_scale": 3.0}})

    ours, theirs = setting_of(preset, "unitune"), setting_of(preset, "sdedit")

    assert (ours.strength, ours.guidance_scale, ours.interpolation) == (0.9, 7.5, 1.0)
    assert (theirs.strength, theirs.guidance_scale, theirs.interpolation) == (0.4, 3.0, 0.0)
    assert theirs.tuning is None and not theirs.rare_tokens


def a_case(**changes: str) -> Case:
    """A case of the development split with changes of its own."""
    case = next(c for c in all_cases("development") if c.scene.style == "drawing" and c.scene.second == "none")
    return replace(case, changes=changes)


def test_each_method_is_told_of_a_case_in_its_own_words():
    """Imagic tunes for the prompt; DreamBooth and Textual Inversion for the object, whose place in the prompt they take
    or stand before; a prompt without the object stays plain."""
    case, other = a_case(weather="fog"), a_case(style="mosaic")
    noun = case.scene.object
    imagic, dreambooth, inversion = (setting_of(Preset(), m) for m in ("imagic", "dreambooth", "textual_inversion"))

    assert imagic.tuning_of(case).prompt == case.prompt == imagic.prompt_of(case)
    assert imagic.tuning_of(case) != imagic.tuning_of(other)
    assert dreambooth.tuning_of(case) == dreambooth.tuning_of(other)
    assert dreambooth.tuning_of(case).class_noun == inversion.tuning_of(case).initial_word == noun
    assert dreambooth.prompt_of(case) == case.prompt.replace(noun, f"beikkpic {noun}", 1)
    assert inversion.prompt_of(case) == case.prompt.replace(noun, "beikkpic", 1)
    assert setting_of(Preset(), "unitune").prompt_of(case) == f"beikkpic {case.prompt}"
    swapped = a_case(object="tent" if noun != "tent" else "cat")
    assert dreambooth.prompt_of(swapped) == inversion.prompt_of(swapped) == swapped.prompt
    with pytest.raises(ValueError, match="magic"):
        setting_of(Preset(), "magic")


def test_a_method_runs_at_the_presets_own_values():
    """What the preset says for a method is in its tuning, its sampling and its key; published values are the rest."""
    preset = Preset(methods={"imagic": {"learning_rate": 3e-4, "eta": 0.4, "guidance_scale": 3.0}})
    published, own = setting_of(Preset(), "imagic"), setting_of(preset, "imagic")

    assert (published.tuning.learning_rate, published.eta, published.strength) == (2e-6, 0.7, 1.0)
    assert (own.tuning.learning_rate, own.eta, own.guidance_scale, own.tuning.updates) == (3e-4, 0.4, 3.0, 1000)
    assert published.key("model", "case") != own.key("model", "case")
    assert [point.method for point in automatic_points(preset)] == ["unitune"] * 3


@pytest.mark.parametrize("ends", [(0.5, 7.0), (0.5, math.inf), (0.0, 7.0), (0.0, math.inf)])
def test_the_whole_interval_of_guidance_is_the_presets(ends):
    """Both ends are in the setting and in its key; the points of automatic settings are guided at every step."""
    preset = Preset(guidance_sigma_low=ends[0], guidance_sigma_high=ends[1])
    setting = setting_of(preset, "unitune")

    assert (setting.guidance_sigma_low or 0.0, setting.guidance_sigma_high or math.inf) == ends
    assert (setting.key("model", "case") == setting_of(Preset(), "unitune").key("model", "case")) == (
        ends == (0.0, math.inf)
    )
    assert automatic_points(preset) == automatic_points(Preset())
    assert setting_of(preset, "sdedit") == setting_of(Preset(), "sdedit")


def test_results_without_a_lower_end_keep_their_names():
    """The key of such a setting is over the fields that settings had before there was one."""
    setting = setting_of(Preset(guidance_sigma_high=7.0), "unitune").at("", tuning=None)
    fields = {
        "name": "",
        "method": "unitune",
        "tuning": None,
        "strength": 0.85,
        "guidance_scale": 7.5,
        "interpolation": 0.0,
        "scheduler": "ddim",
        "num_inference_steps": 50,
        "rare_tokens": "beikkpic",
        "eta": 0.7,
        "guidance_sigma_high": 7.0,
    }
    expected = hashlib.sha256(json.dumps(["model", "case", fields], sort_keys=True).encode()).hexdigest()

    assert setting.key("model", "case") == expected[:24]
    assert setting.at("", guidance_sigma_low=0.5).key("model", "case") != expected[:24]


def test_prompt_to_prompt_has_settings_of_its_own():
    """Its shares are the preset's, in its key and in no other method's: results of those are found as before."""
    preset = Preset(methods={"prompt_to_prompt": {"cross_replace": 0.8, "self_replace": 0.2, "guidance_scale": 5.0}})
    published, own = setting_of(Preset(), "prompt_to_prompt"), setting_of(preset, "prompt_to_prompt")

    assert (published.cross_replace, published.self_replace, published.strength) == (0.4, 0.6, 1.0)
    assert (own.cross_replace, own.self_replace, own.guidance_scale) == (0.8, 0.2, 5.0)
    assert own.tuning is None and own.key("model", "case") != own.at("", self_replace=0.6).key("model", "case")
    assert setting_of(preset, "sdedit") == setting_of(Preset(), "sdedit")
    assert setting_of(Preset(), "sdedit").cross_replace is None


def edited_by_a_worker(case, settings, tiny_model, tiny_graphs, folder):
    """The result files of one case under these settings, by a worker on an engine of its own."""
    engine = build(tiny_graphs, folder / "engine")
    (folder / "results").mkdir()
    picture = Picture(case.picture, "development", case.scene, (case,))
    Worker(tiny_model, engine, "digest", folder).run(picture, settings)
    return [result_file(folder, "digest", case, setting) for setting in settings]


def test_a_worker_edits_beside_the_base_image(tiny_model, tiny_graphs, tmp_path):
    """Prompt-to-Prompt runs on the engine with control over attention, under the scene's caption, and SDEdit beside
    it on the ordinary one; each share has its effect."""
    case = next(c for c in all_cases("development") if c.category == "object")
    beside = setting_of(Preset(num_inference_steps=4, guidance_scale=3.0), "prompt_to_prompt")
    settings = (
        beside.at("beside"),
        beside.at("more", cross_replace=1.0),
        beside.at("less", self_replace=0.0),
        setting_of(Preset(num_inference_steps=4), "sdedit"),
    )

    files = edited_by_a_worker(case, settings, tiny_model, tiny_graphs, tmp_path)

    found = [Result.read(file, setting.name) for file, setting in zip(files, settings, strict=True)]
    assert [r.tuning_s for r in found] == [0.0] * 4 and len(
        {(tmp_path / "results" / r.image).read_bytes() for r in found}
    ) == 4


def test_a_worker_guides_within_the_interval_alone(tiny_model, tiny_graphs, tmp_path):
    """With a lower end above every step's sigma an edit is the unguided one; within the steps it is another yet."""
    case = next(c for c in all_cases("development") if c.category == "object")
    guided = setting_of(Preset(num_inference_steps=4, guidance_scale=3.0), "sdedit")
    settings = (
        guided.at("guided"),
        guided.at("unguided", guidance_scale=1.0),
        guided.at("above all", guidance_sigma_low=10_000.0),
        guided.at("noisier steps alone", guidance_sigma_low=1.0),
    )

    files = edited_by_a_worker(case, settings, tiny_model, tiny_graphs, tmp_path)

    pngs = [file.with_suffix(".png").read_bytes() for file in files]
    assert pngs[1] == pngs[2] and len(set(pngs)) == 3


@pytest.mark.parametrize("method", GRIDS)
def test_a_sweep_fits_into_minutes_and_gives_rows_for_the_preset(method):
    """Every combination is a setting of its own whose row, put into the preset, gives it again; on two cores the grid
    takes less than a quarter of an hour."""
    tried, pictures = settings_of(Preset(batch=4), method, GRIDS[method]), cases_for(method)

    assert len(tried) == np.prod([len(values) for values in GRIDS[method].values()], dtype=int)
    for setting, row in tried.items():
        assert setting_of(Preset(batch=4, methods={method: row}), method) == replace(setting, name=method)
    assert expected(list(tried), pictures) / 2 < 15 * 60
    if method == "imagic":
        assert [p.cases[0].category for p in pictures] == list(CATEGORIES)
        assert len({p.id for p in pictures}) == len(CATEGORIES)


def test_rivals_are_compared_on_the_same_cases():
    """Rows on other cases than UniTune's are refused; the quick subset is cut out of all cases."""
    ours = [result("t01", 0.1), result("t02", 0.2)]
    theirs = [result("t01", 0.2, success=False), result("t02", 0.1)]
    pictures = [replace(load("test")[0], id="t01")]

    found = rivals.rows({"unitune": ours, "imagic": theirs})

    assert found["imagic"]["preference_over_unitune"]["all"]["mean"] == 0.5
    assert found["imagic"]["tuning_per"] == "prompt" and found["imagic"]["artifact_bytes"] == 7
    assert found["unitune"]["preference_over_unitune"] == {} and found["imagic"]["success"]["mean"] == 0.5
    with pytest.raises(ValueError, match="imagic ran on other cases"):
        rivals.rows({"unitune": ours, "imagic": theirs[:1]})
    assert [len(v) for v in on_same_cases({"a": ours, "b": theirs}, ["b", "a"], pictures).values()] == [1, 1]
    text = rivals.table(found, [], "the same 2 cases")
    assert "all rows on the same 2 cases" in text and "| imagic | 50.0 % (0-100) | 30.0 | 50.0 % (0-100) |" in text


def test_papers_stand_beside_what_ran():
    """A paper's figure has a row when both of its methods ran; about the prompt, being right decides, else nearness."""
    right = [result(f"t{i}", 0.2) for i in range(10, 20)]
    wrong = [result(f"t{i}", 0.1, success=False) for i in range(10, 20)]

    rows = rivals.beside_papers({"unitune": right, "dreambooth": right, "textual_inversion": wrong})

    assert [(row["ours"], row["agrees"]) for row in rows] == [("0.0 % (0-0)", False), ("100.0 % (100-100)", True)]


def test_methods_are_named_with_commas():
    """Each once, in order; an unknown one is refused by name."""
    assert methods_of("imagic,unitune,imagic") == ("imagic", "unitune")
    with pytest.raises(argparse.ArgumentTypeError, match="'magic' is not a method"):
        methods_of("magic")
