"""Weights to bytes: calibration, GPTQ, filling a byte budget, entropy coding, the artifact.

Text is compressed in `scoring`.
"""
