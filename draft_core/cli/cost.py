"""The command `draft cost`: predicts the memory and the seconds of an update and prints them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from draft_core.cli.terminal import Overrides, out, print_json, prints_aside, quiet_libraries
from draft_core.registry.catalog import load_catalog

if TYPE_CHECKING:
    from draft_core.cost.forecast import Forecast


MEGABYTE = 1e6


def cost(
    recipe: Annotated[Path, typer.Argument(help="A recipe, YAML; `draft schema` describes its fields.")],
    overrides: Overrides = [],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Predict the memory and the seconds of an update, from the plan and a few network calls on this machine.

    The model and the rewards are loaded, nothing is trained or written.

    Example: draft cost recipes/jpeg.yaml --set train.batch_size=32
    """
    with prints_aside(as_json):
        found, cheaper, room = _forecast(recipe, overrides)
    if as_json:
        print_json({**found.as_dict(), "savings": cheaper, "room": room})
        return
    _print_time(found)
    _print_memory(found, cheaper, room)


def _forecast(recipe: Path, overrides: list[str]) -> tuple[Forecast, dict[str, int], int | None]:
    """What an update takes, the memory that it would take with each change that saves some, and what there is of it."""
    from draft_core.recipe.load import load_recipe

    catalog = load_catalog()
    validated = load_recipe(recipe, overrides, catalog=catalog)

    from draft_core.cost.forecast import forecast, savings
    from draft_core.cost.room import free_memory
    from draft_core.runs.build import build

    quiet_libraries()
    trainer = build(validated, catalog=catalog)
    free = free_memory(trainer.device)  # before anything else is allocated
    found = forecast(trainer)
    room = None if free is None else free + sum(found.memory.weights.values()) + found.memory.lora
    return found, savings(trainer, found.memory), room


def _print_time(found: Forecast) -> None:
    calls, seconds = found.calls, found.seconds
    again = f", {calls.recomputed} of them again in the backward pass" if calls.recomputed else ""
    table = Table("in one update", "how often", "seconds", title=f"Time, on {found.device}")
    table.columns[2].justify = "right"
    for name, count, duration in (
        ("denoiser without gradient", _counted(calls.plain, "call"), seconds.plain),
        ("denoiser with gradient", _counted(calls.with_grad, "call") + again, seconds.with_grad),
        ("decoder and rewards", _counted(calls.decoded, "image"), seconds.decoding_and_rewards),
        ("text encoders", "", seconds.encoding),
        ("[bold]total[/]", "", seconds.total),
    ):
        table.add_row(name, count, f"{duration:.2f}")
    out.print(table)
    out.print(
        f"{found.steps} updates: about {seconds.total * found.steps / 60:.1f} minutes, evaluation apart. Timed at a "
        "batch of one and multiplied: a GPU that one image does not fill will be faster.",
        highlight=False,
    )


def _print_memory(found: Forecast, cheaper: dict[str, int], room: int | None) -> None:
    memory = found.memory
    table = Table("what", "MB", title="Memory at its peak")
    table.columns[1].justify = "right"
    for name, count in memory.weights.items():
        table.add_row(f"weights: {escape(name)}", f"{count / MEGABYTE:.1f}")
    table.add_row("LoRA, its gradient and AdamW's moments", f"{(memory.total - _others(found)) / MEGABYTE:.1f}")
    table.add_row("activations of an update", f"{memory.activations / MEGABYTE:.1f}")
    table.add_row("[bold]total[/]", f"{memory.total / MEGABYTE:.1f}")
    if room is not None:
        table.add_row(f"what {found.device} has for it now", f"{room / MEGABYTE:.1f}")
    out.print(table)
    if room is not None and memory.total > room:
        out.print("[bold yellow]It does not fit.[/]", highlight=False)
    for change, total in sorted(cheaper.items(), key=lambda item: item[1]):
        fits = " (fits)" if room is not None and total <= room < memory.total else ""
        out.print(f"with {escape(change)}: {total / MEGABYTE:.1f} MB{fits}", highlight=False, soft_wrap=True)


def _others(found: Forecast) -> int:
    return sum(found.memory.weights.values()) + found.memory.activations


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
