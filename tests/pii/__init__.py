"""How much personal data is found, and how much else is taken for it, for each kind.

``grammar`` makes the texts and knows nothing of the rules; ``published`` reads sets that others
made. ``scripts/pii`` prints the table of the README.
"""
