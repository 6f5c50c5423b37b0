"""Whether this tree trains as an earlier commit does, in every bit; run it when a change should alter nothing.

`python benchmarks/unchanged.py 361a6a9 [--markdown table.md]` checks the commit out beside the tree and lets both train
the same small recipes, each tree in processes of its own: every method on the embedded model, and DRaFT-K and
DRaFT-LV on small random pipelines of seven families. It compares the trained LoRA, every row of the metrics and every
score of the evaluations, and ends with exit code 1 if anything differs that `INTENDED` does not list.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import math
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]

# Case -> why it may differ from the base commit. Every other difference is an error.
INTENDED = {
    "sd-img2img draft-lv": "the call encodes its image with noise from the generator; a replay now starts from the "
    "generator's state at the start of the call and so draws the same noise again, where it drew other noise before",
}

# Words of the recipe that a base commit may still have: (today's, the former one), and by what module it is known.
FORMER_WORDS = {"method": "estimator", "metrics": "measures", "batched": "together"}
FORMER_MODULE = "draft_core.estimators"

EVALUATIONS = ("evaluations.jsonl", "looks.jsonl")  # today's name, the former one
IGNORED = {"seconds", "divisors", "reward_queries"}

JPEG = {"kind": "jpeg", "quality": 80}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # said, since the default may gain layers that a base commit leaves out
RECIPE: dict[str, Any] = {
    "model": {
        "pretrained": "emoji",
        "num_inference_steps": 4,
        "guidance_scale": 4.0,
        "lora": {"rank": 2, "targets": TARGETS},
    },
    "prompts": "emoji-train",
    "rewards": [JPEG, {"kind": "emoji-clip", "weight": 0.4}],
    "train": {"steps": 6, "batch_size": 2, "learning_rate": 1.0e-3},
    "evaluation": {
        "prompts": "emoji-heldout",
        "count": 4,
        "images_per_prompt": 1,
        "every": 6,
        "scales": [],
        "on_collapse": "warn",
    },
    "metrics": [{"kind": "jpeg-size", "quality": 80}],
    "checkpoint": {"every": 3},
    "device": "cpu",
}
LV = {"kind": "draft-lv", "resamples": 2}
METHODS: dict[str, dict[str, Any]] = {
    "draft": {"kind": "draft"},
    "draft-k": {"kind": "draft-k", "k": 2},
    "draft-lv": LV,
    "draft-lv, batched": {**LV, "batched": True},
    "prefix-reuse": {"kind": "prefix-reuse", "updates": 3},
    "prefix-reuse, max_drift": {"kind": "prefix-reuse", "updates": 3, "max_drift": 0.02},
    "short-prefix": {"kind": "short-prefix", "prefix_steps": 2},
    "short-prefix, updates": {"kind": "short-prefix", "prefix_steps": 2, "updates": 2},
    "refl": {"kind": "refl", "last": 3},
    "alignprop": {"kind": "alignprop"},
    "drtune": {"kind": "drtune", "k": 2, "last": 2},
    "flowbp-sparse": {"kind": "flowbp-sparse", "k": 2},
    "flowbp-sparse, bias": {"kind": "flowbp-sparse", "k": 2, "bias": 2.0},
    "flowbp-bridge": {"kind": "flowbp-bridge", "k": 2, "rescale": 0.0},
    "steps": {"kind": "steps", "steps": [-3, -1], "detach_input": True},
    "target": {"kind": "target", "refresh": 2, "fits": 2},
}
# Steps that add a multiple of the prediction, which the embedded model's own do not; its images mean nothing then.
EULER = {"scheduler": {"name": "EulerDiscreteScheduler", "settings": {"prediction_type": "epsilon"}}}
VARIANTS: dict[str, dict[str, Any]] = {
    "flowbp-sparse, rescale": {"method": {"kind": "flowbp-sparse", "k": 2, "rescale": 0.5}, "model": EULER},
    "flowbp-lagrange": {"method": {"kind": "flowbp-lagrange"}, "model": EULER},
    "leapalign": {"method": {"kind": "leapalign"}, "model": EULER},
    "draft-k, cap at a quantile and worst_within": {
        "method": METHODS["draft-k"],
        "rewards": [{**JPEG, "cap": {"quantile": 0.75}, "worst_within": 0.01}],
    },
    "draft-k, evaluated often": {
        "method": METHODS["draft-k"],
        "evaluation": {"images_per_prompt": 2, "every": 3, "scales": [0.5]},
    },
    "draft-k, kl and lora_norm": {"method": METHODS["draft-k"], "regularizers": {"kl": 0.1, "lora_norm": 1.0e-3}},
    "draft-lv, normalize scale": {"method": LV, "train": {"normalize": "scale"}},
    "draft-lv, normalize gradient": {"method": LV, "train": {"normalize": "gradient"}},
    "draft-lv, accumulated": {"method": LV, "train": {"gradient_accumulation_steps": 2, "warmup_steps": 2}},
    "prefix-reuse, accumulated": {"method": METHODS["prefix-reuse"], "train": {"gradient_accumulation_steps": 2}},
    "draft-k, recomputed": {
        "method": METHODS["draft-k"],
        "model": {"gradient_checkpointing": True, "decode": "selective", "remember_prompts": True},
    },
}
# Row of tests/support/families.py -> name here, steps, guidance scale, and how a recipe says the rest of its call.
SIZE = {"height": 16, "width": 16}
FAMILIES: dict[str, tuple[str, int, float, dict[str, Any]]] = {
    "Stable Diffusion 1.x": ("sd", 3, 4.0, {}),
    "Stable Diffusion XL": ("sdxl", 3, 4.0, {**SIZE}),
    "Stable Diffusion 3": ("sd3", 3, 4.0, {**SIZE}),
    "FLUX.1": ("flux", 3, 3.5, {"max_sequence_length": 16, **SIZE}),
    "Wan 2.1, video": ("wan", 3, 4.0, {"max_sequence_length": 16, "num_frames": 5, **SIZE}),
    "SDXL turbo": ("sdxl-ancestral", 3, 0.0, {**SIZE}),
    "SD image to image": ("sd-img2img", 6, 4.0, {"strength": 0.5}),
}
FAMILY_METHODS = {"draft-k": METHODS["draft-k"], "draft-lv": LV}


@dataclass(frozen=True)
class Row:
    """One case of the table.

    Arguments:
        differences: what differs -> the largest absolute difference, infinite where shapes, names or counts do.
    """

    case: str
    differences: Mapping[str, float]

    @property
    def intended(self) -> str:
        """Why this case may differ; empty if it may not, or if a run is missing or of other shapes."""
        return INTENDED.get(self.case, "") if all(map(math.isfinite, self.differences.values())) else ""

    @property
    def failed(self) -> bool:
        """Whether it differs and must not."""
        return bool(self.differences) and not self.intended

    def __str__(self) -> str:
        """The second column of the table."""
        if not self.differences:
            return "equal"
        found = "; ".join(f"{what}: {size:.3g}" for what, size in self.differences.items())
        return f"differs by intention ({found}): {self.intended}" if self.intended else f"DIFFERS ({found})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, checked_out(arguments.base) as base:
        recipes = write_recipes(Path(folder), arguments.only)
        for tree, output in ((base, "base"), (ROOT, "tree")):
            for group in recipes:
                train_all(tree, Path(folder) / group, Path(folder) / output)
        cases = [case for names in recipes.values() for case in names]
        rows = [Row(case, compare(Path(folder) / "base" / case, Path(folder) / "tree" / case)) for case in cases]
    text = table(rows)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n", encoding="utf-8")
    sys.exit(any(row.failed for row in rows))


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A folder that holds the commit's tree, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


# What is trained


def cases() -> dict[str, dict[str, dict[str, Any]]]:
    """Group -> case -> recipe, in today's words; the families' model is the folder `models/NAME`."""
    emoji = {name: {"method": method} for name, method in METHODS.items()} | VARIANTS
    families = {}
    for name, steps, guidance, call in FAMILIES.values():
        model = {
            "pretrained": f"models/{name}",
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "call": call,
        }
        for method, config in FAMILY_METHODS.items():
            part = {"model": model, "method": config, "rewards": [JPEG], "metrics": [{"kind": "jpeg-distortion"}]}
            families[f"{name} {method}"] = part
    return {
        "emoji": {name: joined(RECIPE, part) for name, part in emoji.items()},
        "families": {name: joined(RECIPE, part) for name, part in families.items()},
    }


def joined(whole: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """`whole` with the entries of `part` in place of its own, inside mappings too."""
    both = dict(whole)
    for name, value in part.items():
        mappings = isinstance(value, dict) and isinstance(both.get(name), dict)
        both[name] = joined(both[name], value) if mappings else value
    return both


def write_recipes(folder: Path, only: str) -> dict[str, list[str]]:
    """Writes `GROUP/CASE.yaml` and the families' pipelines; gives the names of each group's cases."""
    written: dict[str, list[str]] = {}
    for group, recipes in cases().items():
        (folder / group).mkdir()
        for case, recipe in recipes.items():
            if only not in case:
                continue
            written.setdefault(group, []).append(case)
            pretrained = recipe["model"]["pretrained"]
            if pretrained.startswith("models/"):
                recipe["model"]["pretrained"] = str(folder / pretrained)
            (folder / group / f"{case}.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    if "families" in written:
        sys.path.insert(0, str(ROOT))
        from tests.support.families import FAMILIES as ROWS

        for row in ROWS:
            if row.name in FAMILIES:
                row.pipe().save_pretrained(folder / "models" / FAMILIES[row.name][0])
    return written


# Training, in a process whose first path is one of the trees


def train_all(tree: Path, recipes: Path, output: Path) -> None:
    """Trains every recipe of a folder by this tree's code, in one process, into `output/CASE`.

    Raises:
        subprocess.CalledProcessError: if the process fails; a case that fails leaves its traceback instead of a run.
    """
    paths = [tree, *sorted(tree.glob("plugins/*/src"))]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    words = [sys.executable, str(Path(__file__).resolve()), "--train", str(tree), str(recipes), str(output)]
    subprocess.run(words, env=environment, cwd=recipes.parent, check=True)


def train_here(tree: Path, recipes: Path, output: Path) -> None:
    """What the process of `train_all` does; the command line is the one interface that all trees share."""
    import draft_core

    if not Path(draft_core.__file__).is_relative_to(tree):
        raise SystemExit(f"draft_core comes from {draft_core.__file__}, not from {tree}")
    torch.set_num_threads(1)
    give_an_image()
    leave_plots_empty()
    former = importlib.util.find_spec(FORMER_MODULE) is not None
    for file in sorted(recipes.glob("*.yaml")):
        recipe = {**json.loads(file.read_text(encoding="utf-8")), "output": str(output / file.stem)}
        spoken = output / f"{file.stem}.recipe"
        output.mkdir(exist_ok=True)
        spoken.write_text(json.dumps(in_former_words(recipe) if former else recipe), encoding="utf-8")
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = draft("train", str(spoken))
        if code:
            print(f"{tree.name}: {file.stem}: exit code {code}\n{said.getvalue()}", file=sys.stderr)


def draft(*words: str) -> Any:
    """The exit code of `draft WORDS`, run in this process."""
    sys.argv = ["draft", *words]
    try:
        runpy.run_module("draft_core", run_name="__main__")
    except SystemExit as stop:
        return stop.code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def give_an_image() -> None:
    """Image to image starts from one fixed image, as its default argument: no recipe can say an image."""
    import diffusers
    from PIL import Image

    call = diffusers.StableDiffusionImg2ImgPipeline.__call__.__wrapped__
    names = call.__code__.co_varnames[call.__code__.co_argcount - len(call.__defaults__) : call.__code__.co_argcount]
    image = Image.radial_gradient("L").resize((16, 16)).convert("RGB")
    call.__defaults__ = tuple(
        image if name == "image" else default for name, default in zip(names, call.__defaults__, strict=True)
    )


def leave_plots_empty() -> None:
    """The report's plots show nothing: they are not compared, and to draw them takes a third of a run."""
    from matplotlib.figure import Figure

    Figure.draw = lambda figure, renderer: None  # type: ignore[assignment]


