"""Settings from the environment."""

import pytest

from spinrun_operator.__main__ import main
from spinrun_operator.settings import InvalidSettingError, Settings


def test_defaults_hold_without_an_environment() -> None:
    assert Settings.from_environment({}) == Settings()


def test_every_kind_of_setting_is_read() -> None:
    environment = {
        "SPINRUN_WATCH_NAMESPACES": "a, b,",
        "SPINRUN_ACCELERATOR": "cpu",
        "SPINRUN_POD_MONITOR": "False",
        "SPINRUN_WORKERS": "8",
        "SPINRUN_RESYNC_SECONDS": "12.5",
        "SPINRUN_WORKER_IMAGE": "mine:1",
        "SPINRUN_LOG_LEVEL": "DEBUG",
        "SPINRUN_SOMETHING_ELSE": "ignored",
    }
    settings = Settings.from_environment(environment)
    assert settings.watch_namespaces == ("a", "b")
    assert (settings.accelerator, settings.pod_monitor, settings.workers) == ("cpu", False, 8)
    assert (settings.resync_seconds, settings.worker_image, settings.log_level) == (12.5, "mine:1", "DEBUG")


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("WORKERS", "many", "must be a number"),
        ("WORKERS", "0", "must be above zero"),
        ("RESYNC_SECONDS", "-1", "must be above zero"),
        ("POD_MONITOR", "yes", "must be true or false"),
        ("ACCELERATOR", "tpu", "must be one of cpu, cuda"),
        ("LOG_LEVEL", "LOUD", "must be one of DEBUG"),
        ("LOG_FORMAT", "yaml", "must be one of json, text"),
        ("IMAGE_PULL_POLICY", "bogus", "must be one of Always, IfNotPresent, Never"),
        ("IMAGE_PULL_POLICY", "always", "must be one of Always, IfNotPresent, Never"),
        *(("HTTP_PORT", text, "must be a port from 1 to 65535") for text in ("0", "-1", "65536", "70000", "99999999")),
        *(("HTTP_PORT", text, "must be a number without a fraction") for text in ("", "http", "80.5", "8_080", "0x50", "８０")),
        *(
            (name, text, "must be a number, and finite")
            for name in ("PROGRESS_SECONDS", "RESYNC_SECONDS", "UNSCHEDULED_SECONDS")
            for text in ("nan", "NaN", "inf", "-inf", "Infinity", "1e400", "", "5 s", "1_0")
        ),
        ("WATCH_SILENCE_SECONDS", "0", "must be above zero"),
        ("STUCK_SECONDS", "-0.0", "must be above zero"),
        ("TRAINER_GRACE_SECONDS", "-300", "must be above zero"),
        ("COALESCE_SECONDS", "-0.1", "must be zero or above"),
        ("RUN_AS_USER", "-1", "must be zero or above"),
        ("RUN_AS_USER", "4294967295", "must be at most 2147483647"),
        ("MAX_RESTART_DELAY_SECONDS", "1e308", "must be at most 2147483647"),
        ("TRAINER_GRACE_SECONDS", "9" * 400, "must be at most 2147483647"),
        ("WORKERS", "1e3", "must be a number without a fraction"),
        ("NAMESPACE", "", "must be the name of a namespace"),
        ("NAMESPACE", "Spin Run", "must be the name of a namespace"),
        ("WATCH_NAMESPACES", "team,Other", "must be names of namespaces"),
        ("MONITORING_NAMESPACES", "a b", "must be names of namespaces"),
        *(
            ("INHERITED_PREFIXES", text, "must be prefixes of labels")
            for text in ("a b", "Team/", "/", "spinrun.dev", "app.kubernetes.io/")
        ),
        ("WORKER_IMAGE", "", "must be an image's name"),
        ("VLLM_IMAGE", "vllm: 1", "must be an image's name"),
    ],
)
def test_wrong_setting_is_named(name: str, text: str, want: str) -> None:
    with pytest.raises(InvalidSettingError, match=f"SPINRUN_{name} {want}") as raised:
        Settings.from_environment({f"SPINRUN_{name}": text})
    assert str(raised.value).endswith(f"got {text!r}")


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("HTTP_PORT", "1", 1),
        ("HTTP_PORT", "65535", 65535),
        ("RUN_AS_USER", "0", 0),
        ("COALESCE_SECONDS", "0", 0.0),
        ("RESYNC_SECONDS", "1e3", 1000.0),
        ("IMAGE_PULL_POLICY", "Never", "Never"),
        ("WATCH_NAMESPACES", "", ()),
        ("WORKER_IMAGE", "registry:5000/a/b@sha256:0123", "registry:5000/a/b@sha256:0123"),
    ],
)
def test_setting_at_its_limit_is_taken(name: str, text: str, want: object) -> None:
    assert getattr(Settings.from_environment({f"SPINRUN_{name}": text}), name.lower()) == want


@pytest.mark.parametrize("text", ["70000", "nan", "8080\nsecond line", "\udcff"])
def test_operator_ends_with_2_and_one_line_that_names_the_setting(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPINRUN_HTTP_PORT", text)
    assert main() == 2
    told = capsys.readouterr().err
    assert told.startswith("spinrun-operator: SPINRUN_HTTP_PORT must be a ")
    assert told.endswith(f", got {text!r}\n")
    assert told.count("\n") == 1
