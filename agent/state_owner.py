"""Who owns a state directory, asked of the kernel: to try the lock could end an agent that starts
in that very moment.
"""

import os
from pathlib import Path


def owner(state_dir: Path) -> str | None:
    """Return the pid of the agent that runs over ``state_dir``, None if nobody is seen to.

    An agent in another PID namespace, as that of another container, is not seen: proc_locks(5).
    """
    try:
        status = (state_dir / "lock").stat()
        held = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in held:
        fields = line.split()
        if "FLOCK" in fields and device in fields:
            return fields[fields.index(device) - 1]
    return None
