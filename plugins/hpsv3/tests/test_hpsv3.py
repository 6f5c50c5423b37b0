"""What the comparison with the reference does not show: the published names, dropout, padding, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
import torch
from draft_reward_hpsv3 import Hpsv3Config, draft_register_rewards, texts
from draft_reward_hpsv3.judge import SEVEN_B, TINY, UNUSED, empty_judge, load_published, published_name
from draft_reward_hpsv3.reward import Hpsv3Reward, load_judge, patched
from safetensors.torch import save_file
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from draft_core.errors import DraftError, RewardError
from draft_core.rewards.images import to_pil
from draft_core.testing import Subject

(SPEC,) = draft_register_rewards()
SMALL = Hpsv3Config(**SPEC.small)
VOCABULARY, IMAGE = 151658, 151655  # Qwen2-VL's 151,657 tokens and <|Reward|>, whose embeddings HPS v3 keeps


def with_(**fields: object) -> Hpsv3Config:
    return SMALL.model_copy(update=fields)


@pytest.fixture(scope="module")
def reward() -> Hpsv3Reward:
    return Hpsv3Reward(SMALL)


def named(names: Sequence[str], **shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names with {} filled in for each -> shape, of the tensors in a layer."""
    return {f"{name}.{what.replace('__', '.')}": shape for name in names for what, shape in shapes.items()}


def published_shapes() -> dict[str, tuple[int, ...]]:
    """What HPS v3's own class has under transformers 4.45.2, from Qwen2-VL-7B's config, written out."""
    blocks, layers = [f"visual.blocks.{n}" for n in range(32)], [f"model.layers.{n}" for n in range(28)]
    return {
        "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
        **named([f"{block}.norm{n}" for block in blocks for n in (1, 2)], weight=(1280,), bias=(1280,)),
        **named([f"{block}.attn" for block in blocks], qkv__weight=(3840, 1280), qkv__bias=(3840,)),
        **named([f"{block}.attn" for block in blocks], proj__weight=(1280, 1280), proj__bias=(1280,)),
        **named([f"{block}.mlp" for block in blocks], fc1__weight=(5120, 1280), fc1__bias=(5120,)),
        **named([f"{block}.mlp" for block in blocks], fc2__weight=(1280, 5120), fc2__bias=(1280,)),
        **named(["visual.merger.ln_q"], weight=(1280,), bias=(1280,)),
        **named(["visual.merger.mlp.0"], weight=(5120, 5120), bias=(5120,)),
        **named(["visual.merger.mlp.2"], weight=(3584, 5120), bias=(3584,)),
        "model.embed_tokens.weight": (VOCABULARY, 3584),
        **named([f"{layer}.self_attn" for layer in layers], q_proj__weight=(3584, 3584), q_proj__bias=(3584,)),
        **named(
            [f"{layer}.self_attn.{part}_proj" for layer in layers for part in "kv"], weight=(512, 3584), bias=(512,)
        ),
        **named([f"{layer}.self_attn.o_proj" for layer in layers], weight=(3584, 3584)),
        **named([f"{layer}.mlp" for layer in layers], gate_proj__weight=(18944, 3584), up_proj__weight=(18944, 3584)),
        **named([f"{layer}.mlp" for layer in layers], down_proj__weight=(3584, 18944)),
        **named([f"{layer}.input_layernorm" for layer in layers], weight=(3584,)),
        **named([f"{layer}.post_attention_layernorm" for layer in layers], weight=(3584,)),
        "model.norm.weight": (3584,),
        "lm_head.weight": (VOCABULARY, 3584),
        **named(["rm_head.0"], weight=(1024, 3584), bias=(1024,)),
        **named(["rm_head.3"], weight=(16, 1024), bias=(16,)),
        **named(["rm_head.5"], weight=(2, 16), bias=(2,)),
    }


def test_the_published_size_has_the_published_names_and_shapes() -> None:
    judge = empty_judge(SEVEN_B, VOCABULARY, IMAGE)
    ours = {published_name(name): tuple(tensor.shape) for name, tensor in judge.state_dict().items()}
    theirs = published_shapes()
    assert theirs.keys() - ours.keys() == UNUSED
    assert {name: shape for name, shape in theirs.items() if name not in UNUSED} == ours
    assert not judge.backbone.language_model.rotary_emb.inv_freq.is_meta, "it is in no file"
    megabytes = 2 * sum(torch.Size(shape).numel() for shape in theirs.values()) / 1e6
    assert SPEC.download_mb == pytest.approx(megabytes, rel=0.01)


