"""What every reward must keep, one function a promise; each raises `Violation` with what it saw.

The order is from the plain to the subtle, so that the first violation is the one to mend first.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from draft_core.errors import RewardError
from draft_core.prompt_rows import plain
from draft_core.rewards.columns import for_reward
from draft_core.testing.independence import deterministic, no_leak_between_images, remembers_nothing
from draft_core.testing.subject import Subject, demand, image_counts, other_prompts, summed, with_other

OTHER_SHAPES = ((48, 72), (72, 48), (61, 67), (33, 33))  # wide, tall, odd
OTHER_LENGTHS = (3, 8)  # frames of a video

# Relative agreement asked of a finite difference. 8-bit rounding inside a scorer makes it a staircase whose
# average slope is only met within a few percent.
DIFFERENCE_TOLERANCE = 0.1
DIFFERENCE_STEPS = (1e-3, 3e-3, 1e-2)  # root mean square of the change of a pixel
PATH_POINTS = 5  # at which the slope is taken where one point says too little
SURROGATE_STEP = 4 / 255  # one along a surrogate gradient, likewise
HALF_PRECISION = 0.1  # of the scores' scale: bfloat16 has three digits


def one_score_per_image(subject: Subject) -> None:
    """A batch of B images gives float32 scores of shape (B,), for B = 1 and 3; a group for B = 2 and 3."""
    for count in image_counts(subject):
        scores = subject.score(subject.images(count))
        demand(scores.dtype == torch.float32, f"it returned {scores.dtype} scores, not float32")
        demand(bool(scores.isfinite().all()), f"its scores are not finite: {scores.tolist()}")


def inputs_are_left_alone(subject: Subject) -> None:
    """Images, prompts and columns are the same after the call."""
    images, prompts = subject.images(), list(subject.prompts)
    beside = for_reward(subject.columns, prompts, images, where=subject.spec.kind)
    kept = {name: [copy.deepcopy(value) for value in values] for name, values in beside.items()}
    before = images.clone()
    texts = list(plain(prompts))
    subject.reward(images, texts, **({"columns": beside} if beside else {}))
    demand(torch.equal(images, before), "it changed the images in place")
    demand(texts == list(subject.prompts), "it changed the list of prompts")
    for name, values in kept.items():
        same = len(values) == len(beside.get(name, ())) and all(map(_equal, values, beside[name]))
        demand(same, f"it changed what it was given as column {name!r}")


def frozen(subject: Subject) -> None:
    """Nothing is trainable, and it stays in eval mode when a parent goes into training."""
    reward = subject.reward
    demand(isinstance(reward, torch.nn.Module), f"it is {type(reward).__name__}, not a torch.nn.Module")
    trainable = [name for name, parameter in reward.named_parameters() if parameter.requires_grad]
    demand(not trainable, f"{len(trainable)} of its parameters are trainable, first {(trainable or [''])[0]}")
    torch.nn.ModuleList([reward]).train()
    training = [name or type(reward).__name__ for name, module in reward.named_modules() if module.training]
    demand(not training, f"under a parent's train() it leaves eval mode: {', '.join(training[:3])}")


def tensors_move_along(subject: Subject) -> None:
    """Every tensor it holds is a parameter or a buffer, so that `.to(device)` takes it along."""
    left = [
        f"{path}.{name}".lstrip(".")
        for path, module in subject.reward.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    ]
    demand(
        not left, f"its attribute {', '.join(left[:3])} is a plain tensor and would stay on the CPU: register a buffer"
    )


def any_shape(subject: Subject) -> None:
    """Wide, tall and odd sizes give finite scores, and a gradient if it has one."""
    for height, width in OTHER_SHAPES:
        images = subject.images(2, height, width)
        scores = subject.score(images)
        demand(bool(scores.isfinite().all()), f"at {height}x{width} it scores {scores.tolist()}")
        if subject.spec.differentiable:
            _require_gradient(subject.gradient(images), f"at {height}x{width}")


def overshoot_stays_finite(subject: Subject) -> None:
    """Pixels from -0.1 to 1.1, as a decoder gives them, have finite scores and gradients."""
    images = subject.images() * 2 - 0.5
    images = images.clamp(-0.1, 1.1)
    scores = subject.score(images)
    demand(bool(scores.isfinite().all()), f"with pixels from -0.1 to 1.1 it scores {scores.tolist()}")
    if subject.spec.differentiable:
        gradient = subject.gradient(images)
        demand(bool(gradient.isfinite().all()), "with pixels from -0.1 to 1.1 its gradient is not finite")


def other_ranges_are_refused(subject: Subject) -> None:
    """Images in [0, 255] and in [-1, 1] are refused with a `RewardError`, not scored."""
    images = subject.images()
    for name, levels in (("[0, 255]", images * 255), ("[-1, 1]", images * 2 - 1)):
        try:
            scores = subject.score(levels)
        except RewardError:
            continue
        demand(False, f"it scores images in {name}, {scores.tolist()}: pass them through `checked_images` first")


def every_image_has_a_gradient(subject: Subject) -> None:
    """The gradient is finite and not zero for each image; a measure has none."""
    if not subject.spec.differentiable:
        images = subject.images().requires_grad_()
        scores = subject.called(images, subject.prompts)
        demand(not scores.requires_grad, "its spec says that it only measures, but its scores carry a gradient")
        return
    for count in image_counts(subject):
        _require_gradient(subject.gradient(subject.images(count)), f"with {count} images")


def gradient_is_right(subject: Subject) -> None:
    """A step along the gradient changes the score by what the gradient says; of a group the sum of the scores.

    A surrogate gradient, so declared in the spec, need only point upwards.
    """
    if not subject.spec.differentiable:
        return
    images = subject.images()
    gradient = subject.gradient(images)
    size = gradient.square().flatten(1).mean(1).sqrt()
    direction = gradient / size.view(-1, *[1] * (gradient.ndim - 1))
    if subject.spec.surrogate_gradient:
        gain = summed(subject, subject.score(images + SURROGATE_STEP * direction) - subject.score(images))
        demand(bool((gain > 0).all()), f"a step along its surrogate gradient changes the scores by {gain.tolist()}")
        return
    seen = {}
    for step in DIFFERENCE_STEPS:
        up, down = subject.score(images + step * direction), subject.score(images - step * direction)
        seen[step] = summed(subject, (up - down).double()) / (2 * step)
    promised = summed(subject, (gradient * direction).flatten(1).sum(1))
    errors = [(difference / promised - 1).abs() for difference in seen.values()]
    for step, difference in seen.items():
        if _any_within(errors, DIFFERENCE_TOLERANCE):
            break
        # Classifiers curve so strongly that the slope is another one a small step on. What a difference then
        # shows is the mean of the slopes along the way.
        errors.append((difference / _mean_slope(subject, images, direction, step) - 1).abs())
    best = torch.stack(errors).amin(0)
    demand(
        _any_within(errors, DIFFERENCE_TOLERANCE),
        f"a finite difference along its gradient is off by {[f'{error:.0%}' for error in best.tolist()]}",
    )


def half_precision_inputs(subject: Subject) -> None:
    """bfloat16 images and autocast give float32 scores near those of float32."""
    images = subject.images()
    plain = subject.score(images)
    scale = plain.abs().max().clamp_min(1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = subject.score(images)
    for name, scores in (("bfloat16 images", subject.score(images.bfloat16())), ("autocast", under_autocast)):
        demand(scores.dtype == torch.float32, f"with {name} it returns {scores.dtype}, not float32")
        off = float((scores - plain).abs().max() / scale)
        demand(off < HALF_PRECISION, f"with {name} its scores are off by {off:.0%} of their scale")


def prompts_count_as_declared(subject: Subject) -> None:
    """The score depends on the prompt exactly if the spec says so."""
    images = subject.images()
    before = subject.score(images)
    demand(
        torch.equal(before, subject.score(images)),
        "the same images and prompts score otherwise at every call, so that nothing can be said of prompts: mend that "
        "first",
    )
    same = torch.equal(before, subject.score(images, other_prompts(subject)))
    if subject.spec.needs_prompt:
        demand(not same, "its spec says that it needs a prompt, but other prompts give the same scores")
    else:
        demand(same, "its spec says that it needs no prompt, but other prompts give other scores")


def takes_as_declared(subject: Subject) -> None:
    """Its attributes `takes` and `scope` say what its spec says; one of videos refuses images with a `RewardError`."""
    scoped = getattr(subject.reward, "scope", "image")
    demand(subject.spec.scope == scoped, f"its spec says that its scope is the {subject.spec.scope}, it says {scoped}")
    said = getattr(subject.reward, "takes", "image")
    demand(subject.spec.allows(said), f"its spec says that it takes {subject.spec.takes}, its attribute {said}")
    if not subject.takes_videos:
        return
    try:
        scores = subject.called(subject.stills(), subject.prompts)
    except RewardError:
        return
    demand(False, f"it scores images, {scores.tolist()}: pass what it is given through `checked_videos` first")


def frames_count(subject: Subject) -> None:
    """Of videos: frames that stand still score otherwise, other lengths are scored, and every frame has a gradient."""
    if subject.spec.takes == "image":
        return
    videos = subject.videos()
    still = videos[:, :1].expand_as(videos)
    demand(
        not torch.equal(subject.score(videos), subject.score(still.contiguous())),
        "a video scores the same as its first frame repeated: it is a reward of images",
    )
    for frames in OTHER_LENGTHS:
        scores = subject.score(subject.videos(2, frames))
        demand(bool(scores.isfinite().all()), f"videos of {frames} frames score {scores.tolist()}")
    if not subject.spec.differentiable:
        return
    gradient = subject.gradient(videos)
    without = [
        (video, frame)
        for video in range(len(videos))
        for frame in range(videos.shape[1])
        if not gradient[video, frame].any()
    ]
    demand(not without, f"the gradient of video and frame {without[:3]} is zero")


def columns_count_as_declared(subject: Subject) -> None:
    """The score depends on each column that the spec says it reads."""
    images = subject.images()
    before = subject.score(images)
    for name in subject.spec.columns:
        same = torch.equal(before, subject.score(images, with_other(subject, name)))
        demand(not same, f"its spec says that it reads column {name!r}, but other values there give the same scores")


def config_survives_json(subject: Subject) -> None:
    """The config comes back from JSON as it was."""
    text = subject.config.model_dump_json()
    back = type(subject.config).model_validate(json.loads(text))
    demand(back == subject.config, f"its config {subject.config!r} comes back from JSON as {back!r}")


def naming_imports_no_torch(subject: Subject) -> None:
    """Importing the module that names it, in a fresh interpreter, imports no torch."""
    if subject.naming_module is None:
        return
    program = f"import sys, {subject.naming_module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    demand(done.returncode == 0, f"importing {subject.naming_module} imports torch {done.stderr[-200:]}".strip())


CHECKS: dict[str, Callable[[Subject], None]] = {
    check.__name__: check
    for check in (
        one_score_per_image,
        inputs_are_left_alone,
        deterministic,
        no_leak_between_images,
        remembers_nothing,
        frozen,
        tensors_move_along,
        any_shape,
        overshoot_stays_finite,
        other_ranges_are_refused,
        every_image_has_a_gradient,
        gradient_is_right,
        half_precision_inputs,
        prompts_count_as_declared,
        takes_as_declared,
        frames_count,
        columns_count_as_declared,
        config_survives_json,
        naming_imports_no_torch,
    )
}


@contextmanager
def one_thread() -> Iterator[None]:
    """A context in which torch computes on one thread: small tensors on a busy machine are much slower with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _any_within(errors: list[torch.Tensor], tolerance: float) -> bool:
    """Whether each image has an error below the tolerance in one of the lists."""
    return bool((torch.stack(errors).amin(0) < tolerance).all())


def _mean_slope(subject: Subject, images: torch.Tensor, direction: torch.Tensor, step: float) -> torch.Tensor:
    """The directional derivative (B,), averaged from `images - step * direction` to `images + step * direction`."""
    places = (torch.arange(PATH_POINTS) + 0.5) / PATH_POINTS * 2 - 1
    gradients = [subject.gradient(images + step * place * direction) for place in places.tolist()]
    return summed(subject, (torch.stack(gradients).mean(0) * direction).flatten(1).sum(1))


def _equal(first: object, second: object) -> bool:
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second  # type: ignore[arg-type]


def _require_gradient(gradient: torch.Tensor, where: str) -> None:
    demand(bool(gradient.isfinite().all()), f"{where} its gradient is not finite")
    without = [place for place, of_image in enumerate(gradient) if not of_image.any()]
    demand(not without, f"{where} the gradient of image {without[:1]} is zero")
