"""Users by diffusers' IP-Adapter: without one the base model in every bit, as files what plain diffusers draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from draft_core import CallColumns, DifferentiableSampler, PromptRow
from draft_core.adapters.user_embeddings import UserEmbeddings, embed_pairs
from draft_core.adapters.users import UserAdapter, UserArgument, load_users, require_users
from draft_core.errors import CheckpointError, DraftError, RecipeError
from draft_core.plan import StepPlan
from draft_core.preferences import Preference
from draft_core.registry.methods import DraftLV
from draft_core.sampling.pipelines import networks
from tests.support.families import sdxl
from tests.support.tiny import byte_tokenizer, tiny_pipe
from tests.support.video_classes import GUIDED, SIZE, animate

PEOPLE = UserEmbeddings({"alice": torch.tensor([0.6, 0.8, 0.0]), "bob": torch.tensor([0.0, 0.6, -0.8])})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


def row(user: str) -> PromptRow:
    return PromptRow("a fox", {"user": user})


def with_users(pipe: Any, *, trained: bool = False) -> UserAdapter:
    torch.manual_seed(0)
    adapter = UserAdapter(pipe, PEOPLE)
    adapter.attach()
    if trained:
        with torch.no_grad():
            for weight in adapter.parameters():
                weight.add_(0.5 * torch.randn(weight.shape))
    return adapter


def sampler_of(pipe: Any, adapter: UserAdapter | None = None, **call: Any) -> DifferentiableSampler:
    columns = CallColumns(computed=adapter and UserArgument(pipe, PEOPLE))
    call = {"guidance_scale": 3.0, "height": 16, "width": 16} | call
    return DifferentiableSampler(pipe, num_inference_steps=2, columns=columns, **call)


def drawn(sampler: DifferentiableSampler, *prompts: str, plan: Any = None, **more: Any) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    plan = plan or StepPlan(sampler.steps, frozenset())
    return sampler(list(prompts), plan=plan, generator=generators, **more).images.detach()


def lv(sampler: DifferentiableSampler, *prompts: str) -> torch.Tensor:
    method = DraftLV(resamples=2)
    return drawn(sampler, *prompts, plan=method.plan(sampler.steps, Random(0)), renoising=method.renoising())


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("made", "call", "draw"),
    [
        (tiny_pipe, {}, drawn),
        (tiny_pipe, {"guidance_scale": 1.0}, drawn),
        (tiny_pipe, {}, lv),
        (sdxl, {}, drawn),
        (animate, {"num_frames": 2, **GUIDED, **SIZE}, drawn),
    ],
    ids=["guided", "unguided", "LV", "SDXL", "video"],
)
def test_no_user_is_the_base_model_in_every_bit(
    made: Any, call: dict[str, Any], draw: Callable[..., torch.Tensor], trained: bool, tokenizer: Any
) -> None:
    pipe = made(tokenizer=tokenizer) if made is tiny_pipe else made()
    for network in networks(pipe).values():
        network.requires_grad_(False)
    expected = draw(sampler_of(pipe, **call), "a fox", "a fox")
    adapter = with_users(pipe, trained=trained)
    sampler = sampler_of(pipe, adapter, **call)
    assert torch.equal(draw(sampler, "a fox", row("")), expected)
    for_alice = draw(sampler, row("alice"), "a fox")
    assert torch.equal(for_alice, expected) != trained
    if trained and not call.get("num_frames"):
        assert torch.equal(for_alice[1::2], expected[1::2]), "a user reaches its own prompt alone"
    with torch.no_grad(), adapter.base_model():
        assert torch.equal(draw(sampler, row("alice"), row("bob")), expected)
    assert torch.equal(draw(sampler, row("alice"), "a fox"), for_alice), "the scale is back"


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_plain_diffusers_draws_the_same_of_its_file(guidance: float, tokenizer: Any, tmp_path: Path) -> None:
    pipe = tiny_pipe(tokenizer=tokenizer)
    adapter = with_users(pipe, trained=True)
    file = adapter.save(tmp_path)
    expected = drawn(sampler_of(pipe, adapter, guidance_scale=guidance), row("alice:0.7,bob:-0.3"))

    other = tiny_pipe(tokenizer=tokenizer)
    other.load_ip_adapter(str(tmp_path), subfolder="", weight_name=file.name, image_encoder_folder=None)
    user = (0.7 * PEOPLE.vectors["alice"] - 0.3 * PEOPLE.vectors["bob"])[None, None]
    images = other(
        "a fox",
        num_inference_steps=2,
        guidance_scale=guidance,
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(0),
        ip_adapter_image_embeds=[torch.cat([0 * user, user]) if guidance > 1 else user],
        output_type="pt",
    ).images
    assert torch.equal(images, expected)

    ours = tiny_pipe(tokenizer=tokenizer)
    components = dict(ours.components)
    loaded = load_users(ours, tmp_path)
    assert ours.components.keys() == components.keys()
    assert all(ours.components[name] is part for name, part in components.items())
    sampler = DifferentiableSampler(
        ours, num_inference_steps=2, guidance_scale=guidance, columns=CallColumns(computed=loaded), height=16, width=16
    )
    assert torch.equal(drawn(sampler, row("alice:0.7,bob:-0.3")), expected)


def test_gradient_reaches_the_values_of_users_and_without_one_nothing(tokenizer: Any) -> None:
    pipe = tiny_pipe(tokenizer=tokenizer)
    adapter = with_users(pipe)
    sampler = sampler_of(pipe, adapter)
    generator = torch.Generator().manual_seed(0)

    def gradients(prompt: str) -> list[torch.Tensor]:
        images = sampler([prompt], plan=StepPlan(2, frozenset({0, 1})), generator=[generator]).images
        return list(torch.autograd.grad(images.square().mean(), adapter.parameters()))

    keys, values = gradients(row("alice"))[::2], gradients(row("alice"))[1::2]
    assert len(values) == 4
    assert all(value.abs().max() > 0 for value in values)
    assert all(not key.any() for key in keys), "behind values of zero"
    assert not any(gradient.any() for gradient in gradients(row(""))), "dropping the user teaches nothing"


def test_half_a_user_is_half_of_what_is_shown(tokenizer: Any) -> None:
    pipe = tiny_pipe(tokenizer=tokenizer)
    with_users(pipe)
    whole, half, mixed, bob = (
        pipe.unet.encoder_hid_proj([PEOPLE.of(text, where="")[None, None]])[0]
        for text in ("alice", "alice:0.5", "alice:0.5,bob:0.5", "bob")
    )
    torch.testing.assert_close(half, whole / 2, rtol=0, atol=0.02)
    torch.testing.assert_close(mixed, (whole + bob) / 2, rtol=0, atol=0.02)
    assert whole.std() == pytest.approx(1, abs=0.3)


def test_families_without_an_ip_adapter_of_a_unet_are_refused_by_name() -> None:
    for pipeline in (diffusers.StableDiffusion3Pipeline, diffusers.FluxPipeline, diffusers.WanPipeline):
        with pytest.raises(RecipeError, match=rf"model.users: {pipeline.__name__} has no IP-Adapter of a UNet"):
            require_users(pipeline)
    for pipeline in (diffusers.StableDiffusionXLPipeline, diffusers.AnimateDiffPipeline):
        require_users(pipeline)


def test_what_it_cannot_use_is_one_sentence(tokenizer: Any, tmp_path: Path) -> None:
    pipe = tiny_pipe(tokenizer=tokenizer)
    with pytest.raises(DraftError, match="it carries no users; call `attach` first"):
        UserAdapter(pipe, PEOPLE).parameters()
    adapter = with_users(pipe)
    with pytest.raises(DraftError, match="carries an IP-Adapter already"):
        adapter.attach()
    with pytest.raises(RecipeError, match=r"is torch\.float16"):
        UserAdapter(tiny_pipe(dtype=torch.float16), PEOPLE).attach()
    state = adapter.state_dict()
    with pytest.raises(CheckpointError, match=r"1 of 12 tensors differ, first image_proj.norm.bias"):
        adapter.load_state_dict({**state, "image_proj.norm.bias": torch.zeros(3)})
    adapter.save(tmp_path)
    (tmp_path / "ip_adapter.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="its users cannot be loaded into StableDiffusionPipeline"):
        load_users(tiny_pipe(tokenizer=tokenizer), tmp_path)


# Embeddings


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", [0, 0, 0]), ("alice", [0.6, 0.8, 0]), (" alice : 0.5 , bob:-1 ", [0.3, -0.2, 0.8])],
)
def test_a_text_names_users_and_weights(text: str, expected: list[float]) -> None:
    torch.testing.assert_close(PEOPLE.of(text, where=""), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("carol", "there is no user 'carol'; there are 2, such as alice, bob"),
        ("bob:x", "'x' is no weight of a user"),
        ("bob:2", "'2' is no weight of a user, which lies in -1..1"),
        ("bob:", "'' is no weight"),
        ("bob:1_0", "'1_0' is no weight"),
        ("bob:\uff11", "is no weight"),
        ("alice,alice", "user 'alice' is named twice"),
        (",", "there is no user ''"),
    ],
)
def test_unknown_users_and_weights_are_refused(text: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        PEOPLE.of(text, where="here")


@pytest.mark.parametrize(
    "vectors",
    [
        {},
        {"a:b": torch.ones(2)},
        {"a": torch.ones(2), "b": torch.ones(3)},
        {"a": torch.tensor([1.0, float("nan")])},
        {"a": torch.ones(1, 2)},
    ],
)
def test_what_is_no_set_of_embeddings_is_refused(vectors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(DraftError, match="users: "):
        UserEmbeddings(vectors)


class Colours(torch.nn.Module):
    """An encoder whose features are the mean colours."""

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def test_pairs_make_an_embedding_and_a_file_keeps_it(tmp_path: Path) -> None:
    for name, colour in {"red": (204, 0, 0), "blue": (0, 0, 204), "grey": (102, 102, 102)}.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    red, blue, grey = (tmp_path / f"{name}.png" for name in ("red", "blue", "grey"))
    pairs = [Preference(red, blue), Preference(red, grey, 0.75), Preference(grey, blue, 0.5)]
    expected = torch.tensor([0.8 + 0.5 * 0.4, -0.5 * 0.4, -0.8 - 0.5 * 0.4])
    embedding = embed_pairs(pairs, Colours())
    torch.testing.assert_close(embedding, expected / expected.norm())
    UserEmbeddings({"carol": embedding}, "colours").save(tmp_path / "users.safetensors")
    kept = UserEmbeddings.read(tmp_path / "users.safetensors")
    assert torch.equal(kept.vectors["carol"], embedding)
    assert kept.encoder == "colours"

    def torn(tensors: Any, path: Path, *_: Any) -> None:
        Path(path).write_bytes(b"half of a file")
        raise OSError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("draft_core.adapters.user_embeddings.save_file", torn)
        with pytest.raises(OSError, match="the disk is full"):
            UserEmbeddings({"dave": embedding}, "colours").save(tmp_path / "users.safetensors")
    assert UserEmbeddings.read(tmp_path / "users.safetensors").names == ["carol"], "who was there is there still"
    with pytest.raises(DraftError, match=r"the pairs say nothing of who chose; .* which agree"):
        embed_pairs([pairs[0], Preference(blue, red)], Colours())
    with pytest.raises(DraftError, match="the pairs say nothing"):
        embed_pairs(pairs[2:], Colours())
    with pytest.raises(RecipeError, match="this reward gives no features"):
        embed_pairs(pairs, torch.nn.Identity())
    with pytest.raises(CheckpointError, match="not a safetensors file of users"):
        UserEmbeddings.read(red)
