"""`draft score` of a reward that reads a column: its value comes from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from draft_core.cli.scoring import given_columns
from draft_core.errors import DraftError
from draft_core.library.scores import score_files
from draft_core.prompt_rows import Column

READ = {"level": Column("light", "number"), "wish": Column("wish")}


class Lighter(torch.nn.Module):
    """The mean level, times a number of the row."""

    def forward(self, images: torch.Tensor, prompts: list[str], columns: dict[str, list[float]]) -> torch.Tensor:
        return images.mean((1, 2, 3)) * torch.tensor(columns["level"])


def test_the_value_is_given_to_the_reward_under_its_own_name(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4), "white").save(tmp_path / "white.png")
    row = given_columns("lighter", READ, ["light=0.5", "wish=a = b"])
    assert row == {"light": "0.5", "wish": "a = b"}
    (scored,) = score_files("lighter", Lighter(), [tmp_path / "white.png"], [""], READ, row)
    assert scored.score == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["light"], "--column light: it is not of the form name=value; it reads light, wish"),
        (["lihgt=1", "wish=x"], "--column lihgt=1: reward 'lighter' reads no column 'lihgt'; it reads light, wish"),
        (["light=1"], "--column: reward 'lighter' reads column 'wish'; give --column wish=..."),
        (["light=much", "wish=x"], "column 'light' of prompt '' is 'much', no finite number"),
    ],
)
def test_what_does_not_fit_is_refused(given: list[str], sentence: str) -> None:
    with pytest.raises(DraftError, match=sentence.replace(".", r"\.")):
        given_columns("lighter", READ, given)
