"""Grids of videos: what plays has every frame, and what stands shows some of them."""

from __future__ import annotations

import base64
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from draft_core.errors import DraftError
from draft_core.reporting import image_grid
from draft_core.reporting.image_grid import CELL, cells, draw_grid, save_grid
from draft_core.rewards.images import to_pil


def videos(frames: int = 5) -> list[torch.Tensor]:
    """Two videos (frames, 3, 16, 16), each frame of a grey level of its own."""
    levels = torch.arange(2 * frames).view(2, frames, 1, 1, 1) / (2 * frames)
    return list(levels.expand(2, frames, 3, 16, 16))


def test_a_gif_plays_all_frames(tmp_path: Path) -> None:
    save_grid([("", videos())], tmp_path / "a.gif", group=2)
    with Image.open(tmp_path / "a.gif") as file:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(file)]
        assert file.info["duration"] == 120  # of 125 ms: GIF counts hundredths of a second
        assert file.info["loop"] == 0
    assert len(frames) == 5
    for number, frame in enumerate(frames):
        still = draw_grid([("", [video[number] for video in videos()])], group=2)
        assert np.abs(np.asarray(frame, dtype=int) - np.asarray(still, dtype=int)).max() <= 2, "of a palette"


def test_a_pages_strip_plays_all_frames_side_by_side(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.gif" for number in range(2)]
    for file, video in zip(files, videos(), strict=True):
        image_grid.save_gif([to_pil(frame) for frame in video], file)
    uri = image_grid.playing_uri(files)
    assert uri.startswith("data:image/gif;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as file:
        frames = [np.asarray(frame.convert("L"), dtype=int) for frame in ImageSequence.Iterator(file)]
    assert len(frames) == 5
    for number, frame in enumerate(frames):
        for video, column in zip(videos(), (8, 25), strict=True):
            assert abs(frame[8, column] - 255 * float(video[number, 0, 0, 0])) <= 2


def test_a_run_keeps_some_frames_of_long_videos() -> None:
    kept = image_grid.watchable(torch.arange(81.0).view(1, 81, 1, 1, 1).expand(1, 81, 3, 4, 4))
    assert kept.shape == (1, 16, 3, 4, 4)
    assert kept[0, [0, -1], 0, 0, 0].tolist() == [0, 80]


def test_a_still_grid_shows_four_frames_of_each_video(tmp_path: Path) -> None:
    save_grid([("", videos(7))], tmp_path / "a.png", group=2)
    with Image.open(tmp_path / "a.png") as found:
        expected = draw_grid([("", [video[frame] for video in videos(7) for frame in (0, 2, 4, 6)])], group=8)
        assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_a_grid_of_images_is_what_it_was(tmp_path: Path) -> None:
    images = [video[0] for video in videos()]
    save_grid([("a", images)], tmp_path / "a.png", headings=["one", "two"])
    with Image.open(tmp_path / "a.png") as found:
        assert np.array_equal(np.asarray(found), np.asarray(draw_grid([("a", images)], headings=["one", "two"])))
    with pytest.raises(DraftError, match="the model makes images, no videos"):
        save_grid([("a", images)], tmp_path / "a.mp4")


def test_mp4_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        image_grid.importlib.util,
        "find_spec",
        lambda name, *more: None if name == "imageio_ffmpeg" else find(name, *more),
    )
    with pytest.raises(DraftError, match=r"imageio-ffmpeg, which are not installed; run `pip install imageio"):
        save_grid([("", videos())], tmp_path / "a.mp4")


def test_large_videos_are_reduced_and_images_are_not() -> None:
    wide = torch.rand(2, 3, 3, 150, 300)
    assert cells(wide).shape == (2, 3, 3, CELL // 2, CELL)
    torch.testing.assert_close(cells(wide).mean(), wide.mean(), atol=1e-3, rtol=0)
    small: Any = torch.rand(2, 3, 3, 64, 64)
    assert cells(small) is small
    assert cells(wide[:, 0]).shape == (2, 3, 150, 300)
