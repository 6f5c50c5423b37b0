"""None of the words that this project has given up is left in code, pages, recipes, templates or messages."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("draft_core", "tests", "plugins", "recipes", "benchmarks", "examples", "docs", "tools", ".github")
SINGLE = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "AGENTS.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CITATION.cff"),
    *("Makefile", "pyproject.toml", ".pre-commit-config.yaml", ".ci/run"),
)
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".j2", ".html", ".toml", ".txt", ".json"}

# What is no longer said -> how to find it. A verb like "looks at" and the floor of a number stay what they are.
RETIRED = {
    "estimator": r"(?<!gradient )(?<!gradient_)\b\w*(?<!Gradient)[Ee]stimator\w*",
    "draft plan": r"\bdraft plan\b|\bcli_plan\b",
    "certify": r"\b\w*[Cc]ertif(?!i\b)\w+",
    "look": r"\bLook\b|\blook_at\b|\bbest_look\b|\blooks\.jsonl\b|\bLOOKS\b|\blooks\b(?= *[=:\].,)]| between| of the)"
    r"|\b(?:a|an|one|each|every|the|this|that|first|last|best|next|same|two|three|all|no) looks?\b(?! at)",
    "picture": r"\b\w*[Pp]ictures?(?:\b|_)\w*|\b\w*_pictured?\w*|\bPICTURE\w*",
    "graded": r"\b(?:un)?graded\b|\bGraded\w*|\w+_graded\b",
    "together": r"\btogether=|\.together\b|\btogether: (?:true|false)\b|`together`",
    "measures": r"^measures:|\brecipe\.measures\b|[\"'`]measures[\"'`:]",
    "Elsewhere": r"\bElsewhere\b",
    "PromptMemory": r"\bPromptMemory\b|\bprompt_memory\b",
    "sheet": r"\b[Ss]heets?\b",
    "vouch": r"\b[Vv]ouch\w*",
    "parity": r"\b\w*[Pp]arity\w*",
    "wing": r"\b[Ww]ings?\b",
    "hall": r"\b[Hh]alls?\b",
    "room": r"\b[Rr]ooms\b|\b(?:the|a|one|its|each|every|which|this|own|\w+'s) room\b(?! for)",
    "floor": r"\b[Ff]loors\b|\b(?:down|up|each|every|own) a? ?floor\b",
    "original": r"\boriginal\.py\b|\bimport original\b|\bdraft_\w+\.original\b",
    "May import": r"\bMay import\b",
}

# (files, words, why they may stand there).
ALLOWED = (
    ("tests/project/test_words.py", "*", "it lists them"),
    ("CHANGELOG.md", "*", "it tells what was renamed"),
    ("docs/reference/glossary.md", "*", "it may say what a word was before"),
    ("benchmarks/unchanged.py", "*", "it trains commits that still have the former words"),
    ("tests/project/test_unchanged.py", "*", "it tests that"),
    ("tests/project/test_structure.py", "May import", "it looks for such lists"),
    ("plugins/emoji/training/*", "picture", "emoji are drawn pictures; the data set's files are named so"),
    ("plugins/emoji/tests/test_critic_training.py", "picture", "it tests those programs"),
    ("plugins/emoji/tests/test_detector_training.py", "picture", "it tests those programs"),
    ("plugins/emoji/tests/test_emoji_training.py", "picture", "it tests those programs"),
    ("plugins/emoji/tests/test_scene_training.py", "picture", "it tests those programs"),
    ("plugins/emoji/tests/test_scorer_training.py", "picture", "it tests those programs"),
    ("plugins/emoji/tests/test_tiny_decoder.py", "picture", "it tests those programs"),
    ("plugins/emoji/tests/test_video_training.py", "picture", "it tests those programs"),
    ("plugins/emoji/tests/test_emoji_model.py", "picture", "it reads those programs' list of concepts"),
    ("plugins/emoji/LICENSES.md", "*", "licence texts are quoted"),
    ("plugins/emoji/src/*", "*.json *.txt", "the tokenizer's vocabulary and the prompts are data"),
    ("plugins/hpsv3/src/draft_reward_hpsv3/instruction.json", "*", "the instruction is quoted, letter by letter"),
)


def files() -> list[Path]:
    """Every text file of the project."""
    found = [path for place in PLACES for path in (ROOT / place).rglob("*") if path.suffix in SUFFIXES]
    found = [path for path in found if not {"__pycache__", "build", "dist"} & set(path.parts)]
    data = {".txt", ".json"}
    found = [path for path in found if path.suffix not in data or not fnmatch(name_of(path), "plugins/emoji/src/*")]
    return sorted([*found, *(ROOT / name for name in SINGLE if (ROOT / name).exists())])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_allowed(file: str, word: str) -> bool:
    return any(fnmatch(file, pattern) and fnmatch(word, words) for pattern, words, _ in ALLOWED)


TEXTS = {name_of(path): path.read_text(encoding="utf-8") for path in files()}


@pytest.mark.parametrize("word", RETIRED)
def test_the_word_is_gone(word: str) -> None:
    pattern = re.compile(RETIRED[word], flags=re.MULTILINE)
    left = [
        f"{file}:{number}: {line.strip()[:100]}"
        for file, text in TEXTS.items()
        if not is_allowed(file, word)
        for number, line in enumerate([file, *text.splitlines()])  # line 0 is the file's own name
        if pattern.search(line)
    ]
    assert not left, f"{len(left)} times\n" + "\n".join(left)


# Files whose `one` is the number 1.
ONE_IS_A_NUMBER = {"draft_core/sampling/noise_levels.py"}


def named(tree: ast.AST) -> dict[str, int]:
    """What a module's variables, arguments and keywords are called, and in which line."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = node.lineno
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            found[str(node.arg)] = node.lineno
    return found


