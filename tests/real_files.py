"""The model's programs over real files, found by the real scanner and opened by the real opener.

What apps, rotation and people do to files happens in a directory: inodes, their reuse, names,
holes and the descriptors of deleted files are the file system's. Three things are told and not
real, so that a seed is the same program again: time (a file's birth and mtime are the program's,
so that waits and graces run out at once, and no two writes share a tick), the names of sources
(numbered as they come; inodes differ from run to run), and hints.

The books know of each line where on the disk it stands. It must arrive as long as it stands
anywhere; a line that was destroyed is excused only if the agent had no way to read it.
"""

import math
import os
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple, cast

import pytest
from msgspec.structs import replace

from agent import wire
from agent.core.batch import Batch
from agent.core.continuation import CONTINUE_BYTES_MIN, STILL_S
from agent.core.discovery import Scan, client_of
from agent.core.identity import Birth
from agent.harvester import Harvester
from agent.opener import Descriptor, Refused, birth_of, open_beneath
from agent.scanner import Scanner
from tests.model import PATHS, STEPS, STORM, Disk, Exit, Line, Program, World, number_of

OUTSIDE = "../out/"
SECRET = OUTSIDE + "secret.jsonl"
"""Lines that a symbolic link leads to."""
CLIENTS = sorted({client_of(path, 1) for path in PATHS})
KEPT = 3
STOP_TURNS = 100
CATCH_UP_TURNS = 8
LINGER_SCANS = 25
BLANK = b" " * 20 + b"\n"
"""No shorter than a bad line: what is in flight is bounded in lines."""
BOM = b"\xef\xbb\xbf"
OVER = b',"x":"' + b"y" * 4200 + b'"}\n'

_CLIENT = re.compile(rb'"client":"(\w+)"')


class Text(NamedTuple):
    """What an app writes at once: a line, or what is none (``number`` is None)."""

    kind: str  # what a line arrives as: event, bad, oversize; or blank, hole, torn
    number: int | None
    body: bytes
    rest: bytes = b""  # of a torn line


class Copy(NamedTuple):
    """How a file was made of another.

    ``settled`` says where the last line of the original ended that was settled on disk, if nothing
    in the making keeps the agent from knowing whose copy it is; else 0.
    """

    original: "File"
    made_s: float
    settled: int


class File:
    """One file ever made, and what its writers know of it."""

    def __init__(self, number: int, birth: Birth, client: str) -> None:
        self.number = number
        self.birth = birth  # as told to the agent
        self.clients = {client}
        self.names: set[str] = set()  # none: deleted
        self.size = 0
        self.lines: list[Line] = []
        self.gaps: set[int] = set()  # where blank lines and holes end
        self.torn: tuple[int, bytes] | None = None
        self.epoch = 0
        self.copy: Copy | None = None
        self.choice = False  # the evidence leaves a choice: what it holds may go twice
        self.read_as: tuple[str, int] | None = None  # source and generation of this epoch


