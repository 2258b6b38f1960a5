"""``feedback-agent doctor``."""

from functools import partial
from pathlib import Path

import click

from agent.cli.options import AS_JSON, CONFIG, json_text, load
from agent.cli.running import read_files
from agent.errors import EXIT_FOUND, EXIT_OK


@click.command()
@CONFIG
@AS_JSON
def doctor(*, config_path: Path | None, as_json: bool) -> int:
    """Say whether the agent would work here, and what to do.

    Each check is ok, warn or fail. Looks at the configuration, the source directory and who may
    read it, limits of the kernel, the state directory and its disk, clocks, and over the agent's
    own connections at Kafka: TLS, SASL, ACLs, topics and their settings. Run it as the user that
    the agent runs as, where it runs. It writes nothing, neither here nor to Kafka, and may be run
    beside a running agent.

    Exit code 1 if anything fails; a warning is none. Names of checks do not change.

    \b
    Examples:
      feedback-agent doctor --config config.yaml
      kubectl exec ds/feedback-agent -- feedback-agent doctor
      feedback-agent doctor --json | jq '.findings[] | select(.verdict!="ok")'
    """
    from agent.operator import doctor as room
    from agent.operator import screen

    findings = room.diagnose(partial(load, config_path), read_files)
    if as_json:
        found = list(findings)
        click.echo(json_text({"ok": not room.unsound(found), "findings": found}))
    else:
        found = room.show(findings, screen.console())
    return EXIT_FOUND if room.unsound(found) else EXIT_OK
