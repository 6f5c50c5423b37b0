"""For plugin authors' tests: the contract of rewards, and the comparison of a port with its reference scorer.

Inherit `RewardContract` in a test, or run `draft rewards check` and `draft rewards compare`.
"""

from draft_core.testing.checks import CHECKS, one_thread
from draft_core.testing.contract import RewardContract
from draft_core.testing.models import write_small_model
from draft_core.testing.reference import SIZES, Comparison, compare_kind, compare_with_reference
from draft_core.testing.subject import PROMPTS, Subject, Violation

__all__ = [
    "CHECKS",
    "PROMPTS",
    "SIZES",
    "Comparison",
    "RewardContract",
    "Subject",
    "Violation",
    "compare_kind",
    "compare_with_reference",
    "one_thread",
    "write_small_model",
]
