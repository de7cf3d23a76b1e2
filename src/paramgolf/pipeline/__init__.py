"""The main job: runs the stages in order, resumes, takes over stages of other runs, tracks.

Contains no stage: those are in `stages`.
"""
