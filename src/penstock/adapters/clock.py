"""The clocks, in integer microseconds. Every other room is handed one of these functions.

Not here: waiting (an event loop's business) and virtual time (`testing/`, `sim/`).
"""

import resource
import time

__all__ = ["boot_us", "now_us", "process_cpu_us", "wall_us"]


def now_us() -> int:
    """Return monotonic time, µs since an arbitrary origin. Comparable between processes of one machine (Linux)."""
    return time.monotonic_ns() // 1_000


def boot_us() -> int:
    """Return monotonic time that goes on while the machine is suspended, µs: for promises made to other machines."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000


def wall_us() -> int:
    """Return wall-clock time, µs since the Unix epoch. May jump; never subtract two of these to time anything."""
    return time.time_ns() // 1_000


def process_cpu_us() -> int:
    """Return the CPU time this process has used so far, user and system, all threads, µs."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return round((used.ru_utime + used.ru_stime) * 1_000_000)