@pytest.mark.parametrize("word", ["each", "one"])
def test_nothing_is_called_by_a_word_that_says_not_what_it_is(word: str) -> None:
    left = [
        f"{file}:{names[word]}"
        for file, text in TEXTS.items()
        if file.startswith("draft_core/") and file.endswith(".py")
        if not (word == "one" and file in ONE_IS_A_NUMBER)
        if word in (names := named(ast.parse(text)))
    ]
    assert not left


def test_such_a_name_would_be_found() -> None:
    for code in ("each = 1", "[x for one in y]", "def f(each): ...", "lambda *, one: 1", "f(one=1)"):
        assert {"each", "one"} & named(ast.parse(code)).keys(), code


@pytest.mark.parametrize(
    ("word", "lines"),
    {
        "estimator": [
            "estimator: {kind: draft}",
            "class EstimatorConfig",
            "draft estimators",
            "draft_register_estimators",
        ],
        "draft plan": ["draft plan recipes/jpeg.yaml"],
        "certify": ["draft rewards certify jpeg", "a certificate", "certified"],
        "look": ["class Look:", "looks.jsonl", "for each look", "looks = []", "the last look is kept", "look_at(run)"],
        "picture": ["eight pictures", "load_pictures(", "Pictures of", "PICTURED_PROMPTS"],
        "graded": ["a graded step", "class GradedRun", "graded=frozenset()"],
        "together": ["together=True", "together: true", "plan.together"],
        "measures": ["measures:", "recipe.measures", '"measures": []'],
        "Elsewhere": ["class Elsewhere:"],
        "PromptMemory": ["class PromptMemory:"],
        "sheet": ["a sheet of images", "from draft_core import sheets"],
        "vouch": ["it vouches for"],
        "parity": ["test_parity.py", "the parity of two scorers"],
        "wing": ["Names wing, no torch here"],
        "hall": ["The hall: one of the few"],
        "room": ["one of the few rooms that know both", "the trainer's room"],
        "floor": ["runs down a floor, never up"],
        "original": ["original.py", "draft_reward_jpeg.original:Scorer"],
        "May import": ["May import: errors"],
    }.items(),
)
def test_the_word_would_be_found(word: str, lines: list[str]) -> None:
    for line in lines:
        assert re.search(RETIRED[word], line, flags=re.MULTILINE), line


@pytest.mark.parametrize(
    "line",
    [
        "a gradient estimator of low variance",
        "it looks at each image",
        "torch.floor(x)",
        "math.floor(x / 2)",
        "make room on the disk",
        "both are added together",
        "it measures the size of a file",
        "certifi==2026.10.18",
        "the original size of an image",
        "have a look at docs/methods.md",
    ],
)
def test_what_is_still_said_is_not_found(line: str) -> None:
    assert [word for word, pattern in RETIRED.items() if re.search(pattern, line, flags=re.MULTILINE)] == []
