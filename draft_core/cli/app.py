"""The command line, `draft`: each command reads its words, calls the library, and prints what came out.

What needs torch is imported inside the command that needs it, so that listing and checking stay instant.
"""

from __future__ import annotations

import json
import os
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from draft_core.cli.cost import cost
from draft_core.cli.init import init
from draft_core.cli.new import new_method, new_model, new_reward
from draft_core.cli.rewards import rewards_app
from draft_core.cli.runs import runs_app
from draft_core.cli.terminal import (
    Overrides,
    ProgressLines,
    err,
    given_fields,
    join_help_lines,
    out,
    print_json,
    print_problems,
    prints_aside,
    quiet_libraries,
)
from draft_core.cli.vote import user, vote
from draft_core.errors import DraftError, Interrupted
from draft_core.recipe.yaml_text import exists
from draft_core.registry.catalog import Catalog, load_catalog

if TYPE_CHECKING:
    from draft_core.library.scores import Scored
    from draft_core.registry.config import RewardConfig


# Task of a model that is no pipeline -> what it is for.
JUDGES = {
    "image-text-to-text": "a model of rewards such as vlm",
    "zero-shot-object-detection": "weights of the reward detection",
}


class _OneSentenceErrors(TyperGroup):
    """A user's mistake ends in one sentence and exit code 2; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DraftError as error:
            rank = os.environ.get("RANK", "0")
            if rank != "0":
                if error.is_reported or isinstance(error, Interrupted):
                    raise typer.Exit from None
                err.print(f"[bold]process {rank}:[/]", end=" ")
            err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    cls=_OneSentenceErrors,
    help="Fine-tune diffusion models by backpropagating rewards through sampling (DRaFT).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(rewards_app, name="rewards")
app.command()(init)
app.command()(cost)
app.add_typer(runs_app)
app.command()(vote)
app.command()(user)
app.command()(new_reward)
app.command()(new_method)
app.command()(new_model)

Resume = Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in the output folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the output folder.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"draft-core {metadata.version('draft-core')}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune diffusion models by backpropagating rewards through sampling (DRaFT)."""


@app.command()
def train(
    recipe: Annotated[
        Path,
        typer.Argument(help="A recipe, YAML; `draft schema` describes its fields. Or the folder of a run, to go on."),
    ],
    overrides: Overrides = [],
    resume: Resume = False,
    overwrite: Overwrite = False,
    force: Annotated[
        bool, typer.Option("--force", help="Continue although the recipe or the versions have changed.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Processes on this machine, one for each GPU.")
    ] = None,
) -> None:
    """Train a LoRA as a recipe says, and write images, curves and a report.

    A run that was interrupted goes on where it stopped when the same command is given again. Ctrl-C and SIGTERM finish
    the update under way, save, and end with exit code 130 or 143.

    Example: draft train recipes/jpeg.yaml --set train.steps=50 --set output=runs/short
    """
    if recipe.is_dir():
        overrides = [*overrides, f"output={json.dumps(str(recipe))}"]
        recipe = recipe / "recipe.yaml"
    if processes is not None:
        overrides = [*overrides, f"processes={processes}"]
    _train(recipe, overrides, resume=resume, overwrite=overwrite, force=force)


@app.command()
def demo(
    overrides: Overrides = [],
    resume: Resume = False,
) -> None:
    """Tune an embedded model to draw two things as a prompt asks: a minute or two, no download.

    Needs the plugin draft-emoji. An earlier demonstration run is replaced.
    """
    with resources.as_file(resources.files("draft_core.cli") / "demo.yaml") as recipe:
        _train(recipe, ["output=runs/demo", *overrides], resume=resume, overwrite=not resume)


@app.command()
def methods() -> None:
    """List the methods that a recipe can name, with their fields and where they come from."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for kind, entry in load_catalog().methods.items():
        fields = [f"{name}={field.default}" for name, field in entry.spec.config.model_fields.items() if name != "kind"]
        facts = f"{', '.join(fields) or 'no fields'}; from {entry.distribution}"
        table.add_row(kind, f"{escape(entry.spec.summary)}\n[dim]{escape(facts)}[/]")
    out.print(table)


@app.command()
def models() -> None:
    """List the aliases that a recipe can name as its model or as that of a reward, and their prompt lists."""
    catalog = load_catalog()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for alias, entry in {**catalog.pretrained, **catalog.critics, **catalog.detectors}.items():
        spec = entry.spec
        call = ", ".join(f"{name}={value}" for name, value in spec.call.items())
        where = "" if spec.repository is None else f"hub {'@'.join(filter(None, (spec.repository, spec.revision)))}"
        judges = JUDGES.get(spec.task, "")
        facts = [str(entry.distribution), f"licence {spec.license}", where, judges, f"call {call}" if call else ""]
        lists = f"\nprompts {', '.join(spec.prompts)}" if spec.prompts else ""
        told = f"{escape(spec.summary)}\n[dim]{escape(', '.join(filter(None, facts)) + lists)}[/]"
        table.add_row(alias, told)
    out.print(table)
    print_problems(catalog)
    if not catalog.pretrained:
        out.print("No alias is installed; try `pip install draft-emoji`, or name a folder or a model on the hub.")


@app.command()
def plugins() -> None:
    """List the installed plugins: what each registers, from which file, and what is wrong.

    The environment variable DRAFT_PLUGINS restricts the set: distributions joined by commas, or nothing for none.
    """
    catalog = load_catalog()
    for plugin in catalog.plugins:
        registers = [
            *(f"reward {kind}" for kind in plugin.rewards),
            *(f"model {alias}" for alias in plugin.pretrained),
            *(f"method {kind}" for kind in plugin.methods),
        ]
        out.print(f"[bold]{plugin.distribution}[/]", highlight=False)
        for line in (f"registers {', '.join(registers) or 'nothing'}", plugin.entry_point, plugin.file):
            out.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
    print_problems(catalog)


@app.command()
def score(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    reward: Annotated[str, typer.Option("--reward", "-r", help="A kind that `draft rewards` lists.")],
    overrides: Overrides = [],
    prompt: Annotated[
        list[str], typer.Option("--prompt", "-p", help="The prompt; once for all images, or once for each.")
    ] = [],
    columns: Annotated[
        list[str],
        typer.Option("--column", metavar="NAME=VALUE", help="What the reward reads of a column, for all images."),
    ] = [],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score image files with a reward.

    What cannot be scored is named, and the others' scores are printed; the exit code is then 1, and 2 if there is none.

    Example: draft score photo.jpg --reward jpeg --set quality=50
    """
    with prints_aside():
        unit, scored = _scored(images, reward, prompt, given_fields(overrides), columns)
    failed = [row for row in scored if row.error is not None]
    if len(failed) == len(scored) and failed[0].error is not None:
        raise failed[0].error
    if as_json:
        rows = [
            {"image": str(row.path), "score": row.score, **({"error": str(row.error)} if row.error else {})}
            for row in scored
        ]
        print_json({"reward": reward, "unit": unit, "scores": rows})
    else:
        table = Table("image", f"{reward} ({unit})")
        for row in scored:
            table.add_row(escape(str(row.path)), "-" if row.score is None else f"{row.score:.6g}")
        out.print(table)
    for row in failed:
        err.print(f"[bold red]not scored:[/] {escape(f'{row.path}: {row.error}')}", highlight=False)
    if failed:
        raise typer.Exit(1)


