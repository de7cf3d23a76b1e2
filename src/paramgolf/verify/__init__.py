"""Checks on a finished run by recomputation: the audit and the proof by coding.

Nothing here changes a score.
"""
