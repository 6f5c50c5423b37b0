"""The command `draft cost`: predicts the memory and the seconds of an update and prints them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from draft_core.cli.terminal import Overrides, err, out, print_json, prints_aside, quiet_libraries
from draft_core.errors import RecipeError
from draft_core.registry.catalog import load_catalog

if TYPE_CHECKING:
    from draft_core.cost.card import Prediction
    from draft_core.cost.evaluation import EvaluationCost
    from draft_core.cost.forecast import Forecast


MEGABYTE = 1e6
GIB = 2**30


def cost(
    recipe: Annotated[Path, typer.Argument(help="A recipe, YAML; `draft schema` describes its fields.")],
    overrides: Overrides = [],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    card: Annotated[
        str | None,
        typer.Option("--card", help="Predict the memory on a card of this size, such as 24GB; loads no weights."),
    ] = None,
) -> None:
    """Predict the memory and the seconds of an update, from the plan and a few network calls on this machine.

    The model and the rewards are loaded, nothing is trained or written.

    With --card the pipeline is built from its published config on torch's meta device, which takes no memory and no
    download: for models that are known by their name on the hub.

    Example: draft cost recipes/jpeg.yaml --set train.batch_size=32
    """
    if card is not None:
        _cost_of_card(recipe, overrides, card, as_json=as_json)
        return
    with prints_aside(as_json):
        found, cheaper, room, evaluation = _forecast(recipe, overrides)
    if as_json:
        print_json({**found.as_dict(), "savings": cheaper, "room": room, "evaluation": asdict(evaluation)})
        return
    _print_time(found, evaluation)
    _print_memory(found, cheaper, room)


def _cost_of_card(path: Path, overrides: list[str], card: str, *, as_json: bool) -> None:
    from draft_core.proposals.card import card_size, update_of
    from draft_core.recipe.load import load_recipe

    size = card_size(card, where="--card")
    with prints_aside(as_json):
        update = update_of(load_recipe(path, overrides, catalog=load_catalog()))

        from draft_core.cost.card import predict, usable

        quiet_libraries()
        found = predict(update)
    if as_json:
        print_json({**found.as_dict(), "room": usable(size)})
    else:
        print_prediction(found, size)


def _forecast(recipe: Path, overrides: list[str]) -> tuple[Forecast, dict[str, int], int | None, EvaluationCost]:
    """What an update takes, the memory that it would take with each change that saves some, and what there is of it;
    and what an evaluation takes."""
    from draft_core.recipe.load import load_recipe

    catalog = load_catalog()
    validated = load_recipe(recipe, overrides, catalog=catalog)

    from draft_core.cost.evaluation import evaluation_cost
    from draft_core.cost.forecast import forecast, savings, shared_out
    from draft_core.cost.room import free_memory
    from draft_core.evaluation.evaluate import evaluation_sampler
    from draft_core.recipe.resolve import resolve_evaluation
    from draft_core.registry.environments import in_environment
    from draft_core.runs.build import build, build_objective
    from draft_core.runs.continuation import computing

    quiet_libraries()
    for kind in [config.kind for config in (*validated.rewards, *validated.metrics) if in_environment(config)]:
        err.print(f"not counted: the memory of reward {escape(kind)}, which has a process of its own", highlight=False)
    if validated.model.compile != "none":
        err.print("not counted: what model.compile changes; blocks are measured as they are written", highlight=False)
    share = validated.processes if validated.train.sharding != "none" else None
    if share == 1:
        raise RecipeError("there is one process, so nothing to share out", where="train.sharding", next="set processes")
    alone = validated.model_copy(update={"train": replace(validated.train, sharding="none")})
    settings, prompts = resolve_evaluation(validated, catalog)
    with computing(validated, anew=True) as (_, threads):
        if threads:
            err.print(threads, highlight=False, markup=False)
        trainer = build(alone, catalog=catalog)
        sampler = evaluation_sampler(trainer.sampler, settings)
        free = free_memory(trainer.device)  # before anything else is allocated
        found = forecast(trainer)
        room = None if free is None else free + sum(found.memory.weights.values()) + found.memory.lora
        found = found if share is None else shared_out(found, trainer, share)
        cheaper = savings(trainer, found.memory)
        beside, gate = trainer.objective, trainer.scoring.gate
        rewards = build_objective(validated.metrics, catalog, beside=beside, gate=gate).to(trainer.device)
        evaluation = evaluation_cost(trainer, sampler, rewards, settings, prompts=len(prompts))
    return found, cheaper, room, evaluation


def _print_time(found: Forecast, evaluation: EvaluationCost) -> None:
    calls, seconds = found.calls, found.seconds
    again = f", {calls.recomputed} of them again in the backward pass" if calls.recomputed else ""
    table = Table("in one update", "how often", "seconds", title=f"Time, on {found.device}")
    table.columns[2].justify = "right"
    for name, count, duration in [
        ("denoiser without gradient", _counted(calls.plain, "call"), seconds.plain),
        ("denoiser with gradient", _counted(calls.with_grad, "call") + again, seconds.with_grad),
        ("decoder and rewards", _counted(calls.decoded, "image"), seconds.decoding_and_rewards),
        ("text encoders", "", seconds.encoding),
        *([("image encoder", _counted(calls.encoded, "image"), seconds.image_encoding)] if calls.encoded else []),
        ("[bold]total[/]", "", seconds.total),
    ]:
        table.add_row(name, count, f"{duration:.2f}")
    out.print(table)
    out.print(
        f"{found.steps} updates: about {seconds.total * found.steps / 60:.1f} minutes. Timed at a batch of one and "
        "multiplied: a GPU that one image does not fill will be faster.",
        highlight=False,
    )
    out.print(
        f"{evaluation.evaluations} evaluations of {evaluation.images} images, {evaluation.calls} denoiser calls each: "
        f"about {evaluation.seconds * evaluation.evaluations / 60:.1f} minutes beside.",
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


def print_prediction(prediction: Prediction, card: float) -> None:
    """The parts of a prediction, and whether they fit."""
    from draft_core.cost.card import usable

    memory, room = prediction.memory, usable(card)
    table = Table("what", "GiB", title=f"Memory of an update, predicted for a card of {card:g} GB")
    table.columns[1].justify = "right"
    for name, count in memory.weights.items():
        table.add_row(f"weights: {escape(name)}", _gib(count))
    table.add_row("LoRA, its gradient and AdamW's moments", _gib(memory.lora + memory.gradient + memory.optimizer))
    table.add_row("activations of an update", _gib(memory.activations))
    table.add_row("allowance for CUDA and fragments", _gib(prediction.allowance))
    table.add_row("[bold]total[/]", _gib(memory.total + prediction.allowance))
    table.add_row("when the run begins, with all text encoders", _gib(prediction.start))
    table.add_row("what a program has of the card", _gib(room))
    out.print(table)
    for kind in prediction.uncounted:
        out.print(f"not counted: reward {escape(kind)}, whose size is not known here", highlight=False)
    fits = "It fits." if prediction.total <= room else "[bold yellow]It does not fit.[/]"
    out.print(
        f"{fits} Predicted from the published configs, without weights and without a GPU; `draft cost` on the machine "
        "itself measures it, and the seconds too.",
        highlight=False,
        soft_wrap=True,
    )


def _gib(count: float) -> str:
    return f"{count / GIB:.1f}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
