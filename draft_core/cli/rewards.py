"""The commands `draft rewards ...`: list the installed rewards, show one, check it, compare it with its reference.

What needs torch is imported inside the command that needs it, so that listing stays instant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

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
from draft_core.registry.config import RewardConfig
from draft_core.registry.specs import RewardSpec

if TYPE_CHECKING:
    from draft_core.testing.reference import Comparison
    from draft_core.testing.subject import Subject


Small = Annotated[bool, typer.Option("--small", help="A small instance without a download; --set changes it as usual.")]

OTHER_ORDER = (
    "only tall images differ: Pillow 13 and later may resize columns before rows, and published scorers were made with "
    "rows first; let the reference resize the width, then the height, in two calls"
)
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
        **({"scope": "the images of a prompt are scored together"} if spec.scope == "group" else {}),
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
    out.print(_fields_table(spec.config.model_json_schema()))


@rewards_app.command("check")
def check_reward(
    kind: Annotated[
        str, typer.Argument(help="A kind that `draft rewards` lists, or FILE.py:NAME of a class or a function.")
    ],
    overrides: Overrides = [],
    small: Small = False,
    prompts: Annotated[
        list[str],
        typer.Option("--prompt", "-p", help="A prompt that the reward can read; three or more, instead of its own."),
    ] = [],
    release: Annotated[
        bool, typer.Option("--release", help="Say instead what it lacks to be published; no weight is loaded.")
    ] = False,
) -> None:
    """Check that a reward keeps the contract: gradients, independence, precision, and what its spec declares.

    The same checks that `draft_core.testing.RewardContract` runs in pytest. Exits with code 1 if one fails. A reward in
    a file of your own, which is run, needs no spec: whether it has a gradient and reads the prompt is found by calls.

    With --release: licences, sizes, README, version, the help of each field, and whether the files that the code names
    are there, on the hub too; exits with code 1 if something required is missing.

    Example: draft rewards check reward.py:Sharpness
    """
    if release:
        _check_release(kind, is_configured=small or bool(overrides) or bool(prompts))
        return

    from draft_core.testing.checks import CHECKS, one_thread
    from draft_core.testing.own_file import OF_PLUGINS, is_own_file
    from draft_core.testing.subject import Violation

    given = given_fields(overrides)
    _refuse_environment(given, "check")
    subject = _subject(kind, given, prompts, small)
    checks = {name: check for name, check in CHECKS.items() if not (is_own_file(kind) and name in OF_PLUGINS)}
    broken: dict[str, str] = {}  # cause -> the check that met it first
    failed = 0
    for name, check in checks.items():
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
    out.print(f"{kind}: {len(checks) - failed} of {len(checks)} checks passed", highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _subject(kind: str, given: dict[str, Any], prompts: list[str], small: bool) -> Subject:
    """What is checked, on the prompts that are given or those of its spec."""
    from draft_core.runs.build import build_reward, reward_config
    from draft_core.testing.own_file import is_own_file, subject_of_file
    from draft_core.testing.subject import Subject, require_readable

    if prompts and len(set(prompts)) < 3:
        raise DraftError("the checks need three different prompts", where="--prompt", next="give it three times")
    if is_own_file(kind):
        if small or given:
            what = "--small" if small else "--set"
            raise DraftError("a reward in a file has no config", where=what, next="leave it out")
        subject = subject_of_file(kind, small_prompts=prompts)
        spec = subject.spec
        facts = [
            f"takes {TAKES[spec.takes]}",
            "has a gradient" if spec.differentiable else "has no gradient: methods that need none train on it",
            "reads the prompt" if spec.needs_prompt else "reads no prompt",
        ]
        out.print(f"{kind}: {'; '.join(facts)}", highlight=False, soft_wrap=True)
        return subject
    catalog = load_catalog()
    entry = catalog.reward(kind)
    config = reward_config(kind, {**(entry.spec.small if small else {}), **given}, catalog)
    spec = replace(entry.spec.as_set(config), small_prompts=tuple(prompts) or entry.spec.small_prompts)
    require_readable(spec, config)
    return Subject(spec, config, entry.module, build_reward(config, catalog))


def _check_release(kind: str, *, is_configured: bool) -> None:
    """Prints what a reward lacks to be published."""
    from draft_core.publishing.release import missing_for_release

    if is_configured:
        raise DraftError(
            "--release builds no reward, so there is nothing to set",
            where="--release",
            next="leave out --set, --small and --prompt",
        )
    findings = missing_for_release(load_catalog().reward(kind))
    for finding in findings:
        word = "[red]missing[/]" if finding.required else "[yellow]advised[/]"
        out.print(f"{word} {escape(finding.what)}; {escape(finding.next)}", highlight=False, soft_wrap=True)
    required = sum(finding.required for finding in findings)
    verdict = f"{required} to mend before it is published" if required else "ready to be published"
    out.print(f"{kind}: {verdict}", highlight=False)
    if required:
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
        from draft_core.testing.reference import markdown

        typer.echo(markdown({"": comparison}))
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
    worst = f"{short(comparison.worst)} standard deviations at most, {comparison.tolerance:g} allowed"
    out.print(f"{comparison.kind}: {verdict}: {worst}", highlight=False, soft_wrap=True)
    if comparison.another_order:
        out.print(OTHER_ORDER, highlight=False, soft_wrap=True)


def _tolerance_text(spec: RewardSpec) -> str:
    if spec.reference is None:
        return "none named"
    return f"within {spec.tolerance:g} standard deviations between images (`draft rewards compare {spec.kind}`)"


def _fields_table(schema: dict[str, Any]) -> Table:
    """A row for every field; the fields of a nested config follow it, under its name and a dot."""
    table = Table(Column("field", no_wrap=True), "type", "default", "help")
    for name, described, is_required in _all_fields(schema, schema.get("$defs", {})):
        default = "required" if is_required else json.dumps(described.get("default"))
        help = described.get("description", "")
        table.add_row(name, escape(_type_text(described)), escape(default), escape(help))
    return table


def _all_fields(
    schema: dict[str, Any], known: dict[str, Any], prefix: str = "", above: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Name, description and whether it must be given, of the fields of a schema and of those nested in it."""
    for name, described in schema.get("properties", {}).items():
        yield prefix + name, described, name in schema.get("required", ())
        if not prefix and name in RewardConfig.model_fields:  # what all rewards have, recipes.md describes
            continue
        for nested, dots in _nested(described):
            if nested not in above and "properties" in known.get(nested, {}):
                yield from _all_fields(known[nested], known, f"{prefix}{name}{dots}.", (*above, nested))


