"""The contract of rewards, and the letters that stand for sizes in docstrings.

B  prompts in a batch          T  sampler steps              n  re-noisings per sample (DRaFT-LV)
N  images in a rollout, B (1 + n) times the images per prompt; F  frames of a video
H, W  image size in pixels     C, h, w  latent channels and size
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch

from draft_core.errors import DraftError, RewardError, raised
from draft_core.rewards.inputs import checked_images, checked_videos

Takes = Literal["image", "video", "any"]
Scope = Literal["image", "group"]

if TYPE_CHECKING:
    from typing_extensions import Self


class Reward(Protocol):
    """A scorer: images and their prompts in, one score for each image out. Higher is better.

    Frozen, in eval mode, deterministic; no score depends on the other images of the batch, and the
    inputs are left unchanged. A differentiable reward gives every image a gradient.
    """

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores, float32 (N,).

        Arguments:
            images: float (N, 3, H, W) in [0, 1], or whole videos, (N, F, 3, H, W), where the reward `takes` video;
                values slightly outside must score finite, and other ranges such as [-1, 1] and [0, 255] be refused,
                which `draft_core.rewards.checked_images` and `checked_videos` do.
            prompts: N strings.

        A reward whose spec declares `columns` is called with a third argument, `columns`: name -> a list of N values
        beside the prompts, texts, floats or image tensors (3, H, W) in [0, 1], as the spec says.

        A reward whose spec and class say `scope = "group"` is called with the images of one prompt, two or more, and
        with that prompt for each: an image's score may depend on the others, and not on their order.
        """
        ...


