"""The program that trains emoji-video: its videos move as their captions say, and what it writes is what it trained."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline
from draft_emoji import FOLDER
from draft_emoji.motion import motions
from draft_emoji.motion_words import words_of
from emoji_training import pictures
from emoji_training.loop import Budget
from emoji_training.pictures import Picture
from emoji_training.video import denoiser, moving, prompts
from emoji_training.video.moving import ALL, MOTIONS, THINGS, Video
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.filterwarnings("ignore:.torch_dtype. is deprecated:FutureWarning")

META = [Picture("1", "fox", "a fox", (), "noto", 0, True), Picture("2", "owl", "an owl", (), "flat", 1, True)]


def disc() -> np.ndarray:
    """A yellow disc in the middle of white, uint8 (64, 64, 3)."""
    y, x = np.mgrid[:64, :64] - 31.5
    return np.where((x**2 + y**2 < 28**2)[..., None], (250, 215, 50), 255).astype(np.uint8)


def test_videos_move_as_their_captions_say_and_stay_inside() -> None:
    videos = [Video(0, motion, aside) for motion in range(len(ALL)) for aside in (-moving.ASIDE, moving.ASIDE)]
    drawn = np.stack([moving.draw(disc(), video) for video in videos])
    seen = torch.from_numpy(drawn).permute(0, 1, 4, 2, 3) / 255
    alone = 2 * len(MOTIONS)
    assert motions(seen[:alone]) + motions(seen[alone:], 2) == [ALL[v.motion] for v in videos]
    sides = (drawn < 250).any(-1).any(2).sum(2)  # a disc that were cut would lack a part of its width or height
    assert np.abs(sides - (drawn < 250).any(-1).any(3).sum(2)).max() <= 1
    whole = (drawn < 250).any(-1)[:, 0].sum((1, 2))
    for motion in range(4):  # those that keep their size show all of it in the last frame too
        assert (drawn[2 * motion, -1] < 250).any(-1).sum() == whole[2 * motion]


def test_hidden_pairs_are_in_no_video_and_the_lists_are_those_that_are_shipped(tmp_path: Path) -> None:
    shown = [(META[v.index].phrase, ALL[v.motion]) for v in moving.shown(META)]
    seen = {(THINGS.index(thing), MOTIONS.index(words)) for thing, both in shown for words in both}
    assert len(seen) == 12 - sum(moving.hidden(THINGS.index(p.phrase), m) for p in META for m in range(len(MOTIONS)))
    assert not any(moving.hidden(*pair) for pair in seen)
    prompts.write(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_text(encoding="utf-8") == (FOLDER / "prompts" / file.name).read_text(encoding="utf-8")
    lists = {file.stem: file.read_text(encoding="utf-8").splitlines() for file in tmp_path.iterdir()}
    assert len(lists) == 4
    held_out = {prompt for name, asked in lists.items() if name.endswith("held-out") for prompt in asked}
    assert not held_out & {f"{thing} {' and '.join(words)}" for thing, words in shown}
    prompts_of_all = [prompt for prompts_of_one in lists.values() for prompt in prompts_of_one]
    assert len(set(prompts_of_all)) == len(prompts_of_all)
    held_out = set(lists["emoji-motion-held-out"])
    for name in ("emoji-motion-pairs", "emoji-motion-pairs-held-out"):
        for prompt in lists[name]:
            thing, asked = words_of(prompt, "")
            assert bool(held_out & {f"{thing} {words}" for words in asked}) == name.endswith("held-out"), prompt


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The model of scenes in a folder beside which may be written, and two pictures under `tmp_path`."""
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "pictures.npy", np.stack([disc()] * len(META)))
    (data / "pictures.json").write_text(json.dumps([asdict(p) for p in META]), encoding="utf-8")
    assert len(pictures.load(tmp_path)[1]) == len(META)
    (tmp_path / "scenes-model").symlink_to(FOLDER / "scenes-model")
    return tmp_path / "scenes-model"


@torch.no_grad()
def test_the_pipeline_that_is_written_is_the_one_that_was_trained(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoiser, "READING_STEPS", 2)
    monkeypatch.setattr(denoiser, "THINGS", THINGS[:4])
    monkeypatch.setattr(denoiser, "shown", lambda meta: list(moving.shown(meta))[::5])
    with torch.enable_grad():
        denoiser.train(tmp_path, Budget(steps=2), torch.device("cpu"), base)
    denoiser.write(tmp_path, base)
    pipe = AnimateDiffPipeline.from_pretrained(tmp_path / "video-model", torch_dtype=torch.float32)
    pipe.load_lora_weights(tmp_path / "video-lora")
    state = torch.load(tmp_path / "video" / "averaged.pt", weights_only=True)
    trained = denoiser.trained(denoiser.StableDiffusionPipeline.from_pretrained(base).unet.float(), pipe.text_encoder)
    trained.load_state_dict(state)
    latents, text = torch.randn(1, 4, moving.FRAMES, 16, 16), torch.randn(moving.FRAMES, 24, 160)
    expected = trained["unet"].eval()(latents, 500, text).sample
    torch.testing.assert_close(pipe.unet.eval()(latents, 500, text).sample, expected, atol=5e-3, rtol=0)

    file, tower = tmp_path / "video-model/unet/motion_adapter/boxes.safetensors", tmp_path / "video-model/text_encoder"
    before, text = load_file(file), (tower / "model.safetensors").read_bytes()
    save_file({name: tensor if name.startswith("show.") else tensor + 1 for name, tensor in before.items()}, file)
    with torch.enable_grad():
        denoiser.reread_boxes(base)
    for name, tensor in load_file(file).items():  # begun from nothing, by the tower in half precision
        torch.testing.assert_close(tensor, before[name], atol=0 if name.startswith("show.") else 0.02, rtol=0)
    assert (tower / "model.safetensors").read_bytes() == text
