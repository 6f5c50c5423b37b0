"""How many threads a run computes with: by the load at its start, which is put in the place of the machine's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from draft_core.recipe.load import dump_recipe, load_recipe
from draft_core.registry.catalog import Catalog
from draft_core.reporting.run_record import RECIPE
from draft_core.runs.continuation import computing
from draft_core.threads import chosen_threads, computing_with, idle_cores
from tests.support.tiny import GOOD

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine of so many cores, so many of them busy; no variable says how many threads there are."""

    def put(cores: int, load: float) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: cores)

    return put


@pytest.mark.parametrize(
    ("cores", "load", "threads"), [(8, 3.2, 5), (2, 1.6, 1), (2, 9.0, 1), (4, 2.4, 2), (8, 0.3, None), (1, 5.0, None)]
)
def test_a_busy_machine_gets_as_many_threads_as_it_has_idle_cores(
    machine: Machine, cores: int, load: float, threads: int | None
) -> None:
    machine(cores, load)
    number, note = chosen_threads()
    assert number == threads
    assert (note is None) == (threads is None)


def test_it_says_so_and_how_to_overrule_it(machine: Machine) -> None:
    machine(4, 3.1)
    assert chosen_threads()[1] == (
        "3 of 4 cores are busy: 1 thread computes; `threads` of the recipe says another number"
    )


def test_a_person_an_earlier_part_and_the_variable_count_more(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(4, 3.0)
    assert chosen_threads(3) == (3, None)
    assert chosen_threads(None, 2) == (2, None)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert chosen_threads(None, 2) == (None, None)
    assert chosen_threads(3) == (3, None)


def test_a_system_that_tells_no_load_changes_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(4, 3.0)
    monkeypatch.delattr(os, "getloadavg")
    assert idle_cores() is None
    assert chosen_threads() == (None, None)


def test_afterwards_there_are_as_many_as_before() -> None:
    before = torch.get_num_threads()
    with computing_with(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with computing_with(None):
        assert torch.get_num_threads() == before


def test_a_run_fills_its_number_in_and_goes_on_with_it(machine: Machine, tmp_path: Path, catalog: Catalog) -> None:
    machine(4, 2.0)
    output = tmp_path / "run"
    recipe = load_recipe({**GOOD, "device": "cpu", "output": str(output)}, catalog=catalog)
    with computing(recipe, anew=False) as (filled, note):
        assert filled.threads == 2
        assert note
    output.mkdir()
    (output / RECIPE).write_text(dump_recipe(filled), encoding="utf-8")
    machine(4, 0.0)
    with computing(recipe, anew=False) as (again, note):
        assert (again.threads, note) == (2, None)
    with computing(recipe, anew=True) as (fresh, _):
        assert fresh.threads is None
    with computing(recipe.with_(catalog, threads=3), anew=False) as (said, _):
        assert said.threads == 3
