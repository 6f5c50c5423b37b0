"""Whether an emoji moves as its prompt says: by where it lies in each frame and how large it is, without a network."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from draft_core.errors import RewardError
from draft_core.rewards import FrozenModule, checked_images, checked_videos
from draft_core.rewards.images import resize_like_pil
from draft_emoji.configs import EmojiJudgeTop1Config, EmojiMotionConfig, EmojiMotionThingConfig, EmojiPathConfig
from draft_emoji.judge import EmojiJudge

# What a motion changes from the first frame to the last: the middle of the drawing, to the right and down, and the root
# of its area, all in sides of the frame; those of the videos that the model was trained on.
TRAVEL, GROWTH = 28 / 64, 0.3
CHANGES = {
    "moving left": (-TRAVEL, 0.0, 0.0),
    "moving right": (TRAVEL, 0.0, 0.0),
    "moving up": (0.0, -TRAVEL, 0.0),
    "moving down": (0.0, TRAVEL, 0.0),
    "growing": (0.0, 0.0, GROWTH),
    "shrinking": (0.0, 0.0, -GROWTH),
}
ANY = "|".join(CHANGES)
MOTION = re.compile(rf"\s+({ANY})(?:\s+and\s+({ANY}))?\s*$")
INK, SOFT = 0.15, 0.025  # how far from white a pixel belongs to the drawing, and over how much that is decided
LEAST = 0.4  # of a motion's change, to be counted as one
STEADY = 0.8  # least share of a change's variance that an even pace explains
EMPTY = 0.01  # of a frame; a smaller drawing has no place
EDGE = 2  # pixels around a drawing that is cut out
SIDE = 64  # to which it is enlarged


def words_of(prompt: str, where: str) -> tuple[str, tuple[str, ...]]:
    """The thing and the one or two motions of "[STYLE style, ]a fox moving up and growing", in the order of CHANGES.

    Raises:
        RewardError: if the prompt does not end in a motion, or in two that cannot be had together.
    """
    found = MOTION.search(prompt.lower())
    if found is None:
        raise RewardError(
            f"the prompt {prompt!r} ends in no motion",
            where=where,
            next=f"end it in {', '.join(CHANGES)}, or in two of them with 'and'",
        )
    asked = {motion: axis(motion) for motion in CHANGES if motion in found.groups()}
    if len(set(asked.values())) < len([words for words in found.groups() if words]):
        raise RewardError(
            f"the prompt {prompt!r} asks for two motions along one line, {found[1]!r} and {found[2]!r}",
            where=where,
            next="name motions that a thing can make at once, as in 'moving up and growing'",
        )
    return prompt[: found.start()].strip(), tuple(asked)


def axis(motion: str) -> int:
    """Which of x, y and the root of the area a motion changes."""
    return next(number for number, change in enumerate(CHANGES[motion]) if change)


def places(videos: Tensor) -> Tensor:
    """Middle (x, y) and root of the area of what is drawn on white, (N, F, 3), of videos (N, F, 3, H, W) in [0, 1].

    In sides of the frame, x to the right and y down. It has a gradient.
    """
    ink = torch.sigmoid((1 - videos.amin(2) - INK) / SOFT)
    height, width = ink.shape[-2:]
    area = ink.mean((2, 3))
    across, down = ((torch.arange(n, device=ink.device, dtype=ink.dtype) + 0.5) / n for n in (width, height))
    weight = area.clamp(min=1e-6)
    x = (ink.mean(2) * across).mean(2) / weight
    y = (ink.mean(3) * down).mean(2) / weight
    return torch.stack([x, y, weight.sqrt()], dim=2)


def motions(videos: Tensor, count: int = 1) -> list[tuple[str, ...]]:
    """The so many motions that each of the videos (N, F, 3, H, W) in [0, 1] shows, as CHANGES has them; () if unclear.

    They are the straight lines, fitted to the places of the frames, whose changes are largest, in parts of what their
    motions change. No other change must be as large, and each must go at an even pace: shuffled frames show nothing.
    """
    found = places(videos)
    time = torch.linspace(-0.5, 0.5, found.shape[1], device=found.device, dtype=found.dtype)
    centred = found - found.mean(1, keepdim=True)
    slope = (centred * time[None, :, None]).sum(1) / time.square().sum()  # from the first frame to the last
    explained = slope.square() * time.square().sum() / centred.square().sum(1).clamp(min=1e-12)
    parts = slope / slope.new_tensor([TRAVEL, TRAVEL, GROWTH])
    clear = (parts.abs() >= LEAST) & (explained >= STEADY) & (found[:, :, 2].square() > EMPTY).all(1, keepdim=True)
    shown: list[tuple[str, ...]] = []
    for part, is_clear, largest in zip(parts, clear, parts.abs().topk(count).indices, strict=True):
        here = tuple(m for m, change in CHANGES.items() if axis(m) in largest and part[axis(m)] * change[axis(m)] > 0)
        shown.append(here if is_clear[largest].all() else ())
    return shown


class EmojiMotion(FrozenModule):
    """1 where a video shows the motion that its prompt ends in, or both of them, else 0."""

    takes = "video"

    def __init__(self, config: EmojiMotionConfig) -> None:
        super().__init__()
        self.where = f"reward {config.kind!r}"

    @torch.no_grad()
    def forward(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (N,) float32 of videos (N, F, 3, H, W) in [0, 1].

        Raises:
            RewardError: if they are not such videos, each with a prompt, or a prompt ends in no motion.
        """
        videos = checked_videos(videos, prompts, where=self.where)
        wanted = [words_of(prompt, self.where)[1] for prompt in prompts]
        shown = {count: motions(videos, count) for count in set(map(len, wanted))}
        right = [shown[len(asked)][number] == asked for number, asked in enumerate(wanted)]
        return torch.tensor(right, device=videos.device, dtype=torch.float32)


