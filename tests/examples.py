"""How many examples a property gets that names no number of its own: FEEDBACK_AGENT_EXAMPLES."""

import os

EXAMPLES = int(os.environ.get("FEEDBACK_AGENT_EXAMPLES", "100"))
