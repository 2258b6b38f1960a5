"""Command line. Parses and prints; every decision lives elsewhere.

A room for each group of commands. Other rooms are imported inside the commands that need them:
``--version`` and ``check`` stay light.
"""

import logging
import sys
from typing import Any

import click

from agent import __version__
from agent.cli.audit import audit
from agent.cli.backfill import backfill
from agent.cli.checkpoint import checkpoint, explain
from agent.cli.completion import completion
from agent.cli.dlq import dlq
from agent.cli.doctor import doctor
from agent.cli.running import check, demo, run
from agent.cli.spool import spool
from agent.cli.status import status
from agent.cli.validate import validate
from agent.cli.verify import verify
from agent.errors import EXIT_INVARIANT, EXIT_USAGE, AgentError

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130

EPILOG = """\b
Examples:
  feedback-agent demo
  feedback-agent check --config config.yaml
  feedback-agent doctor --config config.yaml
  feedback-agent run --config config.yaml
  feedback-agent status --watch
  feedback-agent validate events.jsonl
  feedback-agent audit verify
  feedback-agent backfill /mnt/archive --root /mnt/archive --dry-run
  feedback-agent explain /var/lib/feedback/app/events.jsonl
  feedback-agent checkpoint list
  feedback-agent dlq list --reason schema
  feedback-agent spool list
  feedback-agent verify --consumer-config reader.yaml
  FEEDBACK_AGENT_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 feedback-agent run

\b
Exit codes:
   0  ok
   1  what was asked for found a problem
  64  wrong usage of the command line
  70  broken invariant, a bug: the traceback is in the log
  74  the store of checkpoints cannot be used
  75  another agent owns the state directory
  76  the state was written by a newer major version
  78  wrong configuration
"""


class Commands(click.Group):
    """Turns every way a command can end into one line on stderr and an exit code of the table."""

    def main(self, *args: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
        except click.UsageError as error:
            error.show()
            code = EXIT_USAGE
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except click.Abort:
            code = EXIT_INTERRUPTED
        except Exception as error:  # noqa: BLE001  the last line of defence
            code = _verdict(error)
        sys.exit(code)


def _verdict(error: Exception) -> int:
    """Say what happened and return the exit code. A bug outweighs what it may have caused."""
    expected = _within(error)
    if expected is not None:
        click.echo(f"feedback-agent: error: {expected}", err=True)
        return expected.exit_code
    log.critical("invariant.broken", exc_info=error)
    return EXIT_INVARIANT


def _within(error: BaseException) -> AgentError | None:
    """Return the error, the first one of a group, where all of it was raised on purpose."""
    if isinstance(error, BaseExceptionGroup):
        inner = [_within(one) for one in error.exceptions]
        return inner[0] if all(inner) else None
    return error if isinstance(error, AgentError) else None


@click.group(cls=Commands, epilog=EPILOG)
@click.version_option(__version__, prog_name="feedback-agent")
def main() -> None:
    """Ship JSONL feedback files from this node to Kafka, at least once."""


for _command in (
    *(run, check, demo, audit, doctor, status, validate, backfill, completion),
    *(checkpoint, explain, dlq, spool, verify),
):
    main.add_command(_command)
