"""Training on surrogates: queries, what is said, gradients without a decoder, resuming, families, refusals."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from draft_core import DifferentiableSampler, DraftK, DraftLV, Objective, Trainer
from draft_core.adapters.lora import adapters_off, lora_state
from draft_core.errors import RewardError, SamplerError
from draft_core.learners.direct import DirectLearner
from draft_core.learners.surrogate_learner import SurrogateLearner
from draft_core.plan import StepPlan
from draft_core.surrogates.fitting import affine_fit, rank_correlation
from draft_core.surrogates.prompt_features import PromptFeatures
from draft_core.surrogates.settings import SurrogateSettings
from draft_core.surrogates.surrogate import Surrogate
from draft_core.training.checkpoints import load_checkpoint, save_checkpoint
from draft_core.training.settings import RegularizerSettings, TrainSettings
from tests.support.families import FAMILIES
from tests.support.tiny import (
    Brightness,
    ClockConfig,
    Nan,
    Redness,
    RednessConfig,
    byte_tokenizer,
    tiny_pipe,
    with_lora,
)

SMALL: dict[str, Any] = {"warmup": 16, "warmup_fits": 4, "fits": 2, "buffer": 24, "batch_size": 8, "width": 4}
PROMPTS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


def learner(objective: Objective, of: str = "brightness", method: Any = None, **settings: Any) -> SurrogateLearner:
    surrogate = Surrogate(SurrogateSettings(**{**SMALL, **settings}), seed=0, within_prompt=False)
    inner = DirectLearner(method or DraftK(k=1))
    return SurrogateLearner(inner, {of: surrogate}, objective, prompts=PROMPTS, seed=0, batch_size=3)


def trainer(
    pipe: Any,
    *,
    rewards: Any = None,
    of: str = "brightness",
    method: Any = None,
    surrogate: Any = None,
    kl: float = 0.0,
    **more: Any,
) -> Trainer:
    objective = Objective(rewards or {"brightness": Brightness(ClockConfig())}, caps=more.pop("caps", None))
    call = more.pop("call", {"guidance_scale": 3.0})
    sampler = DifferentiableSampler(
        pipe, num_inference_steps=2, base_model=partial(adapters_off, pipe) if kl else None, **call
    )
    return Trainer(
        sampler,
        objective,
        learner(objective, of, method=method, **(surrogate or {})),
        PROMPTS,
        TrainSettings(**{"steps": 3, "batch_size": 3, "learning_rate": 3e-2, **more}),
        regularizers=RegularizerSettings(kl=kl),
        device="cpu",
    )


def tiny(tokenizer: Any) -> Any:
    return with_lora(tiny_pipe(tokenizer=tokenizer))


@pytest.mark.parametrize("space", ["latent", "image"])
def test_a_resumed_training_is_the_uninterrupted_one_in_every_bit(space: str, tokenizer: Any, tmp_path: Any) -> None:
    whole = trainer(tiny(tokenizer), surrogate={"space": space}, kl=0.1)
    reports = list(whole)
    assert [report.reward_queries for report in reports] == [16 + 3, 3, 3]
    assert [set(report.learner) for report in reports] == [{"brightness itself", "brightness rank agreement"}] * 3
    assert all(report.grad_norm > 0 for report in reports)
    assert reports[1].penalties["kl"] > 0
    assert any("nothing is decoded with a gradient" in note for note in reports[0].notes) == (space == "latent")
    assert not reports[1].notes
    first = trainer(tiny(tokenizer), surrogate={"space": space}, kl=0.1)
    first.train_step(), first.train_step()
    save_checkpoint(first, tmp_path / "000002")
    second = trainer(tiny(tokenizer), surrogate={"space": space}, kl=0.1)
    load_checkpoint(second, tmp_path / "000002")
    (report,) = list(second)
    assert (report.loss, report.learner, report.scores) == (reports[2].loss, reports[2].learner, reports[2].scores)
    states = [lora_state(one.sampler.pipe) for one in (second, whole)]
    assert all(torch.equal(mine, other) for mine, other in zip(*(state.values() for state in states), strict=True))


def test_the_decoder_is_called_without_a_gradient_and_the_reward_judges_what_it_gives(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(tiny(tokenizer), method=DraftLV(resamples=1))
    recorded: list[bool] = []
    decode, judge = one.sampler.pipe.vae.decode, one.objective.rewards["brightness"].forward
    judged: list[torch.Tensor] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        recorded.append(torch.is_grad_enabled())
        return decode(*args, **kwargs)

    def judging(images: torch.Tensor, prompts: Any) -> Any:
        judged.append(judge(images, prompts))
        return judged[-1]

    monkeypatch.setattr(one.sampler.pipe.vae, "decode", watched)
    monkeypatch.setattr(one.objective.rewards["brightness"], "forward", judging)
    report = one.train_step()
    assert recorded
    assert not any(recorded)
    assert report.learner["brightness itself"] == pytest.approx(float(judged[-1].mean()))
    assert report.scores["brightness"] != report.learner["brightness itself"]


def test_the_latents_of_a_rollout_are_what_its_images_are_decoded_from(tokenizer: Any) -> None:
    pipe = tiny(tokenizer)
    for decode in ("whole", "unrecorded"):
        sampler = DifferentiableSampler(pipe, num_inference_steps=2, guidance_scale=3.0, decode=decode)
        plan, noise = StepPlan(2, frozenset({1})), [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        rollout = sampler(["a", "b"], plan=plan, generator=noise)
        assert rollout.images.requires_grad == (decode == "whole")
        assert rollout.decoded is not None
        assert rollout.latents is not None
        assert rollout.decoded.requires_grad
        assert torch.equal(rollout.decoded, rollout.latents / pipe.vae.config.scaling_factor)
        with torch.no_grad():
            again = (pipe.vae.decode(rollout.decoded).sample / 2 + 0.5).clamp(0, 1)
        assert torch.equal(again, rollout.images)


def test_a_refresh_adds_the_scored_images_of_the_first_pass_and_fits_to_them(tokenizer: Any) -> None:
    """What was said of them is what the network took them for before; with re-noised copies there are more passes."""
    one = trainer(tiny(tokenizer), method=DraftLV(resamples=1), surrogate={"buffer": 99})
    surrogate = one.learner.surrogates["brightness"]
    guesses: list[torch.Tensor] = []
    score = surrogate.score

    def spy(inputs: torch.Tensor, features: Any) -> torch.Tensor:
        guesses.append(score(inputs, features))
        return guesses[-1]

    surrogate.score = spy
    for update in (1, 2, 3):
        before = surrogate.state_dict()
        weights = {name: tensor.clone() for name, tensor in before.get("network", {}).items()}
        guesses.clear()
        report = one.train_step()
        assert surrogate.seen == len(surrogate.rows.scores) == 16 + 3 * update
        newest, first = surrogate.rows.scores[-3:], guesses[0]
        assert report.learner["brightness itself"] == pytest.approx(sum(newest) / 3)
        assert report.learner["brightness rank agreement"] == pytest.approx(rank_correlation(first.tolist(), newest))
        assert len(guesses) == 2, "the samples, and their re-noised copies"
        assert surrogate.network is not None
        if weights:
            assert not torch.equal(surrogate.network.linear.weight, weights["linear.weight"])
        features = one.learner.features(surrogate.rows.prompts)
        with torch.no_grad():
            fitted = score(surrogate.rows.inputs, features)
        line = affine_fit(fitted, torch.tensor(surrogate.rows.scores))
        assert line == pytest.approx((1.0, 0.0), abs=0.02), "the scale is the buffer's after the last fit"


def test_a_reward_with_a_gradient_gives_none_of_it(tokenizer: Any) -> None:
    """The images have one, of a surrogate that looks at them, and so would the reward's own scores."""
    calls: list[tuple[bool, bool]] = []

    class Watched(Redness):
        def forward(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
            calls.append((torch.is_grad_enabled(), images.requires_grad))
            return super().forward(images, prompts)

    objective = {"redness": Watched(RednessConfig())}
    one = trainer(tiny(tokenizer), rewards=objective, of="redness", surrogate={"space": "image"})
    report = one.train_step()
    assert report.grad_norm > 0
    assert len(calls) == 6 + 1, "sixteen images by threes, and the three of the update"
    assert not any(enabled or recorded for enabled, recorded in calls)
    assert report.reward_queries == 16 + 3


def test_refresh_says_how_often_the_reward_is_asked(tokenizer: Any) -> None:
    seldom = list(trainer(tiny(tokenizer), surrogate={"refresh": 2}))
    assert [report.reward_queries for report in seldom] == [16, 3, 0]
    never = list(trainer(tiny(tokenizer), surrogate={"refresh": 0}))
    assert [report.reward_queries for report in never] == [16, 0, 0]
    assert all(not report.learner for report in never)


def test_beside_a_reward_with_a_gradient_images_are_counted_once(tokenizer: Any) -> None:
    rewards = {"brightness": Brightness(ClockConfig()), "redness": Redness(RednessConfig())}
    one = trainer(tiny(tokenizer), rewards=rewards)
    report = one.train_step()
    assert report.reward_queries == 16 + 3
    assert not any("nothing is decoded" in note for note in report.notes)
    assert report.scores["redness"] != 0
    norms, cosines = one.reward_gradients()
    assert set(norms) == {"brightness", "redness"}
    assert all(norm > 0 for norm in norms.values())
    assert set(cosines) == {"brightness ~ redness"}


def test_accumulated_passes_and_a_cap(tokenizer: Any) -> None:
    one = trainer(tiny(tokenizer), gradient_accumulation_steps=2, steps=2, caps={"brightness": -5.0})
    reports = list(one)
    assert [report.reward_queries for report in reports] == [16 + 6, 6]
    assert reports[0].reward == -5.0
    assert any("exactly zero" in note for note in reports[0].notes), "a cap below all scores leaves no gradient"


@pytest.mark.parametrize("name", ["Stable Diffusion 3", "FLUX.1"])
def test_an_update_of_a_flow_model(name: str) -> None:
    family = next(family for family in FAMILIES if family.name.startswith(name))
    pipe = with_lora(family.pipe(), std=0.1)
    call = {**family.call(torch.float32), "negative_prompt": ""}
    one = trainer(pipe, call=call, batch_size=2, steps=2, kl=0.1)
    one.learner.check(one.sampler)
    reports = list(one)
    assert [report.reward_queries for report in reports] == [18, 2]
    assert all(report.grad_norm > 0 for report in reports)
    assert reports[1].penalties["kl"] > 0
    network = one.learner.surrogates["brightness"].network
    assert network.mean.shape[1] == pipe.vae.config.latent_channels, "latents are packed"
    assert any("surrogates do not see the prompts: the encode_prompt of" in note for note in reports[0].notes)


def test_prompts_are_seen_by_the_pipelines_own_encoder(tokenizer: Any) -> None:
    pipe = tiny_pipe(tokenizer=tokenizer)
    features = PromptFeatures(pipe)
    assert features.missing is None
    found = features(["a", "b", "a"])
    assert found is not None
    encoded, _ = pipe.encode_prompt(["b"], "cpu", 1, False)
    assert torch.equal(found[1], encoded[0].mean(0))
    assert torch.equal(found[0], found[2])
    assert PromptFeatures(tiny_pipe()).missing == "StableDiffusionPipeline encodes no prompt by itself"


def test_a_reward_whose_scores_do_not_differ_is_refused(tokenizer: Any) -> None:
    class Constant(Brightness):
        def forward(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
            return torch.ones(len(images))

    with pytest.raises(RewardError, match="reward 'brightness': its surrogate has nothing to learn from"):
        trainer(tiny(tokenizer), rewards={"brightness": Constant(ClockConfig())}).train_step()


def test_scores_that_are_not_finite_are_left_out_and_said(tokenizer: Any) -> None:
    one = trainer(
        tiny(tokenizer), rewards={"brightness": Nan(RednessConfig(), calls={7})}
    )  # the first after the warm-up
    report = one.train_step()
    assert "the surrogate of 'brightness' does not learn from 3 images whose scores are not finite" in report.notes
    assert not report.learner
    assert len(one.learner.surrogates["brightness"].rows.scores) == 16


def test_what_a_surrogate_cannot_look_at_is_refused(tokenizer: Any) -> None:
    one = trainer(tiny(tokenizer))
    one.sampler.decode = "sliced"
    with pytest.raises(SamplerError, match=r"model\.decode: nothing is decoded with a gradient"):
        one.learner.check(one.sampler)
    one.sampler.decode = "whole"
    one.learner.check(one.sampler)
    one.sampler.pipe.video_processor = object()
    with pytest.raises(SamplerError, match="a surrogate looks at images, and StableDiffusionPipeline makes videos"):
        one.learner.check(one.sampler)
    judge = partial(one.learner._score, one.sampler, None, [])
    with pytest.raises(RewardError, match=r"surrogate\.space: it is not known which latents"):
        judge(torch.rand(1, 3, 16, 16), ["a"])
