"""The commands about what a run leaves: its page, a comparison of several, and its LoRA sampled, mixed and published.

What needs torch is imported inside the command that needs it, so that `--help` stays instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from draft_core.cli.outputs import require_file, writing
from draft_core.cli.sample import sample
from draft_core.cli.terminal import ProgressLines, number, out, prints_aside, quiet_libraries
from draft_core.errors import DraftError, first_line
from draft_core.registry.catalog import load_catalog

runs_app = typer.Typer()


@runs_app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")] = [],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The page to write about several runs, else comparison.html; the file of --bug."
        ),
    ] = None,
    against: Annotated[
        list[str],
        typer.Option(
            "--against", metavar="NAME|FOLDER", help="Lay the runs beside a reference curve or a run; repeatable."
        ),
    ] = [],
    curves: Annotated[bool, typer.Option("--curves", help="List the reference curves instead.")] = False,
    bug: Annotated[
        bool,
        typer.Option("--bug", help="Print what a bug report needs instead, also of a run that failed, without paths."),
    ] = False,
) -> None:
    """Write the page of a run anew, from what its folder holds; of several runs, one page that compares them.

    Example: draft report runs/short runs/long
    """
    if bug:
        _report_bug(runs, output, others={"--against": bool(against), "--curves": curves})
        return
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


def _report_bug(runs: list[Path], output: Path | None, *, others: dict[str, bool]) -> None:
    from draft_core.bug_reports.bug_report import bug_report

    if contradicting := next((name for name, is_given in others.items() if is_given), None):
        raise DraftError(f"--bug and {contradicting} contradict each other", next="give one of them")
    if len(runs) > 1:
        raise DraftError("--bug is about one run", where="report", next="name one, or none")
    if output is not None:
        require_file(output)
    with prints_aside():
        text = bug_report(load_catalog(), *runs)
    if output is None:
        typer.echo(text, nl=False)
        return
    with writing(output):
        output.write_text(text, encoding="utf-8")
    out.print(f"wrote {output}", highlight=False, soft_wrap=True)


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


runs_app.command()(sample)


@runs_app.command()
def mix(
    sources: Annotated[
        list[str], typer.Argument(metavar="LORA:WEIGHT...", help="A run, a lora folder or a file, and its weight.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Of the LoRA at most; else the sum of the ranks, and exact.")
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option("--scales", help="Of one run: draw its held-out images at each, 0.25,0.5,1, and take the best."),
    ] = None,
) -> None:
    """Mix LoRAs of one model: what they add to it, weighted and summed, as one LoRA. No training, no model needed.

    Of rewards, or of seeds: the mean of several runs of one recipe is often better than each of them.

    With --scales, of one run without a weight: its LoRA at the scale that is best on what the run holds out. That is
    the one with the highest trained reward at which nothing fell beyond chance, or, where something falls at each, at
    which nothing fell so far as a collapse.

    Example: draft mix runs/jpeg:0.6 runs/aesthetic:0.4 --output runs/mixed

    Example: draft mix runs/jpeg --scales 0.25,0.5,0.75,1 --output runs/jpeg-best
    """
    from draft_core.adapters.mixing import mix_loras, require_new_folder

    with writing(output):
        require_new_folder(output)
        if scales is not None and not output.exists():
            require_file(output)  # before images are drawn
    weighed = [_weighed(source) for source in sources] if scales is None else [_best_of(sources, scales)]
    with writing(output):
        mixed = mix_loras(weighed, output, rank=rank)
    if rank is not None:
        out.print(f"rank {rank} holds {mixed.kept:.1%} of the sum, by its squared norm", highlight=False)
    out.print(f"wrote {mixed.folder}", highlight=False, soft_wrap=True)


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

    Example: draft push runs/demo me/two-things --private
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


def _best_of(sources: Sequence[str], scales: str) -> tuple[Path, float]:
    """The run, and the best of these scales of its LoRA."""
    if len(sources) > 1 or not Path(sources[0]).is_dir():
        raise DraftError(
            "the best scale is that of one run", where="--scales", next="give the folder of one run, without a weight"
        )
    run, wanted = Path(sources[0]), [number(text, where=f"--scales {scales}") for text in scales.split(",")]

    from draft_core.adapters.files import lora_files
    from draft_core.evaluation.collapse import FEW_PROMPTS, extent, too_few
    from draft_core.library.scales import judge_scales

    lora_files(run)  # refuses a run that trained something else
    quiet_libraries()
    with ProgressLines() as progress:
        judged = judge_scales(run, wanted, progress=progress)
    means = [record.means() for record in judged.records.values()]
    table = Table("", *(f"scale {scale:g}" for scale in judged.records))
    for name in means[0]:
        table.add_row(name, *(f"{of_scale[name]:.4g}" for of_scale in means))
    out.print(table)
    prompts = judged.records[0.0].prompts
    for scale in list(judged.records)[1:]:
        verdict = judged.verdict(scale)
        for said in (*(f"{extent(prompts)}, {fall}" for fall in verdict.fell), *verdict.unjudged):
            out.print(f"scale {scale:g}: {said}", highlight=False, soft_wrap=True)
    if prompts < FEW_PROMPTS:
        out.print(too_few(prompts), highlight=False, soft_wrap=True)
    if not judged.best:
        raise DraftError(
            "at no scale is the trained reward above the base model's without a loss of what the run holds out",
            where=str(run),
            next="give other scales, or keep the base model",
        )
    if not judged.whole:
        out.print("at each scale something fell, and nothing so far as a collapse at the best", soft_wrap=True)
    out.print(
        f"the best is {judged.best:g}; chosen on these images, it looks a little better on them than on others",
        highlight=False,
        soft_wrap=True,
    )
    return run, judged.best


def _weighed(source: str) -> tuple[Path, float]:
    path, colon, weight = source.rpartition(":")
    if not colon:
        raise DraftError("it has no weight", where=source, next=f"write for example {source}:0.5")
    return Path(path), number(weight, where=source)
