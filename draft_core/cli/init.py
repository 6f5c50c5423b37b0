"""The command `draft init`: asks for model, reward and card, and writes a recipe that fits."""

from __future__ import annotations

import os
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.prompt import Confirm, Prompt
from rich.table import Table

from draft_core.cli.cost import cost, print_prediction
from draft_core.cli.outputs import require_file, writing
from draft_core.cli.terminal import asked, out, quiet_libraries, with_places
from draft_core.errors import DraftError, RecipeError
from draft_core.proposals.starts import (
    EMOJI,
    STARTS,
    Start,
    judges,
    missing_rewards,
    require_reward,
    start_of,
    trainable_rewards,
)
from draft_core.registry.catalog import Catalog, load_catalog

if TYPE_CHECKING:
    from draft_core.proposals.fitting import Fit

CARD = "24GB"  # where there is no GPU to ask


def init(
    model: Annotated[str | None, typer.Option("--model", help=f"One of {', '.join(STARTS)}.")] = None,
    reward: Annotated[str | None, typer.Option("--reward", help="A kind that `draft rewards` lists.")] = None,
    card: Annotated[
        str | None, typer.Option("--card", help="Memory of the GPU to train on, such as 24GB; not needed for emoji.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", help="A file of prompts to train on; some are written down if left out.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The recipe to write.")] = Path("recipe.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing, and take what is proposed.")] = False,
) -> None:
    """Write a recipe for a model, a reward and a card, with a comment on each line, and predict what it takes.

    What is not given is asked for. Nothing is downloaded: the memory is predicted from the model's published config.

    Example: draft init --model sdxl --reward hpsv2 --card 24GB --output sdxl.yaml
    """
    from draft_core.proposals.card import card_size

    catalog = load_catalog()
    _require_free(output, overwrite=overwrite, yes=yes)
    name = model or (EMOJI if yes else _ask_model())
    start = start_of(name)
    if name == EMOJI and EMOJI not in catalog.pretrained:
        raise catalog.unknown("model", EMOJI, catalog.pretrained, where="--model")
    if prompts is not None:
        _require_prompts(prompts, catalog)
    kind = _reward(name, reward, catalog, prompts, yes=yes)
    size = None
    if name != EMOJI:
        size = card_size(card or _card(yes=yes), where="--card")
    elif card is not None:
        card_size(card, where="--card")  # refuses what is no size
        out.print(f"--card {card} decides nothing: {EMOJI} is trained on any computer", highlight=False)

    from draft_core.proposals.fitting import recipe_text
    from draft_core.recipe.load import load_recipe
    from draft_core.recipe.yaml_text import parse_yaml

    quiet_libraries()
    fit = _fit(start, kind, size, catalog)
    text = recipe_text(
        start,
        fit,
        kind,
        judges(name, kind, catalog),
        prompts=None if prompts is None else _seen_from(prompts, output, catalog),
        output=f"runs/{output.stem}",
        header=_header(start, fit, size, output),
        card=size,
    )
    load_recipe({**parse_yaml(text), **({"prompts": prompts} if prompts else {})}, catalog=catalog)
    with writing(output):
        require_file(output)
        output.write_text(text, encoding="utf-8")
    out.print(f"wrote {output}", highlight=False, soft_wrap=True)
    if fit.prediction is None or size is None:
        cost(output)
    else:
        print_prediction(fit.prediction, size)
    if start.note:
        out.print(f"first: {escape(with_places(start.note))}", highlight=False, soft_wrap=True)
    out.print(f"next: draft train {shlex.quote(str(output))}", highlight=False, soft_wrap=True)


def _require_free(output: Path, *, overwrite: bool, yes: bool) -> None:
    if output.is_dir():
        raise RecipeError("it is a folder", where=f"--output {output}", next="name a file, such as recipe.yaml")
    if not output.exists() or overwrite:
        return
    if yes or not asked(partial(Confirm.ask, f"{output} is there already. Replace it?", console=out, default=False)):
        raise RecipeError(
            "it is there already", where=f"--output {output}", next="name another file, or give --overwrite"
        )


