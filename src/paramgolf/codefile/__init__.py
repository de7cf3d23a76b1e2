"""The one counted code file, `train_gpt.py`: building it, and finding it in a running program.

No part of the file itself, except `running`.
"""
