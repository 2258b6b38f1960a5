"""The files of one client that wait for a turn. Lives in the worker thread.

First come, first served; but of one log that was rotated the oldest file is read first, as far as
it went when it was opened: what was written first leaves first after a pause of the agent. No
further, or an app that writes on to a rotated file would keep the others from being read.
"""

from collections.abc import Iterator, Mapping

from agent.core.series import series_of
from agent.harvester import Followed


class Waiting:
    """Files, each at most once.

    Args:
        backlogs: How far each file went when it was opened.
    """

    def __init__(self, backlogs: Mapping[Followed, int]) -> None:
        self._backlogs = backlogs
        self._series: dict[str, dict[Followed, None]] = {}
        self._series_of: dict[Followed, str] = {}  # when it came: it may be renamed meanwhile

    def __bool__(self) -> bool:
        return bool(self._series)

    def __contains__(self, followed: Followed) -> bool:
        return followed in self._series_of

    def __iter__(self) -> Iterator[Followed]:
        for files in self._series.values():
            yield from files

    def add(self, followed: Followed) -> None:
        """Let ``followed`` wait, after those that do; a second time changes nothing."""
        if followed not in self._series_of:
            series = self._series_of[followed] = series_of(followed.checkpoint.path)
            self._series.setdefault(series, {})[followed] = None

    def take(self) -> Followed:
        """Return the file whose turn it is, which does not wait any more."""
        series = next(iter(self._series))
        files = self._series.pop(series)
        followed = self._first(files)
        del files[followed], self._series_of[followed]
        if files:
            self._series[series] = files
        return followed

    def _first(self, files: dict[Followed, None]) -> Followed:
        behind = [f for f in files if self._behind(f)] if len(files) > 1 else ()
        return min(behind, key=_written_ns) if behind else next(iter(files))

    def _behind(self, followed: Followed) -> bool:
        reader = followed.harvester
        return reader is not None and reader.cursor.start < self._backlogs.get(followed, 0)


def _written_ns(followed: Followed) -> int:
    """Return when it was last written to; what is gone is written no more."""
    return 0 if followed.seen is None else followed.seen.mtime_ns
