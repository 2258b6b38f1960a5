"""Everything on one machine without a broker of its own: for a look and for fast tests.

Nothing else in ``agent`` imports this; the extra ``demo`` brings what it needs.
"""
