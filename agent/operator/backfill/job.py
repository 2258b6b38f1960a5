"""What was asked for, and the directory that remembers how far it is done.

Each job has a state directory of its own, named after what was asked for: the same command goes on
where it was, another one begins anew. Beside the checkpoints lies ``job.json``.
"""

import json
import os
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from agent.clock import Clock
from agent.config import Config
from agent.errors import ConfigError, StoreError
from agent.operator.backfill.selection import Wanted
from agent.store import Store

FILE = "job.json"
NAME_CHARACTERS = 12


class Asked(Struct, frozen=True, kw_only=True):
    """What makes two backfills the same one.

    Attributes:
        since_s, until_s: Of event times, seconds since 1970 UTC.
    """

    wanted: Wanted
    topic: str
    since_s: float | None = None
    until_s: float | None = None

    @property
    def name(self) -> str:
        return sha256(_json(self)).hexdigest()[:NAME_CHARACTERS]

    @property
    def whole(self) -> bool:
        """Return whether what is settled was sent, whatever its time."""
        return self.since_s is None and self.until_s is None


class Job(Struct, frozen=True, kw_only=True):
    """A backfill that was begun; ``done_s`` is when it was through, in seconds since 1970.

    ``again``: also what was sent before is sent.
    """

    asked: Asked
    again: bool
    begun_s: float
    done_s: float | None = None
    lives: int = field(default=1)


def place(config: Config, asked: Asked, state: Path | None) -> Path:
    """Return the state directory of a job."""
    return state or config.agent.state_dir / "backfill" / asked.name


def begin(directory: Path, asked: Asked, *, again: bool, node: str, clock: Clock) -> Job:
    """Go on with a job, or begin it; one that is done and wanted ``again`` begins anew.

    Raises ``AgentError`` where the directory is in use, cannot be used, or is another job's.
    """
    before = read(directory)
    if before is not None and before.asked != asked:
        detail = f"found {directory}, where another backfill keeps its state"
        raise ConfigError("--state", f"{detail}; allowed: an empty directory, or its own")
    if before is None or anew(before, again=again):
        store = Store.open(directory, node)
        try:
            store.save([], store.load(), store.spooled())
        finally:
            store.close()
        job = Job(asked=asked, again=again, begun_s=clock.wall())
    else:
        job = replace(before, done_s=None, lives=before.lives + 1)
    write(directory, job)
    return job


def anew(before: Job, *, again: bool) -> bool:
    """Return whether a job is not gone on with: it is wanted again, and was begun otherwise."""
    return again and (before.done_s is not None or not before.again)


def end(directory: Path, job: Job, clock: Clock) -> None:
    """Note that all was sent."""
    write(directory, replace(job, done_s=clock.wall()))


def read(directory: Path) -> Job | None:
    """Return the job of a directory; None: there is none. Raises ``StoreError``."""
    path = directory / FILE
    try:
        return msgspec.convert(json.loads(path.read_bytes()), Job)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{path}: {error}: delete it to begin anew") from error


def write(directory: Path, job: Job) -> None:
    path, new = directory / FILE, directory / f"{FILE}.new"
    try:
        with new.open("wb") as file:
            file.write(_json(job))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error


def others(config: Config, asked: Asked) -> list[Path]:
    """Return where other jobs keep what they have sent to the same topic, whole."""
    found = []
    for path in sorted((config.agent.state_dir / "backfill").glob(f"*/{FILE}")):
        job = read(path.parent)
        same = job is not None and job.asked.topic == asked.topic
        if job is not None and same and job.asked.whole and job.asked != asked:
            found.append(path.parent)
    return found


def _json(value: Struct) -> bytes:
    """Encode with the standard library: a path need not be UTF-8, which msgspec insists on."""
    return json.dumps(msgspec.to_builtins(value), indent=1).encode()
