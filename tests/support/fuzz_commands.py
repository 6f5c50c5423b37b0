"""Commands over spoiled files and odd settings, drawn from a seed, and what is wrong with how one of them ended.

A case may end in two ways: with exit code 0 and the output it was asked for, or with one sentence that names the file
or the setting. Anything else is a finding.
"""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from draft_core.cli import app as cli
from tests.support.fuzz_files import IMAGES, LORAS, PROMPTS, RUNS, override, spoil
from tests.support.mutations import NUMBERS, TEXTS

LONGEST = 3000  # characters of a sentence
SHARE = {"score": 30, "mix": 20, "export": 15, "train": 22, "sample": 7, "report": 6}  # of a hundred cases
FINITE = ["1", "0", "-1", "0.5", "2", "1e-320"]
ODD = ["nan", "inf", "-inf", "1e400", "", "x", " ", "0x1", "1_0", "\u0661", "9" * 400]
OUTPUTS = [
    "out",
    "new/out",
    "",
    ".",
    "..",
    "rgb.png",
    "rgb.png/out",
    "one",
    "/proc/out",
    "a" * 300,
    "a\0b",
]
ENDINGS = ["", ".png", ".PNG", ".safetensors", ".html", ".txt", ".jpg", ".xyz"]


@dataclass(frozen=True)
class Case:
    """One command.

    Arguments:
        words: behind `draft`.
        spoiled: what was done to files.
        told: words that a sentence may name instead: files, options, values.
    """

    words: tuple[str, ...]
    spoiled: tuple[str, ...]
    told: tuple[str, ...]

    def __str__(self) -> str:
        shown = " ".join(repr(word) if len(word) < 60 else f"{word[:40]!r}..." for word in self.words)
        return f"draft {shown}  [{'; '.join(self.spoiled) or 'files as they were'}]"


def draw_case(rng: Random, folder: Path) -> Case:
    """A command, whose files in `folder` are spoiled on the way."""
    command = rng.choices(list(SHARE), list(SHARE.values()))[0]
    words, files = COMMANDS[command](rng)
    spoiled = []
    if rng.random() < 0.75:
        spoiled = [spoil(rng, folder, rng.choice(files))]
    return Case((command, *words), tuple(spoiled), _told(words, files, spoiled))


def _told(words: Sequence[str], files: Sequence[str], spoiled: Sequence[str]) -> tuple[str, ...]:
    changed = [Path(each.partition(":")[0]) for each in spoiled]
    names = [*files, *(path.name for path in changed), *(path.parent.name for path in changed if path.parent.name)]
    parts = [part for word in words for value in word.split("=") for part in (value, *Path(value).parts)]
    empty = [option for option, value in pairwise(words) if not value or value.endswith("=")]
    said = [word for word in (*names, *words, *parts, *_settings(spoiled)) if word]
    return (*said, *(option.lstrip("-") for option in empty), *(["."] if "" in words else []))


def _settings(spoiled: Sequence[str]) -> Iterator[str]:
    """The dotted names of settings that were changed, "FILE: NAME: HOW", and of the settings that they are part of."""
    for name in (each.split(": ")[1] for each in spoiled if each.count(": ") > 1):
        if "." in name:
            yield name
        if name.count(".") > 1:
            yield name.rpartition(".")[0]


def _number(rng: Random) -> str:
    return rng.choice([*FINITE * 3, *ODD])


def _output(rng: Random, ending: str) -> list[str]:
    kind = rng.random()
    if kind < 0.6:
        return ["--output", f"out{ending}"]
    return ["--output", rng.choice(OUTPUTS) + rng.choice([ending, rng.choice(ENDINGS)])]


def _score(rng: Random) -> tuple[list[str], list[str]]:
    files = rng.sample(IMAGES, rng.choice([1, 1, 2, 4]))
    words = [
        *files,
        "--reward",
        rng.choice(["redness", "brightness", "resized-prompt", "resized-prompt", "rednes", ""]),
    ]
    for _ in range(rng.choice([0, 1, 1, len(files)])):
        words += ["--prompt", rng.choice(TEXTS)]
    if rng.random() < 0.5:
        words += ["--json"]
    if rng.random() < 0.3:
        field = rng.choice(["contrast", "scale", "filter", "cap", "weight", "device", "kind", "size", ""])
        words += ["--set", f"{field}={rng.choice([*TEXTS, *map(str, NUMBERS)])}"]
    return words, files


