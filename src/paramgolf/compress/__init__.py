"""Weights to bytes: Hessians, GPTQ, clipping, entropy coding, the container."""
