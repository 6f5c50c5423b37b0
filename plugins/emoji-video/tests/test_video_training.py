"""The program that makes the video model, on a world of four things."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, StableDiffusionPipeline
from draft_emoji.scene_words import things
from emoji_training import captions, clip, pictures, unet, vae
from emoji_training import export as image_export
from emoji_training.loop import Budget
from emoji_training.pictures import Picture
from transformers import CLIPTextModel
from video_training import clips, denoiser, export, prompts
from video_training.clips import FRAMES, Animator, Clip
from video_training.words import MOTIONS, hidden, phrase, read

pytestmark = pytest.mark.filterwarnings("ignore:.torch_dtype. is deprecated:FutureWarning")

CPU = torch.device("cpu")


def described() -> list[Picture]:
    numbers = {words: n for n, words, _ in pictures.read_concepts().values()}
    return [Picture(thing, thing, thing, (), "flat", numbers[thing], True) for thing in things()[:4]]


def squares() -> np.ndarray:
    """A picture of black for each, which fills it."""
    return np.zeros((4, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def animator() -> Animator:
    return Animator(squares(), described())


def box(frame: np.ndarray) -> tuple[float, float, int]:
    """Middle and side of what is dark."""
    y, x = np.nonzero(frame[..., 0] < 128)
    return (x.min() + x.max() + 1) / 2, (y.min() + y.max() + 1) / 2, int(x.max() - x.min() + 1)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_clip_shows_its_motion(animator: Animator, motion: str) -> None:
    frames = animator.frames(Clip(0, motion))
    assert frames.shape == (FRAMES, 64, 64, 3)
    boxes = [box(frame) for frame in frames]
    for (x, y, side), (wanted_x, wanted_y, wanted_side) in zip(boxes, clips.path(motion), strict=True):
        assert abs(x - wanted_x) <= 1
        assert abs(y - wanted_y) <= 1
        assert abs(side - wanted_side) <= 0.5
    (x0, y0, first), (x1, y1, last) = boxes[0], boxes[-1]
    gained = {"left": x0 - x1, "right": x1 - x0, "up": y0 - y1, "down": y1 - y0}
    for name, pixels in gained.items():
        assert abs(pixels - 32 * (motion == f"moving {name}") + 32 * (motion == opposite(name))) <= 1
    assert last - first == {"growing": 30, "shrinking": -30}.get(motion, 0)


def opposite(name: str) -> str:
    return "moving " + {"left": "right", "right": "left", "up": "down", "down": "up"}[name]


def test_chosen_frames_are_those_of_the_whole_clip(animator: Animator) -> None:
    whole = animator.frames(Clip(1, "growing"))
    assert np.array_equal(animator.frames(Clip(1, "growing"), [1, 6]), whole[[1, 6]])


def test_hidden_pairs_are_in_no_clip_and_each_thing_has_four_motions(animator: Animator) -> None:
    shown = [(animator.meta[c.index].phrase, c.motion) for c in animator.choices]
    assert len(shown) == 16
    assert not any(hidden(*pair) for pair in shown)
    assert all(sum(hidden(thing, motion) for motion in MOTIONS) == 2 for thing in things())


def test_words_say_thing_and_motion() -> None:
    assert phrase("a fox", "moving left") == "a fox moving left"
    assert read("3d style, a red apple growing") == ("a red apple", "growing")
    assert read("a red apple") is None


def test_the_lists_share_no_thing_and_hold_out_what_no_clip_showed(tmp_path: Path) -> None:
    prompts.write(tmp_path)
    lists = {name: (tmp_path / f"video-{name}.txt").read_text().splitlines() for name in ("train", "heldout")}
    assert {name: len(lines) for name, lines in lists.items()} == {"train": 180, "heldout": 40}
    pairs = {name: [read(line) for line in lines] for name, lines in lists.items()}
    assert all(hidden(*pair) == (name == "heldout") for name, found in pairs.items() for pair in found if pair)
    assert not {pair[0] for pair in pairs["train"] if pair} & {pair[0] for pair in pairs["heldout"] if pair}
    shipped = Path(prompts.__file__).parents[2] / "src" / "draft_emoji_video" / "prompts"
    for name in lists:
        assert (shipped / f"video-{name}.txt").read_bytes() == (tmp_path / f"video-{name}.txt").read_bytes()


def start(folder: Path) -> Path:
    """The pipeline of images that it starts from, with random weights."""
    tokenizer = captions.make_tokenizer(folder / "words", described())
    pipeline = StableDiffusionPipeline(
        vae=vae.build(),
        text_encoder=CLIPTextModel(clip.build(tokenizer).config.text_config),
        tokenizer=tokenizer,
        unet=unet.build(),
        scheduler=unet.noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    image_export.write(pipeline, folder / "words", folder / "start")
    return folder / "start"


def test_new_motion_modules_change_nothing_and_look_at_the_frame_itself(tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(start(tmp_path), torch_dtype=torch.float32)
    flat = denoiser.without_pooled_text(pipeline).eval()
    moving = denoiser.quiet(flat).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, FRAMES, 16, 16, generator=generator)
    words = torch.randn(2, 24, 160, generator=generator)
    with torch.no_grad():
        together = moving(x, torch.tensor([500, 500]), words.repeat_interleave(FRAMES, 0)).sample
        alone = flat(x.transpose(1, 2).flatten(0, 1), 500, words.repeat_interleave(FRAMES, 0)).sample
    torch.testing.assert_close(together.transpose(1, 2).flatten(0, 1), alone, rtol=1e-4, atol=1e-4)


def test_the_stages_train_resume_and_export_what_the_package_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "load", lambda folder: (squares(), described()))
    monkeypatch.setattr(denoiser, "SINGLE_BATCH", 2)
    monkeypatch.setattr(denoiser, "STILL_BATCH", 2)
    monkeypatch.setattr(denoiser, "BATCH", 1)
    monkeypatch.setattr(denoiser, "SINGLE_UNTIL", 0.5)
    folder = start(tmp_path)
    denoiser.train(tmp_path, Budget(steps=1), Budget(steps=2), CPU, folder)
    export.export(tmp_path, folder, tmp_path / "model")
    pipe = AnimateDiffPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    state = torch.load(tmp_path / "video" / "moving.pt", weights_only=True)
    assert state["step"] == 2
    assert any("motion_modules" in name for name in state["module"])
    changed = [
        m.proj_out.weight.abs().max() for m in pipe.unet.modules() if type(m).__name__ == "AnimateDiffTransformer3D"
    ]
    assert all(weight > 0 for weight in changed), "the trained motion modules are what is exported"
    call = {"num_frames": FRAMES, "height": 64, "width": 64, "num_inference_steps": 1, "output_type": "pt"}
    frames = pipe(["a dog face growing"], generator=torch.Generator().manual_seed(0), **call).frames
    assert frames.shape == (1, FRAMES, 3, 64, 64)
    assert not any("_name_or_path" in file.read_text() for file in (tmp_path / "model").rglob("*.json"))
