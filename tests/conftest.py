"""What every test shares: one thread, no network, the tiny catalog, and which tests are slow."""

from __future__ import annotations

import os
import re
import signal
from fnmatch import translate
from functools import cache

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch

from draft_core.registry.catalog import Catalog
from tests.support.runs import without_curves
from tests.support.thorough import THOROUGH, in_full, left_out
from tests.support.tiny import tiny_catalog

# What `make check` leaves out and `make test` runs: files and functions that take most of the suite's time, as
# `pytest --durations=0` measures it. They start processes, train for many updates, build wheels, or repeat a check
# on large models that a fast test makes on small ones.
SLOW = (
    "plugins/*/tests/test_reference.py",
    "plugins/adversarial/tests/test_contract.py",
    "plugins/adversarial/tests/test_training.py",
    "plugins/command/tests/test_training.py",
    "plugins/detection/tests/test_contract.py",
    "plugins/emoji/tests/test_alignment.py",
    "plugins/emoji/tests/test_contrast.py",
    "plugins/emoji/tests/test_detector_training.py::test_it_trains_resumes_and_exports",
    "plugins/emoji/tests/test_emoji_model.py",
    "plugins/emoji/tests/test_emoji_training.py",
    "plugins/emoji/tests/test_judge.py",
    "plugins/emoji/tests/test_scene_training.py",
    "plugins/emoji/tests/test_scorer_training.py",
    "plugins/emoji/tests/test_tiny_decoder.py",
    "plugins/emoji/tests/test_two_steps.py",
    "plugins/emoji/tests/test_video_training.py",
    "plugins/hpsv3/tests/test_contract.py",
    "plugins/hpsv3/tests/test_hpsv3.py",
    "plugins/jpeg/tests/test_acceptance.py",
    "plugins/vlm/tests/test_contract.py",
    "plugins/vlm/tests/test_training.py",
    "tests/cli/test_app.py::test_a_finished_run_goes_on_from_any_folder",
    "tests/cli/test_app.py::test_a_run_fills_its_folder_and_can_be_resumed_but_not_overwritten_by_accident",
    "tests/cli/test_app.py::test_ctrl_c_saves_and_the_resumed_run_is_the_uninterrupted_one",
    "tests/cli/test_cost.py",
    "tests/cli/test_demo.py",
    "tests/cli/test_fuzz.py",
    "tests/cli/test_init.py::test_from_init_to_a_finished_run_on_the_embedded_model",
    "tests/cli/test_init.py::test_the_recipe_says_what_draft_cost_says",
    "tests/cli/test_outputs.py::test_a_page_that_cannot_be_written_is_one_sentence",
    "tests/cli/test_runs.py",
    "tests/cli/test_vote.py::test_a_server_that_is_killed_loses_no_answer_and_the_next_goes_on",
    "tests/cli/test_vote.py::test_an_interrupted_call_keeps_the_images_of_the_prompts_that_are_drawn",
    "tests/cli/test_vote.py::test_new_images_are_those_of_the_runs_lora_and_are_drawn_once",
    "tests/cost/test_card.py",
    "tests/cost/test_forecast.py",
    "tests/cost/test_room.py",
    "tests/cost/test_scale.py",
    "tests/learners/test_gradient_free_families.py",
    "tests/learners/test_preference.py::test_modes_get_the_weights_of_the_base_model_times_the_exponential_of_the_reward",
    "tests/learners/test_preference_trl.py",
    "tests/learners/test_weighted_regression.py::test_the_modes_get_the_weights_of_the_tilted_mixture",
    "tests/project/test_benchmarks.py",
    "tests/project/test_blocks.py::test_the_block_of_search_finds_images",
    "tests/project/test_ecosystem.py",
    "tests/project/test_gallery.py",
    "tests/project/test_library.py::test_the_code_of_the_page_runs_as_it_stands",
    "tests/project/test_notebooks.py::test_a_notebook_runs",
    "tests/project/test_other_systems.py::test_every_module_is_imported_without_what_windows_lacks",
    "tests/project/test_own_model.py::test_a_recipe_loads_and_fits_on_the_card_that_it_names",
    "tests/project/test_own_model.py::test_the_memory_in_the_table_is_what_draft_cost_predicts",
    "tests/project/test_site.py::test_a_browser_shows_it_at_once",
    "tests/project/test_site.py::test_every_link_of_the_site_leads_somewhere",
    "tests/project/test_site.py::test_every_public_name_has_a_section",
    "tests/project/test_site.py::test_the_search_finds_a_name",
    "tests/project/test_site.py::test_the_search_knows_the_pages_and_the_names",
    "tests/project/test_structure.py::test_a_contract_catches_what_it_is_for",
    "tests/project/test_tutorial.py",
    "tests/project/test_workflows.py::test_a_file_keeps_the_schema_of_its_format",
    "tests/publishing/test_projects.py::test_every_project_passes_its_own_tests",
    "tests/recipe/test_fuzz.py",
    "tests/recipe/test_scale_recipes.py",
    "tests/registry/test_hostile_plugins.py",
    "tests/reporting/test_live.py::test_a_browser_loads_it_again_where_it_was_while_the_run_goes_on",
    "tests/reporting/test_live.py::test_a_browser_shows_how_old_it_is",
    "tests/reporting/test_live.py::test_a_page_that_cannot_be_written_costs_the_page_alone",
    "tests/reporting/test_live.py::test_a_run_has_its_page_from_the_first_evaluation_on_and_a_resumed_one_again",
    "tests/reporting/test_page.py",
    "tests/runs/test_columns.py",
    "tests/runs/test_compilation.py::test_graphs_of_autograd_are_recomputed_and_kept",
    "tests/runs/test_compilation.py::test_updates_are_those_of_blocks_that_are_not_compiled",
    "tests/runs/test_evaluator.py::test_every_image_of_an_evaluation_is_drawn_so_and_training_is_not",
    "tests/runs/test_faults.py",
    "tests/runs/test_gradient_free_runs.py",
    "tests/runs/test_model_settings.py",
    "tests/runs/test_nothing_is_lost.py",
    "tests/runs/test_quantization.py",
    "tests/runs/test_run.py",
    "tests/runs/test_sample.py",
    "tests/runs/test_silence.py",
    "tests/runs/test_surrogate_runs.py",
    "tests/runs/test_users.py::test_a_run_on_the_pairs_of_several_people",
    "tests/sampling/test_classes.py",
    "tests/sampling/test_families.py::test_a_chain_that_is_left_early_gives_finite_images_with_gradient",
    "tests/sampling/test_families.py::test_a_lora_with_the_default_targets_gets_a_gradient_and_comes_back_from_its_file",
    "tests/sampling/test_families.py::test_a_replay_from_the_latents_of_the_last_step_gives_the_sample_again",
    "tests/sampling/test_families.py::test_full_draft_is_naive_autograd",
    "tests/sampling/test_frames.py::test_a_resumed_run_of_random_frames_is_the_uninterrupted_one",
    "tests/sampling/test_memory.py",
    "tests/sampling/test_models_page.py",
    "tests/sampling/test_recomputation.py::test_a_lora_has_the_same_gradient_and_takes_less_memory",
    "tests/sampling/test_recomputation.py::test_every_family_has_the_same_images_and_gradient",
    "tests/sampling/test_replay.py::test_the_prediction_at_every_step_is_the_recorded_one",
    "tests/sampling/test_short_prefix.py::test_every_family_takes_a_short_prefix_or_says_why_not",
    "tests/sampling/test_tiles.py::test_no_more_than_a_tile_is_kept",
    "tests/sampling/test_tiny_decoders.py::test_the_forecast_counts_it",
    "tests/testing/test_contract.py::test_a_naming_module_that_imports_torch_is_caught",
    "tests/testing/test_reference.py",
    "tests/tracking/test_trackers.py",
    "tests/training/test_distributed.py",
    "tests/training/test_hybrid_sharding.py::test_a_run_in_two_parts_ends_with_the_lora_of_one_process",
    "tests/training/test_hybrid_sharding.py::test_images_and_gradients_are_those_of_one_process",
    "tests/training/test_hybrid_sharding.py::test_machines_that_share_nothing_are_refused_by_name",
    "tests/training/test_precision.py",
    "tests/training/test_regularizers.py::test_a_resumed_training_is_the_uninterrupted_one_in_every_bit",
    "tests/training/test_trainer.py::test_a_torn_checkpoint_is_refused",
    "tests/training/test_trainer.py::test_the_reward_rises",
    "tests/voting/test_voting.py::test_a_browser_answers_by_keys",
    "tests/workers/test_training.py",
)

