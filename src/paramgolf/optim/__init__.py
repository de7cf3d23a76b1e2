"""Training a model: optimizers, schedules, the moving average, one training step.

When to stop and what to write is decided in `stages`.
"""
