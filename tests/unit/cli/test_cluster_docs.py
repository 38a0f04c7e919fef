"""docs/operations.md names every condition, reason, metric and exit code that the code knows, and no other; what docs/install.md
and docs/watching.md show is valid."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
import yaml
from prometheus_client import CollectorRegistry

from spinrun_api.documents import parse_run
from spinrun_api.spec import Method
from spinrun_api.status import Phase
from spinrun_cli import kubectl_plugin
from spinrun_cli.overrides import merge
from spinrun_operator import reasons, status
from spinrun_operator.metrics import Metrics
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.ledger import Manifest
from spinrun_protocol.wire import Progress
from spinrun_worker.methods import grpo
from spinrun_worker.rewards import comparison, endpoint
from spinrun_worker.rollout.metrics import RolloutMetrics
from spinrun_worker.scorer.app import ScorerMetrics
from spinrun_worker.trainer import figures
from spinrun_worker.trainer.evaluation import Evaluations
from spinrun_worker.trainer.model import learner
from spinrun_worker.trainer.reference.rollouts import RolloutsReference
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.reporting.recorder import Recorder
from spinrun_worker.trainer.reporting.server import Gauges
from spinrun_worker.trainer.reporting.trackers import TrackerCollector
from spinrun_worker.trainer.sampling import calls, dispatch
from spinrun_worker.trainer.stepper import Stepper
from unit.api.invalid_runs import MINIMAL

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text()
INSTALL = (ROOT / "docs" / "install.md").read_text()
WATCHING = (ROOT / "docs" / "watching.md").read_text()
VALUES = yaml.safe_load((ROOT / "charts" / "spinrun" / "values.yaml").read_text())


def first_cells(section: str) -> list[str]:
    """The code in the first cell of each row of a section's tables."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def constants(module: Any) -> list[str]:
    """The values of a module's text constants, in their order."""
    return [value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)]


def families(registry: CollectorRegistry) -> set[str]:
    """Names of a registry's metrics of ours as Prometheus shows them, without the parts of histograms."""
    found = {f"{family.name}_total" if family.type == "counter" else family.name for family in registry.collect()}
    return {name for name in found if name.startswith("spinrun_")}


