"""Questions, weights, components and sharing; and every mistake is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from draft_reward_vlm import VlmConfig, loading
from draft_reward_vlm.questions import SETS
from draft_reward_vlm.tiny import tiny
from PIL import Image
from transformers import CLIPConfig
from typer.testing import CliRunner

from draft_core import load_reward
from draft_core.cli.app import app
from draft_core.errors import DraftError
from draft_core.plugin import PretrainedSpec
from draft_core.recipe.load import load_recipe
from draft_core.registry.catalog import Catalog, Distribution, Entry, load_catalog
from draft_core.rewards.images import read_image
from draft_core.runs.build import build_objective, reward_config

CATALOG = load_catalog()
SMALL = {"model": "tiny", "dtype": "float32"}
PROMPTS = ["a red cat", "two dogs"]
SHARP = {"ask": "Is it sharp?", "name": "sharp"}


def reward(**fields: Any) -> Any:
    return load_reward("vlm", **{**SMALL, **fields})


def images(count: int = 2, height: int = 64, width: int = 48) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def test_the_score_is_the_weighted_mean_of_the_components() -> None:
    asked = [{**SHARP, "weight": 3}, {"ask": 'Is it "{prompt}"?', "weight": -1, "score": "probability"}]
    made = reward(questions=asked)
    scores, parts = made.score_with_components(images(), PROMPTS)
    assert list(parts) == ["sharp", "question 2"]
    torch.testing.assert_close(scores, (3 * parts["sharp"] - parts["question 2"]) / 4)
    torch.testing.assert_close(made(images(), PROMPTS), scores)
    assert (parts["question 2"] > 0).all()
    assert (parts["question 2"] < 1).all()
    alone = reward(questions=[{**SHARP, "score": "probability"}, {**SHARP, "name": "log", "score": "log-probability"}])
    parts = alone.score_with_components(images(), PROMPTS)[1]
    torch.testing.assert_close(parts["sharp"].log(), parts["log"])


def test_contrast_is_against_any_of_the_other_answers() -> None:
    one = {"score": "log-probability"}
    asked = [
        {"ask": "Is it?", "against": ["No", "no"], "name": "contrast"},
        *({"ask": "Is it?", "answer": word, "name": word, **one} for word in ("Yes", "No", "no")),
    ]
    parts = reward(questions=asked).score_with_components(images(), PROMPTS)[1]
    others = (parts["No"].exp() + parts["no"].exp()).log()
    torch.testing.assert_close(parts["contrast"], parts["Yes"] - others, rtol=1e-4, atol=1e-5)


def test_a_caption_is_scored_by_its_mean_over_tokens() -> None:
    caption = {"ask": "Describe this.", "answer": "{prompt}", "score": "log-probability"}
    made = reward(questions=[caption])
    found = made(images(), PROMPTS)
    assert found.shape == (2,)
    assert (found < 0).all()
    assert not torch.equal(found, made(images(), PROMPTS[::-1]))


@pytest.mark.parametrize("name", list(SETS))
def test_a_shipped_set_is_asked_by_its_name(name: str) -> None:
    parts = reward(questions=[name]).score_with_components(images(1), PROMPTS[:1])[1]
    assert list(parts) == [question.name for question in SETS[name]]
    assert len(parts) >= 4


def test_questions_of_a_file_are_those_of_the_prompt(tmp_path: Path) -> None:
    file = tmp_path / "questions.json"
    own = {
        "a red cat": ["Is the cat red?", {"ask": "Is it a dog?", "answer": "No", "against": ["Yes"]}],
        "two dogs": [],
    }
    file.write_text(json.dumps(own))
    made = reward(questions=[SHARP], question_file=str(file))
    scores, parts = made.score_with_components(images(), PROMPTS)
    assert list(parts) == ["sharp", "question_file"]
    assert parts["question_file"].isnan().tolist() == [False, True]
    torch.testing.assert_close(scores[1], parts["sharp"][1])
    torch.testing.assert_close(scores[0], (parts["sharp"][0] + 2 * parts["question_file"][0]) / 3)
    with pytest.raises(DraftError, match=r"vlm., question_file: it has no questions for the prompt 'three'; add it"):
        made(images(1), ["three"])
    empty = reward(questions=[], question_file=str(file))
    with pytest.raises(DraftError, match="an image is asked nothing"):
        empty(images(1), ["two dogs"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "no object of lists"),
        ('{"a": "Is it?"}', "no object of lists"),
        ('{"a": [{"asked": "Is it?"}]}', "question 0.ask of the prompt 'a': Field required"),
        ('{"a": ["Is it {pormpt}?"]}', "question 0.ask of the prompt 'a': .*pormpt"),
    ],
)
def test_a_torn_question_file_is_one_sentence(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "questions.json"
    file.write_text(content)
    with pytest.raises(DraftError, match=said):
        reward(question_file=str(file))


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        (["alignmnet"], "'alignmnet' is no set of questions .alignment, physics, quality."),
        ([], "ask at least one"),
        ([{"ask": "Is it {colour}?"}], "{colour} stands for nothing; only {prompt} does"),
        ([{**SHARP, "weight": 0}], "weight is 0"),
        ([{**SHARP, "against": []}], "against is empty"),
        ([{**SHARP, "against": ["Yes"]}], "both the answer and one of those against"),
        ([{**SHARP, "score": "probability", "against": ["No"]}], "against is given, which score probability does not"),
        ([{**SHARP, "answer": "{prompt}"}], "set score to log-probability"),
        ([SHARP, SHARP], "'sharp' twice"),
    ],
)
def test_questions_that_say_nothing_are_refused(questions: list[Any], said: str) -> None:
    with pytest.raises(DraftError, match=said):
        reward_config("vlm", {**SMALL, "questions": questions}, CATALOG)


def test_a_bare_question_is_to_be_answered_with_yes() -> None:
    asked = ["Is it red?", "Really?", "quality"]
    named = [{"ask": "Is it red?"}, {"ask": "Really?"}, "quality"]
    assert VlmConfig(questions=asked) == VlmConfig(questions=named)  # type: ignore[arg-type]


def test_answers_that_the_first_token_does_not_decide_are_refused() -> None:
    long = reward(questions=[{**SHARP, "answer": "Certainly"}])
    with pytest.raises(DraftError, match=r"the answer 'Certainly' to 'Is it sharp.' has 10 tokens .* log-probability"):
        long(images(1), ["a"])
    same = reward(questions=[{**SHARP, "against": [" Yes"]}])
    with pytest.raises(DraftError, match="begin with the same token; take other words"):
        same(images(1), ["a"])


def test_what_is_remembered_in_inference_mode_has_a_gradient_later() -> None:
    made = reward(questions=[SHARP])
    with torch.inference_mode():
        first = made(images(), PROMPTS)
    leaf = images().requires_grad_()
    again = made(leaf, PROMPTS)
    assert torch.equal(first, again)
    assert torch.autograd.grad(again.sum(), leaf)[0].ne(0).any()


def test_vqascore_is_the_probability_of_yes() -> None:
    made = load_reward("vqascore", **SMALL)
    question = 'Does this figure show "{prompt}"? Please answer Yes or No.'
    by_vlm = reward(questions=[{"ask": question, "score": "probability"}])
    assert torch.equal(made(images(), PROMPTS), by_vlm(images(), PROMPTS))
    for fields, said in (
        ({"ask": "Is it?"}, "ask: it lacks {prompt}"),
        ({"layout": "Q:"}, "layout: it lacks {question}"),
    ):
        with pytest.raises(DraftError, match=said):
            load_reward("vqascore", **SMALL, **fields)


def test_entries_with_the_same_model_share_it() -> None:
    fields = [{"questions": ["physics"]}, {"questions": ["quality"]}, {"seed": 1}, {"device": "cpu"}]
    configs = [reward_config("vlm", {**SMALL, **more}, CATALOG) for more in fields]
    configs.append(reward_config("vqascore", SMALL, CATALOG))
    made = list(build_objective(configs, CATALOG).rewards.values())
    models = [getattr(one, "reward", one).critic.model for one in made]
    assert models[0] is models[1] is models[4]
    assert len({id(model) for model in models}) == 3


def test_videos_are_shown_whole_or_frame_by_frame() -> None:
    videos = images(6).unflatten(0, (2, 3))
    whole, each = (
        build_objective([reward_config("vlm", {**SMALL, "questions": [SHARP], "frames": frames}, CATALOG)], CATALOG)
        for frames in ("images", "each")
    )
    frames = reward(questions=[SHARP])(videos.flatten(0, 1), [p for p in PROMPTS for _ in range(3)])
    torch.testing.assert_close(each(videos, PROMPTS).per_reward["vlm"], frames.view(2, 3).mean(1))
    together = whole(videos, PROMPTS).per_reward["vlm"]
    assert together.shape == (2,)
    assert not torch.allclose(together, frames.view(2, 3).mean(1))
    with pytest.raises(DraftError, match="levels run from"):
        whole(videos * 255, PROMPTS)


def test_a_few_frames_of_a_video_are_shown_and_have_all_of_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first to the last; with a planted bug, the first ones, the check fails."""
    videos = images(16, 32, 32).unflatten(0, (2, 8)).requires_grad_()
    few, all_ = (reward(questions=[SHARP], frames="images", frame_count=count) for count in (3, None))

    def check() -> None:
        scores = few(videos, PROMPTS)
        torch.testing.assert_close(scores, all_(videos[:, [0, 4, 7]], PROMPTS))
        (gradient,) = torch.autograd.grad(scores.sum(), videos)
        assert gradient.ne(0).flatten(2).any(2).tolist() == [[place in (0, 4, 7) for place in range(8)]] * 2

    check()
    assert reward(questions=[SHARP], frame_count=1)._evenly(1, 8) == [4]
    monkeypatch.setattr(few, "_evenly", lambda count, total: list(range(count)))
    with pytest.raises(AssertionError):
        check()


