"""What a model predicts of a text: losses, bits per byte, score-first learning, coding, generation.

No budgets and no run directories here.
"""
