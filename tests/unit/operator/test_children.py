"""The documents of a run's children."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from spinrun_api.documents import read_run
from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_kube.kinds import CHILDREN, POD_MONITOR
from spinrun_operator.children.ledger_claim import is_usable, ledger_claim
from spinrun_operator.children.network_policy import network_policy, trainer_network_policy
from spinrun_operator.children.pod_monitor import pod_monitor
from spinrun_operator.children.rollout_statefulset import rollout_statefulset
from spinrun_operator.children.run_config import run_config
from spinrun_operator.children.scorer_statefulset import scorer_statefulset
from spinrun_operator.children.service_account import service_account
from spinrun_operator.children.services import rollout_service, scorer_service, trainer_service
from spinrun_operator.children.token_secret import token_secret
from spinrun_operator.children.trainer_job import trainer_job, trainer_revision
from spinrun_operator.observed import Observed
from unit.operator.world import SETTINGS, UID, World, run_of

Json = dict[str, Any]
CUDA = replace(SETTINGS, accelerator="cuda")


def template_of(document: Json) -> Json:
    """The pod template."""
    return document["spec"]["template"]


def container_of(document: Json, name: str) -> Json:
    """A container of the pod template."""
    (container,) = [each for each in template_of(document)["spec"]["containers"] if each["name"] == name]
    return container


def environment_of(container: Json) -> Json:
    """The container's variables: text, or where it comes from."""
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}


def with_judge(**fields: Any) -> SpinRun:
    """A run with a judge."""
    return run_of(preference={"judge": {"url": "https://judge/v1", "model": "wise"} | fields})


def with_scorers(source: str = "org/stern", **scorer: Any) -> SpinRun:
    """A run that serves its reward model itself."""
    return run_of(preference={"rewardModel": {"source": source}}, scorer=scorer)


def mounts_of(container: Json) -> dict[str, bool]:
    """Paths, and whether they can be written to."""
    return {mount["mountPath"]: not mount.get("readOnly", False) for mount in container["volumeMounts"]}


def all_children() -> list[Json]:
    """Every child of a run."""
    run = run_of()
    claim = ledger_claim(run_of(storage={"size": "1Gi", "retain": False}))
    assert claim is not None
    return [
        claim,
        token_secret(run, "secret"),
        service_account(run),
        run_config(run),
        rollout_service(run),
        trainer_service(run),
        network_policy(run, SETTINGS),
        trainer_network_policy(run),
        rollout_statefulset(run, SETTINGS, replicas=1),
        scorer_service(with_scorers()),
        scorer_statefulset(with_scorers(), SETTINGS, replicas=1),
        trainer_job(run, SETTINGS, attempt=1),
        pod_monitor(run),
    ]


@pytest.mark.parametrize("child", all_children(), ids=lambda child: f"{child['kind']}-{child['metadata']['name']}")
def test_every_child_is_labelled_and_owned_by_its_run(child: Json) -> None:
    metadata = child["metadata"]
    assert metadata["namespace"] == "team"
    assert metadata["name"].startswith("demo")
    assert {"spinrun.dev/run": "demo", "spinrun.dev/run-uid": UID}.items() <= metadata["labels"].items()
    (owner,) = metadata["ownerReferences"]
    assert owner == {
        "apiVersion": "spinrun.dev/v1alpha1",
        "kind": "SpinRun",
        "name": "demo",
        "uid": UID,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def test_every_child_and_its_pods_are_known_by_name() -> None:
    world = World(run=with_scorers(), observed=Observed(has_pod_monitors=True, new_token="secret"))
    children = world.step().apply
    kinds = {child["kind"] for child in children}
    assert kinds == {kind.name for kind in (*CHILDREN, POD_MONITOR)}
    named = [(child["kind"], child["metadata"]["name"]) for child in children]
    pods = [("Pod", f"{name}-0") for kind, name in named if kind == "StatefulSet"]
    pods += [("Pod", f"{name}-1-x7k2p") for kind, name in named if kind == "Job"]
    assert len(pods) == 3
    for kind, name in [*named, *pods]:
        assert names.is_child_of("demo", kind, name), (kind, name)
        assert not names.is_child_of("dem", kind, name), (kind, name)
        assert not names.is_child_of("demo-2", kind, name), (kind, name)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Pod", "demo"),
        ("PodMonitor", "demo-rollout"),
        ("Pod", "demo-two-rollout-0"),
        ("Pod", "demo-rollout-trainer-1-0-abcde"),
        ("ConfigMap", "demo-scorer-run"),
        ("ConfigMap", "demo-token"),
        ("ConfigMap", "demo-trainer-1"),
        ("Secret", "demo-run"),
        ("Job", "demo-trainer"),
        ("Job", "demo-trainer-x"),
        ("Service", "demo-rollout-0"),
        ("StatefulSet", "demo-trainer"),
        ("Deployment", "demo-rollout"),
        ("ConfigMap", "demo-run\n"),
        ("Secret", "token"),
    ],
)
def test_objects_of_others_are_not_taken_for_children(kind: str, name: str) -> None:
    assert not names.is_child_of("demo", kind, name)


