"""Makes the small video model: `train.py all` runs every stage that is not finished, in order.

A stage that was interrupted goes on from its last checkpoint. The model starts from the model of scenes that
draft-emoji ships, and needs the training program of that plugin beside it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

STAGES = ("data", "video", "export")
PLUGINS = Path(__file__).resolve().parents[2]
MODEL = PLUGINS / "emoji-video" / "src" / "draft_emoji_video" / "model"
sys.path.insert(0, str(PLUGINS / "emoji" / "training"))


def main() -> None:
    """Run the stages that the command line asks for."""
    arguments = parse()
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        done = arguments.work / stage / "done"
        if done.exists() and arguments.stage == "all":
            print(f"{stage}: finished before; remove {done} to do it again", flush=True)
            continue
        run(stage, arguments)
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()


def run(stage: str, arguments: argparse.Namespace) -> None:
    """Run one stage, from its checkpoint if it has one."""
    from draft_emoji import FOLDER
    from emoji_training import pictures
    from emoji_training.loop import Budget
    from video_training import denoiser, export, prompts

    work, start = arguments.work, FOLDER / "scenes-model"
    if stage == "data":
        pictures.prepare(work)
    elif stage == "video":
        still, moving = Budget(minutes=arguments.still_minutes), Budget(minutes=arguments.minutes)
        denoiser.train(work, still, moving, torch.device(arguments.device), start)
    elif stage == "export":
        prompts.write(arguments.model.with_name("prompts"))
        export.export(work, start, arguments.model)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--work", type=Path, default=Path("runs/emoji"), help="everything made on the way goes here")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder that export replaces")
    parser.add_argument("--still-minutes", type=float, default=10.0, help="of training on single frames")
    parser.add_argument("--minutes", type=float, default=50.0, help="of training on clips")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
