"""What a process used so far, as the kernel counts it: its CPU, its memory, whether it ended."""

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return its CPU seconds, user and system, with those of children that it waited for.

    Also of a process that ended, as long as nobody waited for it.
    """
    stat = Path(f"/proc/{pid}/stat").read_text()
    fields = stat.rpartition(")")[2].split()  # its name may hold anything
    return sum(map(int, fields[11:15])) / _TICKS_PER_S  # proc(5): utime stime cutime cstime


def threads_cpu_s(pid: int) -> float:
    """Return the CPU seconds of the threads that it has now, to the nanosecond.

    For short spans of a process whose threads stay: clock ticks are too coarse for those.
    """
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def rss_mb(pid: int) -> float:
    """Return the memory that it holds now, in 10^6 bytes; 0 where it ended."""
    return _status_mb(pid, "VmRSS")


def peak_rss_mb(pid: int) -> float:
    """Return the most memory that it ever held, in 10^6 bytes; 0 where it ended."""
    return _status_mb(pid, "VmHWM")


def ended(pid: int) -> bool:
    """Say whether our child ``pid`` ended; it can be asked what it used until it is waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _status_mb(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024 / 1e6
    return 0.0
