"""Which files are one log that was rotated. Pure."""

import re

_ENDINGS = re.compile(r"(?:(?:[\dT:]*\d|zg|tsz|dlo|kab)[.\-_~])+")
"""What rotation appends to a name, backwards: so a name that is none costs one look at its end."""


def series_of(path: str) -> str:
    """Return the path that ``path`` was written at, if its name is one that rotation gave.

    ``a/x.jsonl.2.gz`` and ``a/x.jsonl-20260131`` are of the series ``a/x.jsonl``.
    """
    directory, slash, name = path.rpartition("/")
    found = _ENDINGS.match(name[::-1])
    written_as = name if found is None else name[: -found.end()]
    return directory + slash + (written_as or name)
