"""Every error the agent raises on purpose, by whose fault it is and what to do next.

* ``AgentError``
    * ``ConfigError``        the operator must edit something; exit 78
    * ``StoreError``         checkpoints cannot be written or trusted; exit 74, restart us
        * ``StateOwned``     another agent owns the state directory; exit 75
        * ``StateTooNew``    written by a newer major version; exit 76
    * ``SinkUnavailable``    Kafka's or the network's fault; wait, try again, never drop
    * ``RecordRefused``      this record's fault; isolate it, dead-letter only it
    * ``NotRunning``         a command asked for the agent, and there is none

A bad line is not an error: see ``core.diagnosis.Rejection``. A broken invariant is an
``AssertionError`` and ends the process with ``EXIT_INVARIANT``.
"""

EXIT_OK = 0
EXIT_FOUND = 1  # what was asked for found a problem
EXIT_USAGE = 64
EXIT_INVARIANT = 70


class AgentError(Exception):
    """Base class. ``exit_code`` is what the process returns when nobody handles it."""

    exit_code = EXIT_FOUND


class ConfigError(AgentError):
    """``where`` is the file and the key path, or the environment variable, that is wrong."""

    exit_code = 78

    def __init__(self, where: str, detail: str) -> None:
        super().__init__(f"{where}: {detail}")
        self.where = where
        self.detail = detail


class StoreError(AgentError):
    exit_code = 74


class StateOwned(StoreError):
    exit_code = 75


class StateTooNew(StoreError):
    exit_code = 76


class SinkUnavailable(AgentError):
    """``reason`` is one constant word or two for logs and status; ``str()`` is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class RecordRefused(AgentError):
    """Kafka will never take this batch as it is. ``reason`` is a dead-letter reason."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class NotRunning(AgentError):
    """No agent runs over this state directory, or it does not listen."""
