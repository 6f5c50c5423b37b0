"""The command `draft vote`: a person's answers to pairs of a run's images, asked on a local page."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draft_core.cli.outputs import require_file, writing
from draft_core.cli.terminal import ProgressLines, out, quiet_libraries
from draft_core.errors import DraftError
from draft_core.registry.catalog import load_catalog

if TYPE_CHECKING:
    from draft_core.reporting.run_record import RunRecord
    from draft_core.voting.ballot import Ballot

SAMPLES = "vote-images"  # in the folder of a run: UPDATE/PROMPT-SEED.png


def vote(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=2, help="Draw so many new images of each prompt; else those of its evaluations."),
    ] = None,
    prompts: Annotated[
        list[str],
        typer.Option("--prompts", "-p", help="With --samples: a prompt, a plugin's list, or a file; repeatable."),
    ] = [],
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, max=2**62, help="With --samples: of the first; else the evaluations' next."),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Pairs to ask, those answered before included.")] = 100,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file of the answers; RUN/votes.jsonl if left out.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the page; 0 takes a free one.")] = 0,
) -> None:
    """Ask which of two images of a prompt is better, on a page of this machine, and write the answers down.

    Keys: 1 left, 2 right, 0 cannot say, u undo. Every answer is written at once; the same command goes on with the
    pairs that are not yet answered. Ctrl-C ends it.

    Example: draft vote runs/demo --count 60
    """
    if samples is None and (prompts or seed is not None):
        given = "--prompts" if prompts else "--seed"
        raise DraftError("no image is drawn", where=given, next="add --samples, or leave it out")

    from draft_core.reporting.run_record import read_run
    from draft_core.voting.ballot import Ballot
    from draft_core.voting.pairs import evaluated_images, pairs_of
    from draft_core.voting.server import VoteServer
    from draft_core.voting.vote_file import VOTES, VoteFile

    record = read_run(run)
    output = output or run / VOTES
    require_file(output)
    texts = _texts(prompts) or record.facts.prompts
    with VoteFile(output) as file:
        images = evaluated_images(record) if samples is None else _sampled(record, texts, samples, seed)
        if not (pairs := pairs_of(images)[:count]):
            raise DraftError("no prompt has two different images", where=str(run), next="draw some with --samples 4")
        ballot = Ballot(pairs, file)
        with VoteServer(ballot, port=port) as server:
            if record.facts.output == "frames":
                out.print("the model makes videos: their middle frames are shown")
            out.print(f"{_told(ballot)}; answers go to {output}", highlight=False, soft_wrap=True)
            out.print(f"page: {server.address} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                out.print(f"{_told(ballot)}; {output} has {len(file.votes)}", highlight=False, soft_wrap=True)


def _told(ballot: Ballot) -> str:
    return f"{ballot.answered} of {len(ballot.pairs)} pairs are answered"


def _texts(prompts: Sequence[str]) -> list[str]:
    """The prompts that were given, with a plugin's list and a file of prompts read."""
    from draft_core.recipe.resolve import given_prompts

    catalog = load_catalog()
    return [text for given in prompts for text in given_prompts(given, catalog, where="--prompts")]


def _sampled(record: RunRecord, prompts: Sequence[str], count: int, seed: int | None) -> dict[str, list[Path]]:
    """Prompt -> its new images by the run's last LoRA; those that an earlier call has drawn are taken again."""
    from draft_core.rewards.images import to_pil
    from draft_core.runs.sample import sample

    first = max(record.facts.seeds) + 1 if seed is None else seed
    folder = record.folder / SAMPLES / f"{record.last.update:06d}"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    images = {
        prompt: [folder / f"{_name(prompt)}-{number}.png" for number in range(first, first + count)]
        for prompt in prompts
    }
    missing = [prompt for prompt, files in images.items() if not all(file.exists() for file in files)]
    if not missing:
        return images
    quiet_libraries()
    with ProgressLines() as progress:
        drawn = sample(
            record.facts.model,
            missing,
            lora=record.folder,
            images_per_prompt=count,
            seed=first,
            catalog=load_catalog(),
            progress=progress,
        )[0]
    new = [pair for prompt, made in zip(missing, drawn, strict=True) for pair in zip(images[prompt], made, strict=True)]
    with writing(folder):
        for file, image in new:
            if not file.exists():  # a vote may be about the one that is there
                aside = file.with_suffix(".partial")
                to_pil(image).save(aside, "PNG")
                aside.replace(file)  # a file that is there is whole
    return images


def _name(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]
