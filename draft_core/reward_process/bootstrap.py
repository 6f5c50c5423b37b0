"""The program of a worker: finds this core, keeps prints out of the pipe of answers, then answers until its input ends.

It is run by its path, in any Python 3, and imports nothing but the standard library before it knows that it can.
"""

import contextlib
import importlib.util
import json
import os
import sys

LOWEST = (3, 10)


def main() -> None:
    """Speaks first: that it is there, or what is missing."""
    answers, questions = os.fdopen(os.dup(1), "wb", 0), os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)  # what a reward prints goes to the standard error, also from C
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    sys.path = [folder for folder in sys.path if folder != os.path.dirname(os.path.abspath(__file__))]
    try:
        if sys.version_info < LOWEST:
            found = ".".join(map(str, sys.version_info[:3]))
            raise ImportError(f"it is Python {found}, and draft-core needs {LOWEST[0]}.{LOWEST[1]} or newer")
        find_core(sys.argv[1])
        from draft_core.reward_process.serve import serve
    except ImportError as error:
        answers.write(json.dumps({"missing": {"what": str(error), "missing": error.name}}).encode() + b"\n")
        return
    serve(questions, answers)


def find_core(folder: str) -> None:
    """Makes `draft_core` the package in that folder: that alone, nothing else that is installed beside it."""
    place = os.path.join(folder, "__init__.py")
    spec = importlib.util.spec_from_file_location("draft_core", place, submodule_search_locations=[folder])
    assert spec is not None and spec.loader is not None  # noqa: PT018
    sys.modules["draft_core"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
