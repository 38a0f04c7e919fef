"""Container images: the one that every node has, and archives of others."""

import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from testcluster.errors import ClusterError, MachineError
from testcluster.machine import find_busybox
from testcluster.node import all_nodes
from testcluster.processes import run, running_pid

# The image of every pod's first container, and one for tests: the same, under two names.
IMAGES = ("localhost/pause:3", "localhost/busybox:1")


def write_busybox_archive(path: Path) -> None:
    """Writes an image of the machine's busybox with all its commands; without a command it sleeps, as a pause container does."""
    if (busybox := find_busybox()) is None:
        raise MachineError("the program busybox is not installed")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        for name in run(busybox, "--list").split():
            if name != "busybox":
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
    configuration = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "infinity"], "Env": ["PATH=/bin"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": IMAGES, "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        for name, content in (
            ("manifest.json", json.dumps(manifest).encode()),
            ("config.json", json.dumps(configuration).encode()),
            ("layer.tar", layer.getvalue()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def import_images(archive: Path, *enter: str) -> None:
    """Imports the images of an archive into a node's containerd.

    Args:
        archive: As `docker save` writes it.
        enter: Command before the command, which runs it in the namespaces of the node; empty: this process is in them.
    """
    with archive.open("rb") as content:
        run(*enter, "ctr", "--namespace", "k8s.io", "images", "import", "-", stdin=content)


def load_archives(state: Path, archives: Sequence[str], names: Sequence[str]) -> None:
    """Imports archives into the nodes of these names, or into all of them."""
    nodes = {node: pid for node in all_nodes(state) if (pid := running_pid(state, node.name))}
    if absent := set(names) - {node.name for node in nodes}:
        raise ClusterError(f"not running in {state}: {', '.join(sorted(absent))}")
    if not nodes:
        raise ClusterError(f"no node runs in {state}; start it first: up --state {state}")
    for archive in archives:
        path = Path(archive)
        if archive == "-":
            # Kept, because each node reads it.
            path = state / "stdin.tar"
            with path.open("wb") as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy)
        for node, pid in nodes.items():
            if not names or node.name in names:
                import_images(path, "nsenter", "--target", str(pid), "--mount")
        (state / "stdin.tar").unlink(missing_ok=True)