def test_a_count_of_frames_that_nothing_would_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match="frame_count is given, which frames: each does not use; set frames to images"):
        reward(questions=[SHARP], frames="each", frame_count=3)
    with pytest.raises(DraftError, match="frame_count: it is to be shown 3 frames of videos that have 2; choose fewer"):
        reward(questions=[SHARP], frame_count=3)(images(4).unflatten(0, (2, 2)), PROMPTS)
    with pytest.raises(DraftError, match="frame_count: the model makes images, which have no frames to choose from"):
        reward(questions=[SHARP], frame_count=3)(images(2), PROMPTS)
    model, processor = tiny("smolvlm", seed=3)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(DraftError, match=r"frame_count: SmolVLM.* is shown videos whole; set frames to images"):
        reward(model=str(tmp_path), questions=[SHARP], frame_count=3)


@pytest.mark.parametrize("shape", ["qwen2.5-vl", "smolvlm", "blip"])
def test_a_saved_model_is_loaded_from_its_folder(tmp_path: Path, shape: str) -> None:
    model, processor = tiny(shape, seed=3)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    made = reward(model=str(tmp_path), questions=[SHARP])
    assert made(images(), PROMPTS).shape == (2,)
    assert all(torch.equal(a, b) for a, b in zip(made.critic.model.parameters(), model.parameters(), strict=True))
    half = reward(model=str(tmp_path), questions=[SHARP], dtype="bfloat16")
    assert half.critic.model.dtype == torch.bfloat16
    torch.testing.assert_close(half(images(), PROMPTS), made(images(), PROMPTS), rtol=0.2, atol=0.2)


