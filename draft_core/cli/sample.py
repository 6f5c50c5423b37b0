"""The command `draft sample`: a grid of images as a model draws them, or the best that a search finds.

What needs torch is imported inside the functions that need it, so that `--help` stays instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from draft_core.cli.outputs import require_file, require_image_file, writing
from draft_core.cli.scoring import rewards_of_search
from draft_core.cli.terminal import ProgressLines, given_fields, number, out, quiet_libraries
from draft_core.errors import DraftError, require_finite, short
from draft_core.json_text import json_text
from draft_core.registry.catalog import Catalog, load_catalog

if TYPE_CHECKING:
    from draft_core.registry.config import RewardConfig
    from draft_core.rewards.objective import Objective
    from draft_core.runs.sample import Drawing
    from draft_core.search.found import Found


@dataclass(frozen=True)
class _Asked:
    """What is drawn and searched for, and how.

    Arguments:
        images: of each prompt; those that are kept, in a search.
        best_of, iterations: the search, at most one of them; None for none.
        batch_size: images of a search at once; None for its own default.
        recompute: whether the backward pass of a search computes again what it needs.
        rewards: of the search.
    """

    model: str
    prompts: Sequence[str]
    lora: Path | None
    scales: Sequence[float]
    images: int
    steps: int | None
    guidance: float | None
    seed: int
    best_of: int | None = None
    iterations: int | None = None
    batch_size: int | None = None
    recompute: bool = False
    rewards: Sequence[RewardConfig] = ()

    def drawn(self) -> dict[str, Any]:
        """What decides the images beside prompts and noise."""
        lora = None if self.lora is None else str(self.lora)
        how = {"steps": self.steps, "guidance": self.guidance}
        return {"model": self.model, "lora": lora, "scale": self.scales[0], **how}


def sample(
    model: Annotated[str, typer.Argument(help="An alias from a plugin, a folder in diffusers' format, or a hub name.")],
    prompts: Annotated[
        list[str], typer.Option("--prompts", "-p", help="A prompt, a plugin's list, or a file of prompts; repeatable.")
    ] = [],
    lora: Annotated[
        Path | None, typer.Option("--lora", help="The folder of a run, a lora folder, or a .safetensors file.")
    ] = None,
    scale: Annotated[
        str, typer.Option("--scale", help="Factor of the LoRA; 0 is the base model. Several: 0,0.25,0.5,1.")
    ] = "1",
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Images of each prompt; else 4, and 1 in a search.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Sampler steps; else those of the LoRA's run, or of the model.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Guidance scale; else that of the LoRA's run, or of the model.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**62, help="Image i starts from the noise of seed + i; else 0.")
    ] = None,
    best_of: Annotated[
        int | None, typer.Option("--best-of", min=1, metavar="N", help="Draw N images of each prompt, keep the best.")
    ] = None,
    optimise_noise: Annotated[
        int | None,
        typer.Option("--optimise-noise", min=1, metavar="N", help="N steps of gradient ascent on the initial noise."),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option("--reward", "-r", help="Of a search: a kind that `draft rewards` lists; else those of the run."),
    ] = None,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="FIELD=VALUE", help="A field of the reward, such as quality=50.")
    ] = [],
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Of a search: images at once; else 4, and 1 with --optimise-noise."),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="With --optimise-noise: less memory, and more time.")
    ] = False,
    latents: Annotated[
        Path | None, typer.Option("--latents", help="A file of --optimise-noise: draw its prompts from its noise.")
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", help="Of a run with users: whom to draw for, such as alice:0.7,bob:0.3.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write: .png or another image, of videos .gif or .mp4.")
    ] = Path("samples.png"),
) -> None:
    """Sample a grid of images, one row a prompt, with or without a LoRA; a group of columns for each scale of it.

    With --best-of or --optimise-noise, search for images that a reward rates higher, without training. Beside the grid
    lie then a folder with the images, and a file .json with all scores and seeds; with --optimise-noise also the noise,
    as .safetensors, which --latents draws again.

    Example: draft sample emoji-scenes --lora runs/demo --prompts "a fox and a blue apple" --scale 0,0.5,1

    Example: draft sample emoji --prompts "a red apple" --best-of 16 --reward emoji-clip
    """
    scales = [number(text, where=f"--scale {scale}") for text in scale.split(",")]
    if guidance is not None:
        require_finite(guidance, where="--guidance")
    if lora is None and scales != [1.0]:
        raise DraftError("there is no LoRA to scale", where=f"--scale {scale}", next="give one with --lora")
    if best_of is not None and optimise_noise is not None:
        raise DraftError("--best-of and --optimise-noise contradict each other", next="give one of them")
    searches = best_of is not None or optimise_noise is not None
    of_a_search = {"--reward": reward, "--set": overrides, "--batch-size": batch_size, "--recompute": recompute}
    for name, given in of_a_search.items() if not searches else ():
        if given:
            raise DraftError(
                "it belongs to a search", where=name, next="give --best-of or --optimise-noise too, or leave it out"
            )
    if searches and len(scales) > 1:
        raise DraftError("a search draws at one scale", where=f"--scale {scale}", next="give one number")
    if best_of is not None and images is not None and images > best_of:
        raise DraftError(f"it keeps {images} of {best_of} images", where="--images", next=f"keep {best_of} or fewer")
    if recompute and best_of is not None:
        raise DraftError("--best-of has no backward pass", where="--recompute", next="leave it out")
    if latents is not None:
        beside = {
            "--prompts": prompts,
            "--images": images,
            "--seed": seed,
            "--user": user,
            "--best-of or --optimise-noise": searches,
        }
        for name, given in beside.items():
            if not (given is None or given is False or given == []):  # a seed of 0 is given
                raise DraftError(
                    "the file of latents says that", where=name, next="leave it out, or leave out --latents"
                )
    elif not prompts:
        raise DraftError("there are no prompts", where="--prompts", next="give at least one")

    from draft_core.recipe.resolve import given_prompts, locate_pretrained

    catalog = load_catalog()
    locate_pretrained(model, catalog)
    require_image_file(output, plays=not searches)
    texts = [text for given in prompts for text in given_prompts(given, catalog, where=f"--prompts {short(given)}")]
    if user is not None:
        from draft_core.runs.sample import for_user

        texts = for_user(texts, user, lora)
    asked = _Asked(
        model,
        texts,
        lora,
        scales,
        images or (1 if searches else 4),
        steps,
        guidance,
        seed or 0,
        best_of,
        optimise_noise,
        batch_size,
        recompute,
        rewards_of_search(reward, given_fields(overrides), lora, catalog, climbs=optimise_noise is not None)
        if searches
        else (),
    )
    if searches:
        _search(asked, output, catalog)
    else:
        _draw(asked, latents, output, catalog)


def _draw(asked: _Asked, file: Path | None, output: Path, catalog: Catalog) -> None:
    """The grid of images, of seeds or of a file's noise."""
    from draft_core.reporting.image_grid import cells, save_grid
    from draft_core.runs.sample import sample as draw_samples
    from draft_core.search.latents_file import read_latents

    how: dict[str, Any] = {"steps": asked.steps, "guidance": asked.guidance}
    prompts, count, seed, latents = asked.prompts, asked.images, asked.seed, None
    if file is not None:
        saved = read_latents(file)
        prompts, count, seed, latents = saved.prompts, saved.latents.shape[1], saved.seed, saved.latents
        how = {name: saved.drawn.get(name) if value is None else value for name, value in how.items()}
        before = {name: saved.drawn.get(name) for name in ("model", "lora", "scale")}
        if before != {name: asked.drawn()[name] for name in before}:
            shown = ", ".join(f"{name} {value}" for name, value in before.items() if value is not None)
            out.print(
                f"the noise in {escape(str(file))} was found for {escape(shown)}", highlight=False, soft_wrap=True
            )
    quiet_libraries()
    with ProgressLines() as progress:
        made = draw_samples(
            asked.model,
            prompts,
            lora=asked.lora,
            scales=asked.scales,
            images_per_prompt=count,
            **how,
            seed=seed,
            latents=latents,
            keep=cells,
            catalog=catalog,
            progress=progress,
        )
    rows = [(text, list(made[:, place].flatten(0, 1))) for place, text in enumerate(prompts)]
    headings = [f"scale {factor:g}" for factor in asked.scales] if len(asked.scales) > 1 else []
    with writing(output):
        save_grid(rows, output, headings=headings, group=count)
    out.print(f"wrote {output}", highlight=False, soft_wrap=True)


