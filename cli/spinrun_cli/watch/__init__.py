"""`spinrun watch`: a run as it goes on, wherever it runs.

picture    a run at a moment            show     pictures as a screen, lines or JSON
folder     pictures of a local run      cluster/watch.py makes those of a run in the cluster
"""
