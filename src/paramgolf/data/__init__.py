"""Text to tokens: sources, tokenizer, shards, batches, and the provenance of a model's texts.

Nothing here knows a model or trains one.
"""
