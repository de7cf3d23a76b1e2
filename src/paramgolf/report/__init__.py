"""A finished run as one HTML page, and the plots of it.

Reads the files of a run; writes nothing else.
"""
