"""FlowBP and LeapAlign on a flow-matching chain in float64, against their papers' constructions written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from draft_core import (
    DifferentiableSampler,
    DirectLearner,
    FlowBPBridge,
    FlowBPLagrange,
    FlowBPSparse,
    LeapAlign,
    StepPlan,
)
from draft_core.errors import SamplerError
from draft_core.leaps import Leap, Leaps, integral_weights, lagrange_leap, rescaling, supports
from draft_core.learners import direct
from draft_core.learners.direct import closeness, leap_distances, planned
from draft_core.learners.learner import Alone, Batch
from draft_core.plan import Renoising
from draft_core.registry import flow as flow_methods
from draft_core.rewards.objective import Scores
from draft_core.sampling import seams
from draft_core.sampling.seams import replaced
from tests.support.drive import parameters, seeded
from tests.support.families import sd3
from tests.support.tiny import embeddings, tiny_pipe

STEPS = 7
GUIDANCE = 3.0
PROMPTS = ["a cat"]
Velocity = Callable[[int, torch.Tensor], torch.Tensor]


class Chain:
    """What an oracle may use of the chain: its levels, its latents x_0 .. x_T without gradient, and the velocity."""

    def __init__(self, sampler: DifferentiableSampler) -> None:
        pipe, calls = sampler.pipe, []

        def watch(forward: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(kwargs)
            return forward(*args, **kwargs)

        with replaced(pipe.transformer, "forward", watch), torch.no_grad():
            sampler(PROMPTS, plan=StepPlan(STEPS, frozenset()), generator=seeded())
        self.pipe, self.calls = pipe, calls[-STEPS:]  # before them the dry run
        self.levels = [float(level) for level in pipe.scheduler.sigmas]
        latents = [self.calls[0]["hidden_states"][:1]]  # guidance doubles the batch
        self.velocities = []
        with torch.no_grad():
            for step in range(STEPS):
                self.velocities.append(self.velocity(step, latents[-1]))
                latents.append(latents[-1] + self.h(step) * self.velocities[-1])
        self.latents = latents

    def h(self, step: int) -> float:
        return self.levels[step + 1] - self.levels[step]

    def velocity(self, step: int, latents: torch.Tensor) -> torch.Tensor:
        call = {**self.calls[step], "hidden_states": torch.cat([latents, latents])}
        negative, positive = self.pipe.transformer(**call)[0].chunk(2)
        return negative + GUIDANCE * (positive - negative)

    def gradient(self, x0: torch.Tensor) -> torch.Tensor:
        """Of a function of the image that x0 leads to, in the parameters; values are the chain's own."""
        x0 = x0 + (self.latents[-1] - x0).detach()
        latents = x0 / self.pipe.vae.config.scaling_factor + self.pipe.vae.config.shift_factor
        image = self.pipe.vae.decode(latents, return_dict=False)[0]
        return gradients(self.pipe.image_processor.postprocess(image, output_type="pt"), self.pipe)


@pytest.fixture(scope="module")
def sampler() -> DifferentiableSampler:
    pipe = sd3()
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.double().eval()
    return DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=GUIDANCE, height=16, width=16)


@pytest.fixture(scope="module")
def chain(sampler: DifferentiableSampler) -> Chain:
    return Chain(sampler)


def gradients(images: torch.Tensor, pipe: Any) -> torch.Tensor:
    slope = torch.linspace(-1, 1, images.numel(), dtype=images.dtype).view_as(images)
    value = (images.square() * slope).sum()
    grads = torch.autograd.grad(value, parameters(pipe), allow_unused=True, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])


def shared(value: torch.Tensor, alpha: float) -> torch.Tensor:
    return alpha * value + (1 - alpha) * value.detach()


def with_factor(velocity: torch.Tensor, factor: float) -> torch.Tensor:
    return velocity.detach() + factor * (velocity - velocity.detach())


