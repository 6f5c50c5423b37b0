"""Both rewards keep the contract of draft-core with the example programs, in every way to start them."""

from draft_reward_command import draft_register_rewards

from draft_core.testing import RewardContract

COMMAND, PER_PROMPT = draft_register_rewards()


class TestCommand(RewardContract):
    kind = "command"


class TestCommandPerPrompt(RewardContract):
    kind = "command-per-prompt"


class TestCommandPerPromptOnce(RewardContract):
    kind = "command-per-prompt"
    config = {**PER_PROMPT.small, "start": "once"}  # noqa: RUF012 declared ClassVar above
