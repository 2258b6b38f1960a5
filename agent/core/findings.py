"""What can be said of why a file is read or not, in words for a person, with what to do. Pure."""

from typing import Literal, NamedTuple

State = Literal["current", "behind", "waiting", "not_read", "gone"]
"""``current``: every whole line is settled. ``behind``: it is being read. ``waiting``: nothing is
wrong with it, but it is not read now. ``not_read``: it gives no lines until somebody acts."""


class Text(NamedTuple):
    state: State | None
    what: str
    remedy: str = ""


FINDINGS: dict[str, Text] = {
    "root": Text("not_read", "source.root cannot be read: {0}", "mount it, or set source.root"),
    "outside": Text(
        "not_read", "it does not lie below source.root", "`feedback-agent backfill` ships any file"
    ),
    "missing": Text("gone", "there is no such file: {0}"),
    "symlink": Text(
        "not_read", "{0} is a symbolic link", "write the file itself: links are never followed"
    ),
    "too_deep": Text(
        "not_read", "it lies below more than {0} directories", "raise source.depth_max"
    ),
    "not_included": Text(
        "not_read", "its name matches none of source.include: {0}", "rename it, or add a pattern"
    ),
    "excluded": Text(
        "not_read", "its name matches {0} of source.exclude", "rename it, or take out the pattern"
    ),
    "not_regular": Text("not_read", "it is no regular file {0}", "write a plain file"),
    "other_device": Text(
        "not_read", "it lies on another file system than source.root", "write it below the root"
    ),
    "permission": Text(
        "not_read",
        "the agent may not read it {0}",
        "let its user read it, and enter its directories",
    ),
    "links": Text(
        "not_read",
        "it has more than one name (hard links) {0}",
        "remove the other names: one of them may be another client's",
    ),
    "old": Text(
        "not_read",
        "it was last written to {0} ago, longer than source.ignore_older_s",
        "write to it, or raise that; `feedback-agent backfill` ships it as it is",
    ),
    "corrupt": Text("not_read", "its content cannot be unpacked {0}", "compress it again"),
    "error": Text("not_read", "reading it fails {0}", "look at the disk and the kernel's log"),
    "too_many": Text(
        "not_read",
        "its client has more names below the root than are looked at {0}",
        "remove files and directories of that client",
    ),
    "gone": Text("gone", "it is deleted {0}"),
    "copy": Text(
        "waiting",
        "it begins like another file: it may be the copy that rotation leaves, whose lines are "
        "settled already",
        "wait: it is read as soon as it is known to be a file of its own",
    ),
    "opening": Text(
        "waiting",
        "as many files are open as may be",
        "wait, or raise source.descriptors_max",
    ),
    "scan": Text("waiting", "no scan has taken it yet", "wait for source.scan_s"),
    "over_limit": Text(
        "waiting",
        "there are more files than source.files_max or source.client_files_max allow",
        "delete old files, or raise the limit",
    ),
    "unpacking": Text("waiting", "it is being unpacked to find out whose content it is"),
    "quota": Text(
        "waiting", "its client is over a limit: {0}", "raise quota.client or dlq.lines_per_s_max"
    ),
    "unread": Text("waiting", "nothing of it was read yet: a start reads it from its beginning"),
    "at_end": Text(
        "waiting", "the first start passes over what is there: source.start_at is `end`"
    ),
    "no_kafka": Text(
        "waiting", "Kafka was not reached yet ({0})", "kafka.start_s later lines go to the spool"
    ),
    "in_flight": Text("waiting", "in_flight is full: {0}", "wait for Kafka's answers; see /status"),
    "spool_full": Text(
        "waiting", "the spool is full ({0})", "bring Kafka back, or make room: nothing is dropped"
    ),
    "catching_up": Text(
        "waiting", "the spool is replayed, and new lines wait so that it ends ({0})"
    ),
    "stopping": Text("waiting", "the agent is stopping", "the next start goes on"),
    "spooling": Text(None, "Kafka is away ({0}): lines are settled in the spool on this node"),
    "changed": Text(None, "its content is not what it was ({0}): the next generation begins"),
    "packed": Text(None, "it is compressed: offsets are those of its content"),
    "continues": Text(None, "it goes on as a copy of {0}"),
    "torn": Text(None, "its last {0} bytes are a line without its end, which waits for its LF"),
    "behind": Text(None, "{0} bytes wait to be settled"),
    "down": Text(None, "no agent runs: this is what its checkpoints say", "start it"),
    "remembered": Text(None, "its checkpoint is remembered as source {0}"),
}
"""Every finding: the state that it means by itself, its text, and what to do."""