def _sample(rng: Random) -> tuple[list[str], list[str]]:
    given = rng.choice([*PROMPTS, "tiny-train", "tiny-trian", "list_typo.txt", "a cat", *TEXTS])
    files = [given] if given in PROMPTS else []
    words = ["tiny", "--prompts", given, "--images", "1", "--steps", rng.choice(["1", "1", "2", "0", "x", "99999999"])]
    if rng.random() < 0.6:
        loaded = rng.choice([*LORAS, "run"])
        files += [loaded]
        words += ["--lora", loaded]
        if rng.random() < 0.6:
            words += ["--scale", ",".join(_number(rng) for _ in range(rng.choice([1, 1, 2])))]
    if rng.random() < 0.2:
        words += ["--guidance", _number(rng)]
    if rng.random() < 0.2:
        words += ["--seed", rng.choice(["0", "7", "-1", str(2**63 - 1), str(2**64), "x"])]
    return [*words, *_output(rng, ".png")], files or ["list.txt"]


def _mix(rng: Random) -> tuple[list[str], list[str]]:
    files = rng.choices([*LORAS[:3], *LORAS, "run"], k=rng.choice([1, 2, 2, 3]))
    words = [f"{name}:{_number(rng)}" if rng.random() < 0.95 else name for name in files]
    return [*words, *_output(rng, "")], files


def _export(rng: Random) -> tuple[list[str], list[str]]:
    name = rng.choice([*LORAS, "run", "other"])
    words = [name, *_output(rng, ".safetensors")]
    if rng.random() < 0.6:
        words += ["--format", rng.choice(["diffusers", "comfyui", "comfyui", "ComfyUI", "kohya", ""])]
    return words, [name]


def _report(rng: Random) -> tuple[list[str], list[str]]:
    files = list(rng.choice([RUNS[:1], RUNS[:1], RUNS, RUNS, ("run", "run"), ("one",)]))
    return [*files, *(_output(rng, ".html") if rng.random() < 0.5 else [])], files


def _train(rng: Random) -> tuple[list[str], list[str]]:
    words = ["recipe.yaml"]
    for _ in range(rng.choice([0, 1, 1, 2])):
        words += ["--set", override(rng)]
    words += ["--set", "processes=1", "--set", f"output={rng.choice(['trained', 'trained', *OUTPUTS])}"]
    words += rng.choice([[], [], [], ["--overwrite"], ["--resume"], ["--force"]])
    if rng.random() < 0.4:
        words += ["--set", f"prompts={rng.choice([*PROMPTS, 'list_typo.txt', 'tiny-train', 'rgb.png'])}"]
    files = [name for name in PROMPTS if f"prompts={name}" in words]
    return words, ["recipe.yaml", *files]


COMMANDS = {"score": _score, "sample": _sample, "mix": _mix, "export": _export, "report": _report, "train": _train}


# How a case ended


def finding(case: Case, folder: Path) -> str | None:
    """What is wrong with how a case ends in `folder`, the working directory; None if nothing is."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    result = CliRunner().invoke(cli.app, list(case.words))
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        return f"traceback: {_signature(error)}"
    if result.exit_code == 0:
        return _of_output(case, folder, result.stdout, before)
    if case.words[0] == "score" and result.exit_code == 1:
        return _of_some_scores(case, result.stdout, result.stderr)
    if result.exit_code != 2:
        return f"exit code {result.exit_code}"
    return _of_sentence(case, result.stderr)


def _signature(error: BaseException) -> str:
    """The kind of an error and the last of our lines that it passed through: one for each cause."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/draft_core/" in frame.filename] or frames[-1:]
    where = f"{ours[-1].filename.rpartition('/draft_core/')[2]}:{ours[-1].lineno}" if ours else "?"
    said = re.sub("[0-9]+", "0", " ".join(str(error).split()))
    return f"{type(error).__name__} at {where} ({said[:120]})"