# A shell's background job ignores SIGINT, and the commands that tests interrupt would ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a machine shared with others, two threads on small tensors can be many times slower than one.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the slow tests, and leaves further cases of a check to a thorough run."""
    is_slow = cache(re.compile("|".join(translate(f"{slow}*") for slow in SLOW)).match)
    for item in items:
        name, _, case = item.nodeid.partition("[")
        if is_slow(name):
            item.add_marker(pytest.mark.slow)
        if left_out(name, case.removesuffix("]")):
            item.add_marker(in_full)


# Where runs ask before their first update whether it fits into memory, which takes as long as one or more updates: the
# tests of this question, of the commands, and of each kind of method and model. In others a thorough run asks.
ASKS_FOR_ROOM = (
    *("tests/cost/", "tests/cli/test_app.py", "tests/project/test_library.py"),
    *("tests/runs/test_columns.py", "tests/runs/test_gradient_free_runs.py", "tests/runs/test_surrogate_runs.py"),
    *("tests/runs/test_compilation.py", "tests/runs/test_model_settings.py", "tests/runs/test_quantization.py"),
)


@pytest.fixture(autouse=True)
def _ample_room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not THOROUGH and not request.node.nodeid.startswith(ASKS_FOR_ROOM):
        monkeypatch.setattr("draft_core.runs.run.require_room", lambda trainer: None)


@pytest.fixture
def few_savings(monkeypatch: pytest.MonkeyPatch) -> None:
    """`draft cost` tries one way to less memory, and the half batch: a test of tests/cli/test_cost.py tries all."""
    if not THOROUGH:
        monkeypatch.setattr("draft_core.cost.forecast.CHECKPOINTINGS", (True,))
        monkeypatch.setattr("draft_core.cost.forecast.LEANER_DECODES", ())


@pytest.fixture
def blank_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that look at no curve: `tests/reporting/test_page.py` has those that do."""
    without_curves(monkeypatch)


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The tiny catalog; its files are made once and only read."""
    return tiny_catalog(tmp_path_factory.mktemp("tiny"))
