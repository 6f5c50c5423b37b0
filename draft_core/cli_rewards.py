"""The commands `draft rewards ...`: what is installed, what each reward can be told, and whether it keeps its word.

The hall: part of the command line, split from it by subject. What needs torch is imported inside the command that
needs it, so that listing stays instant.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from draft_core.catalog import load_catalog
from draft_core.terminal import Overrides, given_fields, out, print_problems

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
            facts.append("measures only")
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
        "trains": "yes" if spec.differentiable else "no, it only measures",
        "prompt": "needed" if spec.needs_prompt else "not used",
        "native size": f"{spec.native_size} px" if spec.native_size else "any",
        "code licence": spec.code_license,
        "weights": f"{spec.weights_license}, {spec.download_mb:g} MB" if spec.weights_license else "none",
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
) -> None:
    """Check that a reward keeps the contract: gradients, independence, precision, and what its spec declares.

    The same checks that `draft_core.testing.RewardContract` runs in pytest. Exits with code 1 if one fails.
    """
    from draft_core.builder import reward_config
    from draft_core.testing.checks import CHECKS, Subject, one_thread

    catalog = load_catalog()
    entry = catalog.reward(kind)
    config = reward_config(kind, given_fields(overrides), catalog)
    subject = Subject(entry.spec, config, entry.module)
    broken = 0
    for name, check in CHECKS.items():
        try:
            with one_thread():
                check(subject)
        except Exception as problem:  # a reward may raise anything; it is a broken promise like any other
            broken += 1
            reason = f"{type(problem).__name__}: {problem}" if not isinstance(problem, AssertionError) else str(problem)
            out.print(f"[red]broken[/] {name}: {escape(reason)}", highlight=False, soft_wrap=True)
        else:
            out.print(f"[green]kept[/]   {name}", highlight=False)
    out.print(f"{kind}: {len(CHECKS) - broken} of {len(CHECKS)} checks passed", highlight=False)
    if broken:
        raise typer.Exit(1)


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