def _ask_model() -> str:
    table = Table.grid(padding=(0, 2))
    for name, start in STARTS.items():
        table.add_row(f"[bold]{name}[/]", start.title)
    out.print(table)
    return asked(
        partial(Prompt.ask, "Which model", choices=list(STARTS), default=EMOJI, show_choices=False, console=out)
    )


def _reward(model: str, reward: str | None, catalog: Catalog, prompts: str | None, *, yes: bool) -> str:
    known = trainable_rewards(model, catalog, prompts)
    if reward is None and not yes and known:
        table = Table.grid(padding=(0, 2))
        for kind in known:
            table.add_row(f"[bold]{kind}[/]", escape(catalog.rewards[kind].spec.summary))
        for kind, command in missing_rewards(model, catalog).items():
            table.add_row(f"[dim]{kind}[/]", f"[dim]not installed: {command}[/]")
        out.print(table)
        ask = partial(Prompt.ask, "Which reward", choices=known, default=known[0], show_choices=False, console=out)
        reward = asked(ask)
    if reward is None and not known:
        raise RecipeError(
            f"no reward is installed that {model} can be trained on",
            where="--reward",
            next=" or ".join(missing_rewards(model, catalog).values()),
        )
    reward = reward or known[0]
    require_reward(reward, model, catalog, prompts)
    return reward


def _card(*, yes: bool) -> str:
    import torch

    here = torch.cuda.is_available()
    found = f"{round(torch.cuda.get_device_properties(0).total_memory / 1e9)}GB" if here else CARD
    if yes:
        out.print(f"a card of {found} is assumed; --card says another", highlight=False)
        return found
    return asked(partial(Prompt.ask, "Memory of the GPU to train on", default=found, console=out))


def _fit(start: Start, reward: str, card: float | None, catalog: Catalog) -> Fit:
    from draft_core.proposals.fitting import Fit, fit_to_card
    from draft_core.recipe.schema import method_type
    from draft_core.registry.validation.messages import validate

    if card is None:
        return Fit(start.methods[-1], start.images_per_update, 1)
    methods: list[Any] = [
        validate(method_type(catalog), dict(fields), catalog, where="method") for fields in start.methods
    ]
    with out.status("predicting the memory of an update, about a minute"):
        return fit_to_card(start, reward, methods, card)


def _header(start: Start, fit: Fit, card: float | None, output: Path) -> list[str]:
    lines, name = [start.note] if start.note else [], shlex.quote(output.name)
    if fit.prediction is not None and card is not None:
        like = f" --set model.pretrained={start.networks}" if start.networks else ""
        lines.append(
            f"Predicted, not measured: {fit.prediction.total / 2**30:.1f} GiB on a card of {card:g} GB "
            f"(`draft cost {name} --card {card:g}GB{like}`)."
        )
        lines.append("The learning rate is a start to search from.")
    lines.append(f"Everything once: draft train {name} --set train.steps=2 --set evaluation.count=1")
    lines.append(f"Then: draft train {name} --overwrite")
    return lines


def _require_prompts(prompts: str, catalog: Catalog) -> None:
    from draft_core.recipe.resolve import given_prompts
    from draft_core.recipe.yaml_text import exists

    if prompts not in catalog.prompt_lists() and not exists(Path.is_file, Path(prompts)):
        raise DraftError("no such file", where=f"--prompts {prompts}", next="check the path")
    given_prompts(prompts, catalog, where="--prompts")


def _seen_from(prompts: str, output: Path, catalog: Catalog) -> str:
    """A file's path as the recipe has to say it."""
    if prompts in catalog.prompt_lists():
        return prompts
    return Path(os.path.relpath(prompts, output.absolute().parent)).as_posix()
