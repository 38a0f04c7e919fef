"""The commands that speak to a Kubernetes cluster. Only `commands` is imported before one of them is called."""
