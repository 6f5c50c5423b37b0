"""Colours of an image: names the rewards and their options, and imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, field_validator

from draft_core.plugin import Config, Field, RewardConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2

__all__ = [
    "AskedColourConfig",
    "Background",
    "ColourHarmonyConfig",
    "HexColour",
    "PaletteConfig",
    "Template",
    "draft_register_rewards",
    "hex_colour",
]

MOST_COLOURS = 8

_HEX = re.compile(r"#[0-9a-f]{6}")


def _present(colour: Any) -> Any:
    if colour is None:
        raise ValueError('a colour is empty; put it in quotes, "#1d3557": a bare # begins a comment in YAML')
    return colour


def hex_colour(colour: str) -> str:
    """The colour in small letters, "#rrggbb"; raises ValueError if it is none."""
    if not _HEX.fullmatch(colour.lower()):
        raise ValueError(f'{colour!r} is no colour; write # and six hexadecimal digits, such as "#1d3557"')
    return colour.lower()


# An sRGB colour, "#rrggbb".
HexColour: TypeAlias = Annotated[str, BeforeValidator(_present), AfterValidator(hex_colour)]

# A harmonic template by the letter that it has with Matsuda.
Template: TypeAlias = Literal["i", "V", "L", "I", "T", "Y", "X"]


class Background(Config):
    """A colour whose pixels are left out."""

    colour: HexColour = Field("#ffffff", description='The colour, in quotes: "#ffffff".')
    tolerance: float = Field(
        10.0, ge=0, description="How far from it a pixel still belongs to it, CIE76 distance; 2 is just noticeable."
    )


class PaletteConfig(RewardConfig):
    """Options of `palette`: how near each pixel's colour is to one of those asked for."""

    kind: Literal["palette"] = "palette"
    colours: tuple[HexColour, ...] = Field(
        min_length=1, max_length=MOST_COLOURS, description='1 to 8 colours, each in quotes: "#1d3557".'
    )
    background: Background | None = Field(
        None, description="A colour whose pixels do not count; left out, every pixel counts."
    )
    sharpness: float = Field(
        0.5,
        gt=0,
        description="Of the soft minimum over colours, per unit of distance: at 0.5 a colour 10 further away has 1 % "
        "of the gradient.",
    )

    @field_validator("colours")
    @classmethod
    def _differ(cls, colours: tuple[str, ...]) -> tuple[str, ...]:
        if twice := next((colour for colour in colours if colours.count(colour) > 1), None):
            raise ValueError(f"{twice!r} is listed twice; list each colour once")
        return colours


class AskedColourConfig(RewardConfig):
    """Options of `asked-colour`: how near the pixels are to the colour that the list of prompts asks for."""

    kind: Literal["asked-colour"] = "asked-colour"
    background: Background | None = Field(
        None, description="A colour whose pixels do not count; left out, every pixel counts."
    )


class ColourHarmonyConfig(RewardConfig):
    """Options of `colour-harmony`: how well the hues fit a harmonic template."""

    kind: Literal["colour-harmony"] = "colour-harmony"
    templates: tuple[Template, ...] = Field(
        ("i", "V", "L", "I", "T", "Y", "X"),
        min_length=1,
        description="Which templates count; the nearest decides. i: one hue, V: neighbours, I: two opposite hues; "
        "L, T, Y, X: wider ones.",
    )

    @field_validator("templates")
    @classmethod
    def _differ(cls, templates: tuple[Template, ...]) -> tuple[Template, ...]:
        if twice := next((template for template in templates if templates.count(template) > 1), None):
            raise ValueError(f"{twice!r} is listed twice; list each template once")
        return templates


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The rewards of this distribution."""
    return [
        RewardSpec(
            kind="palette",
            summary="how near each pixel's colour is to one of a palette",
            config=PaletteConfig,
            factory="draft_reward_colour.reward:PaletteReward",
            unit="minus CIE76 distance in CIELAB",
            score_range="(-260, log(number of colours) / sharpness]",
            code_license="Apache-2.0",
            small={"colours": ["#1d3557", "#e63946", "#f1c453"]},
            reference="draft_reward_colour.reference:palette",
            tolerance=0.02,
        ),
        RewardSpec(
            kind="asked-colour",
            summary="how near each pixel's colour is to the one that the prompt's row asks for",
            config=AskedColourConfig,
            factory="draft_reward_colour.reward:AskedColourReward",
            unit="minus CIE76 distance in CIELAB",
            score_range="(-260, 0]",
            columns={"colour": "text"},
            small_columns={"colour": ("#1d3557", "#e63946", "#f1c453")},
            code_license="Apache-2.0",
            reference="draft_reward_colour.reference:asked_colour",
            tolerance=0.02,
        ),
        RewardSpec(
            kind="colour-harmony",
            summary="how well the hues of an image fit the nearest harmonic template",
            config=ColourHarmonyConfig,
            factory="draft_reward_colour.reward:ColourHarmonyReward",
            unit="minus degrees of hue",
            score_range="[-171, 0], with all templates above -44",
            code_license="Apache-2.0",
            reference="draft_reward_colour.reference:harmony",
            tolerance=0.02,
        ),
    ]
