"""What a model says of a text: losses, bits per byte, score-first learning, coding, generation.

No training budget and no run directory here.
"""
