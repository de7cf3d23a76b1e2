"""The environment of a run: device, ranks, signals, console, time ledger, files, run directory.

Contains nothing about models or text.
"""
