"""The commands `draft rewards ...`: list the installed rewards, show one, check it, compare it with its reference.

What needs torch is imported inside the command that needs it, so that listing stays instant.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from draft_core.cli.terminal import (
    Overrides,
    ProgressLines,
    given_fields,
    out,
    print_json,
    print_problems,
    prints_aside,
    quiet_libraries,
)
from draft_core.errors import DraftError, one_line, raised_at, with_type
from draft_core.registry.catalog import load_catalog
from draft_core.registry.specs import RewardSpec

if TYPE_CHECKING:
    from draft_core.testing.reference import Comparison


Small = Annotated[bool, typer.Option("--small", help="A small instance without a download; --set changes it as usual.")]

TAKES = {"image": "images, and each frame of a video", "video": "whole videos", "any": "images, and whole videos"}

rewards_app = typer.Typer(help="List the installed rewards, or show one.", invoke_without_command=True)


@rewards_app.callback()
def list_rewards(ctx: typer.Context) -> None:
    """List the installed rewards: what they score, where they come from, their licences, and what is broken."""
    if ctx.invoked_subcommand:
        return
    catalog = load_catalog()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for kind, entry in catalog.rewards.items():
        spec = entry.spec
        weights = f"weights {spec.weights_license}" if spec.weights_license else "no weights"
        facts = [str(entry.distribution), f"code {spec.code_license}", weights]
        if not spec.differentiable:
            facts.append("no gradient")
        table.add_row(kind, f"{escape(spec.summary)}\n[dim]{escape(', '.join(facts))}[/]")
    out.print(table)
    print_problems(catalog)
    if not catalog.rewards:
        out.print("No reward is installed; try `pip install draft-reward-jpeg`.")


@rewards_app.command("show")
def show_reward(kind: Annotated[str, typer.Argument(help="A kind that `draft rewards` lists.")]) -> None:
    """Show a reward's fields with their types, defaults and help."""
    entry = load_catalog().reward(kind)
    spec = entry.spec
    out.print(f"[bold]{kind}[/]: {spec.summary}", highlight=False)
    facts = {
        "from": str(entry.distribution),
        "score": f"{spec.unit}, {spec.score_range}, higher is better",
        "takes": TAKES[spec.takes],
        "trains": "yes" if spec.differentiable else "without a gradient: methods that need none",
        "prompt": "needed" if spec.needs_prompt else "not used",
        **({"columns": ", ".join(f"{name} ({kind})" for name, kind in spec.columns.items())} if spec.columns else {}),
        "native size": f"{spec.native_size} px" if spec.native_size else "any",
        "code licence": spec.code_license,
        "weights": f"{spec.weights_license}, {spec.download_mb:g} MB" if spec.weights_license else "none",
        "reference": _tolerance_text(spec),
    }
    for name, fact in facts.items():
        out.print(f"  {name}: {escape(fact)}", highlight=False)
    table = Table("field", "type", "default", "help")
    schema = spec.config.model_json_schema()
    for name, described in schema["properties"].items():
        default = "required" if name in schema.get("required", ()) else json.dumps(described.get("default"))
        table.add_row(name, escape(_type_text(described)), escape(default), escape(described.get("description", "")))
    out.print(table)


@rewards_app.command("check")
def check_reward(
    kind: Annotated[str, typer.Argument(help="A kind that `draft rewards` lists.")],
    overrides: Overrides = [],
    small: Small = False,
) -> None:
    """Check that a reward keeps the contract: gradients, independence, precision, and what its spec declares.

    The same checks that `draft_core.testing.RewardContract` runs in pytest. Exits with code 1 if one fails.
    """
    from draft_core.runs.build import build_reward, reward_config
    from draft_core.testing.checks import CHECKS, one_thread
    from draft_core.testing.subject import Subject, Violation

    given = given_fields(overrides)
    _refuse_environment(given, "check")
    catalog = load_catalog()
    entry = catalog.reward(kind)
    fields = {**(entry.spec.small if small else {}), **given}
    config = reward_config(kind, fields, catalog)
    subject = Subject(entry.spec, config, entry.module, build_reward(config, catalog))
    broken: dict[str, str] = {}  # cause -> the check that met it first
    failed = 0
    for name, check in CHECKS.items():
        try:
            with one_thread():
                check(subject)
        except Exception as problem:  # a reward may raise anything; it is a broken promise like any other
            failed += 1
            is_violation = isinstance(problem, Violation)
            reason, place = (one_line(problem), "") if is_violation else (with_type(problem), raised_at(problem))
            first = broken.setdefault(place or reason, name)
            told = f"{reason}{place}" if first == name else f"for the same cause as {first}"
            out.print(f"[red]broken[/] {name}: {escape(told)}", highlight=False, soft_wrap=True)
        else:
            out.print(f"[green]kept[/]   {name}", highlight=False)
    out.print(f"{kind}: {len(CHECKS) - failed} of {len(CHECKS)} checks passed", highlight=False)
    if failed:
        raise typer.Exit(1)


