"""The GPT: one forward pass for every use, its layer order, and the roles of its matrices.

No optimizer, no files, no text.
"""
