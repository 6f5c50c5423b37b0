"""What can be named of the small rewards in tints.py; the environments of tests get a copy of this file. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from draft_core.errors import RewardError
from draft_core.plugin import Field, RecipePath, RewardConfig, RewardSpec


class TintConfig(RewardConfig):
    """A tint."""

    kind: Literal["old-tint"] = "old-tint"
    strength: float = Field(1.0, gt=0, description="Factor.")


class NewTintConfig(RewardConfig):
    """Another one, which cannot read every prompt."""

    kind: Literal["new-tint"] = "new-tint"
    strength: float = Field(1.0, gt=0, description="Factor.")
    file: Annotated[Path, RecipePath(of="file")] | None = None

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses one word."""
        if "forbidden" in prompts:
            raise RewardError("it cannot score 'forbidden'", next="leave it out")


class ColumnedConfig(RewardConfig):
    """One that reads columns."""

    kind: Literal["columned"] = "columned"


class StillConfig(RewardConfig):
    """One of videos."""

    kind: Literal["still"] = "still"


class FlatConfig(RewardConfig):
    """One without a gradient."""

    kind: Literal["flat"] = "flat"


class OddConfig(RewardConfig):
    """One that misbehaves, as the prompt says."""

    kind: Literal["odd"] = "odd"
    marker: str = ""
    cannot_be_made: bool = False


def specs(*kinds: str, module: str) -> list[RewardSpec]:
    """Those of these kinds, made by functions of a module."""
    columns = {"target": "image", "weight": "number", "text": "text"}
    known = {
        "old-tint": (TintConfig, {"needs_prompt": True}),
        "new-tint": (NewTintConfig, {}),
        "columned": (ColumnedConfig, {"columns": columns, "small_columns": {"text": ("a", "bc", "def")}}),
        "still": (StillConfig, {"takes": "video"}),
        "flat": (FlatConfig, {"differentiable": False}),
        "odd": (OddConfig, {}),
    }
    return [
        RewardSpec(
            kind=kind,
            summary="of a test",
            config=known[kind][0],
            factory=f"{module}:{kind.replace('-', '_')}",
            unit="level",
            code_license="Apache-2.0",
            **known[kind][1],  # type: ignore[arg-type]
        )
        for kind in kinds
    ]
