"""What the agent costs, beside other agents: ``scripts/bench`` starts these."""