@runtime_checkable
class RewardWithComponents(Protocol):
    """A reward whose score is made of named parts, which evaluations store and the report shows beside the score.

    The name of a part says what it is, such as "physics"; its values may be NaN where it does not apply to an image.
    """

    def score_with_components(
        self, images: torch.Tensor, prompts: Sequence[str]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """The scores that the call gives, (N,), and by the name of each part its values, float32 (N,).

        The names must be the same at every call.

        Arguments:
            images: as in its call; of a reward that reads columns, those follow as there.
            prompts: N strings.
        """
        ...


def takes(reward: Any) -> Takes:
    """What a reward is given, as its attribute `takes` says; single images where it has none."""
    taken: Takes = getattr(reward, "takes", "image")
    return taken


def scope(reward: Any) -> Scope:
    """What a score depends on, as the reward's attribute `scope` says; one image where it has none."""
    scoped: Scope = getattr(reward, "scope", "image")
    return scoped


def check_takes(rewards: Mapping[str, torch.nn.Module], *, makes_videos: bool, model: str) -> None:
    """Refuses rewards of videos for a model that makes images.

    Arguments:
        rewards: name -> reward.
        makes_videos: whether the model does.
        model: what the error calls it.

    Raises:
        RewardError: naming the first such reward.
    """
    named = [name for name, reward in rewards.items() if takes(reward) == "video"]
    if named and not makes_videos:
        raise RewardError(
            f"it scores videos, and {model} makes images",
            where=f"reward {named[0]!r}",
            next="use a video model, or another reward",
        )


def with_components(
    reward: Any, images: torch.Tensor, prompts: Sequence[str], **beside: Any
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """A reward's scores (N,) and their parts by name; no parts if it tells none."""
    if isinstance(reward, RewardWithComponents):
        return reward.score_with_components(images, prompts, **beside)
    return reward(images, prompts, **beside), {}


class FrozenModule(torch.nn.Module):
    """A module that is in eval mode and stays there, whatever its parent does: the base for rewards.

    Dropout or batch statistics that come alive under a parent's `train()` turn scores into noise. Weights
    that a subclass loads it freezes itself, with `requires_grad_(False)`.

    Attributes:
        takes: as its `RewardSpec` says: "image", and of a video each frame; "video", whole videos alone; or "any",
            whole videos of a video model and images of another.
        scope: as its `RewardSpec` says: "image", and every image is scored by itself; or "group", and the images of one
            prompt are given together.
    """

    takes: Takes = "image"
    scope: Scope = "image"

    def __init__(self) -> None:
        super().__init__()
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Eval mode, whatever `mode` says."""
        return super().train(False)


class FunctionReward(FrozenModule):
    """A Python function as a reward.

    Arguments:
        function: called with images (N, 3, H, W) in [0, 1], float32, and with their N prompts where it takes a second
            argument; it returns scores, (N,), of any floating-point type. It may say by attributes what it `takes`, and
            its `scope`. A module whose `forward` takes images alone is one too.
        name: what an error calls it.
    """

    def __init__(self, function: Callable[..., torch.Tensor], name: str) -> None:
        super().__init__()
        self.function = function
        self.name = name
        self.takes, self.scope = takes(function), scope(function)
        self.takes_prompts = takes_prompts(function)

    def forward(self, images: torch.Tensor, prompts: Sequence[str], **beside: Any) -> torch.Tensor:
        """Its scores in float32.

        Raises:
            RewardError: if the function raises, or the images are no floats in [0, 1] with a prompt each.
        """
        check = checked_videos if images.ndim == 5 and self.takes != "image" else checked_images
        images = check(images, prompts, where=f"reward {self.name!r}")
        given = (images, list(prompts)) if self.takes_prompts else (images,)
        try:
            scores: torch.Tensor = self.function(*given, **beside)
        except (DraftError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise RewardError(
                f"its function raised {raised(error)}", where=f"reward {self.name!r}", next="mend the function"
            ) from error
        is_scores = isinstance(scores, torch.Tensor) and scores.is_floating_point()
        return scores.float() if is_scores else scores


def takes_prompts(reward: Callable[..., Any]) -> bool:
    """Whether a function or module is called with prompts behind the images, by its signature; True where it has none.

    A second argument with a default is something else, unless it is called `prompts` or a module's.
    """
    is_module = isinstance(reward, torch.nn.Module)
    called: Any = reward
    try:
        given = [*inspect.signature(called.forward if is_module else called).parameters.values()]
    except (TypeError, ValueError):
        return True
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in given):
        return True
    positional = [it for it in given if it.kind in (it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD)]
    return any(is_module or it.default is it.empty or it.name == "prompts" for it in positional[1:])


def as_reward(reward: Any, name: str) -> torch.nn.Module:
    """A reward as a module: itself, or a function as a `FunctionReward`.

    Arguments:
        reward: a module, or a function of images, or of images and prompts.
        name: what an error calls it.

    Raises:
        RewardError: if it is neither, or a class that no instance was made of.
    """
    if isinstance(reward, torch.nn.Module):
        return reward if takes_prompts(reward) else FunctionReward(reward, name)
    if isinstance(reward, type) or not callable(reward):
        what = f"the class {reward.__name__}" if isinstance(reward, type) else f"a {type(reward).__name__}"
        advice = "make an instance of it" if isinstance(reward, type) else "give a module, or a function of images"
        raise RewardError(f"it is {what}", where=f"reward {name!r}", next=advice)
    return FunctionReward(reward, name)


def from_reward_fn(
    function: Callable[..., Any],
    *,
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
    differentiable: bool = True,
) -> FrozenModule:
    """A reward made of `function(images, prompts, metadata) -> (rewards, info)`, as TRL's image trainers call it.

    The function is given images (N, 3, H, W) in [0, 1], a tuple of N prompts and a tuple of N dicts. Of what it
    returns, N rewards are kept, as float32, and `info` is dropped. It may return the rewards alone, too.

    Arguments:
        function: scores images; higher is better.
        metadata: prompt -> the dict of that prompt. None gives what the reward reads of the prompt's row
            (`columns` of `Objective`), and where that is nothing an empty dict, as TRL does.
        differentiable: whether the rewards have a gradient with respect to the images; False computes them without, for
            metrics and for methods that ask for scores alone.

    Returns:
        A frozen module that keeps the contract of `Reward`. Its call raises a `RewardError` if a prompt has no
        metadata, if the rewards are not N finite numbers, or if no gradient leads from them to the images.
    """
    return _WithMetadata(function, metadata, differentiable)


class _WithMetadata(FrozenModule):
    """See `from_reward_fn`."""

    def __init__(
        self,
        function: Callable[..., Any],
        metadata: Mapping[str, Mapping[str, Any]] | None,
        differentiable: bool,
    ) -> None:
        super().__init__()
        self.function, self.metadata, self.differentiable = function, metadata, differentiable
        self.where = f"reward function {getattr(function, '__name__', type(function).__name__)!r}"
        self._has_gradient = False  # seen in a call; a further backward pass for each would double the cost

    def forward(
        self, images: torch.Tensor, prompts: Sequence[str], columns: Mapping[str, Sequence[Any]] | None = None
    ) -> torch.Tensor:
        """Rewards, float32 (N,)."""
        images = checked_images(images, prompts, where=self.where)
        beside = tuple(self._beside(number, prompt, columns or {}) for number, prompt in enumerate(prompts))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            returned = self.function(images, tuple(prompts), beside)
            scores = self._checked(returned[0] if isinstance(returned, tuple) else returned, images)
        if self.differentiable and images.requires_grad and torch.is_grad_enabled():
            self._require_gradient(scores, images)
        return scores

    def _beside(self, number: int, prompt: str, columns: Mapping[str, Sequence[Any]]) -> Mapping[str, Any]:
        if self.metadata is None:
            return {name: values[number] for name, values in columns.items()}
        if prompt not in self.metadata:
            raise RewardError(
                f"there is no metadata for the prompt {prompt!r}", where=self.where, next="add it, or give it {}"
            )
        return self.metadata[prompt]

    def _checked(self, rewards: Any, images: torch.Tensor) -> torch.Tensor:
        try:
            scores = torch.as_tensor(rewards, dtype=torch.float32, device=images.device)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RewardError(
                f"it returned {type(rewards).__name__}, not numbers ({error})",
                where=self.where,
                next="return a tensor (N,) of rewards, and a dict",
            ) from error
        if scores.shape != (len(images),):
            raise RewardError(
                f"it returned rewards of shape {tuple(scores.shape)} for {len(images)} images",
                where=self.where,
                next=f"return one reward for each image, of shape ({len(images)},)",
            )
        if not scores.isfinite().all():
            first = int((~scores.isfinite()).nonzero()[0])
            raise RewardError(
                f"its reward of image {first} is {float(scores.detach()[first])}",
                where=self.where,
                next="return finite numbers",
            )
        return scores

    def _require_gradient(self, scores: torch.Tensor, images: torch.Tensor) -> None:
        if not self._has_gradient and scores.requires_grad:
            (gradient,) = torch.autograd.grad(scores.sum(), images, retain_graph=True, allow_unused=True)
            self._has_gradient = gradient is not None
        if not self._has_gradient or not scores.requires_grad:
            raise RewardError(
                "no gradient leads from its rewards to the images",
                where=self.where,
                next="compute them from the images by torch's operations, without detach(), numpy or Pillow; or say "
                "differentiable=False, and take a method for rewards without a gradient, such as ddpo",
            )
