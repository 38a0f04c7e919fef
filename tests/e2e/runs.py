"""A namespace as its user sees it, and the ledgers of its runs."""

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from integration.control_plane import ControlPlane, KubectlError
from spinrun_protocol.commands import TRAINER_PORT
from spinrun_protocol.ledger import Manifest, MetricsLine
from spinrun_worker.ledger import read_metrics
from support.documents import letters_run

T = TypeVar("T")
Json = dict[str, Any]

CLAIM = "shared"
# kind's class `standard` knows ReadWriteOnce alone, which does on one node.
ACCESS_MODE = os.environ.get("ACCESS_MODE", "ReadWriteMany")
SHELL = "shell"
PATIENCE_SECONDS = 300
LONG = {"windows": 10_000}
"""Duration of a run that something befalls: a window may take less than a second, and nothing may come too late. See `finish`."""
ANSWERING = ("checkpoint", "generate", "evaluate")
"""What a trainer does while its rollouts answer: its checkpoint is written meanwhile."""
KILL_RANKS = f"""
import json, os, pathlib, signal, sys, time, urllib.request
processes = [each for each in pathlib.Path('/proc').iterdir() if each.name.isdigit() and int(each.name) != 1]
ranks = [int(each.name) for each in processes if b'spinrun_worker.trainer\\0' in (each / 'cmdline').read_bytes()]
while sys.argv[1:]:
    with urllib.request.urlopen('http://127.0.0.1:{TRAINER_PORT}/progress', timeout=10) as answer:
        activity = json.load(answer)['activity']
    if activity in sys.argv[1:]:
        break
    time.sleep(0.001)
for rank in ranks:
    os.kill(rank, signal.SIGKILL)
    print(rank, *sys.argv[1:])
"""
"""Kills the ranks in a pod, at once or at one of the activities that its arguments name, which may last milliseconds."""


def tiny_run(name: str, **spec: Any) -> Json:
    """A run of the tiny model, in seconds a window; `spec` replaces whole blocks."""
    blocks: Json = {
        "model": {"source": "/ledger/models/tiny", "dtype": "float32"},
        "rollout": {"samplesPerPrompt": 4, "maxTokens": 8, "engineArgs": {"kv-cache-memory-bytes": 64 << 20}},
        # So small that the rule is not learned: a model whose answers all follow it has no pairs left, and its run ends.
        "trainer": {"promptsPerStep": 16, "learningRate": 1e-7},
        "duration": {"windows": 5},
        "storage": {"claimName": CLAIM},
    }
    return letters_run(name, **blocks | spec)


def with_models(container: str) -> dict[str, object]:
    """A pod template with the models of the shared claim at /models."""
    volume = {"name": "models", "persistentVolumeClaim": {"claimName": CLAIM, "readOnly": True}}
    mount = {"name": "models", "mountPath": "/models", "subPath": "models", "readOnly": True}
    return {"spec": {"volumes": [volume], "containers": [{"name": container, "volumeMounts": [mount]}]}}


@dataclass(frozen=True)
class Ledger:
    """What a run's ledger says, without the weights themselves."""

    manifests: dict[str, dict[int, Manifest]]
    """By folder (weights, windows, evaluations, checkpoints) and number."""
    metrics: list[MetricsLine]

    def assert_whole(self, *, ahead: int = 0, ended: bool = True) -> None:
        """Each window was sampled once that counts, from the weights of its number, and every evaluation too.

        Args:
            ahead: Windows that the rollouts were ahead of the trainer.
            ended: Whether the run has ended, so that its last window is published and reported.
        """
        weights = self.manifests["weights"]
        done = self.manifests["windows"]
        assert sorted(done) == list(range(len(done)))
        for manifest in [*done.values(), *self.manifests.get("evaluations", {}).values()]:
            behind = ahead if manifest.kind == "window" else 0
            assert manifest.version == max(0, manifest.number - behind), (
                f"{manifest.kind} {manifest.number} is of another version"
            )
            if manifest.version in weights:
                assert manifest.parent == weights[manifest.version].digest
        assert len({manifest.uid for kind in self.manifests.values() for manifest in kind.values()}) == 1
        # A run that was stopped in the middle of a window has neither published nor reported that one.
        finished = len(done) if ended else len(done) - 1
        assert finished <= max(weights) <= len(done), "the last window is published too"
        reported = sorted({line.window for line in self.metrics if line.event == "window"})
        assert reported == list(range(len(reported)))
        assert finished <= len(reported) <= len(done)


