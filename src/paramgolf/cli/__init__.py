"""The command lines: parse, call, print; no logic.

`main` is the installed command `paramgolf`, `standalone` that of `train_gpt.py`.
"""
