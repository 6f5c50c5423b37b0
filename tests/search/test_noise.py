"""Noise that climbs a reward, against torch's own optimiser, scipy's chi distribution and plain calls."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats

import draft_core
from draft_core import Ascent, DifferentiableSampler, Objective, StepPlan, optimise_noise
from draft_core.cost.peak_memory import peak_memory
from draft_core.errors import DraftError, RewardError, SamplerError
from draft_core.search.noise import norm_log_likelihood
from draft_core.search.starts import images_from, start_of
from tests.support.families import FAMILIES
from tests.support.tiny import Brightness, ClockConfig, Nan, Redness, RednessConfig

PROMPTS, SEEDS = ["a red dog", "a cat"], [3, 4]
BY_NAME = {family.name: family for family in FAMILIES}


def sampler_of(catalog: Any, **how: Any) -> DifferentiableSampler:
    spec = catalog.pretrained["tiny"].spec
    return DifferentiableSampler(draft_core.load_pipeline("tiny", catalog=catalog), **spec.call, **how)


def redness(contrast: float = 1.0) -> Objective:
    return Objective({"redness": Redness(RednessConfig(contrast=contrast))})


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (2, 2), (2, 16, 16)])
def test_the_likelihood_of_a_norm_is_that_of_the_chi_distribution(shape: tuple[int, ...]) -> None:
    latents = 1.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norms = latents.flatten(1).norm(dim=1)
    expected = stats.chi(math.prod(shape[1:])).logpdf(norms.numpy())
    torch.testing.assert_close(norm_log_likelihood(latents), torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_the_iterates_are_those_of_a_loop_written_by_hand(catalog: Any) -> None:
    """The loop of ReNO for each image alone: torch's SGD with Nesterov momentum on a clipped gradient."""
    ascent = Ascent(iterations=4, learning_rate=3.0, max_grad_norm=0.05, norm_weight=0.02)
    sampler = sampler_of(catalog)
    found = optimise_noise(sampler, redness(10.0), PROMPTS, SEEDS, ascent=ascent, batch_size=3)
    pipe = sampler.pipe
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    plan = StepPlan(sampler.steps, frozenset(range(sampler.steps)))
    for row, prompt in enumerate(PROMPTS):
        for column, seed in enumerate(SEEDS):
            generator = torch.Generator().manual_seed(seed)
            point = torch.randn(1, 4, 8, 8, generator=generator).requires_grad_()
            optimiser = torch.optim.SGD([point], lr=3.0, momentum=0.9, nesterov=True)
            scores, norms, latents = [], [], []
            for _ in range(5):
                image = sampler([prompt], plan=plan, latents=point).images[0]
                red, green, blue = image.mean((-2, -1))
                score = 10 * (red - (green + blue) / 2)
                norm = point.norm()
                loss = -score + 0.02 * (norm**2 / 2 - 255 * norm.log())
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_([point], 0.05)
                scores.append(float(score.detach()))
                norms.append(float(norm.detach()) / 16)
                latents.append(point.detach().clone())
                optimiser.step()
            torch.testing.assert_close(found.totals[row, column], torch.tensor(scores), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found.norms[row, column], torch.tensor(norms), atol=1e-5, rtol=1e-5)
            best = max(range(5), key=lambda place: scores[place])
            assert int(found.best_iteration[row, column]) == best
            torch.testing.assert_close(found.latents[row, column], latents[best][0], atol=1e-4, rtol=1e-4)


def test_it_starts_at_the_seeds_image_and_its_latents_make_the_best_one_again(catalog: Any) -> None:
    sampler = sampler_of(catalog)
    counted: list[tuple[int, int]] = []
    ascent = Ascent(iterations=6, norm_weight=0.0)
    found = optimise_noise(
        sampler, redness(100.0), PROMPTS, SEEDS, ascent=ascent, progress=lambda *done: counted.append(done)
    )
    expected = draft_core.sample("tiny", PROMPTS, images_per_prompt=1, seed=3, catalog=catalog)[0]
    assert torch.equal(found.before[:, 0], expected[:, 0])
    prompts, seeds = [prompt for prompt in PROMPTS for _ in SEEDS], SEEDS * 2
    again = images_from(sampler, prompts, seeds, found.latents.flatten(0, 1), batch_size=1)
    assert torch.equal(again, found.images.flatten(0, 1))
    assert bool((found.best["redness"] > found.scores["redness"][..., 0]).all())
    torch.testing.assert_close(found.best["redness"], found.totals.max(-1).values)
    assert counted[0] == (1, 28)
    assert counted[-1] == (28, 28)
    assert found.skipped.tolist() == [[0, 0], [0, 0]]


