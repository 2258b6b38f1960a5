"""Targets of a fuzzer: each takes any bytes and raises ``AssertionError`` on a broken promise.

``scripts/fuzz`` drives them by coverage, ``tests/test_fuzz.py`` by Hypothesis.
"""