def in_former_words(recipe: dict[str, Any]) -> dict[str, Any]:
    """The same recipe for a base commit that has other words."""
    return {
        FORMER_WORDS.get(name, name): in_former_words(value) if isinstance(value, dict) else value
        for name, value in recipe.items()
    }


# What came out


def compare(base: Path, tree: Path) -> dict[str, float]:
    """What differs between two run folders -> the largest absolute difference; empty if all is equal in every bit."""
    if missing := [str(folder.parent.name) for folder in (base, tree) if not (folder / "metrics.jsonl").is_file()]:
        return {f"no run in {' and '.join(missing)}": math.inf}
    parts: dict[str, tuple[Any, Any]] = {
        "LoRA": (lora(base), lora(tree)),
        "metrics": (rows(base / "metrics.jsonl"), rows(tree / "metrics.jsonl")),
        "evaluations": (rows(evaluations(base)), rows(evaluations(tree))),
    }
    sizes = {what: difference(*both) for what, both in parts.items()}
    return {what: size for what, size in sizes.items() if size > 0}


def lora(folder: Path) -> dict[str, torch.Tensor]:
    """The trained LoRA of a run folder."""
    (file,) = (folder / "lora").glob("*.safetensors")
    return load_file(file)


def rows(file: Path) -> list[Any]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def evaluations(folder: Path) -> Path:
    """The file of a run's evaluations, by today's name or the former one."""
    return next(file for file in (folder / name for name in EVALUATIONS) if file.is_file())


