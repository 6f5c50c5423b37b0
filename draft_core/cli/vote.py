"""The commands `draft vote` and `draft user`: a person's answers to pairs of images, and who answers so."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draft_core.cli.outputs import require_file, writing
from draft_core.cli.terminal import ProgressLines, given_fields, out, quiet_libraries
from draft_core.errors import DraftError, RecipeError, short
from draft_core.registry.catalog import load_catalog

if TYPE_CHECKING:
    import torch

    from draft_core.reporting.run_record import RunRecord
    from draft_core.voting.ballot import Ballot

SAMPLES = "vote-images"  # in the folder of a run: UPDATE/PROMPT-SEED.png; of a model beside the answers: MODEL/...


def vote(
    run: Annotated[Path | None, typer.Argument(help="The folder of a finished run.", show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Instead of a run: an alias, a folder in diffusers' format, or a hub name."),
    ] = None,
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

    Examples: draft vote runs/demo --count 60

    draft vote --model emoji --samples 4 --prompts emoji-train-plain --output votes.jsonl
    """
    if samples is None and (prompts or seed is not None):
        given = "--prompts" if prompts else "--seed"
        raise DraftError("no image is drawn", where=given, next="add --samples, or leave it out")
    if (run is None) == (model is None):
        said = "neither a run nor a model is named" if run is None else "a run and a model are named"
        raise DraftError(said, where="draft vote", next="give the folder of a run, or --model")
    needed = {"--samples": samples, "--prompts": prompts, "--output": output}
    if model is not None and (missing := [name for name, value in needed.items() if not value]):
        raise DraftError(f"{missing[0]} is left out", where="--model", next=f"give {', '.join(needed)} too")

    from draft_core.reporting.run_record import read_run
    from draft_core.voting.ballot import Ballot
    from draft_core.voting.pairs import evaluated_images, pairs_of
    from draft_core.voting.server import VoteServer
    from draft_core.voting.vote_file import VOTES, VoteFile

    record = None if run is None else read_run(run)
    source = _source(record, model, output)
    output = output or source.folder / VOTES
    require_file(output)
    texts = _texts(prompts) or source.prompts
    with VoteFile(output) as file:
        if samples is not None:
            images = _sampled(source, texts[:count], samples, source.seed if seed is None else seed)
        else:
            assert record is not None  # a model asks for --samples
            images = evaluated_images(record)
        if not (pairs := pairs_of(images)[:count]):
            raise DraftError(
                "no prompt has two different images", where=str(run or model), next="draw some with --samples 4"
            )
        ballot = Ballot(pairs, file)
        with VoteServer(ballot, port=port) as server:
            if record is not None and record.facts.output == "frames":
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


@dataclass(frozen=True)
class _Source:
    """What new images are drawn by, and where they are kept.

    Arguments:
        model: as `sample` takes it.
        lora: the folder of the run; None for the model as it is.
        folder: of the run, or of the answers.
        images: the folder that the new images lie in.
        prompts: where none are given.
        seed: of the first image, where none is given.
    """

    model: str
    lora: Path | None
    folder: Path
    images: Path
    prompts: Sequence[str] = ()
    seed: int = 0


def _source(record: RunRecord | None, model: str | None, output: Path | None) -> _Source:
    if record is not None:
        images = record.folder / SAMPLES / f"{record.last.update:06d}"
        seed = max(record.facts.seeds) + 1
        return _Source(record.facts.model, record.folder, record.folder, images, record.facts.prompts, seed)
    assert model is not None
    assert output is not None
    folder = output.absolute().parent
    name = re.sub(r"[^\w.-]", "-", Path(model).name)  # for a person; two models never share images by the number
    return _Source(model, None, folder, folder / SAMPLES / f"{name}-{_name(model)}")


