"""Sixty answers of a scripted preference, given to the page of `draft vote`, and what training on them changes.

    python benchmarks/votes.py            # minutes; goes on where it stopped; writes docs/how-to/preferences.md
    python benchmarks/votes.py --print    # writes no page and no image

The preference is for more ink: of two images of the embedded model the one with the smaller mean of its pixels wins.
Each is asked by the page's own forms. The recipe is `recipes/votes.yaml`, with three seeds. Judged are held-out
prompts, the same noise before and after; errors are over prompts.
"""

from __future__ import annotations

import argparse
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from threading import Thread

from paired import gains_of_prompts, standard_error
from tables import markdown, publish
from torch import set_num_threads

from draft_core import load_catalog, load_recipe
from draft_core import run_recipe as train
from draft_core.recipe.resolve import resolve_prompts
from draft_core.reporting.image_grid import draw_grid
from draft_core.reporting.run_record import RunRecord, load_images, read_run
from draft_core.rewards.image_files import read_image
from draft_core.rewards.images import to_pil
from draft_core.runs.sample import sample
from draft_core.voting.ballot import Ballot
from draft_core.voting.pairs import pairs_of
from draft_core.voting.server import VoteServer
from draft_core.voting.vote_file import VoteFile

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "votes.yaml"
PAGE = ROOT / "docs" / "how-to" / "preferences.md"
IMAGE = ROOT / "docs" / "images" / "votes.png"
SEEDS = (0, 1, 2)
ANSWERS, IMAGES = 60, 2
SHOWN = 4  # every so many of the judged prompts


def ink(path: Path) -> float:
    """How far the mean of the pixels is from white, 0 to 1."""
    return 1 - float(read_image(path).mean())


def draw(folder: Path) -> dict[str, list[Path]]:
    """Prompt -> the files of its images by the base model, drawn once."""
    prompts = resolve_prompts("emoji-train-plain", load_catalog())
    chosen = prompts[:: len(prompts) // ANSWERS][:ANSWERS]
    files = {
        prompt: [folder / f"{place:02d}-{image}.png" for image in range(IMAGES)] for place, prompt in enumerate(chosen)
    }
    if not files[chosen[-1]][-1].is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (drawn,) = sample("emoji", chosen, images_per_prompt=IMAGES, seed=100)
        for prompt, images in zip(chosen, drawn, strict=True):
            for file, image in zip(files[prompt], images, strict=True):
                to_pil(image).save(file)
    return files


def vote(images: dict[str, list[Path]], path: Path) -> None:
    """Answers the pairs that the page asks, until it asks no more."""
    with VoteFile(path) as file:
        ballot = Ballot(pairs_of(images), file)
        with VoteServer(ballot) as server:
            thread = Thread(target=server.serve_forever)
            thread.start()
            while (number := ballot.current) is not None:
                pair = ballot.pairs[number]
                answer = "left" if ink(pair.left) > ink(pair.right) else "right"
                form = urllib.parse.urlencode({"pair": number, "answer": answer}).encode()
                with urllib.request.urlopen(f"{server.address}vote", form, timeout=60) as reply:
                    reply.read()
            server.shutdown()
            thread.join()


def run(seed: int, votes: Path, folder: Path) -> RunRecord:
    output = folder / f"votes-{seed}"
    if not (output / "run.json").is_file():
        recipe = load_recipe(RECIPE, [f"method.pairs={votes}", f"train.seed={seed}", f"output={output}"])
        train(recipe, progress=lambda stage, done, total, note: print(f"{output.name} {stage} {done}/{total} {note}"))
    return read_run(output)


def row(name: str, columns: Sequence[Sequence[float]], images: int) -> list[str]:
    """Means of the base model and of each seed, with what rose."""
    cells = [f"{fmean(columns[0]):.3f}"]
    for after in columns[1:]:
        gains = gains_of_prompts(columns[0], after, images)
        errors, rose = fmean(gains) / standard_error(gains), sum(gain > 0 for gain in gains)
        cells.append(f"{fmean(after):.3f} ({errors:+.1f}; {rose} of {len(gains)})")
    return [name, *cells]


def table(records: Sequence[RunRecord]) -> str:
    """Ink, scores and diversity before, and by each seed; in parentheses standard errors and how many prompts rose."""
    first = records[0]
    images = len(first.before.scores["emoji-clip"]) // len(first.facts.prompts)
    places = [(record.folder, record.last.update) for record in records]
    drawn = [load_images(folder, update) for folder, update in [(first.folder, 0), *places]]
    rows = [row("ink, voted for", [[1 - float(image.mean()) for image in part] for part in drawn], images)]
    for name in first.before.scores:
        values = [first.before.scores[name], *(record.last.scores[name] for record in records)]
        rows.append(row(f"`{name}`", values, images))
    spread = fmean(first.before.diversity)
    rows.append(["diversity", "100 %", *(f"{100 * fmean(record.last.diversity) / spread:.0f} %" for record in records)])
    return markdown(["", "before", *(f"seed {seed}" for seed in SEEDS)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/votes"), help="where images, answers and runs lie")
    parser.add_argument("--print", action="store_true", help="write no page and no image")
    words = parser.parse_args()
    set_num_threads(1)
    folder = words.runs.resolve()
    votes = folder / "votes.jsonl"
    vote(draw(folder / "images"), votes)
    records = [run(seed, votes, folder) for seed in SEEDS]
    publish({"votes": table(records)}, None if words.print else PAGE)
    if words.print:
        return
    first = records[0]
    before, after = (load_images(first.folder, update) for update in (0, first.last.update))
    images = len(before) // len(first.facts.prompts)
    rows = [
        (prompt, [before[place * images], after[place * images]]) for place, prompt in enumerate(first.facts.prompts)
    ]
    draw_grid(rows[::SHOWN], headings=["before", "tuned"]).save(IMAGE)


if __name__ == "__main__":
    main()
