"""``feedback-agent completion``."""

import click
from click.shell_completion import ShellComplete, get_completion_class

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "feedback-agent"
VARIABLE = "_FEEDBACK_AGENT_COMPLETE"
"""What tells the program, called by the script, to complete: as click makes it of the name."""


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print a script by which a shell completes what it has.

    SHELL is bash, zsh or fish; commands, options and files are completed. Bash wants version 4.4 or
    later, zsh its compinit.

    \b
    Examples:
      feedback-agent completion bash > /etc/bash_completion.d/feedback-agent
      feedback-agent completion zsh > "${fpath[1]}/_feedback-agent"
      cd ~/.config/fish/completions
      feedback-agent completion fish > feedback-agent.fish
    """
    made = get_completion_class(shell)
    assert made is not None, "one of SHELLS"
    root = click.get_current_context().find_root().command
    # Its own source() of bash asks the bash of this machine for its version.
    click.echo(ShellComplete.source(made(root, {}, PROGRAM, VARIABLE)))
