"""The reward: images as files, a program's answers as scores."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from draft_core.errors import RewardError
from draft_core.rewards import FrozenModule, checked_images
from draft_core.rewards.images import to_pil
from draft_reward_command import CommandConfig, CommandPerPromptConfig
from draft_reward_command.program import Program


class CommandReward(FrozenModule):
    """What a program answers for images, without gradient.

    Arguments:
        config: which program, and how it is run; its type says whether the program is also given prompts.

    Raises:
        RewardError: if there is no such program, or it cannot be executed.
    """

    def __init__(self, config: CommandConfig | CommandPerPromptConfig) -> None:
        super().__init__()
        self.with_prompts = isinstance(config, CommandPerPromptConfig)
        self.program = Program(
            config.command,
            Path(config.folder),
            stays=config.start == "once",
            timeout=config.timeout,
            kind=config.kind,
        )

    @torch.no_grad()
    def forward(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1], which the program sees as 8-bit PNG files.

        An image with levels that are not finite is not shown to it, and its score is NaN.

        Raises:
            RewardError: if the images or prompts are none, the images cannot be written, or the program does not give a
                finite score to each.
        """
        images = checked_images(images, prompts, where=self.program.where)
        scores = images.new_full((len(images),), math.nan)
        shown = [number for number, image in enumerate(images) if image.isfinite().all()]
        if shown:
            found = self._ask([images[number] for number in shown], [prompts[number] for number in shown])
            scores[shown] = images.new_tensor(found)
        return scores

    def _ask(self, images: Sequence[torch.Tensor], prompts: Sequence[str]) -> list[float]:
        """The program's scores of images (3, H, W), whose files are gone when it has answered."""
        with tempfile.TemporaryDirectory(prefix="draft-command-") as folder:
            paths = [str(Path(folder, f"{number:03d}.png")) for number in range(len(images))]
            try:
                for image, path in zip(images, paths, strict=True):
                    to_pil(image).save(path)
            except OSError as error:
                raise RewardError(
                    f"an image cannot be written for it ({error.strerror or error})",
                    where=f"{self.program.where}: {folder}",
                    next="make room there, or name another folder in TMPDIR",
                ) from error
            lines = [self._line(path, prompt).encode() for path, prompt in zip(paths, prompts, strict=True)]
            return self.program.scores(lines, paths)

    def _line(self, path: str, prompt: str) -> str:
        return json.dumps({"image": path, "prompt": prompt}) if self.with_prompts else path