@rewards_app.command("compare")
def compare_reward(
    kind: Annotated[str, typer.Argument(help="A kind that `draft rewards` lists.")],
    overrides: Overrides = [],
    images: Annotated[
        list[Path], typer.Option("--image", help="An image file to compare on as well; two or more.")
    ] = [],
    small: Small = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead of a table.")] = False,
) -> None:
    """Compare a reward with the reference scorer that it is a port of, on the same weights and on images of many sizes.

    Differences are counted in standard deviations between the images. Exits with code 1 if one is larger than the
    spec's tolerance.

    Example: draft rewards compare hpsv2 --small
    """
    if as_json and as_markdown:
        raise DraftError("--json and --markdown contradict each other", next="give one of them")
    with prints_aside(as_json or as_markdown):
        comparison, unit = _compared(
            kind, given_fields(overrides), images, small, with_bars=not (as_json or as_markdown)
        )
    if as_json:
        print_json(comparison.as_dict())
    elif as_markdown:
        typer.echo(_markdown(comparison))
    else:
        _print_comparison(comparison, unit)
    if not comparison.holds:
        raise typer.Exit(1)


def _compared(
    kind: str, given: dict[str, Any], images: list[Path], small: bool, *, with_bars: bool
) -> tuple[Comparison, str]:
    """The comparison, and the unit of the reward."""
    _refuse_environment(given, "compare")
    catalog = load_catalog()
    entry = catalog.reward(kind)
    entry.spec.load_reference()  # refuses a kind that names none, before anything is loaded

    from draft_core.rewards.images import read_image
    from draft_core.testing.reference import compare_kind, refuse_single_image

    refuse_single_image(images)
    loaded = [read_image(path) for path in images]
    fields = {**(entry.spec.small if small else {}), **given}
    quiet_libraries()
    if not with_bars:
        return compare_kind(kind, fields, catalog=catalog, images=loaded), entry.spec.unit
    with ProgressLines() as progress:
        shown = partial(progress, "compare")
        return compare_kind(kind, fields, catalog=catalog, images=loaded, progress=shown), entry.spec.unit


def _refuse_environment(given: dict[str, Any], command: str) -> None:
    """The contract and the comparison look into the reward, which another process holds."""
    if "environment" in given:
        raise DraftError(
            f"`draft rewards {command}` looks into the reward, and one with an environment is in another process",
            where="--set environment",
            next=f"install draft-core there, and give `draft rewards {command}` there",
        )


def _markdown(comparison: Comparison) -> str:
    from draft_core.testing.reference import markdown

    return markdown({"": comparison})


def _print_comparison(comparison: Comparison, unit: str) -> None:
    from draft_core.testing.reference import short

    table = Table("images", "largest difference", "mean", f"1 standard deviation ({unit.partition(';')[0]})")
    for row in comparison.rows:
        colour = "green" if row.max_error <= comparison.tolerance else "red"
        largest = f"[{colour}]{short(row.max_error)}[/]"
        table.add_row(escape(row.images), largest, short(row.mean_error), f"{row.std:.3g}")
    out.print(table)
    out.print(", ".join(f"{name} {version}" for name, version in comparison.versions.items()), highlight=False)
    verdict = "[green]within the tolerance[/]" if comparison.holds else "[red]outside the tolerance[/]"
    out.print(
        f"{comparison.kind}: {verdict}: {short(comparison.worst)} standard deviations at most, "
        f"{comparison.tolerance:g} allowed",
        highlight=False,
        soft_wrap=True,
    )


def _tolerance_text(spec: RewardSpec) -> str:
    if spec.reference is None:
        return "none named"
    return f"within {spec.tolerance:g} standard deviations between images (`draft rewards compare {spec.kind}`)"


def _type_text(described: dict[str, Any]) -> str:
    if "const" in described:
        return json.dumps(described["const"])
    if "enum" in described:
        return " | ".join(json.dumps(value) for value in described["enum"])
    if "anyOf" in described:
        return " | ".join(_type_text(option) for option in described["anyOf"])
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {described[name]:g}" for name, sign in bounds.items() if name in described]
    return " ".join([str(described.get("type", "any")), ", ".join(limits)]).strip()
