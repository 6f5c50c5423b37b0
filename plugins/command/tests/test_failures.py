"""Every way in which a program can fail is one sentence with its last words, and leaves no process and no file."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import torch
from draft_reward_command import CommandConfig
from draft_reward_command.reward import CommandReward

from draft_core.errors import RecipeError, RewardError

BOTH = pytest.mark.parametrize("start", ["batch", "once"])
GOOD = "import sys\nfor line in sys.stdin: print(1, flush=True)\n"


def failure(reward: CommandReward, images: torch.Tensor) -> str:
    with pytest.raises(RewardError) as caught:
        reward(images, [""] * len(images))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("reward 'command': ")
    assert caught.value.next
    assert reward.program._child is None
    return text


@BOTH
def test_one_that_hangs_is_ended_with_all_that_it_started(made, images, tmp_path, start):
    program = """
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open("pids", "w").write(f"{child.pid}")
        print("loading", file=sys.stderr, flush=True)
        time.sleep(60)
    """
    began = time.monotonic()
    text = failure(made(program, timeout=4, start=start), images)
    assert time.monotonic() - began < 20
    assert "it has not answered within 4 s; its last words: loading; raise `timeout`" in text
    assert is_gone(int((tmp_path / "pids").read_text()))


def is_gone(pid: int) -> bool:
    """Whether a process ends within a moment; one that is dead and not yet collected by its parent has ended."""
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
        if not state.strip() or state.startswith("Z"):
            return True
        time.sleep(0.05)
    return False


def test_one_that_answers_and_does_not_end_is_late(made, images):
    program = GOOD + "sys.stdout.flush(); import os, time; os.close(1); time.sleep(60)"
    assert "it has not answered within 1 s" in failure(made(program, timeout=1), images)


def test_one_that_keeps_its_answers_until_its_input_ends_is_late_if_it_is_started_once(made, images):
    program = "import sys\nlines = list(sys.stdin)\nfor line in lines: print(1)\n"
    assert made(program)(images, [""] * 3).tolist() == [1.0] * 3
    assert "flush each answer as it is printed" in failure(made(program, timeout=1, start="once"), images)


@BOTH
def test_an_exit_code_is_told_with_the_last_lines_of_the_standard_error(made, images, start):
    program = """
        import sys
        print(0.5, flush=True)
        for number in range(9):
            print("line", number, file=sys.stderr)
        sys.exit(3)
    """
    text = failure(made(program, start=start), images)
    assert "it ended with exit code 3 after 1 of 3 answers; its last words: line 4 | line 5 | " in text
    assert "line 8; try it by hand with a path on its standard input" in text


def test_an_exit_code_is_told_even_if_every_image_was_answered(made, images):
    assert "it ended with exit code 7 after 3 of 3 answers" in failure(made(GOOD + "sys.exit(7)"), images)


def test_a_traceback_ends_in_its_last_line(made, images):
    assert "ValueError: no such colour;" in failure(made("raise ValueError('no such colour')"), images)


@BOTH
def test_a_signal_is_told_by_its_name(made, images, start):
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert "it was ended by SIGKILL after 0 of 3 answers" in failure(made(program, start=start), images)


@BOTH
@pytest.mark.parametrize(
    ("answers", "count"), [("1\\n2\\n", 2), ("1\\n2", 2), ("", 0), ("1\\n2\\n3\\n4\\n", 4), ("1\\n2\\n3\\n\\n", 4)]
)
def test_too_few_and_too_many_answers_are_counted(made, images, answers, count, start):
    program = (
        f"import sys; sys.stdout.write('{answers}'); sys.stdout.flush(); sys.stdin.read(100 if {count} > 3 else 0)"
    )
    text = failure(made(program, start=start), images)
    assert f"it answered 3 images by {count} lines; let it print one line for each image" in text
    assert ("until its input ends" in text) == (start == "once")


@BOTH
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("NaN", "line 2 of its answers, 'NaN', is no finite number"),
        ('{"score": Infinity}', "is no finite number"),
        ("1e39", "is no finite number"),
        ("1" + "0" * 400, "is no finite number"),
        ("Loading model ...", "line 2 of its answers, 'Loading model ...', is no JSON; answer each image by one line"),
        ("", "line 2 of its answers, '', is no JSON"),
        ("\xff\xfe", "is no JSON"),
        ("[" * 10_000, "is no JSON"),
        ("true", "line 2 of its answers, 'true', has no score"),
        ('"0.5"', "has no score"),
        ("[0.5]", "has no score"),
        ('{"Score": 1}', "has no score"),
        ('{"score": null}', "has no score"),
        ('{"score": 1, "image": "/other.png"}', "line 2 of its answers is about another image, '/other.png'"),
    ],
)
def test_an_answer_that_is_no_score_is_named(made, images, answer, said, start):
    program = (
        f"import sys\nsys.stdout.reconfigure(encoding='latin-1')\nprint(1)\nprint({answer!r})\nprint(3, flush=True)\n"
    )
    assert said in failure(made(f"{program}sys.stdin.read()", start=start), images)


def test_a_flood_is_ended_early(made, images):
    program = "import sys\nwhile True: sys.stdout.write('x' * 10_000)\n"
    began = time.monotonic()
    assert "bytes and more for 3 images" in failure(made(program), images)
    assert time.monotonic() - began < 20


def test_what_is_printed_between_two_batches_is_not_taken_for_an_answer(made, images):
    reward = made(
        "import sys, time\nfor line in sys.stdin: print(1, flush=True); time.sleep(.1); print(2, flush=True)",
        start="once",
    )
    reward(images[:1], [""])
    time.sleep(1)
    said = failure(reward, images[:1])  # a line may come in two parts
    assert "it printed '2" in said
    assert "without being asked" in said


def test_one_that_is_started_once_and_dies_is_started_again_by_the_next_call(made, images):
    program = "import sys\nfor line in sys.stdin:\n    print(1, flush=True)\n    sys.exit()\n"
    reward = made(program, start="once")
    for _ in range(2):
        assert reward(images[:1], [""]).tolist() == [1.0]
        child = reward.program._child
        child.process.wait()
        assert "it answered 1 images by 0 lines" in failure(reward, images[:1])


def test_one_that_does_not_read_fails_by_its_answers_alone(made, images):
    assert made("print(1); print(2); print(3)")(images, [""] * 3).tolist() == [1.0, 2.0, 3.0]


# Before anything is scored


def refusal(tmp_path: Path, *command: str) -> str:
    with pytest.raises(RewardError) as caught:
        CommandReward(CommandConfig(command=command, folder=str(tmp_path)))
    return str(caught.value)


def test_a_program_that_is_not_there_is_refused_when_the_reward_is_built(tmp_path):
    assert refusal(tmp_path, "no-such-program", "x") == (
        "reward 'command': no-such-program x: there is no program no-such-program on PATH; "
        "check the word, or install it."
    )
    assert refusal(tmp_path, "./score") == (
        f"reward 'command': ./score: there is no program {tmp_path / 'score'}; check the path."
    )
    (tmp_path / "score").write_text("#!/bin/sh\n")
    assert f"write ./score for the file in {tmp_path}" in refusal(tmp_path, "score")


def test_a_file_that_is_not_executable_is_refused_when_the_reward_is_built(tmp_path):
    (tmp_path / "score").write_text("#!/bin/sh\n")
    assert "the program is not executable; make it so with chmod +x ./score, or name its interpreter" in refusal(
        tmp_path, "./score"
    )


@pytest.mark.parametrize("text", ["print(1)\n", "#!/no/such/interpreter\n"])
def test_a_script_without_an_interpreter_cannot_be_started(tmp_path, images, text):
    (tmp_path / "score").write_text(text)
    (tmp_path / "score").chmod(0o755)
    reward = CommandReward(CommandConfig(command=("./score",), folder=str(tmp_path)))
    said = failure(reward, images)
    assert "it cannot be started (" in said
    assert "begin a script by a line such as #!/usr/bin/env python3" in said


@pytest.mark.parametrize("fields", [{"command": ()}, {"command": "score"}, {"command": ("x",), "timeout": 0}])
def test_fields_that_mean_nothing_are_refused(fields):
    with pytest.raises(RecipeError, match=r"^CommandConfig: "):
        CommandConfig(**fields)
