"""`spinrun validate` and the command line around it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from spinrun_cli.main import app
from unit.cli.conftest import DOCUMENT

INVALID = """\
apiVersion: spinrun.dev/v1alpha1
kind: SpinRun
metadata: {name: Wrong_Name}
spec:
  model: {source: m}
  data: {prompts: {source: arithmetic}}
  method: {bta: 0.1}
  rollout: {replicas: many}
  duration: {windows: 1, steps: 2}
"""


@pytest.fixture
def invalid(tmp_path: Path) -> Path:
    path = tmp_path / "invalid.yaml"
    path.write_text(INVALID)
    return path


def test_a_right_file_is_ok(run_file: Path) -> None:
    result = CliRunner().invoke(app, ["validate", str(run_file)])

    assert (result.exit_code, result.stdout) == (0, f"{run_file}: OK (adding)\n")


def test_every_problem_of_every_file_is_named_with_its_path(run_file: Path, invalid: Path) -> None:
    result = CliRunner().invoke(app, ["validate", str(invalid), str(run_file)])

    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    paths = [line.removeprefix(f"{invalid}: ").partition(":")[0] for line in lines if line.startswith(str(invalid))]
    assert set(paths) == {"metadata.name", "spec.method.bta", "spec.rollout.replicas", "spec.duration", "spec.preference"}
    assert "did you mean beta?" in result.stdout
    assert lines[-1] == f"{run_file}: OK (adding)"


def test_what_the_models_own_files_contradict_is_named_where_they_are_here(run_file: Path, tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 512}')
    document = yaml.safe_load(run_file.read_text())
    document["spec"]["rollout"] = {"maxTokens": 600}
    run_file.write_text(yaml.safe_dump(document))

    result = CliRunner().invoke(app, ["validate", str(run_file)])

    assert result.exit_code == 2
    assert result.stdout.startswith(f"{run_file}: spec.data.maxPromptTokens: 1 and spec.rollout.maxTokens 600 make 601 tokens")


@pytest.mark.parametrize("content", ["", "[1", "[]", '"x"', "[" * 100_000, "\ud83d"])
def test_a_config_that_cannot_be_read_is_not_for_validate_to_judge(run_file: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "model" / "config.json").write_bytes(content.encode(errors="surrogatepass"))

    assert CliRunner().invoke(app, ["validate", str(run_file)]).exit_code == 0


def test_json_holds_the_same_for_programs(invalid: Path) -> None:
    result = CliRunner().invoke(app, ["validate", "--output", "json", str(invalid)])

    assert result.exit_code == 2
    (document,) = json.loads(result.stdout)
    assert document["valid"] is False
    assert "spec.preference" in {problem["path"] for problem in document["problems"]}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", "is empty"),
        ("a: [", "is not YAML"),
        ("- 1", "a document must be a mapping"),
        ("kind: ConfigMap", "no document of kind SpinRun"),
    ],
    ids=["empty", "not yaml", "a list", "another kind"],
)
def test_a_file_without_a_run_is_refused(tmp_path: Path, text: str, want: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)

    result = CliRunner().invoke(app, ["validate", str(path)])

    assert result.exit_code == 2
    assert want in result.stdout


def test_a_file_may_hold_several_runs(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump_all([DOCUMENT, {"kind": "ConfigMap"}, DOCUMENT | {"spec": {}}]))

    result = CliRunner().invoke(app, ["validate", str(path)])

    assert result.exit_code == 2
    assert f"{path} (document 1): OK (adding)" in result.stdout
    assert f"{path} (document 3): spec.model: is required: add it" in result.stdout


HELP = """
import sys, time
sys.argv = ["spinrun", "--help"]
from spinrun_cli.main import main
try:
    main()
except SystemExit:
    heavy = set(sys.modules) & {
        "torch", "transformers", "pydantic", "matplotlib", "pyarrow", "httpx", "aiohttp", "kubernetes", "jinja2", "spinrun_worker"
    }
    sys.exit(f"imported {heavy}" if heavy else f"took {time.process_time()} s" if time.process_time() > 0.5 else 0)
"""


def test_help_imports_nothing_heavy_and_is_there_at_once() -> None:
    result = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert "validate" in result.stdout


@pytest.mark.parametrize("arguments", [["local"], ["validate", "--output", "xml", "f"], ["nonsense"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2
