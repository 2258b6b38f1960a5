"""How long a test waits for what must come true: only what is broken takes so long.

Two cores, many tests and a neighbour's load may stop a program for seconds. A bound on what a test
waits for is there to end it, never to judge how quick something was.
"""

WITHIN_S = 60.0
