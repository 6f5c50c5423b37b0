"""What the comparison with the reference does not show: precision, weights from files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from draft_reward_aesthetic import AestheticConfig, draft_register_rewards
from draft_reward_aesthetic.reward import EMBEDDING, AestheticReward, image_tower, rating_head
from safetensors.torch import save_file

from draft_core.errors import DraftError
from draft_core.testing import Subject

(SPEC,) = draft_register_rewards()
RANDOM = AestheticConfig(clip="random", head="random", architecture="tiny")


def with_(**fields: object) -> AestheticConfig:
    return RANDOM.model_copy(update=fields)


def test_the_head_is_float32_under_a_bfloat16_tower() -> None:
    reward = AestheticReward(with_(dtype="bfloat16"))
    assert {parameter.dtype for parameter in reward.tower.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in reward.head.parameters()} == {torch.float32}
    images = Subject(SPEC, RANDOM, reward=reward).images(3)
    full = AestheticReward(RANDOM)(images, [""] * 3)
    torch.testing.assert_close(reward(images, [""] * 3), full, rtol=0, atol=0.02)


def test_the_seed_decides() -> None:
    weights = [image_tower(with_(seed=seed)).proj for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_another_head_is_read_from_its_file(tmp_path: Path) -> None:
    other = rating_head(with_(seed=5))
    save_file(other.state_dict(), tmp_path / "head.safetensors")
    torch.save(other.state_dict(), tmp_path / "head.pth")
    embedding = torch.ones(1, EMBEDDING)
    for name in ("head.safetensors", "head.pth"):
        assert torch.equal(rating_head(with_(head=str(tmp_path / name)))(embedding), other(embedding))


def test_a_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(EMBEDDING, 1).state_dict(), tmp_path / "v1.pth")
    with pytest.raises(DraftError, match=r"reward 'aesthetic', head: the weights .* 10 missing .* 2 unexpected"):
        rating_head(with_(head=str(tmp_path / "v1.pth")))


def test_a_clip_of_another_shape_is_refused(tmp_path: Path) -> None:
    torch.save({"visual.proj": torch.zeros(1024, 768)}, tmp_path / "clip.pt")
    with pytest.raises(DraftError, match=r"reward 'aesthetic', clip: .*visual.proj is 1024x768, not 64x768"):
        image_tower(with_(clip=str(tmp_path / "clip.pt")))


@pytest.mark.parametrize(("option", "size"), [("clip", r"1,710 MB"), ("head", "4 MB")])
def test_without_a_network_one_sentence_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, size: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = rf"reward 'aesthetic': cannot load .* \({size}\): .*, or set {option} to a local path\."
    with pytest.raises(DraftError, match=message):
        AestheticReward(with_(**{option: "hub"}))


def test_prompts_must_be_as_many_as_images() -> None:
    with pytest.raises(DraftError, match="there are 1 prompts for 2 images"):
        AestheticReward(RANDOM)(torch.zeros(2, 3, 8, 8), ["one"])
