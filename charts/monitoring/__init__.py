"""Dashboards and alerts: the Python from which charts/generate.py makes the chart's files."""
