"""Dashboards and alerts: the Python that charts/generate.py makes the chart's files of."""
