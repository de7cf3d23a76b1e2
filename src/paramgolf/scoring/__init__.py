"""Scoring: windows, bits per byte, the packed predictor."""
