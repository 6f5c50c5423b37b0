"""Where a run's numbers and images also go: the trackers that a recipe can name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from draft_core.registry.config import Config, Field


class TensorBoardConfig(Config):
    """Event files in `tensorboard/` of the run's folder."""


class WandbConfig(Config):
    """Weights & Biases."""

    project: str = Field("draft", min_length=1, description="The project that the run belongs to.")
    entity: str | None = Field(None, min_length=1, description="User or team; left out, the one that is logged in.")
    mode: Literal["online", "offline"] | None = Field(
        None,
        description="With `offline` the run is kept in `wandb/` of the run's folder, and `wandb sync` sends it later; "
        "left out, the variable WANDB_MODE says it, or else it is online.",
    )


class TrackioConfig(Config):
    """Trackio: on this machine, or in a Space of the Hugging Face Hub."""

    project: str = Field("draft", min_length=1, description="The project that the run belongs to.")
    space_id: str | None = Field(
        None, min_length=1, description="A Space, NAME/SPACE, that shows the run; left out, it stays on this machine."
    )


def _named_alone(value: Any) -> Any:
    """A tracker that is named without fields takes its defaults."""
    return {} if value is None else value


class TrackersConfig(Config):
    """Each tracker that is named is used; `tensorboard:` without fields takes the defaults."""

    tensorboard: Annotated[TensorBoardConfig | None, BeforeValidator(_named_alone)] = Field(
        None, description="Event files in `tensorboard/` of the run's folder."
    )
    wandb: Annotated[WandbConfig | None, BeforeValidator(_named_alone)] = Field(
        None, description="Weights & Biases, online or offline."
    )
    trackio: Annotated[TrackioConfig | None, BeforeValidator(_named_alone)] = Field(
        None, description="Trackio, on this machine or in a Space."
    )

    def named(self) -> dict[str, Config]:
        """The trackers to use, by name."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: config for name, config in found.items() if config is not None}