def test_longest_names_fit() -> None:
    run = run_of("a" * 40)
    job = trainer_job(run, SETTINGS, attempt=9999)
    assert len(job["metadata"]["name"] + "-1023-abcde") <= 64
    assert len(rollout_statefulset(run, SETTINGS, replicas=1)["metadata"]["name"] + "-999") <= 63


each_kind_of_pod = pytest.mark.parametrize(
    "document",
    [
        pytest.param(rollout_statefulset(run_of(), SETTINGS, replicas=1), id="rollout"),
        pytest.param(scorer_statefulset(with_scorers(), SETTINGS, replicas=1), id="scorer of the Hub"),
        pytest.param(scorer_statefulset(with_scorers("/ledger/stern"), SETTINGS, replicas=1), id="scorer on the volume"),
        pytest.param(trainer_job(run_of(), SETTINGS, attempt=1), id="trainer"),
    ],
)


# --- pods ----------------------------------------------------------------------------------------------------------


@each_kind_of_pod
def test_pods_meet_the_restricted_level_and_get_no_token_of_the_api(document: Json) -> None:
    spec = template_of(document)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == "demo-spinrun"
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        writable = mounts_of(container)
        environment = environment_of(container)
        assert writable["/tmp"]
        assert writable[environment["HOME"]]
        assert environment["HF_HOME"].startswith(environment["HOME"] + "/")


