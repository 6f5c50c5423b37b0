"""What the comparison with the reference does not show: the bars, precision, weights from files, what is refused."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from draft_reward_hpsv2 import Hpsv2Config, draft_register_rewards
from draft_reward_hpsv2.reward import Hpsv2Reward, letterbox, load_clip

from draft_core.errors import DraftError
from draft_core.testing import Subject

(SPEC,) = draft_register_rewards()
RANDOM = Hpsv2Config(weights="random", architecture="tiny")


def with_(**fields: object) -> Hpsv2Config:
    return RANDOM.model_copy(update=fields)


def test_an_image_of_the_right_length_is_padded_too() -> None:
    boxed = letterbox(torch.ones(1, 3, 224, 161), 224, antialias=True)
    columns = boxed[0, 0].sum(0)
    assert boxed.shape == (1, 3, 224, 224)
    assert columns.nonzero().flatten().tolist() == list(range(31, 192)), "63 columns of bars, the smaller half left"


def test_a_hair_is_not_shrunk_to_nothing() -> None:
    assert letterbox(torch.ones(1, 3, 1, 1000), 224, antialias=True).sum() > 0


def test_the_antialias_switch_counts() -> None:
    images = Subject(SPEC, RANDOM).images(1, 600, 600)
    scores = [Hpsv2Reward(with_(antialias=antialias))(images, ["a cat"]) for antialias in (True, False)]
    assert not torch.equal(*scores)


def test_scores_stay_float32_under_bfloat16_encoders() -> None:
    reward = Hpsv2Reward(with_(dtype="bfloat16"))
    assert {parameter.dtype for parameter in reward.clip.parameters()} == {torch.bfloat16}
    images = Subject(SPEC, RANDOM, reward=reward).images(2)
    scores = reward(images, ["a", "b"])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, Hpsv2Reward(RANDOM)(images, ["a", "b"]), rtol=0, atol=0.01)


def test_a_prompt_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = Hpsv2Reward(RANDOM)
    asked: list[str] = []
    encode = reward.text_features
    monkeypatch.setattr(reward, "text_features", lambda prompt, device: asked.append(prompt) or encode(prompt, device))
    images = Subject(SPEC, RANDOM, reward=reward).images(3)
    reward(images, ["a", "b", "a"])
    reward(images, ["b", "a", "c"])
    assert asked == ["a", "b", "c"]


def test_control_words_score_by_the_sum_of_the_encoders_features() -> None:
    """(1 + k) times one text's features minus the other's, each of unit length, by open_clip's own call."""
    plain, relative = Hpsv2Reward(RANDOM), Hpsv2Reward(with_(positive="Sharp.", negative="{prompt}, blurred", k=0.5))
    images = Subject(SPEC, RANDOM, reward=plain).images(3)
    tokens = open_clip.tokenize(["Sharp. two cats", "two cats, blurred"])
    positive, negative = plain.clip.encode_text(tokens, normalize=True)
    expected = plain.image_features(images) @ (1.5 * positive - negative)
    torch.testing.assert_close(relative(images, ["two cats"] * 3), expected, rtol=0, atol=1e-6)


def test_a_checkpoint_in_half_precision_is_loaded_in_float32(tmp_path: Path) -> None:
    other = load_clip(with_(seed=7)).half()
    torch.save({"state_dict": other.state_dict()}, tmp_path / "HPS.pt")
    clip = load_clip(with_(weights=str(tmp_path / "HPS.pt")))
    assert clip.visual.proj.dtype == torch.float32
    assert torch.equal(clip.visual.proj, other.visual.proj.float())


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"visual.proj": torch.zeros(1280, 1024)}}, tmp_path / "HPS.pt")
    with pytest.raises(DraftError, match=r"reward 'hpsv2', weights: .*visual.proj is 1280x1024, not 64x64"):
        load_clip(with_(weights=str(tmp_path / "HPS.pt")))


@pytest.mark.parametrize(("version", "file"), [("2.0", "HPS_v2_compressed.pt"), ("2.1", "HPS_v2.1_compressed.pt")])
def test_without_a_network_one_sentence_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, file: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DraftError) as caught:
        Hpsv2Reward(with_(weights="hub", version=version))
    assert str(caught.value).startswith(f"reward 'hpsv2': cannot load {file} of xswu/HPSv2 (1,970 MB): ")
    assert str(caught.value).endswith(", or set weights to a local path.")
