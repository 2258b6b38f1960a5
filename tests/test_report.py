"""What ``/status`` says of a file."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from agent.core.discovery import Seen, file_key
from agent.harvester import Followed, first_generation
from agent.opener import Descriptor
from agent.report import _file
from agent.unpacking import content_birth


def said(path: Path, *, packed: bool) -> dict[str, Any]:
    """Of a file of 100 bytes at the last scan, of which 250 were seen since and 30 are settled."""
    path.touch()
    with Descriptor(os.open(path, os.O_RDONLY)) as file:
        birth = content_birth(file.birth) if packed else file.birth
    followed = Followed(birth, first_generation(birth, path.name, "acme"))
    followed.seen = Seen(path.name, "acme", file_key(birth.device, birth.inode), 100, 0)
    reader = SimpleNamespace(ledger=SimpleNamespace(watermark=30), seen_to=250)
    followed.harvester = cast(Any, reader)
    return _file(followed)


def test_a_file_is_no_smaller_than_what_was_read_of_it(tmp_path: Path) -> None:
    """It grows between two scans: a lag beside it would be more than the whole file."""
    found = said(tmp_path / "a.jsonl", packed=False)
    assert (250, 30, 220) == (found["size"], found["watermark"], found["lag_bytes"])


def test_a_compressed_one_is_as_large_as_it_lies_there(tmp_path: Path) -> None:
    """Offsets are those of its content."""
    assert 100 == said(tmp_path / "a.jsonl.gz", packed=True)["size"]