def test_models_of_other_tasks_are_refused_before_they_load(tmp_path: Path) -> None:
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(DraftError, match="is a 'clip', which has no image-text-to-text class in transformers; choose"):
        reward(model=str(tmp_path))
    with pytest.raises(DraftError, match=r"reward 'vqascore', model: there is no folder 'nowhere/at/all'"):
        load_reward("vqascore", model="nowhere/at/all")
    with pytest.raises(DraftError, match=r"reward 'vlm', model: unknown model 'tinny'; did you mean 'tiny'"):
        reward(model="tinny")


def test_the_alias_of_an_installed_distribution_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny("llava", seed=3)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    spec = PretrainedSpec(alias="seer", summary="", folder=tmp_path, license="MIT", task="image-text-to-text")
    catalog = Catalog(critics={"seer": Entry(spec, Distribution("draft-good", "1.0"))})
    monkeypatch.setattr(loading, "load_catalog", lambda: catalog)
    made = reward(model="seer", questions=[SHARP])
    assert torch.equal(made(images(), PROMPTS), reward(model=str(tmp_path), questions=[SHARP])(images(), PROMPTS))


def test_words_that_the_model_has_no_token_for_are_refused() -> None:
    """Of a tokenizer of whole words, all unknown ones would be read as the same."""
    made = reward(questions=[SHARP])
    tokenizer = made.critic.processor.tokenizer
    assert made(images(), PROMPTS).shape == (2,)
    tokenizer.unk_token = "z"
    for question, answer, word in (("Is it a zebra?", "Yes", "zebra"), ("Is it sharp?", "z", "z")):
        with pytest.raises(DraftError, match=f"reward 'vlm': Llava.* does not know '{word}' in"):
            made.critic.ask(question, (answer, "No"), (3, 64, 48))


def test_what_it_is_given_is_shown() -> None:
    """`draft rewards show` says that it takes images and whole videos."""
    shown = CliRunner().invoke(app, ["rewards", "show", "vlm"])
    assert shown.exit_code == 0, shown.output
    assert "images, and whole videos" in " ".join(shown.output.split())


def test_questions_that_name_no_prompt_need_none(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    red, runner = str(tmp_path / "red.png"), CliRunner()
    given = ["score", red, "-r", "vlm", "--set", "model=tiny", "--set", "dtype=float32", "--json"]
    told = runner.invoke(app, [*given, "--set", "questions=[physics]"])
    alone = reward(questions=["physics"])(torch.stack([read_image(Path(red))[0]]))
    assert json.loads(told.stdout)["scores"][0]["score"] == pytest.approx(alone.item())
    for questions in (
        "[alignment]",
        '[{ask: "Is it {prompt}?"}]',
        '[{ask: a b, answer: "{prompt}", score: log-probability}]',
    ):
        assert (
            "scores images against a prompt" in runner.invoke(app, [*given, "--set", f"questions={questions}"]).stderr
        )


def test_more_frames_than_training_decodes_are_refused_with_the_recipe() -> None:
    recipe = {
        "model": {"pretrained": "emoji"},
        "prompts": ["a cat"],
        "rewards": [{"kind": "vlm", **SMALL, "frames": "images", "frame_count": 3}],
        "train": {"frames": {"count": 2}},
    }
    with pytest.raises(DraftError, match=r"rewards\.0: reward 'vlm' looks at 3 frames .* decodes 2; .* to 3 or more"):
        load_recipe(recipe, catalog=CATALOG)
    load_recipe({**recipe, "train": {"frames": {"count": 3}}}, catalog=CATALOG)
