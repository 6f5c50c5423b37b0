"""Makes the embedded model from nothing: `train.py all` runs every stage that is not finished, in order.

A stage that was interrupted goes on from its last checkpoint. `vae` and `clip` do not need each other and may run side
by side, as one process each; so may `judge` and `preference`, and the three stages of scenes. The stages after `export`
need the folder that it writes and no other stage before it but `data`: they make the scorers for the model that is
shipped, and from it the model of scenes and its scorers, then the LoRA for two steps, by the installed package, the
model that answers questions, about images and then about motion, which needs the CLIP beside that folder and is then
told the names of things, the videos on the model of scenes, and at last the detector, which needs the same CLIP.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

STAGES = (
    "data",
    "vae",
    "clip",
    "unet",
    "export",
    "drawn",
    "judge",
    "preference",
    "scorers",
    "scenes",
    "scenes-matcher",
    "scenes-judge",
    "scenes-export",
    "two-steps",
    "two-steps-export",
    "vlm",
    "vlm-export",
    "vlm-motion",
    "vlm-motion-export",
    "vlm-things",
    "video",
    "video-export",
    "tiny-decoder",
    "detector",
    "detector-export",
)
AGAIN = ("video-boxes",)  # for what is shipped; `all` leaves it out, since another stage does the same
MINUTES = {  # about what was shipped took
    "vae": 25.0,
    "clip": 25.0,
    "unet": 75.0,
    "judge": 30.0,
    "preference": 30.0,
    "scenes": 80.0,
    "scenes-matcher": 30.0,
    "scenes-judge": 20.0,
    "vlm": 25.0,
    "vlm-motion": 25.0,
    "video": 40.0,
    "tiny-decoder": 12.0,
    "detector": 60.0,
}
MODEL = Path(__file__).resolve().parents[1] / "src" / "draft_emoji" / "model"


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
    from emoji_training import clip, drawn, export, judge, pictures, preference, tiny_decoder, two_steps, unet, vae
    from emoji_training.critic import motion, things
    from emoji_training.critic import training as critic
    from emoji_training.detector import training as detector
    from emoji_training.loop import Budget
    from emoji_training.scenes import denoiser, matcher, prompts
    from emoji_training.scenes import judge as scenes_judge
    from emoji_training.video import denoiser as video
    from emoji_training.video import prompts as moves

    work, device = arguments.work, torch.device(arguments.device)
    if stage == "data":
        pictures.prepare(work)
    elif stage == "vae":
        vae.train(work, Budget(minutes=arguments.vae_minutes), device)
    elif stage == "clip":
        clip.train(work, Budget(minutes=arguments.clip_minutes), device)
    elif stage == "unet":
        unet.train(work, Budget(minutes=arguments.minutes), device, arguments.processes, arguments.batch)
    elif stage == "export":
        export.export(work, arguments.model)
    elif stage == "drawn":
        drawn.prepare(work, arguments.model)
    elif stage == "judge":
        judge.train(work, Budget(minutes=arguments.judge_minutes), device)
    elif stage == "preference":
        start = arguments.model.with_name("clip")
        preference.train(work, Budget(minutes=arguments.preference_minutes), device, start, arguments.model)
    elif stage == "scorers":
        export.export_scorers(work, arguments.model)
    elif stage == "scenes":
        denoiser.train(work, Budget(minutes=arguments.scenes_minutes), device, arguments.model)
    elif stage == "scenes-matcher":
        start = arguments.model.with_name("clip")
        matcher.train(work, Budget(minutes=arguments.scenes_matcher_minutes), device, start, arguments.model)
    elif stage == "scenes-judge":
        start = arguments.model.with_name("judge")
        scenes_judge.train(work, Budget(minutes=arguments.scenes_judge_minutes), device, start)
    elif stage == "scenes-export":
        prompts.write(arguments.model.with_name("prompts"))
        export.export_scenes(work, arguments.model)
    elif stage == "two-steps":
        two_steps.train(work)
    elif stage == "two-steps-export":
        two_steps.export(work, arguments.model)
    elif stage == "vlm":
        critic.train(work, Budget(minutes=arguments.vlm_minutes), device, arguments.model.with_name("clip"))
    elif stage == "vlm-motion":
        motion.train(work, Budget(minutes=arguments.vlm_motion_minutes), device)
    elif stage == "vlm-export":
        critic.export(work, arguments.model)
    elif stage == "vlm-motion-export":
        critic.export(work, arguments.model, "vlm-motion")
    elif stage == "vlm-things":
        things.add(work, arguments.model)
    elif stage == "video":
        video.train(work, Budget(minutes=arguments.video_minutes), device, arguments.model.with_name("scenes-model"))
    elif stage == "video-export":
        moves.write(arguments.model.with_name("prompts"))
        video.write(work, arguments.model.with_name("scenes-model"))
    elif stage == "video-boxes":
        video.reread_boxes(arguments.model.with_name("scenes-model"))
    elif stage == "tiny-decoder":
        tiny_decoder.train(work, Budget(minutes=arguments.tiny_decoder_minutes), device, arguments.model)
    elif stage == "detector":
        budget = Budget(minutes=arguments.detector_minutes)
        detector.train(work, budget, device, arguments.model, arguments.processes, arguments.detector_from)
    elif stage == "detector-export":
        detector.export(work, arguments.model)


def parse() -> argparse.Namespace:
    """The command line."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, *AGAIN, "all"))
    parser.add_argument("--work", type=Path, default=Path("runs/emoji"), help="everything made on the way goes here")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder that export replaces")
    parser.add_argument("--minutes", type=float, default=MINUTES["unet"], help="training minutes of unet")
    parser.add_argument("--vae-minutes", type=float, default=MINUTES["vae"])
    parser.add_argument("--clip-minutes", type=float, default=MINUTES["clip"])
    parser.add_argument("--judge-minutes", type=float, default=MINUTES["judge"])
    parser.add_argument("--preference-minutes", type=float, default=MINUTES["preference"])
    parser.add_argument("--scenes-minutes", type=float, default=MINUTES["scenes"])
    parser.add_argument("--scenes-matcher-minutes", type=float, default=MINUTES["scenes-matcher"])
    parser.add_argument("--scenes-judge-minutes", type=float, default=MINUTES["scenes-judge"])
    parser.add_argument("--vlm-minutes", type=float, default=MINUTES["vlm"])
    parser.add_argument("--vlm-motion-minutes", type=float, default=MINUTES["vlm-motion"])
    parser.add_argument("--video-minutes", type=float, default=MINUTES["video"])
    parser.add_argument("--tiny-decoder-minutes", type=float, default=MINUTES["tiny-decoder"])
    parser.add_argument("--detector-minutes", type=float, default=MINUTES["detector"])
    parser.add_argument("--detector-from", type=Path, help="folder of a detector to go on from, in place of the CLIP")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument(
        "--processes", type=int, default=1 if on_gpu else 2, help="of unet and detector, one thread each"
    )
    parser.add_argument("--batch", type=int, default=64 if on_gpu else 12, help="of unet, in each process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
