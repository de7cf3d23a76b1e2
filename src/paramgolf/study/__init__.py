"""Several runs: seeds, comparison of two recipes, ablation grids.

Single runs belong to `pipeline`.
"""