def _nested(described: dict[str, Any], dots: str = "") -> Iterator[tuple[str, str]]:
    """The names of the types that a field's type refers to, and how their fields are reached: "[]" for a list's."""
    if "$ref" in described:
        yield described["$ref"].rpartition("/")[2], dots
    for option in [*described.get("anyOf", ()), *described.get("oneOf", ()), *described.get("allOf", ())]:
        yield from _nested(option, dots)
    items = described.get("items")
    for part in [*([items] if isinstance(items, dict) else []), *described.get("prefixItems", ())]:
        yield from _nested(part, f"{dots}[]")
    if isinstance(described.get("additionalProperties"), dict):
        yield from _nested(described["additionalProperties"], f"{dots}.NAME")


def _type_text(described: dict[str, Any]) -> str:
    if "$ref" in described:
        return str(described["$ref"].rpartition("/")[2])
    if "const" in described:
        return json.dumps(described["const"])
    if "enum" in described:
        return " | ".join(json.dumps(value) for value in described["enum"])
    if options := described.get("anyOf") or described.get("oneOf") or described.get("allOf"):
        return " | ".join(_type_text(option) for option in options)
    if described.get("type") == "array":
        parts = described.get("prefixItems") or [described.get("items") or {}]
        return f"list of {', '.join(dict.fromkeys(map(_type_text, parts)))}"
    if isinstance(described.get("additionalProperties"), dict):
        return f"mapping to {_type_text(described['additionalProperties'])}"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {described[name]:g}" for name, sign in bounds.items() if name in described]
    return " ".join([str(described.get("type", "any")), ", ".join(limits)]).strip()
