"""What works where `pip install spinrun` has been called without extras."""

import subprocess
import sys
import textwrap

import pytest

OF_EXTRAS = ("prometheus_client", "torch", "transformers", "xxhash", "pyarrow", "numpy", "matplotlib", "jinja2")
"""Packages that only extras install."""


def run_without(*packages: str, program: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program in a Python that has none of the packages."""
    block = f"""
        import sys
        from importlib.abc import MetaPathFinder

        class Absent(MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {packages!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Absent())
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(block) + textwrap.dedent(program)], capture_output=True, text=True
    )


def test_clusters_commands_need_no_extra() -> None:
    program = """
        import pkgutil
        from importlib import import_module
        import spinrun_cli.cluster, spinrun_cli.commands

        for package in (spinrun_cli.cluster, spinrun_cli.commands):
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                import_module(module.name)
        for name in ("main", "kubectl_plugin", "terminal", "validate"):
            import_module(f"spinrun_cli.{name}")
    """
    ended = run_without(*OF_EXTRAS, program=program)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("command", [["get"], ["watch", "demo"], ["samples", "demo"], ["compare", "demo"], ["report", "demo"]])
def test_command_without_a_cluster_says_so(command: list[str]) -> None:
    program = f"""
        import os, sys
        from spinrun_cli.main import main

        os.environ["KUBECONFIG"] = "/nowhere"
        os.environ.pop("KUBERNETES_SERVICE_HOST", None)
        sys.argv = ["spinrun", *{command!r}]
        main()
    """
    ended = run_without(*OF_EXTRAS, program=program)
    assert ended.returncode == 1
    assert "no cluster is configured: there is no /nowhere" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_local_says_which_packages_are_missing_before_it_needs_them() -> None:
    program = """
        import sys
        from spinrun_cli.main import main

        sys.modules |= {name: None for name in ("torch", "xxhash")}
        sys.argv = ["spinrun", "local", "run.yaml"]
        main()
    """
    ended = run_without(program=program)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: missing packages: torch. Install the worker: pip install 'spinrun[worker,cpu]'")
