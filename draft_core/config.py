"""The base of everything a recipe can say: frozen, typed, and closed to unknown fields.

Names wing, no torch here. May import: errors.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Config", "Field", "RewardConfig"]


class Config(BaseModel):
    """A frozen pydantic model that refuses unknown fields and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class RewardConfig(Config):
    """What every reward entry of a recipe can say; a plugin subclasses it.

    A subclass narrows `kind` to a literal with a default, `kind: Literal["jpeg"] = "jpeg"`: the
    recipe tells entries apart by it.
    """

    kind: str = Field(description="Which reward; `draft rewards` lists the installed ones.")
    weight: float = Field(1.0, description="Factor of this reward in the sum that training maximises.")
