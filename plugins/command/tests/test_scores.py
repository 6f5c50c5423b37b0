"""What the program is given and what becomes of its answers, against Pillow and files that the test reads itself."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import draft_reward_command
import numpy
import pytest
import torch
from draft_reward_command import CommandConfig, draft_register_rewards
from draft_reward_command.reward import CommandReward
from PIL import Image, ImageDraw, ImageFont

from draft_core.errors import RewardError
from draft_core.plugin import RewardConfig

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PACKAGE = Path(draft_reward_command.__file__).parent

LEVELS = """
    import sys
    from PIL import Image
    for line in sys.stdin:
        with Image.open(line.rstrip("\\n")) as image:
            print(image.getpixel((0, 0))[0] + image.width / 100 + image.height / 10000, flush=True)
"""
LOG = """
    import json, os, sys
    with open("log", "a") as log:
        print("start", os.getpid(), file=log)
        for line in sys.stdin:
            log.write(line)
            print(json.dumps({"score": len(line), "image": line.rstrip("\\n"), "more": None}), flush=True)
"""


@pytest.mark.parametrize("start", ["batch", "once"])
def test_an_image_is_an_8_bit_file_and_its_answer_is_its_score(made, images, start):
    reward = made(LEVELS, start=start)
    found = reward(images, [""] * 3)
    torch.testing.assert_close(found, torch.tensor([0.0705, 51.0705, 255.0705]))
    torch.testing.assert_close(reward(images.flip(0), [""] * 3), found.flip(0), rtol=0, atol=0)


@pytest.mark.parametrize("start", ["batch", "once"])
def test_a_program_is_started_for_every_batch_or_once(made, images, tmp_path, start):
    reward = made(LOG, start=start)
    for batch in (images, images[:1], images[:2]):
        assert len(reward(batch, [""] * len(batch))) == len(batch)
    if child := reward.program._child:
        child.close()
    lines = (tmp_path / "log").read_text().splitlines()
    starts = [line for line in lines if line.startswith("start")]
    assert len(set(starts)) == len(starts) == {"batch": 3, "once": 1}[start]
    assert len(lines) == len(starts) + 6
    assert not any(Path(line).exists() for line in lines)


def test_prompts_of_any_letters_come_as_json(made, images, tmp_path):
    program = """
        import json, sys
        requests = [json.loads(line) for line in sys.stdin]
        json.dump([request["prompt"] for request in requests], open("seen.json", "w"))
        for request in requests:
            print(len(request["prompt"]))
    """
    prompts = ["a cat", 'two\nlines "quoted"', "Äpfel 🍎"]
    assert made(program, prompts=True)(images, prompts).tolist() == [5, 18, 7]
    assert json.loads((tmp_path / "seen.json").read_text()) == prompts


def test_an_image_that_is_not_finite_is_not_shown_and_has_no_score(made, images):
    broken = images.clone()
    broken[1, 0, 2, 3] = torch.nan
    found = made(LEVELS)(broken, [""] * 3)
    assert found.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found[[0, 2]], torch.tensor([0.0705, 255.0705]))
    assert made("raise SystemExit(1)")(torch.full((1, 3, 2, 2), torch.nan), [""]).isnan().all()
    assert made("raise SystemExit(1)")(images[:0], []).shape == (0,)


def test_a_video_is_refused_where_it_is_not_cut_into_frames(made):
    with pytest.raises(RewardError, match=r"images are torch.float32 of shape \(2, 4, 3, 8, 8\); pass RGB images"):
        made(LEVELS)(torch.zeros(2, 4, 3, 8, 8), ["", ""])


def test_many_images_and_long_answers_do_not_fill_a_pipe(made):
    """More text each way than a pipe holds, from a program that reads everything first and from one that does not."""
    images = torch.zeros(60, 3, 1, 1)
    prompts = [f"{number} " + "x" * 5000 for number in range(60)]
    everything = """
        import json, sys
        requests = [json.loads(line) for line in sys.stdin]
        for request in requests:
            print(json.dumps({"score": int(request["prompt"].split()[0]), "why": request["prompt"]}))
            print(request["prompt"], file=sys.stderr)
    """
    one_by_one = everything.replace("[json.loads(line) for line in sys.stdin]", "map(json.loads, sys.stdin)")
    for program in (everything, one_by_one):
        assert made(program, prompts=True)(images, prompts).tolist() == list(range(60))


def test_it_runs_in_its_folder_with_the_environment_of_the_run(made, images, tmp_path, monkeypatch):
    monkeypatch.setenv("WORTH", "7")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "offset").write_text("100")
    program = "import os, sys; [print(int(os.environ['WORTH']) + int(open('offset').read())) for line in sys.stdin]"
    assert made(program, folder=str(tmp_path / "there"))(images, [""] * 3).tolist() == [107.0] * 3


def test_a_script_that_lies_in_the_folder_is_named_by_a_relative_path(images, tmp_path):
    script = tmp_path / "score"
    script.write_text('#!/bin/sh\nwhile read -r image; do stat -c %s "$image"; done\n')
    script.chmod(0o755)
    reward = CommandReward(CommandConfig(command=("./score",), folder=str(tmp_path)))
    file = io.BytesIO()
    Image.new("RGB", (7, 5), (51, 51, 51)).save(file, "PNG")
    assert reward(images[1:2], [""]).tolist() == [len(file.getvalue())]


def test_no_shell_reads_the_words(made, images, tmp_path):
    program = "import sys; assert sys.argv[1:] == ['$HOME *', '; touch x'], sys.argv; [print(1) for _ in sys.stdin]"
    script = tmp_path / "program.py"
    reward = made(program, command=(sys.executable, str(script), "$HOME *", "; touch x"))
    assert reward(images, [""] * 3).tolist() == [1.0] * 3
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("number", "name"), [(0, "example.py"), (1, "example_per_prompt.py")])
def test_the_programs_of_the_readme_are_those_that_are_tested(number, name, tmp_path):
    program = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[number]
    assert program == (PACKAGE / name).read_text(encoding="utf-8")
    assert len(program.splitlines()) <= 12
    image = tmp_path / "red.png"
    Image.new("RGB", (4, 4), (255, 0, 0)).save(image)
    requests = [str(image), json.dumps({"image": str(image), "prompt": "a night"})]
    done = subprocess.run([sys.executable, "-c", program], input=requests[number], capture_output=True, text=True)
    expected = [1.0, 1 - 76 / 255][number]  # a pure red is saturated; its luma by ITU-R 601 is 76
    assert json.loads(done.stdout)["score"] == pytest.approx(expected)


def test_a_reader_of_bar_codes_is_a_reward(made, tmp_path):
    zxingcpp = pytest.importorskip("zxingcpp", reason="zxing-cpp is missing")
    program = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[2]
    assert program == (PACKAGE / "example_barcode.py").read_text(encoding="utf-8")
    text = "https://example.org"
    codes = [zxingcpp.create_barcode(said, zxingcpp.QRCode).to_image(scale=8) for said in (text, "another text here!")]
    first, other = (torch.from_numpy(numpy.array(code)).expand(3, -1, -1) / 255 for code in codes)
    images = torch.stack([first, 0.5 + first / 8, other, torch.ones_like(first)])
    reward = made(program, command=(sys.executable, str(tmp_path / "program.py"), text))
    sharp, pale, wrong, blank = reward(images, [""] * 4).tolist()
    assert sharp >= pale > 0
    assert sharp >= 0.6
    assert (wrong, blank) == (0, 0)


def test_a_reader_of_text_is_a_reward(made, tmp_path):
    pytest.importorskip("rapidocr_onnxruntime", reason="rapidocr-onnxruntime is missing")
    program = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[3]
    assert program == (PACKAGE / "example_ocr.py").read_text(encoding="utf-8")
    images = []
    for word in ("OPEN", "Stop", ""):
        image = Image.new("RGB", (160, 64), "white")
        ImageDraw.Draw(image).text((16, 10), word, fill="black", font=ImageFont.load_default(size=40))
        images.append(torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255)
    reward = made(program, command=(sys.executable, str(tmp_path / "program.py"), "OPEN"), start="once")
    there, other, blank = reward(torch.stack(images), [""] * 3).tolist()
    assert there == 1
    assert other < 0.5
    assert blank == 0


def test_the_page_shows_the_program_of_the_readme():
    page = Path(__file__).parents[3] / "docs" / "how-to" / "program-as-reward.md"
    assert re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL) == [
        (PACKAGE / "example.py").read_text(encoding="utf-8")
    ]


def test_the_fields_of_the_readme_are_those_of_the_config():
    table = re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE)
    own = set(CommandConfig.model_fields) - set(RewardConfig.model_fields) - {"kind"}
    assert set(table) == own
    assert {spec.differentiable for spec in draft_register_rewards()} == {False}
