"""What a table was measured on: figures of another machine or another version are others."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import confluent_kafka

LIBRARIES = ("aiokafka", "msgspec", "isal")


def machine() -> dict[str, str]:
    """Return the machine, and the versions of what runs on it."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{pages * page_bytes / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "feedback-agent": version("feedback-agent"),
        **{name: version(name) for name in LIBRARIES},
    }


def embedded_broker() -> str:
    """Return what the embedded broker is."""
    return f"librdkafka {confluent_kafka.libversion()[0]}, mock cluster of 3"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()  # other processors than x86 name no model
