"""The operator: makes, watches, restarts, suspends and finishes SpinRuns on a Kubernetes cluster.

`follow` lists and watches; `informer` keeps the children and `store` the runs. News of a child wakes the `queue`, and news of a
run does so by way of kopf (`handlers`). The queue runs one pass per run at a time, as `controller` says: `observe` gathers what
is there, `reconcile` decides, `executor` carries that out, and `apply` writes a child where it differs.

`reconcile` is pure, and so is all that it asks: `view` (what is seen), `attempts` and `conditions` (which write the `draft` of
the next status), `wanted` and `children/` (what should be there), `policies/` and `trouble`.
"""
