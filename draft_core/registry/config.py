"""The base of everything a recipe can say: frozen, typed, and closed to unknown fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from draft_core.plan import Renoising, StepPlan
from draft_core.registry.validation.booleans import refuse_booleans
from draft_core.surrogates.settings import SurrogateSettings

__all__ = ["Config", "DirectConfig", "Field", "MethodConfig", "RewardConfig"]


class Config(BaseModel):
    """A frozen pydantic model that refuses unknown fields and non-finite numbers.

    Raises:
        RecipeError: at construction, in the words in which a recipe that says the same is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            from draft_core.registry.validation.messages import sentence_of_config  # which knows all configs

            raise sentence_of_config(error, type(self), fields) from None
        refuse_booleans(fields, self, where=type(self).__name__)

    # pydantic makes what is nested in YAML itself, and would call any other constructor for it
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class QuantileCap(Config):
    """A cap that moves with the scores of each pass."""

    quantile: float = Field(
        gt=0,
        lt=1,
        description="Share of the images of a pass whose scores do not exceed the cap: 0.75 caps the best quarter.",
    )


class RewardConfig(Config):
    """What every reward entry of a recipe can say; a plugin subclasses it.

    A subclass narrows `kind` to a literal with a default, `kind: Literal["jpeg"] = "jpeg"`: the
    recipe tells entries apart by it.
    """

    kind: str = Field(description="Which reward; `draft rewards` lists the installed ones.")
    weight: float = Field(1.0, description="Factor of this reward in the sum that training maximises.")
    device: str | None = Field(
        None,
        pattern=r"^(cpu|mps|cuda(:\d+)?)$",
        description="Where this reward computes, cuda:1 for example; left out, where the pipeline does.",
    )
    cap: float | QuantileCap | None = Field(
        None,
        description="Scores above it earn no more: their gradient is zero, so that nothing is over-optimised. "
        "`{quantile: 0.75}` takes it from the scores of each pass of the training.",
    )
    worst_within: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Training takes the worst score within so far of an image, root mean square over values in 0..1, "
        "found by one step against the gradient: a sharp peak of the reward then earns little. Costs one more score "
        "and its gradient.",
    )
    columns: dict[str, str] | None = Field(
        None,
        description="Of a reward that reads columns of the prompt list: its name for one -> the list's own; what is "
        "left out is called the same in both.",
    )
    surrogate: SurrogateSettings | None = Field(
        None,
        description="Train on a small network that learns this reward's scores on the way, in the place of the reward, "
        "which then needs no gradient; `{}` takes the defaults. The reward itself judges the evaluations.",
    )

    @property
    def reads_prompts(self) -> bool:
        """Whether the score depends on the prompt as it is set here, where the kind's spec says `needs_prompt`."""
        return True

    @property
    def least_frames(self) -> int:
        """How many frames the videos must have that it scores, at least."""
        return 1

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses prompts that the reward cannot score; here none.

        It is called when a recipe is loaded, before any model is, with the prompts that the reward will score.

        Arguments:
            prompts: of the training or of the evaluation.

        Raises:
            DraftError: that names a prompt, and says what it lacks.
        """


class MethodConfig(Config):
    """What every method can say: its name; a method subclasses it and adds its settings.

    A subclass narrows `kind` to a literal with a default, `kind: Literal["refl"] = "refl"`. The learner that the
    method's `MethodSpec` names is made of it.
    """

    kind: str = Field(description="Which method; `draft methods` lists them.")

    @property
    def compares_images(self) -> bool:
        """Whether it judges the images of a pass together: a run then goes on with passes of the same size alone."""
        return False

    @property
    def trains_on_rewards(self) -> bool:
        """Whether it scores images in training; where not, rewards judge the evaluations alone."""
        return True

    @property
    def scores_groups(self) -> bool:
        """Whether all images that a pass has of a prompt are scored in one call, side by side."""
        return True

    @property
    def prompt_file(self) -> Path | None:
        """The file that brings the training prompts, for a method whose fields name one; the recipe then needs none."""
        return None

    def check_prompts(self, columns: Mapping[str, Sequence[str]]) -> None:
        """Refuses a prompt list that lacks what the method reads beside the prompts; here none.

        Arguments:
            columns: of the training prompts, name -> as many texts as there are prompts.

        Raises:
            DraftError: that says what is missing.
        """

    def check_steps(self, steps: int) -> None:
        """Refuses a number of sampler `steps` that the method cannot use; here none.

        Raises:
            RecipeError: naming the field to change.
        """

    def check_batch(self, images: int, of_each_prompt: int) -> None:
        """Refuses batches that the method cannot use; here none.

        Arguments:
            images: in a batch of one process.
            of_each_prompt: how many of them have one prompt.

        Raises:
            RecipeError: naming the field to change.
        """


class DirectConfig(MethodConfig):
    """A method of the DRaFT family, whose gradient flows through the sampler: it makes plans for `DirectLearner`."""

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """The plan of one update over `steps` sampler steps; random choices come from `rng` alone.

        Raises:
            RecipeError: if a field does not fit `steps`.
        """
        raise NotImplementedError

    def check_steps(self, steps: int) -> None:
        """Refuses a number of sampler `steps` for which there is no plan.

        Raises:
            RecipeError: naming the field to change.
        """
        self.plan(steps, Random(0))

    def renoising(self) -> Renoising:
        """What follows each sampling run; here nothing."""
        return Renoising()
