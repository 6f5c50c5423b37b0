"""The commands about what a run leaves: its page, a comparison of several, and its LoRA sampled, mixed and published.

What needs torch is imported inside the command that needs it, so that `--help` stays instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draft_core.cli.outputs import require_image_file, writing
from draft_core.cli.terminal import ProgressLines, out, quiet_libraries
from draft_core.errors import DraftError, first_line, require_finite
from draft_core.registry.catalog import Catalog, load_catalog

runs_app = typer.Typer()


@runs_app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")] = [],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page to write about several runs; else comparison.html.")
    ] = None,
    against: Annotated[
        list[str],
        typer.Option(
            "--against", metavar="NAME|FOLDER", help="Lay the runs beside a reference curve or a run; repeatable."
        ),
    ] = [],
    curves: Annotated[bool, typer.Option("--curves", help="List the reference curves instead.")] = False,
) -> None:
    """Write the page of a run anew, from what its folder holds; of several runs, one page that compares them.

    Example: draft report runs/short runs/long
    """
    from draft_core.reporting.comparison import write_comparison
    from draft_core.reporting.page import write_report
    from draft_core.reporting.reference_curves import read_reference
    from draft_core.reporting.run_record import read_run

    if curves:
        _print_curves()
        return
    if not runs:
        raise DraftError("no run is named", where="report", next="name the folder of a finished run")
    if len(runs) == 1 and not against and output is not None:
        raise DraftError(
            "the page of one run lies in its folder", where=f"--output {output}", next="leave it out, or name more runs"
        )
    records = [*map(read_run, runs), *map(read_reference, against)]
    with writing(output or runs[0]):
        page = (
            write_report(records[0])
            if len(records) == 1
            else write_comparison(records, output or Path("comparison.html"))
        )
    out.print(f"wrote {page}", highlight=False, soft_wrap=True)


def _print_curves() -> None:
    from draft_core.reporting.reference_curves import curve_names, read_reference

    for name in curve_names():
        record = read_reference(name)
        rewards = " + ".join(record.facts.rewards)
        out.print(
            f"{name}: {record.facts.model} tuned on {rewards} with {record.facts.method}, {record.last.update} updates",
            highlight=False,
            soft_wrap=True,
        )


@runs_app.command()
def sample(
    model: Annotated[str, typer.Argument(help="An alias from a plugin, a folder in diffusers' format, or a hub name.")],
    prompts: Annotated[
        list[str], typer.Option("--prompts", "-p", help="A prompt, a plugin's list, or a file of prompts; repeatable.")
    ],
    lora: Annotated[
        Path | None, typer.Option("--lora", help="The folder of a run, a lora folder, or a .safetensors file.")
    ] = None,
    scale: Annotated[
        str, typer.Option("--scale", help="Factor of the LoRA; 0 is the base model. Several: 0,0.25,0.5,1.")
    ] = "1",
    images: Annotated[int, typer.Option("--images", min=1, help="Images of each prompt.")] = 4,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Sampler steps; else those of the LoRA's run, or of the model.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Guidance scale; else that of the LoRA's run, or of the model.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**62, help="Image i starts from the noise of seed + i.")
    ] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The image file to write, such as a .png.")] = Path(
        "samples.png"
    ),
) -> None:
    """Sample a grid of images, one row a prompt, with or without a LoRA; a group of columns for each scale of it.

    Example: draft sample emoji --lora runs/demo --prompts "a red apple" --scale 0,0.5,1
    """
    scales = [_number(text, where=f"--scale {scale}") for text in scale.split(",")]
    if guidance is not None:
        require_finite(guidance, where="--guidance")
    if lora is None and scales != [1.0]:
        raise DraftError("there is no LoRA to scale", where=f"--scale {scale}", next="give one with --lora")

    from draft_core.recipe.resolve import locate_pretrained

    catalog = load_catalog()
    locate_pretrained(model, catalog)
    require_image_file(output)
    texts = _texts(prompts, catalog)

    from draft_core.reporting.image_grid import draw_grid
    from draft_core.runs.sample import sample as draw_samples

    quiet_libraries()
    with ProgressLines() as progress:
        made = draw_samples(
            model,
            texts,
            lora=lora,
            scales=scales,
            images_per_prompt=images,
            steps=steps,
            guidance=guidance,
            seed=seed,
            catalog=catalog,
            progress=progress,
        )
    rows = [(text, list(made[:, number].flatten(0, 1))) for number, text in enumerate(texts)]
    headings = [f"scale {factor:g}" for factor in scales] if len(scales) > 1 else []
    with writing(output):
        draw_grid(rows, headings=headings, group=images).save(output)
    out.print(f"wrote {output}", highlight=False, soft_wrap=True)


@runs_app.command()
def mix(
    sources: Annotated[
        list[str], typer.Argument(metavar="LORA:WEIGHT...", help="A run, a lora folder or a file, and its weight.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
) -> None:
    """Mix LoRAs of one model: what they add to it, weighted and summed, as one LoRA. No training, no model needed.

    Example: draft mix runs/jpeg:0.6 runs/aesthetic:0.4 --output runs/mixed
    """
    weighed = [_weighed(source) for source in sources]

    from draft_core.adapters.mixing import mix_loras

    with writing(output):
        folder = mix_loras(weighed, output)
    out.print(f"wrote {folder}", highlight=False, soft_wrap=True)


@runs_app.command()
def export(
    lora: Annotated[Path, typer.Argument(help="The folder of a run, a lora folder, or a file in it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    form: Annotated[str, typer.Option("--format", "-f", help="diffusers or comfyui.")] = "diffusers",
) -> None:
    """Write a LoRA as one file for another program.

    Example: draft export runs/demo --format comfyui --output demo.safetensors
    """
    from draft_core.adapters.mixing import export_lora

    with writing(output):
        file = export_lora(lora, form, output)
    out.print(f"wrote {file}", highlight=False, soft_wrap=True)


@runs_app.command()
def push(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    repo_id: Annotated[
        str, typer.Argument(help="NAME/REPOSITORY on the Hugging Face Hub; made where it is not there.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    best: Annotated[bool, typer.Option("--best", help="Publish lora-best/ in the place of lora/.")] = False,
) -> None:
    """Publish a run's LoRA on the Hugging Face Hub, with its model card and image.

    Example: draft push runs/demo me/emoji-small-files --private
    """
    from draft_core.reporting.run_record import read_run

    read_run(run)  # refuses what is no finished run
    folder = run / ("lora-best" if best else "lora")
    if not folder.is_dir():
        raise DraftError(
            "there is no such folder", where=str(folder), next="leave out --best, the last LoRA is the best"
        )
    out.print(f"published {_publish(folder, repo_id, private=private)}", highlight=False, soft_wrap=True)


def _publish(folder: Path, repo_id: str, *, private: bool) -> str:
    from huggingface_hub import create_repo, get_token, upload_folder
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # the bases are what its HTTP client raises without a network: of httpx since its version 1, of requests before
    unreachable: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)
    if get_token() is None:
        raise DraftError(
            "there is no token for the Hugging Face Hub",
            where=f"push {repo_id}",
            next="log in with `hf auth login`, or set HF_TOKEN",
        )
    try:
        repo = create_repo(repo_id, private=private, exist_ok=True)
        upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message="LoRA, model card and images")
    except HFValidationError as error:
        raise DraftError(f"it is no name of a repository ({first_line(error)})", where=f"push {repo_id}") from error
    except unreachable as error:
        raise DraftError(
            f"the Hub refused it or cannot be reached ({first_line(error)})",
            where=f"push {repo_id}",
            next="check the network and what the token may do, then give the same command again",
        ) from error
    return str(repo)


def _texts(prompts: list[str], catalog: Catalog) -> list[str]:
    """The prompts that were given, with a plugin's list and a file of prompts read."""
    from draft_core.recipe.resolve import given_prompts
    from draft_core.recipe.yaml_text import short

    return [text for given in prompts for text in given_prompts(given, catalog, where=f"--prompts {short(given)}")]


def _weighed(source: str) -> tuple[Path, float]:
    path, colon, weight = source.rpartition(":")
    if not colon:
        raise DraftError("it has no weight", where=source, next=f"write for example {source}:0.5")
    return Path(path), _number(weight, where=source)


def _number(text: str, *, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise DraftError(f"{text!r} is not a number", where=where, next="write for example 0.5") from None
    require_finite(number, where=where)
    return number