class Wavy(Redness):
    """A score that steps of this size leap over."""

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return torch.cos(300 * super().forward(images, prompts))


def test_the_best_iterate_is_kept_where_later_ones_are_worse(catalog: Any) -> None:
    sampler, rewards = sampler_of(catalog), Objective({"redness": Wavy(RednessConfig())})
    found = optimise_noise(
        sampler, rewards, ["a cat"], [0, 1, 2], ascent=Ascent(iterations=5, learning_rate=30.0), batch_size=3
    )
    assert bool((found.best_iteration < 5).all())
    assert bool((found.best_iteration > 0).any())
    again = images_from(sampler, ["a cat"] * 3, [0, 1, 2], found.latents[0], batch_size=3)
    torch.testing.assert_close(again, found.images[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(rewards(again, [""] * 3).total, found.totals[0].max(-1).values, atol=1e-2, rtol=0)


@pytest.mark.parametrize("how", [{"gradient_checkpointing": True, "decode": "checkpointed"}, {"decode": "sliced"}])
def test_recomputation_is_honoured_and_changes_no_iterate(catalog: Any, how: dict[str, Any]) -> None:
    ascent = Ascent(iterations=2)
    plain = optimise_noise(sampler_of(catalog), redness(), ["a cat"], [0], ascent=ascent)
    small = optimise_noise(sampler_of(catalog, **how), redness(), ["a cat"], [0], ascent=ascent)
    torch.testing.assert_close(small.totals, plain.totals, atol=1e-5, rtol=0)
    torch.testing.assert_close(small.latents, plain.latents, atol=1e-3, rtol=0)


def test_recomputation_takes_less_memory(catalog: Any) -> None:
    def peak(**how: Any) -> int:
        sampler = sampler_of(catalog, **how)
        assert sampler.steps == 3
        ascent = Ascent(iterations=1)
        return peak_memory(lambda: optimise_noise(sampler, redness(), ["a cat"], [0], ascent=ascent))

    assert peak(gradient_checkpointing=True, decode="checkpointed") < 0.6 * peak()


@pytest.mark.parametrize("name", ["FLUX.1", "SDXL turbo", "Wan 2.1, video"])
def test_other_families_climb_with_the_noise_of_their_steps_held(name: str) -> None:
    family = BY_NAME[name]
    pipe = family.pipe()
    call = {key: value for key, value in family.call(torch.float32).items() if key != "negative_prompt"}
    sampler = DifferentiableSampler(pipe, num_inference_steps=family.steps, **call)
    ascent = Ascent(iterations=5, learning_rate=10.0, norm_weight=0.0)
    found = optimise_noise(sampler, redness(1000.0), ["a cat"], [7], ascent=ascent)
    assert found.totals[0, 0, 0] < found.totals[0, 0].max()
    start = start_of(sampler, ["a cat"], [7])
    with torch.no_grad():
        images = sampler(
            ["a cat"],
            plan=StepPlan(sampler.steps, frozenset()),
            generator=start.generators(),
            latents=found.latents.flatten(0, 1),
        ).images
    frame = images if images.ndim == 4 else images[:, images.shape[1] // 2]
    assert torch.equal(frame, found.images.flatten(0, 1))
    assert all(weight.requires_grad for weight in pipe.transformer.parameters()) if hasattr(pipe, "transformer") else 1


def test_the_norm_term_holds_the_noise_in_its_shell(catalog: Any) -> None:
    """The reward pulls the norm off; a large weight of the term keeps it where noise has it."""
    how = {"iterations": 12, "learning_rate": 5.0, "max_grad_norm": 0.5}

    def far(weight: float) -> float:
        ascent = Ascent(**how, norm_weight=weight)  # type: ignore[arg-type]
        norms = optimise_noise(sampler_of(catalog), redness(100.0), ["a cat"], [0], ascent=ascent).norms
        return float((norms - 1).abs().max())

    assert far(1.0) < 0.25 * far(0.0)


def test_a_gradient_that_is_not_finite_is_skipped_and_the_best_is_kept(catalog: Any) -> None:
    rewards = Objective({"redness": Nan(RednessConfig(contrast=100.0), calls={2})})
    found = optimise_noise(sampler_of(catalog), rewards, ["a cat"], [0], ascent=Ascent(iterations=3))
    assert found.skipped.tolist() == [[1]]
    assert bool(found.totals[0, 0, 1].isnan())
    assert bool(found.totals[0, 0, 2:].isfinite().all())
    assert int(found.best_iteration) != 1
    assert bool(found.images.isfinite().all())


def test_a_weight_of_zero_is_scored_and_needs_no_gradient(catalog: Any) -> None:
    rewards = {"redness": Redness(RednessConfig()), "brightness": Brightness(ClockConfig())}
    sampler = sampler_of(catalog)
    beside = Objective(rewards, {"brightness": 0.0})
    found = optimise_noise(sampler, beside, ["a cat"], [0], ascent=Ascent(iterations=1))
    torch.testing.assert_close(found.scores["brightness"][0, 0, 0], found.before.mean(), atol=1e-6, rtol=0)
    with pytest.raises(
        RewardError, match=r"reward 'brightness': its scores carry no gradient.*best_of_n \(--best-of\)"
    ):
        optimise_noise(sampler, Objective(rewards), ["a cat"], [0])


class Flat(Redness):
    """Redness without a slope where the batch is of these prompts."""

    prompts = ("a cat",)

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        flat = torch.tensor([0.0 if prompt in self.prompts else 1.0 for prompt in prompts])
        return super().forward(images, prompts) * flat


def test_an_image_whose_score_is_flat_stays_and_is_counted(catalog: Any) -> None:
    flat = Objective({"redness": Flat(RednessConfig(contrast=100.0))})
    found = optimise_noise(sampler_of(catalog), flat, ["a red dog", "a cat"], [0], ascent=Ascent(iterations=2))
    assert found.skipped.tolist() == [[0], [2]]
    assert torch.equal(found.images[1], found.before[1])
    assert found.norms[1, 0].unique().numel() == 1
    assert not torch.equal(found.images[0], found.before[0])


def test_what_cannot_climb_is_refused(catalog: Any) -> None:
    flat = Objective({"redness": Flat(RednessConfig())})
    with pytest.raises(RewardError, match=r"optimise_noise: its gradient in the noise is zero or not finite"):
        optimise_noise(sampler_of(catalog), flat, ["a cat", "a red dog"], [0])
    family = BY_NAME["SD image to image"]
    sampler = DifferentiableSampler(family.pipe(), num_inference_steps=6, **family.call(torch.float32))
    with pytest.raises(SamplerError, match="its call takes no latents, so that its noise cannot be given"):
        optimise_noise(sampler, redness(), PROMPTS, [0], batch_size=2)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"iterations": 0}, "Ascent.iterations: 0 is not a whole number from 1 on"),
        ({"learning_rate": 0.0}, "Ascent.learning_rate: it is 0.0; give a number above 0"),
        ({"max_grad_norm": -1.0}, "Ascent.max_grad_norm: it is -1.0"),
        ({"norm_weight": -0.1}, "Ascent.norm_weight: it is -0.1; give 0 or more"),
        ({"learning_rate": math.nan}, "Ascent.learning_rate: nan is not a finite number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(how: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DraftError, match=sentence):
        Ascent(**how)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"seeds": []}, "optimise_noise: there are no seeds"),
        ({"batch_size": 0}, "optimise_noise: batch_size: 0 is not"),
        ({"prompts": []}, "there are no prompts"),
        ({"rewards": Objective({})}, "optimise_noise: there is no reward"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_drawn(how: dict[str, Any], sentence: str) -> None:
    given = {"rewards": redness(), "prompts": ["a cat"], "seeds": [0], **how}
    with pytest.raises(DraftError, match=sentence):
        optimise_noise(None, **given)  # type: ignore[arg-type]