def _search(asked: _Asked, output: Path, catalog: Catalog) -> None:
    """Searches, writes what was found, and prints what it gained."""
    from draft_core.search.found import image_name

    record, folder, noise = _beside(output)
    for path in (record, folder / image_name(0, 0), *([noise] if asked.iterations else [])):
        require_file(path)

    from draft_core.runs.build import build_objective
    from draft_core.runs.sample import DRAWN_ONLY, drawing

    quiet_libraries()
    recomputes: dict[str, Any] = {"gradient_checkpointing": True, "decode": "checkpointed"} if asked.recompute else {}
    objective = build_objective(asked.rewards, catalog)
    with (
        ProgressLines() as progress,
        drawing(
            asked.model,
            asked.prompts,
            lora=asked.lora,
            scales=asked.scales,
            steps=asked.steps,
            guidance=asked.guidance,
            recomputes=recomputes if asked.iterations else DRAWN_ONLY,
            catalog=catalog,
            progress=progress,
        ) as drawn,
        drawn.scaled(asked.scales[0]),
    ):
        objective.to(drawn.sampler.pipe.device)
        found = _found(asked, drawn, objective, progress)
    _print_gains(found)
    _write(asked, found, output)


def _found(asked: _Asked, drawn: Drawing, objective: Objective, progress: ProgressLines) -> Found:
    from draft_core.search.arguments import seeds_from
    from draft_core.search.best_of_n import best_of_n
    from draft_core.search.found import of_best, of_noise
    from draft_core.search.noise import Ascent, optimise_noise

    sized = {} if asked.batch_size is None else {"batch_size": asked.batch_size}
    what = "images" if asked.iterations is None else "iterations"
    how: dict[str, Any] = {
        **sized,
        "autocast": drawn.autocast,
        "progress": lambda done, total: progress("search", done, total, what),
    }
    if asked.iterations is None:
        n = asked.best_of or 1
        best = best_of_n(drawn.sampler, objective, asked.prompts, n, keep=asked.images, seed=asked.seed, **how)
        return of_best(best)
    ascent, seeds = Ascent(asked.iterations), seeds_from(asked.seed, asked.images, where="--seed")
    noise = optimise_noise(drawn.sampler, objective, asked.prompts, seeds, ascent=ascent, **how)
    if skipped := int(noise.skipped.sum()):
        out.print(f"{skipped} steps were left out: their gradient was zero or not finite", highlight=False)
    return of_noise(noise, ascent)