def _of_sentence(case: Case, text: str) -> str | None:
    if text.startswith("Usage:"):  # typer's own, of the words alone
        return None
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"not one sentence: {text[:300]!r}"
    sentence = lines[0].removeprefix("error: ")
    if not sentence.isprintable() or len(sentence) > LONGEST or sentence[-1] not in ".?":
        return f"no good sentence: {sentence[:300]!r}"
    if not any(_shown(word) in sentence for word in case.told):
        return f"names neither file nor setting: {sentence[:160]!r}"
    return None


def _shown(word: str) -> str:
    """A word as a sentence may show it: its beginning, without what no terminal shows."""
    return re.split(r"[^\w./-]", word)[0][:60] or word[:1]


def _of_output(case: Case, folder: Path, printed: str, before: dict[Path, int]) -> str | None:
    """What exit code 0 owes."""
    numbers = [part for word in case.words for part in re.split("[:,=]", word)]
    if case.words[0] in ("mix", "sample") and any(_is_not_finite(part) for part in numbers):
        return "a number that is not finite is accepted"
    spoiled_weights = any(each.endswith(("weights: nan", "weights: inf")) for each in case.spoiled)
    if case.words[0] in ("mix", "sample", "export") and spoiled_weights and "0" not in numbers:
        return "a LoRA that is not finite is accepted"
    if case.words[0] == "score":
        return _of_scores(case, printed)
    wrote = [path for path in folder.parent.rglob("*") if path.is_file() and _is_new(path, before)]
    if not wrote:
        return f"nothing was written: {printed[-200:]!r}"
    named = [path for path in wrote if path.name in printed or path.parent.name in printed]
    if not named:
        return f"what was written ({wrote[0].name}) is not named: {printed[-200:]!r}"
    return next((problem for path in named if (problem := _of_file(case.words[0], path))), None)


def _is_new(path: Path, before: dict[Path, int]) -> bool:
    return before.get(path) != path.stat().st_mtime_ns


def _is_not_finite(text: str) -> bool:
    try:
        return not math.isfinite(float(text))
    except ValueError:
        return False


def _of_scores(case: Case, printed: str) -> str | None:
    files = [word for word in case.words if word in IMAGES]
    if "--json" not in case.words:
        missing = [name for name in files if name not in printed]
        return f"no score of {missing[0]}" if missing else None
    try:
        scores = json.loads(printed, parse_constant=_refuse)["scores"]
    except ValueError as error:
        return f"no JSON: {error}"
    return None if [row["image"] for row in scores] == files else "not one row for each file"


def _of_some_scores(case: Case, printed: str, errors: str) -> str | None:
    """Exit code 1 owes a row for each file, and a sentence for each without a score."""
    lines = [line for line in errors.splitlines() if line.strip()]
    if any(not re.match(r"not scored: (\S+): .*[.?]$", line) for line in lines) or not lines:
        return f"not a sentence for each file: {errors[:300]!r}"
    return _of_scores(case, printed)


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _of_file(command: str, path: Path) -> str | None:
    """What is wrong with a file that a command wrote and named."""
    try:
        if command in ("mix", "export") and path.suffix != ".json":
            weights = load_file(path)
            if not weights or not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
                return "it has no weights, or some that are not finite"
        elif command == "sample":
            Image.open(io.BytesIO(path.read_bytes())).load()
        elif path.name == "report.html" or (command == "report" and path.suffix not in (".png", ".md")):
            return None if "</html>" in path.read_text(encoding="utf-8") else "it is no whole page"
    except Exception as error:
        return f"what it wrote cannot be read again: {type(error).__name__}"
    return None


def run_case(seed: int, number: int, files: Path, scratch: Path, chdir: Any) -> tuple[Case, str | None]:
    """Case `number` of a seed, in a fresh copy of `files` below `scratch`.

    Arguments:
        chdir: called with the folder that the command is given in.
    """
    outer = scratch / f"case {number}"
    folder = outer / "work"
    shutil.copytree(files, folder, symlinks=True)
    chdir(folder)
    case = draw_case(Random(f"{seed}/{number}"), folder)
    try:
        return case, finding(case, folder)
    finally:
        chdir(scratch)
        shutil.rmtree(outer)