def _scored(
    images: list[Path], reward: str, prompt: list[str], fields: dict[str, Any], columns: list[str]
) -> tuple[str, list[Scored]]:
    """The unit of the reward, and the score of each image."""
    from draft_core.registry.environments import spec_of

    catalog = load_catalog()
    config = None
    if "environment" in fields or (catalog.reward(reward).spec.needs_prompt and not prompt and fields):
        config = _config(reward, fields, catalog)  # which starts a process there, or says that it reads no prompt
    spec = catalog.reward(reward).spec if config is None else spec_of(config, catalog)
    if spec.takes == "video":
        raise DraftError(
            f"reward {reward!r} scores videos, and this command reads images", where="--reward", next="name another one"
        )
    if spec.scope == "group":
        raise DraftError(
            f"reward {reward!r} compares the images of a prompt, and this command scores them one by one",
            where="--reward",
            next="name another one",
        )
    if spec.needs_prompt and not prompt:
        raise DraftError(f"reward {reward!r} scores images against a prompt", where="--prompt", next="give one")
    if len(prompt) not in (0, 1, len(images)):
        raise DraftError(
            f"{len(prompt)} prompts for {len(images)} images", where="--prompt", next="give one, or one for each"
        )

    from draft_core.cli.scoring import given_columns
    from draft_core.library.rewards import reward_of
    from draft_core.library.scores import score_files
    from draft_core.recipe.columns import columns_of

    config = config or _config(reward, fields, catalog)
    read = columns_of(config, catalog, where="--set columns")
    row = given_columns(reward, read, columns)
    for path in images:
        if not exists(Path.exists, path):
            raise DraftError("no such file", where=str(path), next="check the path")
    quiet_libraries()
    scorer = reward_of(config, catalog)
    prompts = prompt * len(images) if len(prompt) == 1 else prompt or [""] * len(images)
    return spec.unit, list(score_files(reward, scorer, images, prompts, read, row))


def _config(reward: str, fields: dict[str, Any], catalog: Catalog) -> RewardConfig:
    """The reward's config, completed by its environment where it has one of its own."""
    from draft_core.runs.build import reward_config

    return reward_config(reward, fields, catalog)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes with everything that is installed, for an editor to complete."""
    from draft_core.recipe.schema import recipe_type

    with prints_aside():
        described = recipe_type(load_catalog()).model_json_schema()
    print_json(described)


def _train(path: Path, overrides: list[str], *, resume: bool, overwrite: bool, force: bool = False) -> None:
    from draft_core.recipe.load import load_recipe

    if resume and overwrite:
        raise DraftError("--resume and --overwrite contradict each other", next="give one of them")
    catalog = load_catalog()
    recipe = load_recipe(path, overrides, catalog=catalog)
    if recipe.processes > 1 and "WORLD_SIZE" not in os.environ:
        _launch(recipe.processes, path, overrides, resume=resume, overwrite=overwrite, force=force)
        return

    from draft_core.runs.run import run_recipe

    quiet_libraries()
    with ProgressLines() as progress:
        result = run_recipe(recipe, catalog, resume=resume, overwrite=overwrite, force=force, progress=progress)
    if os.environ.get("RANK", "0") != "0":
        return
    after = result.after.means()
    for name, before in result.before.means().items():
        out.print(f"{name}: {before:.4g} before, {after[name]:.4g} after", highlight=False)
    verdict = result.outcome
    out.print(f"verdict: [bold]{verdict.headline}[/]", highlight=False)
    for line in (*verdict.rose, *verdict.fell, verdict.reason, verdict.best):
        out.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
    out.print(f"report: {result.report}", highlight=False, soft_wrap=True)


def _launch(processes: int, path: Path, overrides: list[str], **flags: bool) -> None:
    """The same command in several processes."""
    from draft_core.cli.launch import launch

    settings = [word for override in overrides for word in ("--set", override)]
    given = [f"--{name}" for name, is_given in flags.items() if is_given]
    code = launch(processes, ["-m", "draft_core", "train", str(path), *settings, *given])
    if code:
        raise typer.Exit(code)


join_help_lines(app)
