"""SIGINT as it comes from a terminal, and as SIGUSR2 by way of the launch script. Imports nothing heavy: the command
line listens for it before anything else."""

import signal

INTERRUPTS = (signal.SIGINT, signal.SIGUSR2)


def stop_now(*_: object) -> None:
    """The handler where there is nothing to save, or where no one wants to wait for it."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)  # one Ctrl-C may come both ways: not twice
    raise KeyboardInterrupt