def _print_gains(found: Found) -> None:
    """A row for each prompt, and the mean of several: every reward before and after, the mean of several images."""
    table = Table("prompt", *(f"{name}, {when}" for name in found.scores for when in found.headings))
    parts = [part for scores in found.scores.values() for part in scores]
    for row, prompt in enumerate(found.prompts):
        table.add_row(escape(prompt), *(f"{float(part[row].mean()):.4g}" for part in parts))
    if len(found.prompts) > 1:
        table.add_section()
        table.add_row("mean", *(f"{float(part.mean()):.4g}" for part in parts))
    out.print(table)


def _write(asked: _Asked, found: Found, output: Path) -> None:
    from draft_core.reporting.image_grid import draw_grid
    from draft_core.search.latents_file import SavedLatents

    record, folder, noise = _beside(output)
    group = found.before.shape[1] if found.before.shape[1] == found.after.shape[1] else 0
    with writing(output):
        draw_grid(found.rows(), headings=found.headings, group=group).save(output)
    with writing(folder):
        found.save_images(folder)
    with writing(record):
        rewards = [reward.model_dump(mode="json") for reward in asked.rewards]
        about = {"search": found.search, **asked.drawn(), "rewards": rewards, "prompts": found.record(folder.name)}
        record.write_text(json_text(about, indent=2) + "\n", encoding="utf-8")
    if found.latents is not None:
        with writing(noise):
            SavedLatents(found.latents, tuple(asked.prompts), asked.seed, asked.drawn()).save(noise)
    for path in (output, folder, record, *([noise] if found.latents is not None else [])):
        out.print(f"wrote {path}", highlight=False, soft_wrap=True)


def _beside(output: Path) -> tuple[Path, Path, Path]:
    """Beside the grid: the record, the folder of the images, and the noise."""
    return output.with_suffix(".json"), output.with_suffix(""), output.with_suffix(".safetensors")
