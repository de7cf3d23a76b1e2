"""The language model: layer order, attention, blocks, loss."""