def by_hand_sparse(chain: Chain, plan: StepPlan, method: Any) -> torch.Tensor:
    factor = made_up(method.rescale, [chain.h(step) for step in range(STEPS)], sorted(plan.grad_steps))
    x0 = chain.latents[0]
    for step in range(STEPS):
        velocity = chain.velocities[step]
        if step in plan.grad_steps:
            velocity = with_factor(chain.velocity(step, chain.latents[step]), factor)
        x0 = x0 + chain.h(step) * velocity
    return x0


def by_hand_bridge(chain: Chain, plan: StepPlan, method: Any) -> torch.Tensor:
    (anchor,) = plan.input_weights
    factor = made_up(method.rescale, [chain.h(step) for step in range(STEPS)], sorted(plan.grad_steps))
    reached = chain.latents[0]
    for step in range(STEPS):
        if step == anchor:
            reached = reached + (chain.latents[anchor] - reached).detach()
            seen = shared(reached, method.alpha)
        velocity = chain.velocities[step]
        if step in plan.grad_steps:
            at = seen if step == anchor else chain.latents[step]
            velocity = with_factor(chain.velocity(step, at), factor)
        reached = reached + chain.h(step) * velocity
    return reached


def by_hand_leapalign(chain: Chain, plan: StepPlan, method: Any) -> torch.Tensor:
    first, second = sorted(plan.grad_steps)
    velocity = chain.velocity(first, chain.latents[first])
    leapt = chain.latents[first] + (chain.levels[second] - chain.levels[first]) * velocity
    reached = leapt + (chain.latents[second] - leapt).detach()
    return reached + (0.0 - chain.levels[second]) * chain.velocity(second, shared(reached, method.alpha))


def by_hand_lagrange(chain: Chain, plan: StepPlan, method: Any) -> torch.Tensor:
    """Quadrature by numpy's polynomials; supports and what they carry as the publication's settings say."""
    first, (second,) = min(plan.grad_steps), plan.input_weights
    reached = chain.latents[first]
    for start, end in ((first, second), (second, STEPS)):
        count = min(method.order, end - start)
        places = [start + int(place) for place in np.linspace(0, end - start - 1, count).round()]
        nodes = np.array([chain.levels[place] for place in places])
        weights = []
        for node in nodes:
            others = nodes[nodes != node]
            integral = np.poly1d(others, r=True).integ() / np.prod(node - others)
            weights.append(float(integral(chain.levels[end]) - integral(chain.levels[start])))
        carrying = places[: method.active]
        share = sum(map(abs, weights)) / sum(abs(weights[places.index(place)]) for place in carrying)
        factor = 1 + method.rescale * (share - 1)
        seen = shared(reached, method.alpha)
        leapt = reached
        for place, weight in zip(places, weights, strict=True):
            velocity = chain.velocities[place]
            if place == start:
                velocity = with_factor(chain.velocity(place, seen), factor)
            elif place in carrying:
                again = chain.velocity(place, chain.latents[place])
                velocity = with_factor(with_factor(again, method.support_scale), factor)
            leapt = leapt + weight * velocity
        reached = leapt + (chain.latents[end] - leapt).detach()
    return reached


def made_up(share: float, weights: list[float], active: list[int]) -> float:
    return 1 + share * (sum(map(abs, weights)) / sum(abs(weights[step]) for step in active) - 1)


CASES = {
    "sparse": (FlowBPSparse(k=3, bias=2, rescale=0.5), by_hand_sparse),
    "bridge": (FlowBPBridge(k=4, alpha=0.4), by_hand_bridge),
    "bridge, nothing made up": (FlowBPBridge(k=3, alpha=0.5, bias=4, rescale=0), by_hand_bridge),
    "leapalign": (LeapAlign(), by_hand_leapalign),
    "lagrange": (FlowBPLagrange(alpha=0.4), by_hand_lagrange),
    "lagrange, all active": (FlowBPLagrange(order=4, active=4, rescale=0, support_scale=1), by_hand_lagrange),
}