@each_kind_of_pod
def test_every_mount_has_its_volume_and_every_volume_its_mount(document: Json) -> None:
    spec = template_of(document)["spec"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
    assert mounted == volumes


def test_user_is_the_clusters_choice_where_it_is_set_to_zero() -> None:
    context = template_of(trainer_job(run_of(), replace(SETTINGS, run_as_user=0), attempt=1))["spec"]["securityContext"]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & context.keys()


def test_rollout_reads_the_ledger_and_only_the_agent_writes_scratch() -> None:
    document = rollout_statefulset(run_of(), SETTINGS, replicas=3)
    agent, vllm = container_of(document, "agent"), container_of(document, "vllm")
    assert (mounts_of(agent)["/ledger"], mounts_of(vllm)["/ledger"]) == (False, False)
    assert (mounts_of(agent)["/scratch"], mounts_of(vllm)["/scratch"]) == (True, False)
    assert f"/ledger/team/demo-{UID[:8]}" in agent["command"]
    assert "/etc/spinrun/run/run.yaml" in agent["command"]
    assert document["spec"]["replicas"] == 3
    assert document["spec"]["podManagementPolicy"] == "Parallel"


def test_vllm_stays_on_the_loopback_interface_and_is_probed_from_inside() -> None:
    vllm = container_of(rollout_statefulset(run_of(), SETTINGS, replicas=1), "vllm")
    assert vllm["command"][vllm["command"].index("--host") + 1] == "127.0.0.1"
    assert "ports" not in vllm
    for probe in ("startupProbe", "livenessProbe"):
        assert "127.0.0.1:8000/health" in vllm[probe]["exec"]["command"][-1]


def test_scorers_vllm_stays_on_the_loopback_interface_behind_an_agent_with_the_runs_token() -> None:
    document = scorer_statefulset(with_scorers(dtype="bfloat16"), SETTINGS, replicas=2)
    vllm, agent = container_of(document, "vllm"), container_of(document, "agent")
    arguments = dict(zip(vllm["command"][3::2], vllm["command"][4::2], strict=False))
    wanted = {"--model": "org/stern", "--runner": "pooling", "--host": "127.0.0.1", "--dtype": "bfloat16"}
    assert wanted.items() <= arguments.items()
    assert "VLLM_SERVER_DEV_MODE" not in environment_of(vllm)
    assert "ports" not in vllm
    assert agent["command"][:3] == ["python3", "-m", "spinrun_worker.scorer"]
    assert agent["ports"] == [{"name": "agent", "containerPort": 8100}, {"name": "agent-health", "containerPort": 8101}]
    assert agent["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "agent-health"}
    assert environment_of(agent)["SPINRUN_TOKEN_FILE"] == "/etc/spinrun/token/token"
    assert document["spec"]["replicas"] == 2


@pytest.mark.parametrize(("source", "mounted"), [("org/stern", False), ("/ledger/models/stern", True)])
def test_scorers_mount_the_ledger_only_for_a_model_that_lies_there(source: str, mounted: bool) -> None:
    document = scorer_statefulset(with_scorers(source), SETTINGS, replicas=1)
    mounts = mounts_of(container_of(document, "vllm"))
    assert mounts.get("/ledger") == (False if mounted else None), "read-only where it is mounted"
    assert "/ledger" not in mounts_of(container_of(document, "agent"))


def test_trainer_knows_where_the_scorers_are_and_only_where_there_are_any() -> None:
    for run, want in ((with_scorers(), "http://demo-scorer.team.svc:8100"), (run_of(), None)):
        environment = environment_of(container_of(trainer_job(run, SETTINGS, attempt=1), "trainer"))
        assert environment.get("SPINRUN_SCORERS") == want


def test_image_gpus_and_template_of_scorers_are_those_of_their_block() -> None:
    run = with_scorers(image="mine:4", tensorParallelSize=2, template={"spec": {"nodeSelector": {"gpu": "l4"}}})
    document = scorer_statefulset(run, CUDA, replicas=1)
    vllm = container_of(document, "vllm")
    assert (vllm["image"], vllm["resources"]) == ("mine:4", {"limits": {"nvidia.com/gpu": "2"}})
    assert container_of(scorer_statefulset(with_scorers(), CUDA, replicas=1), "vllm")["image"] == "vllm:1"
    assert template_of(document)["spec"]["nodeSelector"] == {"gpu": "l4"}


@pytest.mark.parametrize(
    ("settings", "model", "scorer", "want"),
    [
        (CUDA, "float16", "auto", "auto"),
        (SETTINGS, "auto", "auto", "float32"),
        (SETTINGS, "bfloat16", "auto", "bfloat16"),
        (SETTINGS, "bfloat16", "float32", "float32"),
    ],
)
def test_dtype_of_scorers_is_on_a_cpu_that_of_the_rollouts(settings: Any, model: str, scorer: str, want: str) -> None:
    blocks: Json = {"model": {"source": "m", "dtype": model}, "scorer": {"dtype": scorer}}
    run = run_of(preference={"ranker": {"source": "org/stern"}}, **blocks)
    command = container_of(scorer_statefulset(run, settings, replicas=1), "vllm")["command"]
    assert command[command.index("--dtype") + 1] == want


@pytest.mark.parametrize("statefulset", ["rollout", "scorer"])
def test_agent_is_probed_over_http_on_a_port_that_only_the_node_reaches(statefulset: str) -> None:
    run = with_scorers()
    made = {"rollout": rollout_statefulset, "scorer": scorer_statefulset}[statefulset](run, SETTINGS, replicas=1)
    agent = container_of(made, "agent")
    assert agent["ports"] == [{"name": "agent", "containerPort": 8100}, {"name": "agent-health", "containerPort": 8101}]
    assert agent["command"][agent["command"].index("--health-port") + 1] == "8101"
    assert agent["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "agent-health"}
    for probe in ("startupProbe", "livenessProbe"):
        assert agent[probe]["httpGet"] == {"path": "/healthz", "port": "agent-health"}
    ports = [port["port"] for rule in network_policy(run, SETTINGS)["spec"]["ingress"] for port in rule["ports"]]
    assert ports == [8100, 8200], "the second is the trainer's"


def test_trainer_is_an_indexed_job_whose_retries_are_the_operators() -> None:
    spec = trainer_job(run_of(trainer={"nodes": 4}), SETTINGS, attempt=7)["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (0, "Failed")
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["template"]["spec"]["subdomain"] == "demo-trainer"
    assert spec["template"]["metadata"]["labels"]["spinrun.dev/attempt"] == "7"


def test_trainer_knows_its_attempt_its_rollouts_and_where_its_nodes_meet() -> None:
    trainer = container_of(trainer_job(run_of(trainer={"nodes": 4, "procsPerNode": 8}), SETTINGS, attempt=7), "trainer")
    arguments = dict(zip(trainer["command"][3::2], trainer["command"][4::2], strict=False))
    assert arguments["--attempt"] == "7"
    assert (arguments["--nodes"], arguments["--procs-per-node"]) == ("4", "8")
    assert arguments["--node-rank"] == "$(JOB_COMPLETION_INDEX)"
    assert arguments["--rendezvous"] == "demo-trainer-7-0.demo-trainer.team.svc:29400"
    environment = environment_of(trainer)
    assert environment["SPINRUN_ROLLOUTS"] == "dns+http://demo-rollout.team.svc:8100"
    assert environment["SPINRUN_TOKEN_FILE"] == "/etc/spinrun/token/token"
    assert environment["SPINRUN_TERMINATION_LOG"] == "/dev/termination-log"
    assert mounts_of(trainer)["/ledger"]


def test_trainer_of_one_node_meets_nobody() -> None:
    trainer = container_of(trainer_job(run_of(), SETTINGS, attempt=1), "trainer")
    assert "--rendezvous" not in trainer["command"]


@pytest.mark.parametrize(
    ("settings", "want"),
    [(SETTINGS, [{}, {}]), (CUDA, [{"limits": {"nvidia.com/gpu": "2"}}, {"limits": {"nvidia.com/gpu": "8"}}])],
    ids=["cpu", "cuda"],
)
def test_gpus_are_asked_for_where_there_are_any(settings: Any, want: list[Json]) -> None:
    run = run_of(rollout={"tensorParallelSize": 2}, trainer={"procsPerNode": 8})
    vllm = container_of(rollout_statefulset(run, settings, replicas=1), "vllm")
    trainer = container_of(trainer_job(run, settings, attempt=1), "trainer")
    assert [vllm["resources"], trainer["resources"]] == want


@pytest.mark.parametrize(
    ("settings", "dtype", "want"),
    [(CUDA, "auto", "auto"), (SETTINGS, "auto", "float32"), (SETTINGS, "bfloat16", "bfloat16"), (CUDA, "float16", "float16")],
)
def test_dtype_of_vllm_is_never_left_open_on_a_cpu(settings: Any, dtype: str, want: str) -> None:
    run = run_of(model={"source": "m", "dtype": dtype})
    command = container_of(rollout_statefulset(run, settings, replicas=1), "vllm")["command"]
    assert command[command.index("--dtype") + 1] == want


def test_vllm_on_a_cpu_has_as_many_threads_as_its_limit_allows() -> None:
    on_cpu, on_gpu = (
        environment_of(container_of(rollout_statefulset(run_of(), settings, replicas=1), "vllm")) for settings in (SETTINGS, CUDA)
    )
    limit = {"containerName": "vllm", "resource": "limits.cpu", "divisor": "1"}
    assert on_cpu["OMP_NUM_THREADS"] == {"resourceFieldRef": limit}
    assert "OMP_NUM_THREADS" not in on_gpu


def test_images_are_the_runs_else_the_operators() -> None:
    assert container_of(rollout_statefulset(run_of(), CUDA, replicas=1), "vllm")["image"] == "vllm:1"
    assert container_of(rollout_statefulset(run_of(), SETTINGS, replicas=1), "vllm")["image"] == "worker:1"
    run = run_of(rollout={"image": "mine:2"}, trainer={"image": "mine:3"})
    assert container_of(rollout_statefulset(run, CUDA, replicas=1), "vllm")["image"] == "mine:2"
    assert container_of(rollout_statefulset(run, CUDA, replicas=1), "agent")["image"] == "worker:1"
    assert container_of(trainer_job(run, CUDA, attempt=1), "trainer")["image"] == "mine:3"


def test_pod_template_of_the_user_is_merged_but_cannot_take_the_labels_that_find_the_pods() -> None:
    template = {
        "metadata": {"labels": {"team": "a", "spinrun.dev/run": "other"}, "annotations": {"x": "y"}},
        "spec": {
            "nodeSelector": {"gpu": "h200"},
            "containers": [
                {"name": "trainer", "resources": {"limits": {"memory": "9Gi"}}, "env": [{"name": "HF_TOKEN", "value": "t"}]},
                {"name": "sidecar", "image": "s:1"},
            ],
        },
    }
    document = trainer_job(run_of(trainer={"template": template}), CUDA, attempt=1)
    merged = template_of(document)
    assert merged["metadata"]["labels"]["spinrun.dev/run"] == "demo"
    assert merged["metadata"]["labels"]["team"] == "a"
    assert merged["spec"]["nodeSelector"] == {"gpu": "h200"}
    assert [container["name"] for container in merged["spec"]["containers"]] == ["trainer", "sidecar"]
    trainer = container_of(document, "trainer")
    assert trainer["resources"] == {"limits": {"nvidia.com/gpu": "1", "memory": "9Gi"}}
    assert environment_of(trainer)["HF_TOKEN"] == "t"
    assert environment_of(trainer)["HOME"] == "/home/spinrun"


def test_volumes_and_probes_of_the_user_take_the_place_of_ours() -> None:
    cache = {"name": "home", "persistentVolumeClaim": {"claimName": "hub-cache"}}
    disk = {"name": "scratch", "hostPath": {"path": "/mnt/nvme"}}
    probe = {"tcpSocket": {"port": 8000}}
    run = run_of(
        trainer={"template": {"spec": {"volumes": [cache]}}},
        rollout={"template": {"spec": {"volumes": [disk], "containers": [{"name": "vllm", "livenessProbe": probe}]}}},
    )
    rollout = rollout_statefulset(run, SETTINGS, replicas=1)
    assert cache in template_of(trainer_job(run, SETTINGS, attempt=1))["spec"]["volumes"]
    assert disk in template_of(rollout)["spec"]["volumes"]
    liveness = container_of(rollout, "vllm")["livenessProbe"]
    assert liveness.keys() == {"tcpSocket", "periodSeconds", "timeoutSeconds", "failureThreshold"}


# --- the rest ------------------------------------------------------------------------------------------------------


def test_services_are_headless_and_name_pods_that_are_not_ready() -> None:
    for service, component in ((rollout_service(run_of()), "rollout"), (trainer_service(run_of()), "trainer")):
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is True
        assert service["spec"]["selector"] == names.selector(run_of(), component)


def test_trainer_finds_only_scorers_that_serve() -> None:
    service = scorer_service(with_scorers())
    assert service["spec"]["publishNotReadyAddresses"] is False
    assert (service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]) == ("None", 8100)
    assert service["spec"]["selector"] == names.selector(run_of(), "scorer")


def test_retained_claim_has_no_owner_and_another_one_has() -> None:
    retained, ours = (
        ledger_claim(run_of()),
        ledger_claim(run_of(storage={"size": "5Gi", "storageClassName": "nfs", "retain": False})),
    )
    assert retained is not None
    assert ours is not None
    assert "ownerReferences" not in retained["metadata"]
    assert ours["metadata"]["ownerReferences"][0]["uid"] == UID
    assert ours["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "5Gi"}},
        "storageClassName": "nfs",
    }


def test_claim_of_the_user_is_not_made() -> None:
    run = run_of(storage={"claimName": "shared"})
    assert ledger_claim(run) is None
    volumes = template_of(trainer_job(run, SETTINGS, attempt=1))["spec"]["volumes"]
    assert {"name": "ledger", "persistentVolumeClaim": {"claimName": "shared"}} in volumes


def test_claim_kept_from_an_earlier_run_of_the_name_is_usable_and_a_strangers_is_not() -> None:
    kept = ledger_claim(run_of())
    assert kept is not None
    kept["metadata"]["labels"]["spinrun.dev/run-uid"] = "earlier"
    assert is_usable(run_of(), kept)
    assert not is_usable(run_of(), {"metadata": {"name": "demo-ledger"}})
    owned = {"metadata": kept["metadata"] | {"ownerReferences": [{"controller": True, "uid": "other"}]}}
    assert not is_usable(run_of(), owned)


def test_token_cannot_be_changed() -> None:
    secret = token_secret(run_of(), "abc")
    assert (secret["immutable"], secret["stringData"]) == (True, {"token": "abc"})


def test_run_file_is_the_whole_run_with_its_identity(tmp_path: Path) -> None:
    run = run_of(rollout={"replicas": 3}, trainer={"learningRate": 5e-7})
    file = tmp_path / "run.yaml"
    file.write_text(run_config(run)["data"]["run.yaml"])
    read = read_run(file)
    assert read.spec == run.spec
    assert read.ledger_name() == run.ledger_name() == f"team/demo-{UID[:8]}"
    assert read.metadata.model_dump(exclude_unset=True).keys() == {"name", "namespace", "uid"}


def test_run_file_holds_no_secret() -> None:
    template = {"spec": {"containers": [{"name": "trainer", "env": [{"name": "A", "value": "s3cr3t"}]}]}}
    run = run_of(trainer={"template": template}, rollout={"engineArgs": {"gateway-token": "s3cr3t"}, "maxTokens": 8})
    text = run_config(run)["data"]["run.yaml"]
    assert "s3cr3t" not in text
    assert '"maxTokens": 8' in text


def pods_of(component: str) -> Json:
    """A peer of a NetworkPolicy: the run's pods of a component."""
    return {"podSelector": {"matchLabels": names.selector(run_of(), component)}}


def namespace(name: str) -> Json:
    """A peer of a NetworkPolicy."""
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def test_agents_answer_only_the_trainer_and_the_trainer_the_operator_beside_those_who_collect_metrics() -> None:
    settings = replace(SETTINGS, monitoring_namespaces=("monitoring",))
    assert network_policy(with_scorers(), settings)["spec"]["ingress"] == [
        {"from": [pods_of("trainer"), namespace("monitoring")], "ports": [{"protocol": "TCP", "port": 8100}]},
        {"from": [namespace("spinrun-system"), namespace("monitoring")], "ports": [{"protocol": "TCP", "port": 8200}]},
    ]


def test_nodes_of_a_trainer_talk_freely_to_each_other_alone() -> None:
    spec = trainer_network_policy(run_of(trainer={"nodes": 2}))["spec"]
    assert spec["podSelector"] == pods_of("trainer")["podSelector"]
    assert spec["ingress"] == [{"from": [pods_of("trainer")]}]


def test_policy_is_for_all_pods_of_its_run_and_no_other() -> None:
    run = with_scorers()
    selector = network_policy(run, SETTINGS)["spec"]["podSelector"]
    assert selector["matchLabels"] == {"spinrun.dev/run": "demo", "spinrun.dev/run-uid": UID}
    (component,) = selector["matchExpressions"]
    made = (
        rollout_statefulset(run, SETTINGS, replicas=1),
        scorer_statefulset(run, SETTINGS, replicas=1),
        trainer_job(run, SETTINGS, attempt=1),
    )
    labels = [template_of(each)["metadata"]["labels"] for each in made]
    assert (component["key"], component["operator"]) == ("app.kubernetes.io/component", "In")
    assert sorted(component["values"]) == sorted(each["app.kubernetes.io/component"] for each in labels)
    assert all(selector["matchLabels"].items() <= each.items() for each in labels)


policies = pytest.mark.parametrize("policy", [partial(network_policy, settings=SETTINGS), trainer_network_policy])


def limited(egress: list[Json] | None) -> SpinRun:
    """A run with scorers whose pods may not connect to everybody."""
    return run_of(preference={"rewardModel": {"source": "org/stern"}}, network={} if egress is None else {"egress": egress})


@policies
def test_pods_may_connect_to_anybody_unless_the_run_says_otherwise(policy: Any) -> None:
    document = policy(limited(None))
    assert document["spec"]["policyTypes"] == ["Ingress"]
    assert "egress" not in document["spec"]


@policies
def test_limited_pods_reach_name_servers_their_own_run_and_what_it_names(policy: Any) -> None:
    hub = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 443}]}
    before = policy(limited(None))["spec"]
    spec = policy(limited([hub]))["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == before["ingress"]
    dns, own, named = spec["egress"]
    assert dns == {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
    assert named == hub
    agents = {"to": [pods_of("rollout"), pods_of("scorer")], "ports": [{"protocol": "TCP", "port": 8100}]}
    assert own == ({"to": [pods_of("trainer")]} if policy is trainer_network_policy else agents)
    assert policy(limited([]))["spec"]["egress"] == [dns, own]


def test_only_what_the_user_says_makes_a_trainer_restart() -> None:
    revision = trainer_revision(run_of())
    # Of a run from before: when it changes, an upgrade of the operator restarts every trainer.
    assert revision == "99bff42db04364e0"
    assert trainer_revision(run_of(rollout={"replicas": 3}, lifecycle={"suspend": True})) == revision
    assert trainer_revision(run_of(network={"egress": []})) == revision
    assert trainer_revision(run_of(trainer={"learningRate": 5e-7, "optimizer": "adamw"})) == revision, "the defaults"
    assert trainer_revision(run_of(trainer={"learningRate": 1e-6})) != revision
    assert trainer_revision(run_of(rollout={"samplesPerPrompt": 5})) != revision


def test_the_key_of_a_judge_reaches_the_trainer_alone_and_only_by_reference() -> None:
    run = with_judge(secretRef={"name": "judges", "key": "api-key"})
    reference = {"secretKeyRef": {"name": "judges", "key": "api-key"}}
    trainer = environment_of(container_of(trainer_job(run, SETTINGS, attempt=1), "trainer"))
    assert trainer["SPINRUN_PREFERENCE_KEY"] == reference
    rollouts = rollout_statefulset(run, SETTINGS, replicas=1)
    assert all("SPINRUN_PREFERENCE_KEY" not in environment_of(container_of(rollouts, name)) for name in ("vllm", "agent"))


def test_a_judge_without_a_key_needs_no_secret() -> None:
    trainer = environment_of(container_of(trainer_job(with_judge(), SETTINGS, attempt=1), "trainer"))
    assert "SPINRUN_PREFERENCE_KEY" not in trainer


def test_keys_of_trackers_reach_the_trainer_alone_and_their_absence_keeps_no_pod_from_starting() -> None:
    wandb, mlflow = ({"name": "trackers", "key": name} for name in ("wandb", "mlflow"))
    run = run_of(telemetry={"wandb": {"project": "sums", "secretRef": wandb}, "mlflow": {"secretRef": mlflow}})
    trainer = environment_of(container_of(trainer_job(run, SETTINGS, attempt=1), "trainer"))
    assert trainer["WANDB_API_KEY"] == {"secretKeyRef": {"name": "trackers", "key": "wandb", "optional": True}}
    assert trainer["MLFLOW_TRACKING_TOKEN"] == {"secretKeyRef": {"name": "trackers", "key": "mlflow", "optional": True}}
    rollouts = rollout_statefulset(run, SETTINGS, replicas=1)
    assert all("WANDB_API_KEY" not in environment_of(container_of(rollouts, name)) for name in ("vllm", "agent"))
    without = run_of(telemetry={"wandb": {"project": "sums"}, "mlflow": {}, "tensorboard": {}})
    assert not {"WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN"} & set(
        environment_of(container_of(trainer_job(without, SETTINGS, attempt=1), "trainer"))
    )


@pytest.mark.parametrize("wanted", ["json", "text"])
def test_trainers_and_agents_log_as_the_operator_says(wanted: Literal["json", "text"]) -> None:
    settings = replace(SETTINGS, log_format=wanted)
    trainer = container_of(trainer_job(run_of(), settings, attempt=1), "trainer")
    agent = container_of(rollout_statefulset(run_of(), settings, replicas=1), "agent")
    assert [environment_of(container)["SPINRUN_LOG_FORMAT"] for container in (trainer, agent)] == [wanted, wanted]
