"""Process settings that pay, set before torch is loaded and in each loader process; `DA_TUNE=0` in the environment
leaves everything as it is.

Memory: glibc gives blocks above 32 MiB back to the kernel at every free, and each new one costs a page fault per
4 KiB. With the thresholds raised, the blocks of one update serve the next; the process keeps its peak of memory.

Threads: OpenMP threads that wait for each other spin for some microseconds and then sleep, so that processes which
share cores do not burn each other's time. To sleep at once (OMP_WAIT_POLICY=PASSIVE) costs more where operations are
short: it doubles the time of the cross-entropy in strips. A policy already in the environment is kept.
"""

import ctypes
import os
import sys

KEPT_BYTES = 1 << 30  # freed blocks up to this size stay with the process
SPINS = "1000"  # of a waiting thread, before it sleeps
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def tune() -> None:
    """Apply the settings, once per process. What the C library does not offer is left out."""
    if os.environ.get("DA_TUNE") == "0":
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        # Before 2.35 glibc refuses more than 32 MiB. The second setting without the first would turn off the threshold
        # that grows by itself, and make every block of 128 KiB cost its page faults.
        if mallopt and any(mallopt(_M_MMAP_THRESHOLD, size) for size in (KEPT_BYTES, 32 << 20)):
            mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
