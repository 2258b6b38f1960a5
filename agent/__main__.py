"""``python -m agent`` is ``feedback-agent``."""

from agent.cli import main

main(prog_name="feedback-agent")
