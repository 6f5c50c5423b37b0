"""The text of a bug report, one block of Markdown; read it for what is told and what is left out."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from draft_core.bug_reports.anonymous import Machine, this_machine
from draft_core.errors import DraftError, one_line, with_type
from draft_core.recipe.yaml_text import dump_yaml, parse_yaml
from draft_core.registry.catalog import Catalog, Plugin
from draft_core.reporting.run_record import ERROR, METRICS, RECIPE

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "huggingface_hub", "numpy")
LAST_METRICS = 3  # updates
LONGEST_LINE, LONGEST_ERROR = 1_000, 6_000  # characters; of an error the last ones


def bug_report(catalog: Catalog, run: Path | None = None) -> str:
    """Versions, device and plugins, and of a run its recipe, its last metrics and its last error, as Markdown.

    Paths, names of user and machine, and tokens are replaced; environment variables are not read for it otherwise.

    Arguments:
        run: the folder of a run, finished or not.

    Raises:
        DraftError: if the folder holds no run.
    """
    plugins = [Path(plugin.file).parent for plugin in catalog.plugins if plugin.file != "?"]
    machine = this_machine([Path(__file__).parents[1], *plugins], [] if run is None else [run])
    told = [] if run is None else _of_run(run, machine)  # refuses first
    rows = [*_versions(), ("device", _device()), *_plugins(catalog)]
    cells = [f"| {_cell(machine.text(name))} | {_cell(machine.text(fact))} |" for name, fact in rows]
    table = ["| | |", "|---|---|", *cells]
    return "\n".join([*table, *told]) + "\n"


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "platform", f"{platform.system()} {platform.release()} {platform.machine()}"
    for name in ("draft-core", *LIBRARIES):
        yield name, _version(name)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    """The GPUs that torch sees, or the processor."""
    try:
        import torch
    except Exception as error:  # a broken installation is what such a report is about
        return f"torch does not load: {with_type(error)}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count())]
        gpus = ", ".join(f"{found.name} ({found.total_memory / 2**30:.0f} GiB)" for found in names)
        return f"{gpus}; CUDA {torch.version.cuda}"
    mps = ", and MPS" if torch.backends.mps.is_available() else ""
    return f"CPU, {torch.get_num_threads()} threads{mps}"


def _plugins(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """Every plugin with whether its code loads, each reward's and method's own included."""
    for plugin in catalog.plugins:
        problems = list(_problems(plugin, catalog))
        yield str(plugin.distribution), "; ".join(problems) if problems else "loads"
    for broken in catalog.broken:
        yield str(broken.distribution), f"broken: {broken.reason}"
    for name, claimants in catalog.conflicts.items():
        yield f"name {name}", f"claimed by {' and '.join(map(str, claimants))}"


def _problems(plugin: Plugin, catalog: Catalog) -> Iterator[str]:
    rewards = [catalog.rewards[kind].spec.load for kind in plugin.rewards if kind in catalog.rewards]
    methods = [catalog.methods[kind].spec.load for kind in plugin.methods if kind in catalog.methods]
    for load in [*rewards, *methods]:
        try:
            load()
        except DraftError as error:
            yield f"does not load: {error}"


def _of_run(run: Path, machine: Machine) -> list[str]:
    """The parts of the report about a run.

    Raises:
        DraftError: if there is no recipe to read.
    """
    try:
        recipe = (run / RECIPE).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DraftError(
            f"it holds no run, {RECIPE} cannot be read ({error.strerror})",
            where=str(run),
            next="name the folder of a run, or leave it out",
        ) from None
    metrics = [line[:LONGEST_LINE] for line in _text(run / METRICS).splitlines()[-LAST_METRICS:]]
    last_error = _text(run / ERROR).strip()[-LONGEST_ERROR:]
    return [
        *_block("Recipe", _anonymous_yaml(recipe, machine), "yaml"),
        *_block(f"Last lines of {METRICS}", machine.text("\n".join(metrics)), "json"),
        *_block("Last error", machine.text(last_error), "text"),
    ]


def _anonymous_yaml(text: str, machine: Machine) -> str:
    """The recipe as it would be written again; as it stands, with its paths replaced, if it is no YAML."""
    try:
        return dump_yaml(machine.value(parse_yaml(text)))
    except (ValueError, DraftError) as error:
        return machine.text(f"# it is not plain YAML: {one_line(error)}\n{text}")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _block(title: str, text: str, language: str) -> list[str]:
    """A titled block of code, whose fence is longer than any in it."""
    if not text.strip():
        return ["", f"**{title}**: none"]
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return ["", f"**{title}**", "", f"{fence}{language}", text.strip("\n"), fence]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
