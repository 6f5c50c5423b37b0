"""The contract as a pytest class that a plugin's tests inherit.

from draft_core.testing import RewardContract

class TestMine(RewardContract):
    kind = "mine"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from draft_core.registry.catalog import load_catalog
from draft_core.runs.build import reward_config
from draft_core.testing.checks import CHECKS, one_thread
from draft_core.testing.subject import Subject, require_readable


class RewardContract:
    """One test for each promise of the contract, for the installed reward `kind`.

    Attributes:
        kind: the reward; its distribution must be installed, because it is found like a user finds it.
        config: fields of its config; if left out, those of the spec's `small`.
        prompts: three or more that the reward can read with this config; those of the spec if left out.
        skip: name of a check -> why it does not apply; the reason is printed.
    """

    kind: ClassVar[str]
    config: ClassVar[Mapping[str, Any] | None] = None
    prompts: ClassVar[Sequence[str]] = ()
    skip: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses a skipped check that does not exist, or has no reason."""
        super().__init_subclass__(**kwargs)
        for name, reason in cls.skip.items():
            if name not in CHECKS or not reason.strip():
                raise TypeError(
                    f"{cls.__name__}.skip: {name!r} is no check, or has no reason; checks: {', '.join(CHECKS)}"
                )

    @classmethod
    def subject(cls) -> Subject:
        """A fresh instance of the reward, so that one check cannot spoil the next."""
        catalog = load_catalog()
        entry = catalog.reward(cls.kind)
        fields = entry.spec.small if cls.config is None else cls.config
        spec = replace(entry.spec, small_prompts=tuple(cls.prompts)) if cls.prompts else entry.spec
        config = reward_config(cls.kind, fields, catalog)
        require_readable(spec, config)
        return Subject(spec, config, entry.module)


def _test(name: str, check: Callable[[Subject], None]) -> Callable[[RewardContract], None]:
    def test(self: RewardContract) -> None:
        if name in self.skip:
            import pytest

            pytest.skip(f"{name}: {self.skip[name]}")
        with one_thread():
            check(self.subject())

    test.__doc__ = check.__doc__
    return test


for _name, _check in CHECKS.items():
    setattr(RewardContract, f"test_{_name}", _test(_name, _check))
