"""A fleet against a model of Kafka on a virtual clock: what brokers meet when they return.

Each node is the real ``core.delivery.Delivery``. Around it stands what ``agent.sink`` and aiokafka
do (read in the source of 0.14): one produce request a broker under way with a batch a partition in
it, a try after each ``retry_backoff`` while nobody answers, and after each failed try a look for
metadata at every broker known. A refused connection costs a broker nothing; one that is accepted,
and each request, waits in its queue. ``NAIVE`` is the same client with its defaults and no jitter.

``scripts/fleet`` prints what ``tests/test_fleet.py`` asserts.

Not in it: TCP's own retries, TLS, the second producer of a node (dead letters, idle), the time
that a disk takes. A batch from the spool is as large as one of live lines; in truth it is larger.
"""
