"""Settings from the environment."""

import pytest

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
    ],
)
def test_wrong_setting_is_named(name: str, text: str, want: str) -> None:
    with pytest.raises(InvalidSettingError, match=f"SPINRUN_{name} {want}"):
        Settings.from_environment({f"SPINRUN_{name}": text})
