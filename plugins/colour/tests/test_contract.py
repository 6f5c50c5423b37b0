"""The rewards keep the contract of draft-core."""

from typing import ClassVar

from draft_core.testing import RewardContract


class TestPalette(RewardContract):
    kind = "palette"


class TestPaletteOfTheRest(RewardContract):
    kind = "palette"
    config: ClassVar = {"colours": ["#2a9d8f"], "background": {"colour": "#ffffff", "tolerance": 20}}


class TestAskedColour(RewardContract):
    kind = "asked-colour"


class TestColourHarmony(RewardContract):
    kind = "colour-harmony"


class TestColourHarmonyOfOneHue(RewardContract):
    kind = "colour-harmony"
    config: ClassVar = {"templates": ["i", "I"]}
