"""The volumes of the StorageClass `standard`: folders of this machine, which all nodes share."""

import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from testcluster.client import Client, Object

PROVISIONER = "spinrun.dev/folder"


def provision(state: Path, server: str) -> None:
    """Provides volumes for ever; looks once a second."""
    client = Client(state)
    while True:
        try:
            _provision_once(client, server, state / "volumes")
        except OSError as error:
            # The API server may be away for a while: a test may stop it.
            print(f"{datetime.now(UTC):%H:%M:%S} {error}", file=sys.stderr, flush=True)
        time.sleep(1)


def _provision_once(client: Client, server: str, folders: Path) -> None:
    """Makes the volumes that claims wait for, and deletes those whose claim is gone."""
    core = f"{server}/api/v1"
    for claim in client.fetch(f"{core}/persistentvolumeclaims")["items"]:
        wanted = claim["metadata"].get("annotations", {}).get("volume.kubernetes.io/storage-provisioner")
        if wanted == PROVISIONER and claim["status"]["phase"] == "Pending" and "volumeName" not in claim["spec"]:
            volume = _volume_for(claim, folders / f"pvc-{claim['metadata']['uid']}")
            # As most storage does, it leaves others nothing: a pod without the right fsGroup must fail here too.
            Path(volume["spec"]["local"]["path"]).mkdir(mode=0o770, parents=True, exist_ok=True)
            client.request(f"{core}/persistentvolumes", volume)
    for volume in client.fetch(f"{core}/persistentvolumes")["items"]:
        ours = volume["metadata"].get("annotations", {}).get("pv.kubernetes.io/provisioned-by") == PROVISIONER
        released = volume["status"]["phase"] in ("Released", "Failed")
        if ours and released and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete":
            shutil.rmtree(volume["spec"]["local"]["path"], ignore_errors=True)
            client.fetch(f"{core}/persistentvolumes/{volume['metadata']['name']}", method="DELETE")


def _volume_for(claim: Object, folder: Path) -> Object:
    """The volume of a claim: a folder that every node sees. Of the kind `local`, the kubelet gives it to the fsGroup."""
    metadata, spec = claim["metadata"], claim["spec"]
    every_node = {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": f"pvc-{metadata['uid']}",
            "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
        },
        "spec": {
            "capacity": spec["resources"]["requests"],
            "accessModes": spec["accessModes"],
            "storageClassName": spec["storageClassName"],
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"kind": "PersistentVolumeClaim"} | {key: metadata[key] for key in ("namespace", "name", "uid")},
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [every_node]}},
        },
    }
