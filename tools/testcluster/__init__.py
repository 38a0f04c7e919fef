"""A Kubernetes cluster for tests, on one Linux machine: what tools/control-plane and tools/cluster run.

Standard library only: the scripts run before there is a virtual environment.

| module | holds |
|---|---|
| control_plane_command, cluster_command | the two command lines, and what each promises |
| control_plane | etcd, API server, controller-manager and scheduler, with their flags |
| cluster | control plane, nodes, DNS and volumes together |
| node, node_lifecycle, node_config | a node's names, its namespaces, and what runs in them |
| machine, network, cgroups | what the machine must have, and what is made on it outside the nodes |
| images, volumes, dns | what pods use |
| binaries, certificates, processes, client | what all of them are built on |
"""
