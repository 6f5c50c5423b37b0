"""Users by diffusers' IP-Adapter: without one the base model in every bit, as files what plain diffusers draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from draft_core import CallColumns, DifferentiableSampler, PromptRow
from draft_core.adapters import users as module
from draft_core.adapters.user_embeddings import UserEmbeddings, embed_pairs
from draft_core.adapters.users import ADAPTER_FILE, UserAdapter, UserArgument, load_users, require_users
from draft_core.errors import CheckpointError, DraftError, RecipeError
from draft_core.plan import StepPlan
from draft_core.preferences import Preference
from draft_core.registry.methods import DraftLV
from draft_core.sampling.pipelines import networks
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
    method = DraftLV(copies=2)
    return drawn(sampler, *prompts, plan=method.plan(sampler.steps, Random(0)), renoising=method.renoising)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("made", "call", "draw"),
    [
        (tiny_pipe, {}, drawn),
        (tiny_pipe, {"guidance_scale": 1.0}, drawn),
        (tiny_pipe, {}, lv),
        (None, {"num_frames": 2, **GUIDED, **SIZE}, drawn),
    ],
    ids=["guided", "unguided", "LV", "video"],
)
def test_no_user_is_the_base_model_in_every_bit(
    made: Any, call: dict[str, Any], draw: Callable[..., torch.Tensor], trained: bool, tokenizer: Any
) -> None:
    pipe = made(tokenizer=tokenizer) if made else animate()
    for network in networks(pipe).values():
        network.requires_grad_(False)
    expected = draw(sampler_of(pipe, **call), "a fox", "a fox")
    adapter = with_users(pipe, trained=trained)
    sampler = sampler_of(pipe, adapter, **call)
    assert torch.equal(draw(sampler, "a fox", row("")), expected)
    mixed = draw(sampler, row("alice"), row("")), draw(sampler, row("alice"), row("bob"))
    assert torch.equal(mixed[0], expected) != trained
    for images in mixed:
        with adapter.base_model():
            assert torch.equal(draw(sampler, row("alice"), row("bob")), expected)
        assert trained != torch.equal(images[0], expected[0])
    assert trained != torch.equal(mixed[0][1], mixed[1][1])
    if trained:
        assert torch.equal(mixed[0][1::2], expected[1::2]) or draw is lv, "a user reaches its own prompt alone"