def difference(base: Any, tree: Any) -> float:
    """The largest absolute difference between numbers at the same place; infinite where anything else differs.

    Numbers that are equal but for the last bit differ; two that are both not a number do not,
    and neither does a field that only the tree has and leaves empty.
    """
    if isinstance(base, torch.Tensor) and isinstance(tree, torch.Tensor):
        if base.shape != tree.shape or base.dtype != tree.dtype:
            return math.inf
        if torch.equal(base, tree):
            return 0.0
        return difference(base.flatten().tolist(), tree.flatten().tolist())
    if isinstance(base, dict) and isinstance(tree, dict):
        added = {name for name in tree.keys() - base.keys() if tree[name] in ({}, [], None)}  # a new field, not used
        if base.keys() - IGNORED != tree.keys() - added - IGNORED:
            return math.inf
        return max([0.0, *(difference(base[name], tree[name]) for name in base.keys() - IGNORED)])
    if isinstance(base, list) and isinstance(tree, list):
        pairs = zip(base, tree, strict=False)
        return max([0.0, *(difference(one, other) for one, other in pairs)]) if len(base) == len(tree) else math.inf
    if base == tree and type(base) is type(tree):
        return 0.0
    if isinstance(base, float) and isinstance(tree, float):
        if math.isnan(base) and math.isnan(tree):
            return 0.0
        size = abs(base - tree)
        return math.inf if math.isnan(size) else size
    return math.inf


def table(rows: list[Row]) -> str:
    """The Markdown table of all cases."""
    return "\n".join(["| case | after six updates |", "|---|---|", *(f"| {row.case} | {row} |" for row in rows)])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train_here(*map(Path, sys.argv[2:]))
    else:
        main()
