"""What operator and command line share of Kubernetes: kinds, names, times, and the client of the API server."""