def _sampled(source: _Source, prompts: Sequence[str], count: int, first: int) -> dict[str, list[Path]]:
    """Prompt -> its new images from the seeds `first`, ...; those that an earlier call has drawn are taken again.

    The images of a prompt are kept as soon as they are drawn, so that an interrupted call loses one prompt's at most.
    """
    from draft_core.evaluation.evaluate import evaluate
    from draft_core.rewards.objective import Objective
    from draft_core.runs.sample import drawing

    folder = source.images
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
    seeds = range(first, first + count)
    with (
        ProgressLines() as progress,
        drawing(source.model, missing, lora=source.lora, catalog=load_catalog(), progress=progress) as drawn,
        drawn.scaled(1.0),
    ):
        for number, prompt in enumerate(missing, 1):
            made = evaluate(
                drawn.sampler, Objective({}), [prompt], seeds, batch_size=count, autocast=drawn.autocast
            ).images
            _keep(folder, images[prompt], made)
            progress("sample", number * count, len(missing) * count, "images")
    return images


def _keep(folder: Path, files: Sequence[Path], images: Iterable[torch.Tensor]) -> None:
    """Writes the images that are not there yet: a vote may be about one that is."""
    from draft_core.rewards.images import to_pil

    with writing(folder):
        for file, image in zip(files, images, strict=True):
            if not file.exists():
                aside = file.with_suffix(".partial")
                to_pil(image).save(aside, "PNG")
                aside.replace(file)  # a file that is there is whole


def _name(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


def user(
    name: Annotated[str, typer.Argument(help="Of the person, as recipes and --user name it.")],
    pairs: Annotated[
        Path,
        typer.Argument(
            help="What the person preferred: a votes.jsonl of `draft vote`, or another file of pairs; of one with a "
            "column `user`, the rows of this person."
        ),
    ],
    reward: Annotated[
        str, typer.Option("--reward", "-r", help="Whose image tower is the encoder: emoji-clip, hpsv2, pickscore.")
    ],
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="FIELD=VALUE", help="A field of the reward, such as weights=PATH.")
    ] = [],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The file of users, to which the person is added; who is there already is replaced."
        ),
    ] = Path("users.safetensors"),
) -> None:
    """Make a person's embedding from a few preference pairs, about four, for a model with users.

    Example: draft user alice runs/demo/votes.jsonl --reward emoji-clip
    """
    from draft_core.preferences import preferences
    from draft_core.recipe.prompt_lists import read_prompt_file

    catalog = load_catalog()
    if not pairs.is_file():
        raise DraftError("there is no such file", where=str(pairs), next="give a file of pairs")
    try:
        found = preferences(_of_person(name, read_prompt_file(pairs, where="pairs").columns), pairs.absolute().parent)
    except RecipeError:
        raise
    except DraftError as error:
        raise DraftError(error.what, where=str(pairs), next=error.next) from None

    from filelock import FileLock

    from draft_core.adapters.user_embeddings import UserEmbeddings, embed_pairs
    from draft_core.runs.build import build_reward, reward_config

    given = given_fields(overrides)
    made_by = ", ".join([reward, *(f"{field}={value}" for field, value in sorted(given.items()))])

    def others() -> Mapping[str, torch.Tensor]:
        """Who is in the file now."""
        if not output.is_file():
            return {}
        before = UserEmbeddings.read(output)
        if before.encoder not in ("", made_by):
            raise DraftError(
                f"its users were embedded by {before.encoder}, and {made_by} sees other things in images",
                where=str(output),
                next="take the same --reward, or another file with --output",
            )
        return before.vectors

    others()  # refuses before anything is loaded
    require_file(output)
    quiet_libraries()
    embedding = embed_pairs(found, build_reward(reward_config(reward, given, catalog), catalog))
    with writing(output), FileLock(output.with_name(f".{output.name}.lock")):  # another process may add a user too
        known = others()
        users = UserEmbeddings({**known, name: embedding}, made_by)
        users.save(output)
    replaced = ", in the place of an earlier embedding" if name in known else ""
    told = f"{name}: {len(found)} pairs{replaced}; {len(users.names)} users in {output}"
    out.print(told, highlight=False, soft_wrap=True)


def _of_person(name: str, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The rows of one person, where a column `user` says whose they are; else all."""
    of = columns.get("user")
    if of is not None and name not in of:
        there = ", ".join(dict.fromkeys(str(user) for user in of if user)) or "nobody"
        raise DraftError(f"no pair is of user {name!r}", where="pairs", next=f"it has pairs of {short(there)}")
    return {
        column: [value for place, value in enumerate(values) if of is None or of[place] == name]
        for column, values in columns.items()
    }
