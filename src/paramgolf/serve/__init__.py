"""A packed model behind HTTP on the loopback address: a page, and completions for OpenAI's clients.

Nothing is written, and nothing outside this machine is reached or reached from.
"""
