"""Where and how a process runs: device, ranks, signals, console, time ledger, files of a run.

Knows nothing of models or text.
"""
