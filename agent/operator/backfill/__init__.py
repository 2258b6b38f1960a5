"""``feedback-agent backfill``: files that the agent does not follow, through the agent's own rooms.

    selection  which files, and who their clients are
    origins    who a file is, as far as an agent or an earlier backfill knows it
    job        what was asked for, and the state of its own that makes it resumable
    rooms      the configuration and the parts that differ from the agent's
    errand     from the first scan to "all is acknowledged"
    telling    bar, table, summary

Reading, splitting, redacting, sending and settling are the agent's: ``pipeline`` runs them, and
``errand`` only says when nothing is left.
"""
