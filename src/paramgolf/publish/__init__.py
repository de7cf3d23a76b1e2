"""Results for others: bundle, exported weights, submission folder.

Everything is taken from the files of runs.
"""