def compare(sampler: DifferentiableSampler, chain: Chain, case: str, seed: int) -> None:
    method, by_hand = CASES[case]
    plan = planned(method, sampler, Random(seed))
    found = sampler(PROMPTS, plan=plan, generator=seeded())
    bare = sampler(PROMPTS, plan=StepPlan(STEPS, frozenset()), generator=seeded())
    assert torch.equal(found.images.detach(), bare.images), "weights change no value"
    expected = chain.gradient(by_hand(chain, plan, method))
    # the scheduler steps in float32
    torch.testing.assert_close(gradients(found.images, sampler.pipe), expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [1, 4])
def test_the_gradient_is_that_of_the_published_surrogate(
    sampler: DifferentiableSampler, chain: Chain, case: str, seed: int
) -> None:
    compare(sampler, chain, case, seed)


@pytest.mark.parametrize("case", ["sparse", "bridge", "leapalign", "lagrange"])
def test_weights_that_are_left_out_are_seen(
    sampler: DifferentiableSampler, chain: Chain, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, _ = CASES[case]
    weighted = type(method).weighted

    def wrong(self: Any, plan: StepPlan, sizes: Any) -> StepPlan:
        return replace(weighted(self, plan, sizes), weights={})

    monkeypatch.setattr(type(method), "weighted", wrong)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        compare(sampler, chain, case, 1)


@pytest.mark.parametrize("case", ["bridge, nothing made up", "leapalign", "lagrange"])
def test_a_gradient_through_the_whole_call_at_the_anchor_is_seen(
    sampler: DifferentiableSampler, chain: Chain, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seams, "with_input_gradient", lambda args, kwargs, factor: (args, kwargs))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        compare(sampler, chain, case, 1)


def test_the_step_sizes_are_the_differences_of_the_noise_levels(sampler: DifferentiableSampler, chain: Chain) -> None:
    assert sampler.step_sizes == pytest.approx([chain.h(step) for step in range(STEPS)], rel=1e-5)


@pytest.mark.parametrize("method", [LeapAlign(), FlowBPLagrange(), FlowBPBridge(k=2), FlowBPSparse(k=2, rescale=0.5)])
def test_a_scheduler_with_other_steps_is_refused_by_name(method: Any) -> None:
    sampler = DifferentiableSampler(tiny_pipe(), num_inference_steps=4, guidance_scale=GUIDANCE, **embeddings())
    with pytest.raises(SamplerError, match="a step of DDIMScheduler does more than add a multiple of the prediction"):
        DirectLearner(method).check(sampler)
    for lenient in (FlowBPSparse(k=2, bias=1), FlowBPBridge(k=2, rescale=0)):
        DirectLearner(lenient).check(sampler)


# Quadrature


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_quadrature_is_exact_for_polynomials_below_its_order(order: int) -> None:
    nodes = [0.0, -0.11, -0.3, -0.42, -0.9][:order]
    weights = integral_weights(nodes, -1.0)
    for power in range(order):
        found = sum(weight * node**power for weight, node in zip(weights, nodes, strict=True))
        assert found == pytest.approx((-1.0) ** (power + 1) / (power + 1))


def test_three_predictions_at_equal_distances_are_simpsons_rule_on_what_they_span() -> None:
    weights = lagrange_leap(0, 3, [-0.1, -0.1, -0.1], 3).weights
    # the polynomial through 0, -.1, -.2, integrated to -.3: (9, 0, 27) / 12 of the width, by hand
    assert weights == pytest.approx({0: -0.1 * 9 / 12, 1: 0.0, 2: -0.1 * 27 / 12})


@pytest.mark.parametrize(
    ("length", "order", "places"),
    [(2, 3, [0, 1]), (9, 3, [0, 4, 8]), (6, 3, [0, 2, 5]), (4, 3, [0, 2, 3]), (5, 1, [0])],
)
def test_supports_are_spread_evenly(length: int, order: int, places: list[int]) -> None:
    assert supports(length, order) == places
    assert places == [int(place) for place in np.linspace(0, length - 1, min(order, length)).round()]


def test_what_no_step_carries_is_not_made_up_for() -> None:
    assert rescaling(1.0, [0.5, -0.5], [0.0]) == 1.0
    assert rescaling(0.5, [0.5, -0.25, 0.25], [-0.25]) == 1 + 0.5 * 3


# Draws


def test_the_bias_draws_steps_in_proportion_to_their_power() -> None:
    """The first of k steps alone has that probability; by hand for two of three."""
    counts = {(0, 1): 0, (0, 2): 0, (1, 2): 0}
    rng, draws = Random(0), 20000
    for _ in range(draws):
        counts[tuple(sorted(FlowBPSparse(k=2, bias=1).plan(3, rng).grad_steps))] += 1  # type: ignore[index]
    weights = [1, 2, 3]
    for first, second in counts:
        one, other = weights[first], weights[second]
        expected = one / 6 * other / (6 - one) + other / 6 * one / (6 - other)
        sigma = math.sqrt(expected * (1 - expected) / draws)
        assert abs(counts[first, second] / draws - expected) < 4 * sigma


def test_without_bias_the_draws_are_those_of_before() -> None:
    assert FlowBPSparse(k=3).plan(9, Random(5)) == StepPlan(
        9, frozenset(Random(5).sample(range(9), 3)), detach_input=True
    )


def test_the_bridge_has_its_anchor_and_a_share_of_steps_on_both_sides() -> None:
    for seed in range(300):
        plan = FlowBPBridge(k=5).plan(12, Random(seed))
        (anchor,) = plan.input_weights
        before = sum(step < anchor for step in plan.grad_steps)
        assert len(plan.grad_steps) == 5
        assert anchor in plan.grad_steps
        assert before == min(max(round(5 * anchor / 12), 1, 5 - (12 - anchor)), anchor, 4)


def test_the_leaps_of_lagrange_follow_the_segments() -> None:
    ends = []
    for seed in range(2000):
        plan = FlowBPLagrange(last=10).plan(25, Random(seed))
        first, (second,) = min(plan.grad_steps), plan.input_weights
        assert 0 <= first < second <= 23
        assert second >= 15
        ends.append((first, second))
    free = [next(iter(FlowBPLagrange().plan(25, Random(seed)).input_weights)) for seed in range(2000)]
    # the mean share of the second segment is 6 / 10.5, of the first 2 / 10.5
    assert np.mean([25 - 1 - second for second in free]) == pytest.approx(25 * 2.5 / 10.5, abs=0.3)
    assert all(first == min(23, first) for first, _ in ends)


# Images count less for which the leaps miss the chain


def test_images_count_by_how_far_the_leaps_miss_the_chain(sampler: DifferentiableSampler, chain: Chain) -> None:
    method = LeapAlign(tau=1e-3)
    plan = planned(method, sampler, Random(1))
    rollout = sampler(PROMPTS, plan=plan, generator=seeded())
    first, second = sorted(plan.grad_steps)
    expected = []
    for start, end in ((first, second), (second, STEPS)):
        leapt = chain.latents[start] + (chain.levels[end] - chain.levels[start]) * chain.velocities[start]
        expected.append((leapt - chain.latents[end]).abs().mean())
    assert plan.leaps is not None
    distances = leap_distances(plan.leaps, rollout.trajectory)
    torch.testing.assert_close(distances[:, 0].double(), torch.stack(expected), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(closeness(torch.tensor([[0.1, 1.0], [0.3, 0.4]]), 0.2), torch.tensor([1 / 0.5, 1 / 1.4]))


def loss_of(sampler: DifferentiableSampler) -> Any:
    def score(images: torch.Tensor, prompts: Any, **more: Any) -> Scores:
        total = images.mean((1, 2, 3))
        return Scores(total, {"mean": total})

    batch = Batch(prompts=PROMPTS, generators=[seeded()], columns={}, update=0, rng=Random(1), ranks=Alone())
    return next(DirectLearner(LeapAlign()).losses(batch, sampler, score))


def test_the_loss_is_weighted_and_reports_the_distance(
    sampler: DifferentiableSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(LeapAlign(), sampler, Random(1))
    rollout = sampler(PROMPTS, plan=plan, generator=seeded())
    assert plan.leaps is not None
    distances = leap_distances(plan.leaps, rollout.trajectory)
    expected = -float(rollout.images.detach().mean() / distances.clamp(min=0.1).sum())
    loss = loss_of(sampler)
    assert float(loss.value.detach()) == pytest.approx(expected, rel=1e-5)
    assert loss.report == {"leap_distance": pytest.approx(float(distances.mean()))}
    monkeypatch.setattr(direct, "closeness", lambda distances, least: torch.ones(1))
    assert float(loss_of(sampler).value.detach()) != pytest.approx(expected, rel=1e-3)


# Plans


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {1: 2.0}}, "StepPlan.weights: step 1 is weighted, and no grad step; weigh some of \\[3\\]"),
        ({"weights": {3: math.nan}}, "the weight of step 3 is nan; give a finite number"),
        ({"weights": [3]}, "it is a list; give {step: factor}"),
        ({"input_weights": {3: True}}, "StepPlan.input_weights: the weight of step 3 is True"),
        ({"weights": {3: 2.0}, "prefix": 2}, "re-noised copies take the last step's whole gradient"),
        ({"leaps": Leaps((Leap(0, 4, {0: 1.0}),), 0.1)}, "which is not kept; add keep_trajectory=True"),
        ({"leaps": Leaps((Leap(0, 9, {0: 1.0}),), 0.1), "keep_trajectory": True}, "ends behind the chain of 4 steps"),
        ({"leaps": Leaps((), 0.1), "keep_trajectory": True, "stop_at": 3}, "a chain that is left early"),
    ],
)
def test_impossible_weights_are_refused(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SamplerError, match=message):
        StepPlan(**{"steps": 4, "grad_steps": frozenset({3}), **fields})


