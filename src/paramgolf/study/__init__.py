"""Studies over several runs: seeds, comparison of two recipes, ablation grids.

A single run belongs to `pipeline`.
"""