@dataclass(frozen=True)
class Attempts:
    """How many attempts a run has had, and how many of them have failed."""

    total: int
    failed: int

    @classmethod
    def of(cls, status: Json) -> "Attempts":
        """Those that a status tells of."""
        return cls(status["attempt"], status.get("failedAttempts", 0))

    def after(self, *, total: int = 0, failed: int = 0) -> "Attempts":
        """With so many more."""
        return Attempts(self.total + total, self.failed + failed)


class Runs:
    """The runs of one namespace."""

    def __init__(self, control_plane: ControlPlane, namespace: str, image: str) -> None:
        """image: the worker's, also of the pod that reads the ledgers."""
        self.control_plane = control_plane
        self.namespace = namespace
        self.image = image
        self.figures: list[str] = []
        """What was measured on the way, for people to read."""

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Runs kubectl in the namespace."""
        return self.control_plane.kubectl("--namespace", self.namespace, *arguments, input=input)

    def create(self, document: Json) -> None:
        """Creates an object."""
        self.kubectl("create", "--filename=-", input=json.dumps(document))

    def change(self, name: str, **spec: Any) -> None:
        """Merges into the spec of a run."""
        self.kubectl("patch", "spinrun", name, "--type=merge", "--patch", json.dumps({"spec": spec}))

    def prepare(self, model: Path) -> None:
        """Makes the namespace, its claim with the model, and a pod that sees the claim."""
        self.control_plane.kubectl("delete", "namespace", self.namespace, "--ignore-not-found", "--timeout=120s")
        self.control_plane.kubectl("create", "namespace", self.namespace)
        level = "pod-security.kubernetes.io/enforce=restricted"
        self.control_plane.kubectl("label", "namespace", self.namespace, level)
        self.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
        self.create(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": CLAIM},
                "spec": {"accessModes": [ACCESS_MODE], "resources": {"requests": {"storage": "10Gi"}}},
            }
        )
        self.create(self.pod(SHELL, ["sleep", "infinity"]))
        self.kubectl("wait", "--for=condition=Ready", f"pod/{SHELL}", "--timeout=180s")
        self.shell("mkdir", "-p", "/shared/models")
        self.kubectl("cp", str(model), f"{SHELL}:/shared/models/tiny")

    def pod(self, name: str, command: list[str], **spec: Any) -> Json:
        """A pod of the worker's image with the claim at /shared, as the restricted level wants it."""
        identity = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
        container = {
            "name": "main",
            "image": self.image,
            "command": command,
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
        }
        defaults = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "securityContext": identity | {"seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": CLAIM}}],
        }
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": defaults | spec}

    def reader(self, claim: str) -> str:
        """Name of a pod that sees another claim, where the shell sees the shared one."""
        pod = self.pod(f"reader-{claim}", ["sleep", "infinity"])
        pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = claim
        self.create(pod)
        self.kubectl("wait", "--for=condition=Ready", f"pod/reader-{claim}", "--timeout=60s")
        return f"reader-{claim}"

    def shell(self, *command: str, pod: str = SHELL) -> str:
        """Runs a command in a pod, the one that has the claim at /shared if none is named."""
        return self.kubectl("exec", pod, "--", *command)

    # What is seen of a run

    def get(self, name: str) -> Json:
        """The run."""
        return json.loads(self.kubectl("get", "spinrun", name, "--output=json"))

    def status(self, name: str) -> Json:
        """Its status."""
        return self.get(name).get("status", {})

    def condition(self, name: str, kind: str) -> Json:
        """One of its conditions; empty while it is not there."""
        return next((each for each in self.status(name).get("conditions", ()) if each["type"] == kind), {})

    def rollouts(self, name: str) -> tuple[int, int]:
        """How many rollouts are ready, and how many there shall be."""
        group = self.status(name)["rollouts"]
        return group["ready"], group["desired"]

    def progress(self, name: str) -> Json:
        """What the trainer says of itself, which the status repeats up to half a minute later; empty while none answers."""
        running = [pod["metadata"]["name"] for pod in self.pods("trainer", name) if pod["status"]["phase"] == "Running"]
        for pod in running[:1]:
            with suppress(KubectlError):
                path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:{TRAINER_PORT}/proxy/progress"
                return json.loads(self.kubectl("get", "--raw", path))
        return {}

    def pods(self, component: str = "", name: str = "") -> list[Json]:
        """The pods of runs, in the order of their names."""
        labels = ["spinrun.dev/run" + (f"={name}" if name else "")]
        labels += [f"app.kubernetes.io/component={component}"] if component else []
        return json.loads(self.kubectl("get", "pods", f"--selector={','.join(labels)}", "--output=json"))["items"]

    def pod_names(self, component: str, name: str = "") -> list[str]:
        """Names of pods that neither have ended, as those of earlier attempts have, nor are being deleted."""
        there = [pod for pod in self.pods(component, name) if pod["status"].get("phase") not in ("Failed", "Succeeded")]
        return [pod["metadata"]["name"] for pod in there if "deletionTimestamp" not in pod["metadata"]]

    def until(self, what: str, holds: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
        """Waits until it holds and returns what it returned; fails with everything that can be known when it does not."""
        deadline = time.monotonic() + seconds
        while not (result := holds()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not in {seconds} s: {what}\n{self.describe()}")
            time.sleep(0.3)
        return result

    def until_phase(self, name: str, phase: str, seconds: float = PATIENCE_SECONDS, **wanted: Any) -> Json:
        """Waits for a phase, and for fields of the status beside it."""

        def reached() -> Json | None:
            status = self.status(name)
            assert phase == "Failed" or status.get("phase") != "Failed", self.describe()
            return status if {"phase": phase, **wanted}.items() <= status.items() else None

        return self.until(f"{name} is {phase} {wanted or ''}", reached, seconds)

    def until_window(self, name: str, window: int, *activities: str, seconds: float = PATIENCE_SECONDS) -> Json:
        """Waits until a trainer works on a window, or on a later one, at one of the activities if any is named.

        Returns the status, with that window.
        """

        def reached() -> Json | None:
            progress, status = self.progress(name), self.status(name)
            assert status.get("phase") not in ("Failed", "Complete"), f"too late for window {window}: {self.describe()}"
            at = progress.get("window", -1) >= window and (not activities or progress["activity"] in activities)
            return status | {"window": progress["window"]} if at else None

        return self.until(f"{name} is at {' or '.join(activities)} of window {window}", reached, seconds)

    def at_work(self, name: str) -> Attempts:
        """Waits until a run trains with all rollouts that it shall have, and returns its attempts so far."""
        self.until_phase(name, "Running")
        self.until("all rollouts are ready", lambda: len(set(self.rollouts(name))) == 1)
        return Attempts.of(self.until_continued(name))

    def until_continued(self, name: str, attempt: int = 1) -> Json:
        """Waits until a run has done two windows more in an attempt of this number or a later one, and returns its status."""
        self.until(f"attempt {attempt} of {name}", lambda: self.status(name).get("attempt", 0) >= attempt)
        return self.until_window(name, self.at_window(name) + 2)

    def kill_trainer(self, name: str, *activities: str) -> None:
        """Kills the trainer's processes in its pod, or in the first of its pods, as the kernel would.

        Args:
            name: The run's.
            activities: Those at one of which it shall happen; at once where none is named.
        """
        pod = self.pod_names("trainer", name)[0]
        assert self.kubectl("exec", pod, "--", "timeout", "120", "python", "-c", KILL_RANKS, *activities).strip()

    def at_window(self, name: str) -> int:
        """The window that a run works on, once its trainer has done or read from its checkpoint any step."""

        def reached() -> Json | None:
            progress = self.progress(name)
            return progress if progress.get("step") else None

        return self.until(f"the trainer of {name} has done a step", reached)["window"]

    def finish(self, name: str) -> None:
        """Has a run end soon, by fewer windows. That is one attempt more, and no failure."""
        self.measure(name)
        self.end(name)

    def end(self, name: str) -> None:
        """The same for a run whose claim the shell does not see."""
        self.change(name, duration={"windows": self.at_window(name) + 3})
        self.until_phase(name, "Complete")

    def describe(self) -> str:
        """Runs, pods and the last lines of what the containers say."""
        parts = [self.kubectl("describe", "spinrun"), self.kubectl("get", "pods", "--output=wide")]
        for pod in self.pods():
            for container in pod["spec"]["containers"]:
                command = ["logs", pod["metadata"]["name"], f"--container={container['name']}", "--tail=15"]
                base = [self.control_plane.kubectl_binary, "--kubeconfig", self.control_plane.kubeconfig]
                done = subprocess.run([*base, "-n", self.namespace, *command], capture_output=True, text=True)
                parts.append(f"--- {pod['metadata']['name']}/{container['name']}\n{done.stdout or done.stderr}")
        return "\n".join(parts)

    # The ledger

    def folder(self, name: str) -> str:
        """The run's folder as the shell sees it."""
        return f"/shared/{self.namespace}/{name}-{self.get(name)['metadata']['uid'][:8]}"

    def ledger(self, name: str, tmp_path: Path, *, pod: str = SHELL, folder: str = "") -> Ledger:
        """What the ledger says, every byte of it compared with its manifests first.

        Args:
            name: The run's.
            tmp_path: Where the ledger is copied to, without the weights.
            pod: Which has the run's claim at /shared.
            folder: The run's folder in that pod; needed where the run is gone.
        """
        folder = folder or self.folder(name)
        self.shell("spinrun", "ledger", "verify", folder, pod=pod)
        tar = ["exec", pod, "--", "tar", "--create", "--exclude=*.safetensors", f"--directory={folder}", "."]
        base = [self.control_plane.kubectl_binary, "--kubeconfig", self.control_plane.kubeconfig, "-n", self.namespace]
        archive = subprocess.run([*base, *tar], capture_output=True, check=True).stdout
        copy_of = tmp_path / name
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(copy_of, filter="data")
        manifests: dict[str, dict[int, Manifest]] = {}
        for path in sorted(copy_of.glob("*/*/MANIFEST.json")):
            manifest = Manifest.model_validate_json(path.read_bytes())
            manifests.setdefault(path.parts[-3], {})[manifest.number] = manifest
        return Ledger(manifests, read_metrics(copy_of / "metrics.jsonl"))

    def steps(self, name: str) -> list[MetricsLine]:
        """What a run has written of its steps so far, those that a later attempt repeats too; no line that it may be writing."""
        text = self.shell("sh", "-c", f"cat {self.folder(name)}/metrics.jsonl 2>/dev/null || true")
        lines = [MetricsLine.model_validate_json(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in lines if line.event == "step"]

    def measure(self, name: str) -> None:
        """Notes how long a run took to start, and to get over what befell it."""
        created = datetime.fromisoformat(self.get(name)["metadata"]["creationTimestamp"]).timestamp()
        times = [line.time for line in self.steps(name)]
        longest = max((after - before for before, after in pairwise(times)), default=0.0)
        figure = f"first step {times[0] - created:.0f} s after it was created, at most {longest:.1f} s from one step to the next"
        self.figures.append(f"{name}: {figure}")

    def metrics(self, pod: str, port: int) -> str:
        """The page of metrics of an agent or a trainer, asked for from inside the cluster."""
        address = json.loads(self.kubectl("get", "pod", pod, "--output=json"))["status"]["podIP"]
        question = (
            f"import urllib.request; print(urllib.request.urlopen('http://{address}:{port}/metrics', timeout=10).read().decode())"
        )
        return self.shell("python", "-c", question)