class RealDisk(Disk):
    """The files beneath ``root``, and some beside it. Names are relative to ``root``."""

    def __init__(self, world: "RealWorld", root: Path) -> None:
        super().__init__(world)
        self.root = root
        self.named: dict[str, File] = {}
        self.made: list[File] = []
        self.places: defaultdict[int, set[File]] = defaultdict(set)  # where a line stands now
        self.written_in: defaultdict[int, list[File]] = defaultdict(list)  # and where it ever did
        self.kinds: defaultdict[int, set[str]] = defaultdict(set)
        self.reused_inodes = 0
        self.copies_continued = 0
        self.copies_of_choice = 0
        self._began_s = 0.0  # this life of the agent
        self._outgrown: set[File] = set()  # copies longer than their original when last seen
        self._handed: set[int] = set()  # lines read in this life
        self._by_choice: set[int] = set()  # lines read of files that leave a choice
        self._by_real: dict[Birth, File] = {}
        self._by_birth: dict[Birth, File] = {}
        self._ticks = 0
        for directory in (*(f"{client}/old" for client in CLIENTS), OUTSIDE):
            (root / directory).mkdir(parents=True)
        (root / SECRET).write_bytes(world.next_line(bad=False)[1])
        self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self._scanner = Scanner(root, ["*.jsonl", "*.jsonl.*"])

    # ---- what apps and people do

    def write(self, path: str, *texts: Text) -> None:
        """Append, what is left of a torn line first."""
        file = self.named.get(path) or self._create(path)
        with (self.root / path).open("ab", buffering=0) as log:
            if file.torn is not None:
                number, rest = file.torn
                file.size += log.write(rest)
                self._wrote(file, "event", number)
            for kind, number_or_none, body, rest in texts:
                if kind == "hole":
                    log.truncate(file.size + len(body))
                else:
                    log.write(body)
                file.size += len(body)
                if number_or_none is None:
                    file.gaps.add(file.size)
                elif kind == "torn":
                    file.torn = number_or_none, rest
                else:
                    self._wrote(file, kind, number_or_none)
        self._touch(path)

    def line(self, *, bad: bool = False) -> Text:
        number, body = self.world.next_line(bad=bad)
        return Text("bad" if bad else "event", number, body)

    def append(self, path: str, count: int, *, bad: bool = False) -> None:
        self.write(path, *(self.line(bad=bad) for _ in range(count)))

    def tear(self, path: str) -> None:
        """Write the first part of a line, enough to know it by."""
        file = self.named.get(path)
        if file is None or file.torn is None:
            line = self.line()
            cut = line.body.index(b'"session_id"')
            self.write(path, Text("torn", line.number, line.body[:cut], line.body[cut:]))

    def move(self, path: str, to: str) -> None:
        """Rename, within the tree or out of it, perhaps over what is there."""
        file, over = self.named[path], self.named.get(to)
        if over is file:
            return  # rename(2) does nothing between two names of one file
        (self.root / path).rename(self.root / to)
        del self.named[path]
        file.names.remove(path)
        self._name(file, to)
        self._adopt_clients(file)
        if over is not None:
            self._unname(over, to)

    def delete(self, path: str) -> None:
        (self.root / path).unlink()
        self._unname(self.named.pop(path), path)

    def link(self, path: str, to: str) -> None:
        os.link(self.root / path, self.root / to)
        self._name(self.named[path], to)

    def truncate(self, path: str, size: int = 0) -> None:
        file = self.named[path]
        os.truncate(self.root / path, size)
        self._touch(path)
        self._take_away(file, size)
        file.size, file.torn = size, None
        file.gaps = {end for end in file.gaps if end <= size}
        file.epoch += 1  # what is gone here may stand in a copy, and arrive later
        if not size:
            file.read_as, file.copy, file.choice = None, None, False

    def cut(self, path: str) -> None:
        """Take the end away, back to the end of some line, as a power cut does."""
        file = self.named[path]
        if file.lines:
            self.truncate(path, self.world.random.choice(file.lines).end)
            file.choice = True

    def copy(self, path: str, to: str) -> None:
        original = self.named[path]
        made = self._create(to)
        shutil.copyfile(self.root / path, self.root / to)
        self._touch(to)
        made.copy = Copy(original, self.world.clock.now, 0)
        made.lines, made.gaps = [*original.lines], {*original.gaps}
        made.torn, made.size = original.torn, original.size
        for line in made.lines:
            self._place(made, line.number)

    def copy_truncate(self, path: str, to: str) -> None:
        """Copy, then cut, as rotation does; what is written in between is lost."""
        original, draw = self.named[path], self.world.random
        settled = self._settled(original, client_of(to, 1))
        self.copy(path, to)
        self.named[to].copy = Copy(original, self.world.clock.now, settled)
        if draw.random() < 0.2:
            self.append(path, draw.randint(1, 3))
        size = original.size
        self.truncate(path)
        if draw.random() < 0.15:  # an app that does not append goes on where it was
            self.write(path, Text("hole", None, bytes(size)), self.line())

    def free(self, path: str) -> str:
        """Return ``path``, or a name like it that nobody uses."""
        while os.path.lexists(self.root / path):
            path += ".x"
        return path

    # ---- what the agent sees

    def scan(self) -> Scan:
        return self._scanner.scan(self.world.node.intake.known)

    def open_file(self, path: str) -> Descriptor | Refused:
        opened = open_beneath(self._root_fd, path, links_max=None)  # as the agent does
        if isinstance(opened, Descriptor):
            file = self._by_real[opened.birth]
            opened.birth = file.birth
            if file.copy is not None and self._last_seen(file.copy.original) < file.size:
                self._outgrown.add(file)
        return opened

    def _last_seen(self, original: File) -> float:
        """Return how long the agent takes ``original`` for, when it is asked for its copy."""
        known = self.world.node.registry.get(original.birth)
        if known is None or known.seen is None:
            return math.inf  # not met yet, or gone
        return known.seen.size if known.harvester is None else original.size

    def source_id(self, birth: Birth) -> str:
        return f"{self._by_birth[birth].number:016x}"

    # ---- the books

    def opened(self, harvester: Harvester) -> None:
        """Judge where the agent begins to read a copy: the one place that knows what it may do.

        What was settled of the original is passed over, unless the evidence leaves a choice: too
        few bytes were settled, the original was not cut at once, others have its lines too, or its
        client is another one by now; it is
        shorter than the copy as far as the agent knows, or there was no time to look before it was
        too late to know.
        """
        file, base = self.file_of(harvester), harvester.base
        if file.copy is None or file.choice:
            return
        _, made_s, settled = file.copy
        others = any(len(self.written_in[line.number]) > 2 for line in file.lines)
        if settled < CONTINUE_BYTES_MIN or others or len(file.clients) > 1:
            file.choice = True
        elif base.watermark < settled:
            waited_s = self.world.clock.now - max(made_s, self._began_s)
            assert waited_s >= STILL_S or file in self._outgrown, (
                f"a copy is read from {base.watermark}, its original was settled to {settled}"
            )
            file.choice = True
        self.copies_of_choice += file.choice
        self.copies_continued += not file.choice
        if not file.choice:
            self._check_one_reader(harvester)

    def _check_one_reader(self, harvester: Harvester) -> None:
        """Two readers of one generation would have two watermarks."""
        who = harvester.base.source_id, harvester.base.generation
        for other in self.world.node.harvesters.values():
            busy = other is not harvester and other.ledger.in_flight_bytes > 0
            assert not busy or (other.base.source_id, other.base.generation) != who, (
                f"{who} is read by another one, and not settled"
            )

    def lines_of(self, harvester: Harvester, start: int, end: int) -> list[Line]:
        file = self.file_of(harvester)
        held = [line for line in file.lines if start < line.end <= end]
        assert end in file.gaps or (held and held[-1].end == end), "a chunk must end with a line"
        file.read_as = harvester.base.source_id, harvester.base.generation
        numbers = {line.number for line in held}
        if file.choice:
            self._by_choice |= numbers
        self.world.copies_allowed += len(numbers & self.world.read & self._by_choice)
        self._handed |= numbers
        return held

    def crashed(self) -> None:
        """What only the agent held is gone, and what it had read is forgotten."""
        for file in self.made:
            if not file.names:
                self._take_away(file, 0)
        self._handed.clear()
        self._began_s = self.world.clock.now
        self._let_go()

    def complete(self) -> None:
        """Let files come back, links go that hide what is unknown, and most torn lines end."""
        for path in [path for path in self.named if path.startswith(OUTSIDE)]:
            self.come_back(path)
        for file in [file for file in self.made if len(file.names) > 1]:
            if self.world.node.registry.get(file.birth) is None:
                for name in sorted(file.names)[1:]:
                    self.delete(name)
        for path in [path for path, file in self.named.items() if file.torn is not None]:
            if self.world.random.random() < 0.7:
                self.write(path)

    def come_back(self, path: str) -> None:
        """Move a file from where it was moved to back to the directory of its client."""
        name = path.rpartition("/")[2].rpartition("~")[2]
        self.move(path, self.free(f"{min(self.named[path].clients)}/{name}"))

    def close(self) -> None:
        self._let_go()
        os.close(self._root_fd)

    def deleted_lines(self) -> set[int]:
        """Return the lines that only the agent can still read."""
        return {line.number for file in self.made if not file.names for line in file.lines}

    def file_of(self, harvester: Harvester) -> File:
        return self._by_birth[cast(Descriptor, harvester.file).birth]

    def _let_go(self) -> None:
        for harvester in self.world.node.open_harvesters():
            harvester.file.close()

    def _settled(self, original: File, client: str) -> int:
        """Return where the last settled line of ``original`` ends on disk, if a copy with
        ``client`` can tell: 0 if it was cut short, others have its lines too, it is another
        client's, or was taken for gone. A settled hole says nothing: one looks like another.
        """
        known = self.world.node.registry.get(original.birth)
        row = self.world.stored.get(original.read_as) if original.read_as is not None else None
        if known is None or row is None or row.client != client or original.choice:
            return 0
        gone = known.harvester.gone_at if known.harvester is not None else known.checkpoint.gone_at
        alone = all(self.written_in[line.number] == [original] for line in original.lines)
        if not alone or gone is not None or row.gone_at is not None:
            return 0
        return max((line.end for line in original.lines if line.end <= row.watermark), default=0)

    def _create(self, path: str) -> File:
        fd = os.open(self.root / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            real = birth_of(fd)
        finally:
            os.close(fd)
        assert real not in self._by_real, "a birth tells any two files apart"
        self.reused_inodes += any(other.inode == real.inode for other in self._by_real)
        birth = replace(real, born_ns=self._now_ns())
        file = self._by_real[real] = self._by_birth[birth] = File(
            len(self.made), birth, client_of(path, 1)
        )
        self.made.append(file)
        self._name(file, path)
        return file

    def _now_ns(self) -> int:
        self._ticks += 1
        return int(self.world.clock.wall() * 1000) * 1_000_000 + self._ticks

    def _touch(self, path: str) -> None:
        now_ns = self._now_ns()
        os.utime(self.root / path, ns=(now_ns, now_ns))

    def _name(self, file: File, path: str) -> None:
        self.named[path] = file
        file.names.add(path)

    def _unname(self, file: File, path: str) -> None:
        file.names.remove(path)
        self._adopt_clients(file)
        if file.names:
            return
        if file.torn is not None:  # what there is of it is all there will be
            self._wrote(file, "unterminated", file.torn[0])
        if not any(self.file_of(h) is file for h in self.world.node.open_harvesters()):
            self._take_away(file, 0)

    def _adopt_clients(self, file: File) -> None:
        """A file without a name of its own client's may be taken for another's."""
        clients = {client_of(name, 1) for name in file.names if not name.startswith(OUTSIDE)}
        if not clients & file.clients:
            file.clients |= clients

    def _place(self, file: File, number: int) -> None:
        self.places[number].add(file)
        self.written_in[number].append(file)

    def _wrote(self, file: File, kind: str, number: int) -> None:
        file.torn = None
        file.lines.append(Line(number, file.size))
        if self.kinds[number]:  # it was torn when it was copied: now each file has one
            self.world.copies_allowed += 1
        self.kinds[number].add(kind)
        self._place(file, number)
        self.world.life_of.setdefault(number, (file.number, file.epoch))

    def _take_away(self, file: File, size: int) -> None:
        """Take away the lines beyond ``size``.

        Those that stand nowhere else are excused if they were never read, and the ones that were
        only if the agent dies too early.
        """
        world = self.world
        for line in [line for line in file.lines if line.end > size]:
            file.lines.remove(line)
            places = self.places[line.number]
            places.discard(file)
            if places:
                continue
            known = line.number in self._handed or line.number in world.spooled
            (world.excused_by_crash if known else world.excused).add(line.number)


class RealWorld(World):
    """A world whose files are real, in ``directory``."""

    disk: RealDisk

    def __init__(self, seed: int, directory: Path) -> None:
        self.directory = directory
        super().__init__(seed)

    def make_disk(self) -> RealDisk:
        self.lines = 0
        return RealDisk(self, self.directory / "root")

    def check_sent(self, outlet: Exit, batch: Batch) -> None:
        """Each line goes out as what it was written as, and in the name of who wrote it."""
        super().check_sent(outlet, batch)
        for record in wire.records(batch):
            number, reason = number_of(record.value), dict(record.headers).get("reason", b"event")
            kind = reason.decode()
            if kind not in {"event", "oversize", "unterminated"}:
                kind = "bad"
            assert kind in self.disk.kinds[number], f"line {number} goes out as {kind}"
            told = _CLIENT.search(record.value)
            clients = {c for file in self.disk.written_in[number] for c in file.clients}
            assert told is None or told[1].decode() in clients, f"line {number} of {told[1]!r}"

    def check_all_arrived(self) -> None:
        super().check_all_arrived()
        assert self.broker.arrived <= self.life_of.keys(), "a line arrived that nobody wrote"


_OF_FILES = {
    "append": 20,
    "torn": 4,
    "bad": 3,
    "over": 1,
    "crlf": 1,
    "blank": 1,
    "hole": 1,
    "bom": 1,
    "rotate": 3,
    "shift": 3,
    "move_away": 2,
    "move_back": 2,
    "copy_truncate": 5,
    "copy": 1,
    "truncate": 2,
    "cut": 1,
    "delete": 2,
    "recreate": 2,
    "replace": 2,
    "link": 2,
    "symlink": 1,
    "catch_up": 6,
    "linger": 1,
    "stop": 1,
}


class RealProgram(Program):
    """Some dozens of random steps in a new directory beneath ``parent``, removed at the end."""

    world: RealWorld
    scripts = (STEPS | _OF_FILES, 120), (STORM | _OF_FILES, 220)

    def __init__(self, seed: int, parent: Path) -> None:
        self.directory = parent / f"program-{seed}"
        self.done: list[str] = []
        super().__init__(seed)

    def make_world(self, seed: int) -> RealWorld:
        return RealWorld(seed, self.directory)

    def run(self) -> None:
        disk = self.world.disk
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agent.core.identity.source_id", disk.source_id)
            try:
                super().run()
            finally:
                shutil.rmtree(self.directory)

    def step(self, name: str) -> None:
        self.done.append(name)
        super().step(name)

    def say(self, *names: str) -> None:
        """Note which files the step was about, for the account of a failing program."""
        self.done[-1] = " ".join((self.done[-1], *names))

    def path(self) -> str:
        path = super().path()
        self.say(path)
        return path

    def standing(self) -> str | None:
        """Return one of the files that apps write, if there is one."""
        paths = [path for path in PATHS if path in self.world.disk.named]
        return self._one_of(paths)

    def any_standing(self) -> str | None:
        return self._one_of([*self.world.disk.named])

    def _one_of(self, paths: list[str]) -> str | None:
        if not paths:
            return None
        path = self.world.random.choice(paths)
        self.say(path)
        return path

    def new_name(self, path: str) -> str:
        disk = self.world.disk
        return disk.free(f"{path}.{len(disk.made)}")

    def hinted(self, path: str) -> None:
        """The kernel says that a file was written to; sometimes it does not, or too late."""
        if self.world.random.random() < 0.7:
            self.world.node.sources.hint(path)

    # ---- what is written

    def write(self, *texts: Text) -> None:
        path = self.path()
        self.world.disk.write(path, *texts)
        self.hinted(path)

    def append(self) -> None:
        self.write(*(self.world.disk.line() for _ in range(self.world.random.randint(1, 12))))

    def torn(self) -> None:
        path = self.path()
        self.world.disk.tear(path)
        self.hinted(path)

    def bad(self) -> None:
        self.write(self.world.disk.line(bad=True))

    def over(self) -> None:
        _, number, body, _ = self.world.disk.line()
        self.write(Text("oversize", number, body[:-2] + OVER))

    def crlf(self) -> None:
        kind, number, body, _ = self.world.disk.line()
        self.write(Text(kind, number, body[:-1] + b"\r\n"))

    def blank(self) -> None:
        self.write(Text("blank", None, BLANK), self.world.disk.line())

    def hole(self) -> None:
        """Leave a hole of the file system, which reads as NULs, and mostly a line behind it."""
        draw = self.world.random
        behind = [self.world.disk.line()] if draw.random() < 0.8 else []
        self.write(Text("hole", None, bytes(draw.choice((7, 150, 9000)))), *behind)

    def bom(self) -> None:
        path = self.path()
        line = self.world.disk.line()
        begins = path not in self.world.disk.named
        self.world.disk.write(path, line._replace(body=BOM + line.body) if begins else line)

    # ---- what becomes of files

    def rotate(self) -> None:
        if (path := self.standing()) is not None:
            self.world.disk.move(path, self.new_name(path))

    def shift(self) -> None:
        if (path := self.standing()) is not None:
            self.world.disk.move(path, self._shifted(path))

    def _shifted(self, path: str) -> str:
        """Make way for the next ``.1``; the last one is written over."""
        disk = self.world.disk
        for n in range(KEPT, 0, -1):
            if f"{path}.{n}" in disk.named:
                disk.move(f"{path}.{n}", f"{path}.{n + 1}")
        return f"{path}.1"

    def move_away(self) -> None:
        """Move a file into another directory of its client, or out of the tree."""
        path = self.any_standing()
        if path is None or path.startswith(OUTSIDE):
            return
        directory = self.world.random.choice((OUTSIDE, f"{client_of(path, 1)}/old/"))
        name = path.rpartition("/")[2]
        if directory == OUTSIDE:
            name = f"{len(self.world.disk.made)}~{name}"
        self.world.disk.move(path, self.world.disk.free(directory + name))

    def move_back(self) -> None:
        named = self.world.disk.named
        path = self._one_of([p for p in named if p.startswith(OUTSIDE) or "/old/" in p])
        if path is not None:
            self.world.disk.come_back(path)

    def copy_truncate(self) -> None:
        if (path := self.standing()) is not None:
            shifting = self.world.random.random() < 0.5
            self.world.disk.copy_truncate(
                path, self._shifted(path) if shifting else self.new_name(path)
            )
            if self.world.random.random() < 0.5:
                self.world.disk.append(path, self.world.random.randint(1, 12))
            self.hinted(path)

    def copy(self) -> None:
        path = self.any_standing()
        if path is not None and not path.startswith(OUTSIDE):
            # A torn line that two files have may end in one and be cut off in the other, and the
            # agent then goes on in the middle of it: not held against it here.
            self.world.disk.write(path)
            self.world.disk.copy(path, self.new_name(path))

    def truncate(self) -> None:
        if (path := self.any_standing()) is not None:
            self.world.disk.truncate(path)

    def cut(self) -> None:
        if (path := self.any_standing()) is not None:
            self.world.disk.cut(path)

    def delete(self) -> None:
        if (path := self.any_standing()) is not None:
            self.world.disk.delete(path)

    def recreate(self) -> None:
        """Delete and create at once: the file system gives the inode again if nobody has it."""
        if (path := self.standing()) is not None:
            count = len(self.world.disk.named[path].lines)
            self.world.disk.delete(path)
            self.world.disk.append(path, min(count, 12) or 1)

    def replace(self) -> None:
        """Write anew beside a file and rename over it, or rename a file over another one."""
        path, disk = self.standing(), self.world.disk
        if path is None:
            return
        others = [p for p in disk.named if p.startswith(f"{path}.")]
        if others and self.world.random.random() < 0.5:
            new = self.world.random.choice(others)
        else:
            disk.append(new := disk.free(f"{client_of(path, 1)}/.new"), 3)
        disk.move(new, path)

    def link(self) -> None:
        """Give a file one more name, perhaps with another client."""
        path, draw = self.any_standing(), self.world.random
        if path is not None and not path.startswith(OUTSIDE):
            name = path.rpartition("/")[2]
            self.world.disk.link(path, self.world.disk.free(f"{draw.choice(CLIENTS)}/{name}.l"))

    def symlink(self) -> None:
        """Lead to what the client must not read, or may read by another name."""
        disk, draw = self.world.disk, self.world.random
        at = disk.root / disk.free(f"{draw.choice(CLIENTS)}/a.jsonl.s")
        at.symlink_to(disk.root / draw.choice((SECRET, OUTSIDE, *CLIENTS, *PATHS)))

    # ---- what becomes of the agent

    def catch_up(self) -> None:
        """Let it run undisturbed for a moment: much of what becomes of files comes after that."""
        world = self.world
        calm, world.calm = world.calm, True
        world.node.rest()
        self.scan()
        for _ in range(CATCH_UP_TURNS):
            world.node.reading.go_on()
            self._settle()
        world.calm = calm

    def linger(self) -> None:
        """Let graces and waits run out."""
        self.world.clock.advance(self.world.random.choice((61.0, 301.0)))
        self.world.node.tick()

    def stop(self) -> None:
        """Stop as asked: scan once more, read to where files end by now, settle, commit."""
        world, node = self.world, self.world.node
        world.calm = True
        node.rest()
        self.scan()
        node.sources.limit()
        for _ in range(STOP_TURNS):
            if node.sources.idle:
                break
            node.reading.go_on()
            self._settle()
        node.seal()
        self._settle()
        if node.sources.idle and not node.in_flight.events:
            known = world.broker.arrived | world.spooled | world.excused
            left = world.disk.deleted_lines() - known
            assert not left, f"lines {left} of deleted files were left unread by a stop"
        world.calm = False
        world.crash()

    def _settle(self) -> None:
        if not self.world.broker.down:
            self.world.settle_everything()
            return
        self.world.node.tick()
        for task in self.world.node.spooling:
            task.go_on()
        self.world.node.commit()

    def _quiet(self) -> bool:
        """A line that was read, and lost in a crash, may stand in a copy that is not judged yet."""
        world = self.world
        return super()._quiet() and world.life_of.keys() <= world.broker.arrived | world.excused

    def finish(self) -> None:
        """Look on for a while, for what must not come."""
        super().finish()
        if self.world.random.random() < 0.3:
            for _ in range(LINGER_SCANS):
                self.world.clock.advance(5.0)
                self.scan()
                for _ in range(8):
                    self.world.node.reading.go_on()
                self.world.settle_everything()
            self.world.check_order()
            self.world.check_copies()
            self.world.check_all_arrived()
