"""What an unknown name may have meant: a near one, or one that a published plugin offers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What the distributions published with draft-core offer, by kind, alias or name of a prompt list.
PUBLISHED = {
    "adversarial": "draft-reward-adversarial",
    "adversarial-per-prompt": "draft-reward-adversarial",
    "adversarial-top1": "draft-reward-adversarial",
    "aesthetic": "draft-reward-aesthetic",
    "asked-colour": "draft-reward-colour",
    "clipscore": "draft-reward-clipscore",
    "colour-harmony": "draft-reward-colour",
    "command": "draft-reward-command",
    "command-per-prompt": "draft-reward-command",
    "detection": "draft-reward-detection",
    "detection-found": "draft-reward-detection",
    "detection-listed": "draft-reward-detection",
    "detection-per-prompt": "draft-reward-detection",
    "emoji": "draft-emoji",
    "emoji-clip": "draft-emoji",
    "emoji-contrast": "draft-emoji",
    "emoji-detector": "draft-emoji",
    "emoji-hard": "draft-emoji",
    "emoji-heldout": "draft-emoji",
    "emoji-judge": "draft-emoji",
    "emoji-judge-top1": "draft-emoji",
    "emoji-motion": "draft-emoji",
    "emoji-motion-held-out": "draft-emoji",
    "emoji-motion-pairs": "draft-emoji",
    "emoji-motion-pairs-held-out": "draft-emoji",
    "emoji-motion-thing": "draft-emoji",
    "emoji-path": "draft-emoji",
    "emoji-preference": "draft-emoji",
    "emoji-scene": "draft-emoji",
    "emoji-scene-contrast": "draft-emoji",
    "emoji-scene-judge": "draft-emoji",
    "emoji-scene-judge-right": "draft-emoji",
    "emoji-scenes": "draft-emoji",
    "emoji-train": "draft-emoji",
    "emoji-train-plain": "draft-emoji",
    "emoji-two-steps": "draft-emoji",
    "emoji-video": "draft-emoji",
    "emoji-vlm": "draft-emoji",
    "emoji-vlm-motion": "draft-emoji",
    "flicker": "draft-reward-motion",
    "face": "draft-reward-face",
    "face-count": "draft-reward-face",
    "hpsv2": "draft-reward-hpsv2",
    "hpsv3": "draft-reward-hpsv3",
    "imagereward": "draft-reward-imagereward",
    "jpeg": "draft-reward-jpeg",
    "jpeg-distortion": "draft-reward-jpeg",
    "jpeg-size": "draft-reward-jpeg",
    "motion": "draft-reward-motion",
    "motion-followed": "draft-reward-motion",
    "ocr": "draft-reward-ocr",
    "ocr-per-prompt": "draft-reward-ocr",
    "palette": "draft-reward-colour",
    "pickscore": "draft-reward-pickscore",
    "scenes-heldout": "draft-emoji",
    "scenes-train": "draft-emoji",
    "similarity": "draft-reward-similarity",
    "similarity-per-prompt": "draft-reward-similarity",
    "vlm": "draft-reward-vlm",
    "vqascore": "draft-reward-vlm",
}

LIKENESS = 0.7  # of a slip of the pen, by difflib's ratio; "adversarial" and "diversity" reach 0.6


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be, None if none is near.

    It is near if the one begins with the other, or if most letters are the same in the same order.
    """
    known = sorted(known)
    if alike := difflib.get_close_matches(name, known, n=1, cutoff=LIKENESS):
        return alike[0]
    begins = [other for other in known if name and (other.startswith(name) or name.startswith(other))]
    return min(begins, key=lambda other: abs(len(other) - len(name)), default=None)
