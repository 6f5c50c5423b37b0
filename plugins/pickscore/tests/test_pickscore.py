"""What the comparison with the reference does not show: precision, prompts read once, folders, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from draft_reward_pickscore import PickScoreConfig, draft_register_rewards
from draft_reward_pickscore.reward import PickScoreReward, load_clip
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from draft_core.errors import DraftError
from draft_core.testing import Subject

(SPEC,) = draft_register_rewards()
RANDOM = PickScoreConfig(weights="random", tokenizer="bytes")


def with_(**fields: object) -> PickScoreConfig:
    return RANDOM.model_copy(update=fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in transformers' format, saved in half precision."""
    path = tmp_path_factory.mktemp("model")
    load_clip(with_(seed=3)).half().save_pretrained(path)
    return path


def test_a_folder_is_loaded_in_float32_whatever_its_precision(folder: Path) -> None:
    reward = PickScoreReward(with_(weights=str(folder)))
    assert {parameter.dtype for parameter in reward.clip.parameters()} == {torch.float32}
    subject = Subject(SPEC, RANDOM, reward=reward)
    images = subject.images(3)
    expected = PickScoreReward(with_(seed=3))(images, ["a", "b", "c"])
    torch.testing.assert_close(subject.score(images, ("a", "b", "c")), expected, rtol=0, atol=0.1)


def test_a_model_that_lacks_something_is_refused(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    tensors["extra"] = torch.zeros(1)
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # in older files, and no mistake
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(DraftError) as caught:
        PickScoreReward(with_(weights=str(tmp_path)))
    assert "1 missing (visual_projection.weight); 1 unexpected (extra);" in str(caught.value)


def test_scores_stay_float32_under_bfloat16_encoders() -> None:
    reward = PickScoreReward(with_(dtype="bfloat16"))
    assert {parameter.dtype for parameter in reward.clip.parameters()} == {torch.bfloat16}
    assert reward.scale.dtype == torch.float32
    assert float(reward.scale) == pytest.approx(100, rel=1e-3)
    images = Subject(SPEC, RANDOM, reward=reward).images(2)
    scores = reward(images, ["a", "b"])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, PickScoreReward(RANDOM)(images, ["a", "b"]), rtol=0, atol=1.0)


def test_a_prompt_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = PickScoreReward(RANDOM)
    asked: list[str] = []
    encode = reward.text_features
    monkeypatch.setattr(reward, "text_features", lambda prompt, device: asked.append(prompt) or encode(prompt, device))
    images = Subject(SPEC, RANDOM, reward=reward).images(3)
    reward(images, ["a", "b", "a"])
    reward(images, ["b", "a", "c"])
    assert asked == ["a", "b", "c"]


def test_control_words_score_by_the_sum_of_the_encoders_features() -> None:
    """(1 + k) times one text's features minus the other's, each of unit length, by transformers' own call."""
    plain = PickScoreReward(RANDOM)
    relative = PickScoreReward(with_(positive="Sharp.", negative="{prompt}, blurred", k=0.5))
    images = Subject(SPEC, RANDOM, reward=plain).images(3)
    tokens = plain.tokenizer(["Sharp. two cats", "two cats, blurred"], padding=True, return_tensors="pt")
    features = plain.clip.get_text_features(**tokens)
    positive, negative = normalize(getattr(features, "pooler_output", features))  # transformers 5 wraps them
    expected = plain.scale * plain.image_features(images) @ (1.5 * positive - negative)
    torch.testing.assert_close(relative(images, ["two cats"] * 3), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("option", "size"), [("weights", r"3,945 MB"), ("tokenizer", "4 MB")])
def test_without_a_network_one_sentence_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, size: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = rf"reward 'pickscore': cannot load the .* \({size}\): .*, or set {option} to a local path\."
    with pytest.raises(DraftError, match=message) as caught:
        PickScoreReward(with_(**{option: "hub"}))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(DraftError, match="reward 'pickscore', weights: there is no folder 'no/such'"):
        PickScoreReward(with_(weights="no/such"))


def test_a_tokenizer_folder_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    with pytest.raises(DraftError, match="reward 'pickscore': cannot load the tokenizer"):
        PickScoreReward(with_(tokenizer=str(tmp_path)))