def keys_of_figures(function: Callable[..., Any]) -> set[str]:
    """The names of the figures that a function makes: the text keys of its dictionaries."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    dictionaries = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    keys = [key.value for node in dictionaries for key in node.keys if isinstance(key, ast.Constant)]
    return {key for key in keys if isinstance(key, str)}


def gauges_of_trainer() -> set[str]:
    """Names of the gauges that rank 0 makes from figures; see Recorder and Gauges."""
    sources = "".join(path.read_text() for path in Path(figures.__file__).parent.rglob("*.py"))
    timings = {f"timing/{activity}_seconds" for activity in re.findall(r'during\("(\w+)"\)', sources)}
    troubles = re.findall(r'_counts\[("\w+"[^\]]*)\]', inspect.getsource(calls) + inspect.getsource(dispatch))
    counts = {f"rollouts/{name}_total" for trouble in troubles for name in re.findall(r'"(\w+)"', trouble)}
    asked = re.findall(r"self.counts: Counter\[str\] = Counter\((.*)\)", inspect.getsource(endpoint))
    questions = {*re.findall(r"(\w+)=0", "".join(asked)), *re.findall(r'counts, "(\w+)":', inspect.getsource(comparison))}
    counts |= {f"preference/{name}_total" for name in questions}
    lengths = keys_of_figures(figures.length_figures) | keys_of_figures(figures.truncation_figures)
    window = (
        keys_of_figures(figures.window_figures)
        | keys_of_figures(figures.prompt_figures)
        | keys_of_figures(figures.drawn_figures)
        | keys_of_figures(figures.pass_rate_figures)
        | keys_of_figures(figures.throughput_figures)
        | keys_of_figures(figures.entropy_figures)
        | lengths
        | counts
        | timings
    )
    step = keys_of_figures(learner.Learner.step) | keys_of_figures(learner.Learner._outcome) | keys_of_figures(grpo.figures)
    step |= figures_of_pairs() | keys_of_figures(figures.mismatch_figures)
    names = (
        step
        | keys_of_figures(Stepper.take)
        | keys_of_figures(RolloutsReference.after_first_step)
        | keys_of_figures(Recorder.record)
    )
    names |= {f"window/{name}" for name in window}
    names |= {f"evaluation/{name}" for name in keys_of_figures(Evaluations.record) | lengths}
    return {"spinrun_trainer_" + name.replace("/", "_") for name in names} | families(trainer_registry())


def figures_of_pairs() -> set[str]:
    """Names of the figures that a step has of its pairs."""
    known = learner._Known(*(torch.ones(1, 2) for _ in learner._Known._fields))
    return set(learner._preference_figures(torch.zeros(1, 2), known, Method()))


def trainer_registry() -> CollectorRegistry:
    """The metrics that rank 0 has before its first step."""
    gauges = Gauges(namespace="team", run="demo", method="dpo")
    board = ProgressBoard(Progress(uid="u", attempt=1, activity="starting", window=0, windows=8, step=0, total_steps=128))
    board.wrote(Manifest(kind="weights", number=0, uid="u", version=0, step=0, attempt=1, files=(), digest="d"))
    gauges.follow(board)
    gauges.registry.register(TrackerCollector([], gauges.labels))
    return gauges.registry


def test_every_condition_is_explained_once() -> None:
    types = ["Ready", "Progressing", "Suspended", "Complete", "Failed", "Degraded", "LedgerUnavailable"]
    assert types == constants(status), "status.py has other conditions than this test knows"
    assert first_cells("Conditions") == types


def test_every_phase_is_explained_once() -> None:
    assert first_cells("Phases") == list(get_args(Phase))


def test_every_reason_is_explained_once() -> None:
    assert sorted(first_cells("Reasons")) == sorted(constants(reasons))


def test_every_exit_code_is_explained_once() -> None:
    rows = re.findall(r"^\| `(\d+)` \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert rows == [(str(code.value), code.name) for code in ExitCode]


def test_every_metric_is_explained_once() -> None:
    known = families(Metrics().registry) | families(RolloutMetrics().registry) | families(ScorerMetrics().registry)
    known |= gauges_of_trainer()
    assert sorted(first_cells("Metrics")) == sorted(known)


def test_no_metric_is_named_that_does_not_exist() -> None:
    known = set(first_cells("Metrics"))
    named = set(re.findall(r"\bspinrun_(?:operator|rollout|scorer|trainer)_\w+", PAGE))
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in named} <= known


# --- docs/install.md -----------------------------------------------------------------------------------------------


def test_example_runs_of_the_page_are_valid() -> None:
    documents = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", INSTALL, re.DOTALL)]
    assert len(documents) == 3
    for document in documents:
        parse_run(merge(MINIMAL, document))


def chart_value(path: str) -> Any:
    """A value of the chart; fails where there is none of that name."""
    value = VALUES
    for name in path.split("."):
        value = value[name]
    return value


def test_values_of_the_chart_are_named_with_their_defaults() -> None:
    table = INSTALL.partition("| value | default |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", table, re.MULTILINE)
    assert len(rows) == 9
    written = {path: default for path, default in rows if default.startswith("`")}
    assert written == {path: f"`{yaml.safe_dump(chart_value(path)).split()[0]}`" for path in written}
    assert [path for path, _ in rows if path not in written and chart_value(path)] == []


@pytest.mark.parametrize("page", [PAGE, INSTALL], ids=["operations", "install"])
def test_every_value_that_a_page_names_is_the_charts(page: str) -> None:
    for path in re.findall(r"`((?:settings|crds|serviceMonitor)\.\w+)", page):
        chart_value(path)


def test_every_command_has_a_row() -> None:
    tables = "".join(page.partition("| command | does |")[2].partition("\n\n")[0] for page in (INSTALL, WATCHING))
    callbacks = [command.callback for command in kubectl_plugin.app.registered_commands]
    assert set(re.findall(r"`spinrun (\w+)", tables)) == {callback.__name__ for callback in callbacks if callback}


def test_every_option_that_the_page_on_watching_names_is_the_commands() -> None:
    commands = {command.name: command for command in typer.main.get_command(kubectl_plugin.app).commands.values()}  # type: ignore[attr-defined]
    shown = re.findall(r"^\$ (?:kubectl )?spinrun (\w+)(.*)$", WATCHING, re.MULTILINE)
    assert {name for name, _ in shown} >= {"watch", "logs", "events", "samples", "compare", "report"}
    for name, rest in shown:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"(?<= )--?[a-z][a-z-]*", rest)) <= known, name


@pytest.mark.parametrize("name", ["operations.md", "install.md", "watching.md"])
def test_links_lead_somewhere(name: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", (ROOT / "docs" / name).read_text()):
        page = ROOT / "docs" / (target or name)
        headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
        assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings]