class EmojiPath(FrozenModule):
    """Minus how far a drawing strays from the even path of its prompt's motion, or of both; it has a gradient."""

    takes = "video"

    def __init__(self, config: EmojiPathConfig) -> None:
        super().__init__()
        self.where = f"reward {config.kind!r}"

    def forward(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (N,) float32 of videos (N, F, 3, H, W) in [0, 1]: minus the root mean square over the frames.

        In sides of the frame, of the middle and the root of the area together; where the path lies does not count.

        Raises:
            RewardError: if they are not such videos, each with a prompt, or a prompt ends in no motion.
        """
        videos = checked_videos(videos, prompts, where=self.where)
        found = places(videos)
        time = torch.linspace(-0.5, 0.5, found.shape[1], device=found.device, dtype=found.dtype)
        asked = [[CHANGES[motion] for motion in words_of(prompt, self.where)[1]] for prompt in prompts]
        change = torch.stack([found.new_tensor(changes).sum(0) for changes in asked])
        strays = found - found.mean(1, keepdim=True) - change[:, None] * time[None, :, None]
        return -(strays.square().sum(2).mean(1) + 1e-8).sqrt()


class EmojiMotionThing(FrozenModule):
    """Whether the network of `emoji-judge` sees the prompt's thing first, in an image or frame cut to what is drawn."""

    def __init__(self, config: EmojiMotionThingConfig) -> None:
        super().__init__()
        self.where = f"reward {config.kind!r}"
        self.judge = EmojiJudge(EmojiJudgeTop1Config())

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (N,) float32 of images (N, 3, H, W) in [0, 1]: 1 or 0; of a video the mean over its frames.

        Raises:
            RewardError: if they are not such images, each with a prompt, or a prompt ends in no motion or names none
                of the judge's things.
        """
        images = checked_images(images, prompts, where=self.where)
        things = [words_of(prompt, self.where)[0] for prompt in prompts]
        scores: Tensor = self.judge(torch.cat([cut(image) for image in images]), things)
        return scores


def cut(frame: Tensor) -> Tensor:
    """What is drawn on white in a frame (3, H, W), with a narrow edge, enlarged to (1, 3, 64, 64); else the frame."""
    drawn = 1 - frame.amin(0) > INK
    if not drawn.any():
        return resize_like_pil(frame[None], SIDE, SIDE)
    height, width = drawn.shape
    rows, columns = drawn.any(1).nonzero(), drawn.any(0).nonzero()
    top, low = int(rows[0]), int(rows[-1])
    left, right = int(columns[0]), int(columns[-1])
    side = max(low - top, right - left) + 1 + 2 * EDGE
    centre_y, centre_x = (top + low + 1) // 2, (left + right + 1) // 2
    white = frame.new_ones(3, height + 2 * side, width + 2 * side)
    white[:, side : side + height, side : side + width] = frame
    y, x = centre_y + side - side // 2, centre_x + side - side // 2
    return resize_like_pil(white[None, :, y : y + side, x : x + side], SIDE, SIDE)
