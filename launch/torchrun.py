"""torchrun as the launch scripts start it, once on each node.

SIGUSR1, SIGINT, and SIGUSR2, by which the scripts hand on a Ctrl-C, are not for torchrun but for the processes it
starts (da/engine/stop.py). Those that run already and do not listen yet get them when they do; those that have yet to
start find a file beside DA_STOP_FILE.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

HELD = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


def hand_on() -> None:
    while True:
        name = signal.Signals(signal.sigwait(HELD)).name
        with contextlib.suppress(OSError):  # a full disk
            Path(f"{os.environ['DA_STOP_FILE']}.{name}").touch()
        if name != "SIGINT" and "SLURM_JOB_ID" not in os.environ:  # else they have had it from the terminal, from Slurm
            subprocess.run(["pkill", f"-{name.removeprefix('SIG')}", "-P", str(os.getpid())], check=False)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)  # also in the processes started here, until they listen
    threading.Thread(target=hand_on, daemon=True).start()
    from torch.distributed.elastic.multiprocessing.api import SignalException  # takes seconds
    from torch.distributed.run import main

    try:
        main()
    except SignalException as stopped:  # no traceback: its processes have saved and said so
        sys.exit(128 + stopped.sigval)
