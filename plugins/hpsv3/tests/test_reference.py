"""The same score as the published steps on Pillow images; and bugs that they would show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from draft_reward_hpsv3 import draft_register_rewards, reward, texts
from draft_reward_hpsv3.judge import Judge

from draft_core.testing import compare_kind

(SPEC,) = draft_register_rewards()
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("size", [(448, 448), (300, 401), (97, 64)], ids=str)
def test_scores_are_those_of_the_published_steps(size: tuple[int, int]) -> None:
    comparison = compare_kind("hpsv3", SPEC.small, sizes=[size], count=3)
    assert comparison.holds, comparison


def _positions_of_rows_and_columns(patch: Patch) -> None:
    """Those that today's transformers gives an image, for the image's own tokens."""
    forward = Judge.forward

    def moved(self: Judge, ids: torch.Tensor, mask: torch.Tensor, patches: torch.Tensor, grid: Any, places: Any) -> Any:
        plain = self.backbone.forward
        is_image = (ids == self.backbone.config.image_token_id).int()

        def run(**given: Any) -> Any:
            index, _ = self.backbone.get_rope_index(
                given["input_ids"],
                mm_token_type_ids=is_image,
                image_grid_thw=given["image_grid_thw"],
                attention_mask=given["attention_mask"],
            )
            return plain(**{**given, "position_ids": index})

        self.backbone.forward = run
        try:
            return forward(self, ids, mask, patches, grid, places)
        finally:
            del self.backbone.forward

    patch.setattr(Judge, "forward", moved)


def _patches_row_by_row(patch: Patch) -> None:
    """Not four to a token: what a Qwen2-VL processor without its merging order would give."""
    plain = reward.patched

    def in_rows(images: torch.Tensor) -> Any:
        patches, (rows, columns) = plain(images)
        tiles = patches.unflatten(1, (rows // 2, columns // 2, 2, 2)).transpose(2, 3)
        return tiles.flatten(1, 4), (rows, columns)

    patch.setattr(reward, "patched", in_rows)


def _another_state(patch: Patch) -> None:
    """That of the last token, as reward models without a token of their own take it."""
    forward = Judge.forward
    patch.setattr(Judge, "forward", lambda self, *given: forward(self, *given[:4], given[1].sum(1) - 1))


def _deviation(patch: Patch) -> None:
    forward = Judge.forward
    patch.setattr(Judge, "forward", lambda self, *given: forward(self, *given).flip(1))


def _no_system_message(patch: Patch) -> None:
    patch.setattr(texts, "BEFORE_IMAGE", texts.BEFORE_IMAGE.partition("\n<|im_start|>user")[2])


def _squashed(patch: Patch) -> None:
    patch.setattr(reward, "smart_resize", lambda *_, **__: (448, 448))


@pytest.mark.parametrize(
    "plant",
    [
        _positions_of_rows_and_columns,
        _patches_row_by_row,
        _another_state,
        _deviation,
        _no_system_message,
        _squashed,
    ],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_bug_is_noticed(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert not compare_kind("hpsv3", SPEC.small, sizes=[(300, 401)], count=3).holds
