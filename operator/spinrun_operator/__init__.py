"""The operator: makes, watches, restarts, suspends and finishes SpinRuns on a Kubernetes cluster.

handlers (kopf) and informers wake; `queue` runs one reconcile per run at a time; `observe` gathers what is there;
`reconcile` decides, and is pure, as are `children/` and `policies/`; `apply` writes.
"""
