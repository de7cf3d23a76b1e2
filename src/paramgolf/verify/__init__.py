"""Checks on a finished run by recomputation: the audit, and the proof of a score by coding.

Nothing here changes a score.
"""
