"""Text to tokens: sources, tokenizer, shards, batches, and the record of what shaped a model.

No model and no training here.
"""