def test_a_published_file_gives_the_scores_of_its_weights(tmp_path: Path, reward: Hpsv3Reward) -> None:
    other = load_judge(with_(seed=3), len(reward.tokenizer), reward.judge.backbone.config.image_token_id)
    tensors = {published_name(name): tensor.clone() for name, tensor in other.state_dict().items()}
    save_file({**tensors, "lm_head.weight": torch.zeros(1)}, tmp_path / "HPSv3.safetensors")
    loaded, random = Hpsv3Reward(with_(weights=str(tmp_path / "HPSv3.safetensors"))), Hpsv3Reward(with_(seed=3))
    images = Subject(SPEC, SMALL, reward=loaded).images(1)
    torch.testing.assert_close(loaded(images, ["two cats"]), random(images, ["two cats"]), rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_every_tensor_must_be_there_and_find_its_place() -> None:
    judge = empty_judge(TINY, 300, 262)
    tensors = {published_name(name): torch.zeros(tensor.shape) for name, tensor in judge.state_dict().items()}
    tensors["rm_head.6.bias"] = tensors.pop("rm_head.5.bias")
    tensors["model.norm.weight"] = torch.zeros(3)
    with pytest.raises(DraftError) as caught:
        load_published(judge, tensors, torch.float32, where="reward 'hpsv3', weights")
    assert str(caught.value).startswith(
        "reward 'hpsv3', weights: the weights are not those of this HPS v3: 1 missing (rm_head.5.bias); "
        "1 unexpected (rm_head.6.bias); 1 of another shape (model.norm.weight is 3, not 64)"
    )


def test_dropout_stays_off_and_the_head_in_float32(reward: Hpsv3Reward) -> None:
    half = Hpsv3Reward(with_(dtype="bfloat16"))
    torch.nn.ModuleList([half]).train()
    assert {parameter.dtype for parameter in half.judge.backbone.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in half.judge.head.parameters()} == {torch.float32}
    images = Subject(SPEC, SMALL, reward=half).images(1)
    first, second = (half(images, ["two cats"]) for _ in range(2))
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    torch.testing.assert_close(first, reward(images, ["two cats"]), rtol=0, atol=0.02)


def test_a_short_prompt_beside_a_long_one_scores_as_it_does_alone(reward: Hpsv3Reward) -> None:
    images = Subject(SPEC, SMALL, reward=reward).images(2)
    together = reward(images, ["cats", "an oil painting of the sea at night " * 5])
    torch.testing.assert_close(together[:1], reward(images[:1], ["cats"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(448, 448), (300, 401), (64, 97), (1000, 333)], ids=str)
def test_patches_are_those_of_the_processor(size: tuple[int, int]) -> None:
    """Of an image that Pillow has resized, as HPS v3 gives it to the processor; order, frames and grid to the bit."""
    image = (Subject(SPEC, SMALL, reward=torch.nn.Identity()).images(1, *size) * 255).round() / 255
    patches, (rows, columns) = patched(image)
    resized = to_pil(image[0]).resize((columns * 14, rows * 14))
    processor = Qwen2VLImageProcessor()
    expected = processor(images=[resized], return_tensors="pt")
    assert expected["image_grid_thw"].tolist() == [[1, rows, columns]]
    assert abs(rows * columns * 196 - 256 * 28 * 28) < 0.2 * 256 * 28 * 28
    if size != (1000, 333):  # where Pillow 13 resizes in another order
        torch.testing.assert_close(patches[0], expected["pixel_values"], rtol=0, atol=1e-5)


def test_the_instruction_is_the_packages() -> None:
    try:
        path = Path(str(metadata.distribution("hpsv3").locate_file("hpsv3/dataset/data_collator_qwen.py")))
    except metadata.PackageNotFoundError:
        pytest.skip("hpsv3 is missing: pip install --no-deps hpsv3==1.0.0")
    source = path.read_text(encoding="utf-8")
    assert f'INSTRUCTION = """{texts.INSTRUCTION}"""' in source
    assert f'prompt_with_special_token = """{texts.QUESTION}"""' in source


def test_the_prompt_stands_in_the_instruction_as_it_is() -> None:
    text = texts.asked("{a} {text_prompt} %s")
    assert text == texts.INSTRUCTION.replace("{text_prompt}", "{a} {text_prompt} %s") + texts.QUESTION
    assert text.count("<|Reward|>") == 1


@pytest.mark.parametrize("mark", ["<|Reward|>", "<|image_pad|>", "<|video_pad|>"])
def test_a_prompt_with_a_mark_of_the_model_is_refused(reward: Hpsv3Reward, mark: str) -> None:
    with pytest.raises(RewardError) as caught:
        reward(torch.full((1, 3, 28, 28), 0.5), [f"a {mark} cat"])
    assert f"holds {mark}, a mark of the model; reword it" in str(caught.value)
    SMALL.check_prompts(["a cat"])
    with pytest.raises(RewardError, match="a mark of the model"):
        SMALL.check_prompts(["a cat", f"a {mark} cat"])


def test_an_image_that_is_too_long_is_refused(reward: Hpsv3Reward) -> None:
    with pytest.raises(RewardError, match="images are 1 x 201, and one side may be 200 times the other at most; crop"):
        reward(torch.full((1, 3, 1, 201), 0.5), ["a line"])


def test_the_tiny_model_has_no_published_weights() -> None:
    with pytest.raises(DraftError, match="the tiny model has no published weights; set weights to random"):
        Hpsv3Reward(with_(weights="hub"))


@pytest.mark.parametrize(("option", "size"), [("weights", "16,600 MB"), ("tokenizer", "11 MB")])
def test_without_a_network_one_sentence_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, size: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = rf"reward 'hpsv3': cannot load .* \({size}\): .*, or set {option} to a local path\."
    with pytest.raises(DraftError, match=message) as caught:
        Hpsv3Reward(with_(**{option: "hub"}, architecture="7b" if option == "weights" else "tiny"))
    assert "\n" not in str(caught.value)
