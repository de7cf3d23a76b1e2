"""The one counted code file, `train_gpt.py`: building it, and running from it.

Nothing here is part of the file itself but `running`.
"""
