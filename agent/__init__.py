"""feedback-agent: ship JSONL feedback from one node to Kafka, at least once.

One straight line; every room has one door in and one door out:

    scan -> open -> read -> split -> decode -> enrich -> batch -> send -> settle -> checkpoint

``agent.core`` decides and never touches the world. Everything else touches the world and
decides nothing. The two meet in ``wiring`` only.
"""

__version__ = "0.1.0"
