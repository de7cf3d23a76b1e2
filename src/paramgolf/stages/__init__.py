"""The stages of the main job: run directory in, run directory out."""
