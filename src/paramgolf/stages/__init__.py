"""The stages of the main job: run directory in, run directory out.

Stages never import one another; what they share is `job` and `validation`.
"""
