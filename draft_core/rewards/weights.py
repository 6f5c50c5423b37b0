"""The weight files of rewards: where they are, and whether they fit; one readable sentence where not."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

from draft_core.errors import DraftError, one_line
from draft_core.rewards.hub import hub_or_cache, require_hub
from draft_core.rewards.weight_diagnosis import diagnosed, is_safetensors, nested, prefix_advice

# What a config's field for weights may say besides a path.
PUBLISHED = "hub"
RANDOM = "random"
HUB_PREFIX = "hf://"
NAMED = 5  # how many tensors a report names before it only counts


@dataclass(frozen=True)
class HubFile:
    """A file in a repository of the Hugging Face hub, and its size if it is known.

    Arguments:
        repo: "owner/name".
        filename: its path inside the repository.
        megabytes: its size in 10^6 bytes, for messages; None where it is not known.
    """

    repo: str
    filename: str
    megabytes: float | None = None


def locate(source: str, published: HubFile | None, *, where: str, option: str) -> Path:
    """The local path of a weight file, downloaded once if it must be.

    Arguments:
        source: "hub" for the `published` file, "hf://owner/name/file" for another one there, else a local path.
        published: None where the caller knows another way to it.
        where: who asks, such as "reward 'hpsv2'"; it begins an error's sentence.
        option: the config field that `source` comes from; it ends the sentence.

    Raises:
        DraftError: if there is no such file, or the hub cannot be reached.
    """
    if published and source == PUBLISHED:
        file = published
    elif source.startswith(HUB_PREFIX):
        file = _parse(source, where, option)
    else:
        if (path := Path(source).expanduser()).is_file():
            return path
        raise DraftError(
            f"there is no file {source!r}",
            where=f"{where}, {option}",
            next=f"give the path of a file, {PUBLISHED!r}, or {HUB_PREFIX}owner/name/file",
        )
    with explained(f"{file.filename} of {file.repo}", megabytes=file.megabytes, where=where, option=option):
        return Path(hf_hub_download(file.repo, file.filename))


def locate_model(source: str, published: str, *, where: str, option: str) -> str:
    """What `from_pretrained` of transformers takes: a repository's name on the hub, or a local folder.

    Arguments:
        source: "hub" for the `published` repository, "hf://owner/name" for another one there, else a local folder.
        published: "owner/name".
        where, option: as in `locate`.

    Raises:
        DraftError: if there is no such folder.
    """
    if source == PUBLISHED:
        return published
    if source.startswith(HUB_PREFIX):
        return source.removeprefix(HUB_PREFIX)
    if (folder := Path(source).expanduser()).is_dir():
        return str(folder)
    raise DraftError(
        f"there is no folder {source!r}",
        where=f"{where}, {option}",
        next=f"give the path of a folder, {PUBLISHED!r}, or {HUB_PREFIX}owner/name",
    )


@contextmanager
def explained(
    what: str, *, where: str, option: str, megabytes: float | None = None, location: str | None = None
) -> Iterator[None]:
    """Whatever a library's own loader raises inside becomes one sentence: file, size, reason, remedy.

    Without a network it is given what the cache has, at once.

    Arguments:
        what: what is fetched, such as "CLIPModel laion/CLIP-ViT-H-14-laion2B-s32B-b79K".
        where: who asks; it begins the error's sentence.
        option: the config field that takes a local path instead.
        megabytes: its size in 10^6 bytes, where it is known.
        location: all that is loaded inside, if it may be a local path, which needs no network.

    Raises:
        DraftError: instead of the library's OSError, ValueError or RuntimeError.
    """
    try:
        with hub_or_cache(location):
            yield
    except (OSError, ValueError, RuntimeError) as error:
        size = f" ({megabytes:,.{1 if megabytes < 1 else 0}f} MB)" if megabytes else ""
        raise DraftError(
            f"cannot load {what}{size}: {_first_sentence(error)}",
            where=where,
            next=f"check the name and the network, or set {option} to a local path",
        ) from error


def load_pretrained(
    architecture: Any,
    name: str,
    *,
    where: str,
    option: str,
    megabytes: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A model of a transformers class in float32, or in `dtype`, with every one of its weights from the file.

    transformers itself loads in whatever precision the file has, and makes up what the file lacks.

    Arguments:
        architecture: the class, such as `transformers.CLIPModel`.
        name: as `locate_model` gives it.
        where, option, megabytes: as in `explained`.
        dtype: precision in which it is loaded; one that is too large for float32 never is in it.

    Raises:
        DraftError: if the model is not there, or does not fit.
    """
    with explained(f"the model {name}", megabytes=megabytes, where=where, option=option, location=name):
        model, info = architecture.from_pretrained(
            name, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    require_fit(
        architecture.__name__,
        missing=info["missing_keys"],
        unexpected=[key for key in info["unexpected_keys"] if not key.endswith("position_ids")],  # in older files
        mismatched={key: (tuple(found), tuple(wanted)) for key, found, wanted in info["mismatched_keys"]},
        where=f"{where}, {option}",
    )
    return model


def load_tokenizer(kind: Any, name: str, *, where: str, option: str, megabytes: float | None = None) -> Any:
    """A tokenizer of a transformers class, with a vocabulary.

    Without its files transformers 5 says nothing, and gives a tokenizer that knows no word; transformers 4
    opens a file named None.

    Arguments:
        kind: the class, such as `transformers.CLIPTokenizer`.
        name: as `locate_model` gives it.
        where, option, megabytes: as in `explained`.

    Raises:
        DraftError: if the tokenizer is not there.
    """
    with explained(f"the tokenizer {name}", megabytes=megabytes, where=where, option=option, location=name):
        try:
            tokenizer = kind.from_pretrained(name)
        except TypeError as error:
            raise OSError("it has no vocabulary") from error
        if len(tokenizer) <= len(set(tokenizer.all_special_tokens)) + 1:
            if not Path(name).is_dir():
                require_hub()
            raise OSError("it has no vocabulary")
    return tokenizer


def read_tensors(path: Path, *, where: str) -> dict[str, torch.Tensor]:
    """The tensors of a weight file by name, on the CPU: safetensors, or what torch saved, with nothing executed.

    What the file is its content says, not its name. A training checkpoint's "state_dict" is taken out of it.

    Arguments:
        path: of the file.
        where: who asks; it begins an error's sentence.

    Raises:
        DraftError: if the file is torn, or holds anything else.
    """
    try:
        content = _content(path)
    except Exception as error:  # a file that is no weights leads an unpickler anywhere
        what, remedy = diagnosed(path, error) or (
            _first_sentence(error),
            "fetch the file again; only safetensors and plain tensors saved by torch are read",
        )
        raise DraftError(f"cannot be read as weights: {what}", where=f"{where}, {path}", next=remedy) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        remedy = (nested(content) if isinstance(content, Mapping) else None) or "give a file of weights"
        raise DraftError("holds something else than tensors by name", where=f"{where}, {path}", next=remedy)
    return dict(content)


def _content(path: Path) -> object:
    if is_safetensors(path):
        return load_file(path)
    with warnings.catch_warnings(), path.open("rb") as file:  # opened here, or torch would go by the name
        warnings.simplefilter("ignore")  # of archives that it refuses afterwards
        return torch.load(file, map_location="cpu", weights_only=True)


def load_strict(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Puts the tensors into the module, which keeps its own precision; all of them, and nothing left over.

    Arguments:
        module: a network, changed in place.
        tensors: name -> tensor, as in the module's `state_dict`.
        where: who asks; it begins an error's sentence.

    Raises:
        DraftError: if they do not fit, naming what is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    require_fit(
        type(module).__name__,
        missing=own.keys() - tensors.keys(),
        unexpected=tensors.keys() - own.keys(),
        mismatched={
            name: (tuple(tensors[name].shape), tuple(own[name].shape))
            for name in own.keys() & tensors.keys()
            if tensors[name].shape != own[name].shape
        },
        where=where,
    )
    module.load_state_dict(tensors)


def require_fit(
    what: str,
    *,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    where: str,
) -> None:
    """Refuses weights of which a loader says that not everything found its place.

    Arguments:
        what: the network that they were meant for.
        missing: names that the network has and the file lacks.
        unexpected: names that the file has and the network lacks.
        mismatched: name -> shape in the file, shape in the network.
        where: who asks; it begins the error's sentence.

    Raises:
        DraftError: with a report of at most five names a kind, unless all three are empty.
    """
    shapes = [f"{name} is {_times(found)}, not {_times(wanted)}" for name, (found, wanted) in mismatched.items()]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    report = [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds if names]
    if report:
        raise DraftError(
            f"the weights are not those of this {what}: {'; '.join(report)}",
            where=where,
            next=prefix_advice(missing, unexpected)
            or "give the weights of this architecture, or the architecture of these weights",
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context: modules built inside get weights drawn from `seed`; afterwards torch's random state is as before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _parse(source: str, where: str, option: str) -> HubFile:
    owner, _, rest = source.removeprefix(HUB_PREFIX).partition("/")
    name, _, filename = rest.partition("/")
    if not (owner and name and filename):
        raise DraftError(
            f"{source!r} names no file on the hub", where=f"{where}, {option}", next=f"use {HUB_PREFIX}owner/name/file"
        )
    return HubFile(f"{owner}/{name}", filename)


def _first_sentence(error: BaseException) -> str:
    text = one_line(error) or type(error).__name__
    return text.partition(". ")[0].rstrip(".")[:200]


def _some(names: Collection[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(sorted(names)[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
