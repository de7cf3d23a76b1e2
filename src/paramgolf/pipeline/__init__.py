"""The main job: its stages in order, resumed, branched from another run, or tracked.

What a stage does is in `stages`.
"""
