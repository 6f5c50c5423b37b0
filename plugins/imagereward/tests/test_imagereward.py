"""What the comparison with the reference does not show: precision, prompts, weights from files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from draft_reward_imagereward import ImageRewardConfig, draft_register_rewards
from draft_reward_imagereward.blip import TINY, UNUSED, Networks, load_published, published_name
from draft_reward_imagereward.reward import TOKENS, ImageReward, load_networks

from draft_core.errors import DraftError
from draft_core.testing import Subject

(SPEC,) = draft_register_rewards()
SMALL = ImageRewardConfig(**SPEC.small)
CPU = torch.device("cpu")


def with_(**fields: object) -> ImageRewardConfig:
    return SMALL.model_copy(update=fields)


def published(networks: Networks) -> dict[str, torch.Tensor]:
    """Its tensors under the names of the published file, with what that has beside."""
    beside = {name: torch.zeros(1) for name in UNUSED}
    return {**{published_name(name): tensor for name, tensor in networks.state_dict().items()}, **beside}


def test_scores_stay_float32_under_bfloat16_encoders() -> None:
    reward = ImageReward(with_(dtype="bfloat16"))
    encoders = [*reward.networks.vision.parameters(), *reward.networks.text.parameters()]
    assert {parameter.dtype for parameter in encoders} == {torch.bfloat16}
    assert {parameter.dtype for parameter in reward.networks.head.parameters()} == {torch.float32}
    images = Subject(SPEC, SMALL, reward=reward).images(2)
    scores = reward(images, ["a", "b"])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, ImageReward(SMALL)(images, ["a", "b"]), rtol=0, atol=0.02)


def test_what_lies_behind_the_35th_token_does_not_count() -> None:
    reward = ImageReward(SMALL)
    images = Subject(SPEC, SMALL, reward=reward).images(1).expand(3, -1, -1, -1)
    first, longer, other = reward(images, ["a" * TOKENS, "a" * (TOKENS + 20), "a" * 20]).tolist()
    assert first == longer
    assert first != other


def test_the_added_tokens_stand_behind_the_vocabulary_in_order() -> None:
    tokenizer = ImageReward(SMALL).tokenizer
    dec, enc = tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"])
    assert (dec, enc) == (len(tokenizer) - 2, len(tokenizer) - 1)
    assert tokenizer("[ENC]")["input_ids"][1:-1] == [enc]


def test_a_published_file_in_half_precision_is_loaded_in_float32(tmp_path: Path) -> None:
    other = load_networks(with_(seed=7)).half()
    torch.save(published(other), tmp_path / "ImageReward.pt")
    loaded = load_networks(with_(weights=str(tmp_path / "ImageReward.pt")))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name].float()), name


def test_every_tensor_must_be_there_and_find_its_place() -> None:
    networks = load_networks(SMALL)
    tensors = published(networks)
    tensors["blip.visual_encoder.blocks.2.norm1.weight"] = tensors.pop("blip.visual_encoder.blocks.1.norm1.weight")
    tensors["mlp.layers.7.bias"] = torch.zeros(2)
    with pytest.raises(DraftError) as caught:
        load_published(networks, tensors, where="reward 'imagereward', weights")
    assert str(caught.value).startswith(
        "reward 'imagereward', weights: the weights are not those of this ImageReward: "
        "1 missing (blip.visual_encoder.blocks.1.norm1.weight); "
        "1 unexpected (blip.visual_encoder.blocks.2.norm1.weight); "
        "1 of another shape (mlp.layers.7.bias is 2, not 1)"
    )


def test_what_the_score_does_not_use_may_be_missing() -> None:
    networks = Networks(TINY)
    load_published(networks, {name: t for name, t in published(networks).items() if name not in UNUSED}, where="here")


@pytest.mark.parametrize(("option", "size"), [("weights", "1,790 MB"), ("tokenizer", "1 MB")])
def test_without_a_network_one_sentence_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, size: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = rf"reward 'imagereward': cannot load .* \({size}\): .*, or set {option} to a local path\."
    with pytest.raises(DraftError, match=message) as caught:
        ImageReward(with_(**{option: "hub"}, architecture="large" if option == "weights" else "tiny"))
    assert "\n" not in str(caught.value)


def test_the_tiny_networks_have_no_published_weights() -> None:
    with pytest.raises(DraftError, match="the tiny networks have no published weights; set weights to random"):
        ImageReward(with_(weights="hub"))
