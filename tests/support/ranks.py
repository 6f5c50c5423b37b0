"""`python -m tests.support.ranks PROCESSES MODULE FOLDER`: a module's `main(FOLDER)`, in processes of one run.

They are forked after the imports, which take most of the time of a process that does little.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

from draft_core.cli.launch import _environment, _free_port


def run_ranks(processes: int, module: str, folder: Path) -> int:
    """Runs `main` of the module in so many processes that find each other; 0 if all end well."""
    main, port = importlib.import_module(module).main, _free_port()
    started = set()
    for rank in range(processes):
        pid = os.fork()
        if not pid:
            os.environ.update(_environment(rank, processes, port))
            code = 1
            try:
                main(folder)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)
        started.add(pid)
    failed = 0
    while started:
        pid, status = os.wait()
        started.discard(pid)
        if status and not failed:  # the others would wait for it
            failed = 1
            for other in started:
                os.kill(other, signal.SIGKILL)
    return failed


if __name__ == "__main__":
    sys.exit(run_ranks(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
