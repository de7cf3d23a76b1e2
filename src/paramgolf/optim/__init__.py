"""Training: optimizers, schedules, the moving average, one training step.

No files and no clock: `stages` decides when to stop and what to write.
"""
