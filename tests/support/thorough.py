"""Checks that are repeated on many cases: on a few of them, and with DRAFT_THOROUGH=1, as in the workflows, on all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

import pytest

T = TypeVar("T")

THOROUGH = bool(os.environ.get("DRAFT_THOROUGH"))
REASON = "it takes minutes: DRAFT_THOROUGH=1 runs it"

in_full = pytest.mark.skipif(not THOROUGH, reason=REASON)


def some(cases: Mapping[str, T], *names: str) -> dict[str, T]:
    """The cases of these names; all of them where thoroughness is asked for.

    Raises:
        KeyError: if there is no such case.
    """
    chosen = {name: cases[name] for name in names}
    return dict(cases) if THOROUGH else chosen


# Several denoisers, kinds of attention and autoencoders, a text encoder less and a modular pipeline.
FEW_FAMILIES = ("Stable Diffusion XL", "FLUX.1", "PixArt-Sigma", "Wan 2.2, video", "SDXL, modular")
FEW_SIZES = ("(224, 224)", "(300, 401)")
EMOJI = "plugins/emoji/tests/"
LOST = "tests/runs/test_nothing_is_lost.py::"

# Test -> the cases that every run makes: those with one of these words in their name, none where there is no word. Each
# way through the code has one; a thorough run makes the others too.
TRIED: dict[str, tuple[str, ...]] = {
    "plugins/aesthetic/tests/test_reference.py::test_scores_are_those_of_the_published_pipeline": FEW_SIZES,
    "plugins/clipscore/tests/test_reference.py::test_cosines_are_those_of_the_library": FEW_SIZES[1:],
    "plugins/colour/tests/test_reference.py::test_scores_are_those_of_the_reference": (
        *("palette", "asked, background", "harmony i", "harmony X"),
    ),
    "plugins/colour/tests/test_reference.py::test_scores_are_those_of_the_reference_at_every_size": (
        *("palette-(300, 401)", "colour-harmony-(97, 64)"),
    ),
    "plugins/command/tests/test_training.py::test_a_model_is_trained_on_what_a_program_answers": ("grpo",),
    "plugins/command/tests/test_training.py::test_a_run_whose_program_fails_is_kept_and_goes_on": ("once",),
    "plugins/detection/tests/test_reference.py::test_scores_are_those_of_transformers": FEW_SIZES,
    "plugins/emoji/tests/test_alignment.py::test_scores_are_those_of_transformers_on_pillow": FEW_SIZES,
    EMOJI + "test_critic_training.py::test_it_is_trained_resumed_and_exported": (),
    EMOJI + "test_detector_training.py::test_it_trains_resumes_and_exports": (),
    EMOJI + "test_scene_training.py::test_the_stages_train_and_export_what_the_package_ships": (),
    EMOJI + "test_scorer_training.py::test_the_judge_is_trained_exported_and_named": (),
    EMOJI + "test_tiny_decoder.py::test_a_tiny_decoder_is_fitted_to_the_shipped_one": (),
    EMOJI + "test_video_training.py::test_the_pipeline_that_is_written_is_the_one_that_was_trained": (),
    "plugins/hpsv2/tests/test_reference.py::test_scores_are_those_of_the_published_code": FEW_SIZES,
    "plugins/hpsv3/tests/test_reference.py::test_a_planted_bug_is_noticed": ("_another_state", "_squashed"),
    "plugins/hpsv3/tests/test_reference.py::test_scores_are_those_of_the_published_steps": ("(300, 401)",),
    "plugins/imagereward/tests/test_reference.py::test_scores_are_those_of_the_reference": FEW_SIZES,
    "plugins/jpeg/tests/test_reference.py::test_scores_are_those_of_pillow": FEW_SIZES,
    "plugins/ocr/tests/test_reference.py::test_scores_are_those_of_pillow_and_plain_ctc": FEW_SIZES,
    "plugins/pickscore/tests/test_reference.py::test_scores_are_those_of_the_published_code": FEW_SIZES,
    "tests/cli/test_app.py::test_bad_input_is_refused_before_any_torch": ("kind: worse", "kind: view", "nowhere.txt"),
    "tests/cli/test_runs.py::test_an_exported_file_draws_the_same_images": ("None-diffusers", "1.0-comfyui"),
    "tests/cli/test_runs.py::test_what_the_hub_refuses_is_one_sentence": ("error1",),
    "tests/cost/test_forecast.py::test_prompts_are_encoded_for_samples_and_outlines_and_not_for_replays": (
        *("ddpo", "dpo of pairs in a file"),
    ),
    "tests/cost/test_room.py::test_the_bound_is_above_what_is_predicted_and_both_above_a_third_less_than_it_takes": (
        *("the last step", "own pairs"),
    ),
    "tests/cost/test_scale.py::test_an_update_without_numbers_takes_what_a_real_one_takes": ("selective",),
    "tests/learners/test_encoded_images.py::test_what_a_pipeline_decodes_leads_back_to_its_latents": (
        *("Stable Diffusion 1.x", "FLUX.2 klein", "Sana", "FLUX.1, modular"),
    ),
    "tests/learners/test_gradient_free_families.py::test_a_resumed_training_is_the_uninterrupted_one_in_every_bit": (
        *("ddpo of FLUX.1", "grpo of Stable Diffusion 3", "importance of FLUX.1", "dpo of Stable Diffusion 3"),
    ),
    "tests/learners/test_preference.py::test_a_resumed_run_is_the_uninterrupted_one_in_every_bit": ("False",),
    "tests/project/test_notebooks.py::test_a_notebook_runs": ("own-reward",),
    "tests/project/test_own_model.py::test_a_recipe_loads_and_fits_on_the_card_that_it_names": ("sd-turbo",),
    "tests/project/test_own_model.py::test_the_memory_in_the_table_is_what_draft_cost_predicts": (
        *("stable-diffusion-v1-5",),
    ),
    "tests/project/test_structure.py::test_a_contract_catches_what_it_is_for": (
        *("upward", "names among the tensors", "a plugin in the core", "the reference in a reward"),
    ),
    "tests/project/test_workflows.py::test_a_file_keeps_the_schema_of_its_format": ("vendor.github-workflows",),
    "tests/recipe/test_scale_recipes.py::test_its_settings_take_an_update_on_a_small_model_of_the_family": (
        *("flux", "wan"),
    ),
    "tests/recipe/test_scale_recipes.py::test_the_lora_finds_every_attention_of_the_full_size_denoiser": (
        *("sd15", "sd3.5-medium"),
    ),
    "tests/registry/test_hostile_plugins.py::test_hostile_in_use": (
        *("raises_when_built", "raises_when_called", "one_score_for_all", "detached", "not_a_number"),
    ),
    "tests/reporting/test_page.py::test_a_browser_shows_it_without_errors_or_sideways_scrolling": ("390",),
    "tests/reporting/test_page.py::test_every_image_file_is_read_once": ("comparison",),
    "tests/reporting/test_page.py::test_the_verdict_says_what_came_of_it": ("scores1", "scores3", "scores5"),
    "tests/runs/test_columns.py::test_a_run_that_is_stopped_goes_on_in_every_bit": ("importance",),
    "tests/runs/test_columns.py::test_other_families_are_trained_watched_and_taken_up_again_in_every_bit": (
        *("ControlNet", "image to video, one at a time"),
    ),
    "tests/runs/test_faults.py::test_a_disk_that_fills_up_ends_the_run_which_goes_on_when_there_is_room": (
        *("room for half a checkpoint",),
    ),
    "tests/runs/test_faults.py::test_a_folder_that_is_deleted_in_the_midst_ends_the_run_and_is_not_made_again": (
        *("evaluate 4",),
    ),
    "tests/runs/test_faults.py::test_a_reward_that_fails_ends_the_run_and_the_mended_one_goes_on": ("out_of_memory",),
    "tests/runs/test_gradient_free_runs.py::test_a_flow_model_is_trained_and_watched_and_goes_on_in_every_bit": (
        *("grpo",),
    ),
    "tests/runs/test_gradient_free_runs.py::test_a_run_that_is_stopped_goes_on_in_every_bit": (),
    LOST + "test_a_prompt_list_that_changed_between_two_parts_of_a_run_is_noticed": (*("evaluation.prompts",),),
    LOST + "test_a_run_comes_back_when_the_one_that_was_to_replace_it_cannot_evaluate_or_train": ("update",),
    LOST + "test_evaluations_are_drawn_anew_where_those_so_far_cannot_be_compared": (*("guidance_scale",),),
    "tests/runs/test_run.py::test_a_full_disk_ends_in_one_sentence_and_the_run_can_go_on": ("optimizer.pt",),
    "tests/sampling/test_families.py::test_full_draft_is_naive_autograd": FEW_FAMILIES,
    "tests/sampling/test_families.py::test_samples_are_those_of_the_plain_call_in_every_bit": FEW_FAMILIES,
    "tests/sampling/test_memory.py::test_memory_does_not_grow_with_the_steps": ("draft-lv",),
    "tests/sampling/test_recomputation.py::test_a_lora_has_the_same_gradient_and_takes_less_memory": (
        *("gradient_checkpointing-selective", "decode-blocks"),
    ),
    "tests/sampling/test_recomputation.py::test_every_family_has_the_same_images_and_gradient": FEW_FAMILIES,
    "tests/sampling/test_sampler.py::test_samples_are_those_of_the_plain_call_in_every_bit": (
        *("draft-lv-", "draft-DDIM", "draft-k-Euler"),
    ),
    "tests/sampling/test_short_prefix.py::test_every_family_takes_a_short_prefix_or_says_why_not": FEW_FAMILIES,
    "tests/sampling/test_slices.py::test_images_are_equal_in_every_bit_and_gradients_nearly": (
        *("ControlNet-halves", "FLUX.1-sliced", "FLUX.1-lean"),
    ),
    "tests/search/test_starts.py::test_the_image_of_the_latents_is_that_of_the_seed": FEW_FAMILIES,
    "tests/tracking/test_trackers.py::test_a_tracker_that_fails_is_said_once_and_the_run_goes_on": ("log_images",),
    "tests/training/test_precision.py::test_the_embedded_model_in_float16_has_the_gradient_of_float32": ("0.001",),
    "tests/training/test_trainer.py::test_a_torn_checkpoint_is_refused": (
        *("missing-learner.pt", "cut-adapter.safetensors", "noise-optimizer.pt", "cut-state.json"),
    ),
    "plugins/adversarial/tests/test_training.py::test_a_model_is_trained_on_shares_by_a_method_without_gradient": (),
    "plugins/vlm/tests/test_training.py::test_the_report_of_a_run_shows_every_question": (),
    "tests/cost/test_card.py::test_the_recipe_for_sdxl_passes_on_a_card_of_24_gb_and_flux_does_not": (),
    "tests/project/test_tutorial.py::test_the_first_part_runs_as_it_stands": (),
    "tests/reporting/test_page.py::test_a_long_run_has_no_longer_curves": (),
    "tests/runs/test_gradient_free_runs.py::test_the_pages_count_queries_and_show_what_the_method_reports": (),
    "tests/voting/test_voting.py::test_a_browser_answers_by_keys": ("390",),
}


def left_out(name: str, case: str) -> bool:
    """Whether a usual run leaves this case of the test of this name to a thorough one."""
    return not THOROUGH and name in TRIED and not any(word in case for word in TRIED[name])
