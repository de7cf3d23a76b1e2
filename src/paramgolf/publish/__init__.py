"""Results for others: bundle, exported weights, submission folder.

Everything here is assembled from the files of runs; nothing is trained or scored.
"""