def test_impossible_leaps_are_refused() -> None:
    with pytest.raises(SamplerError, match="give a number above 0"):
        Leaps((), 0.0)
    with pytest.raises(SamplerError, match="a leap from step 2 to 4 weighs the steps \\[1\\]"):
        Leaps((Leap(2, 4, {1: 1.0}),), 0.1)


def test_weights_and_re_noised_copies_exclude_each_other() -> None:
    with pytest.raises(SamplerError, match="use either weights and leaps or re-noised copies"):
        Renoising(copies=1).check_follows(StepPlan(4, frozenset({3}), weights={3: 2.0}))


def test_a_weight_of_anybodys_plan_scales_that_steps_gradient(sampler: DifferentiableSampler) -> None:
    """The seam that a third party has, on any scheduler: linear in the weight."""
    pipe = tiny_pipe()
    ddim = DifferentiableSampler(pipe, num_inference_steps=3, guidance_scale=GUIDANCE, **embeddings())

    def found(**weights: float) -> torch.Tensor:
        numbers = {int(name[1:]): weight for name, weight in weights.items()}
        plan = StepPlan(3, frozenset({1, 2}), detach_input=True, weights=numbers)
        return gradients(ddim(plan=plan, generator=seeded()).images, pipe)

    whole, without, twice = found(), found(_1=0.0), found(_1=2.0)
    torch.testing.assert_close(twice - whole, whole - without, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(whole, without, rtol=1e-2)
    assert flow_methods.FLOW[0].kind == "flowbp-sparse"
