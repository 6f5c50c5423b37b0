"""The reward contract, for plugin authors: inherit `RewardContract` in a test, or run `draft rewards check`."""

from draft_core.testing.checks import CHECKS, Subject, Violation
from draft_core.testing.contract import RewardContract

__all__ = ["CHECKS", "RewardContract", "Subject", "Violation"]
