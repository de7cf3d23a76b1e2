"""A finished run as one HTML page, with its charts.

Reads the files of a run and writes only the page.
"""
