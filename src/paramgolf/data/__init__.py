"""Text to tokens: corpora, tokenizer and byte table, shards, batches, provenance."""
