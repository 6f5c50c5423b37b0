"""The training of a tiny decoder on a few images: what it is fitted to, what it leaves behind, and that it learns."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from draft_emoji import FOLDER
from emoji_training import tiny_decoder
from emoji_training.loop import Budget
from emoji_training.pictures import Picture

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch_dtype. is deprecated:FutureWarning"
)  # the old name works everywhere


def test_a_tiny_decoder_is_fitted_to_the_shipped_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "data" / "pictures.npy", images)
    meta = [asdict(Picture("1f34e", "red apple", "a red apple", (), "3d", 0, True))] * len(images)
    (tmp_path / "data" / "pictures.json").write_text(json.dumps(meta), encoding="utf-8")
    tiny_decoder.train(tmp_path, Budget(steps=6), torch.device("cpu"), FOLDER / "model", own=1)

    latents, wanted = tiny_decoder.prepare(tmp_path, FOLDER / "model", own=1)  # from its file
    assert len(latents) == 2 * (16 // tiny_decoder.EVERY + 1)
    own = AutoencoderKL.from_pretrained(FOLDER / "model" / "vae", torch_dtype=torch.float32)
    torch.testing.assert_close(tiny_decoder.decoded(own, latents[:2]), wanted[:2].float(), rtol=0, atol=0.02)

    made = AutoencoderTiny.from_pretrained(tmp_path / "tiny-decoder" / "model")
    torch.manual_seed(0)
    untrained = tiny_decoder.psnr(tiny_decoder.build(), latents, wanted)
    assert tiny_decoder.psnr(made, latents, wanted) > untrained + 1
    assert "on held-out latents" in capsys.readouterr().out
