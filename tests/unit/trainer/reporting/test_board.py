"""What rank 0's page of metrics says of the moment, beside the figures of steps and windows."""

import time
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from spinrun_protocol.ledger import FileEntry, Kind, Manifest
from spinrun_protocol.wire import Progress
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.reporting.server import Gauges, ProgressServer

LABELS = {"namespace": "team", "run": "demo", "method": "dpo"}


@pytest.fixture
def board() -> ProgressBoard:
    return ProgressBoard(Progress(uid="u", attempt=1, activity="starting", window=0, windows=0, step=0, total_steps=0))


def shown(board: ProgressBoard, name: str) -> dict[str, float]:
    """Values of a metric on the page of rank 0, by the label that is its own."""
    server = ProgressServer(host="127.0.0.1", port=0, board=board, gauges=Gauges(**LABELS))
    try:
        with urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
            page = answer.read().decode()
    finally:
        server.close()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    found: dict[str, float] = {}
    for sample in samples:
        if sample.name == f"spinrun_trainer_{name}":
            assert LABELS.items() <= sample.labels.items()
            own = [value for label, value in sample.labels.items() if label not in LABELS]
            found["".join(own)] = sample.value
    return found


def manifest(kind: Kind, *sizes: int) -> Manifest:
    files = tuple(FileEntry(path=f"file-{number}", size=size, xxh3_128="0" * 32) for number, size in enumerate(sizes))
    return Manifest(kind=kind, number=0, uid="u", version=0, step=0, attempt=1, files=files, digest="d")


def test_there_is_one_activity_at_a_time(board: ProgressBoard) -> None:
    assert shown(board, "activity")["starting"] == 1
    with board.during("generate"):
        activities = shown(board, "activity")
        assert activities["generate"] == 1
        assert sum(activities.values()) == 1


def test_an_activity_stays_shown_until_the_next_begins(board: ProgressBoard) -> None:
    with board.during("generate"):
        pass
    assert shown(board, "activity")["generate"] == 1
    with board.during("score"):
        pass
    assert shown(board, "activity") | {"score": 0} == dict.fromkeys(shown(board, "activity"), 0)


def test_every_second_belongs_to_one_activity_also_while_it_lasts(board: ProgressBoard) -> None:
    began = time.monotonic()
    time.sleep(0.05)
    with board.during("publish"):
        time.sleep(0.05)
    time.sleep(0.05)
    with board.during("train"):
        time.sleep(0.05)
        seconds = shown(board, "activity_seconds_total")
    assert all(seconds[activity] >= least for activity, least in (("starting", 0.05), ("publish", 0.1), ("train", 0.05)))
    assert sum(seconds.values()) <= time.monotonic() - began + 0.05


def test_an_activity_within_another_takes_its_seconds_from_it_and_gives_the_word_back(board: ProgressBoard) -> None:
    began = time.monotonic()
    with board.during("generate"):
        with board.during("score"):
            time.sleep(0.05)
        assert board.now.activity == "generate"
        time.sleep(0.02)
        with board.during("score"):
            time.sleep(0.05)
    took = time.monotonic() - began
    seconds = board.take_seconds()
    assert seconds["timing/score_seconds"] >= 0.1
    assert 0.02 <= seconds["timing/generate_seconds"] <= took - 0.1
    assert sum(seconds.values()) == pytest.approx(took, abs=0.01)
    assert board.now.activity == "generate"


def test_what_is_not_known_yet_is_not_shown(board: ProgressBoard) -> None:
    for name in (
        "windows",
        "steps",
        "end_timestamp_seconds",
        "initial_accuracy",
        "written_bytes_total",
        "cuda_memory_peak_bytes",
    ):
        assert shown(board, name) == {}


def test_the_end_is_a_time_that_stands_until_another_pace_is_known(board: ProgressBoard) -> None:
    board.update(windows=8, total_steps=128, eta_seconds=100.0)
    end = shown(board, "end_timestamp_seconds")
    assert end[""] == pytest.approx(time.time() + 100, abs=5)
    time.sleep(0.02)
    board.update(step=1)
    assert shown(board, "end_timestamp_seconds") == end
    assert (shown(board, "windows"), shown(board, "steps")) == ({"": 8}, {"": 128})


def test_bytes_on_the_ledger_add_up_by_kind(board: ProgressBoard) -> None:
    for written in (manifest("weights", 100, 20), manifest("checkpoint", 300), manifest("weights", 120)):
        board.wrote(written)
    assert shown(board, "written_bytes_total") == {"weights": 240, "checkpoint": 300}


def test_the_accuracy_at_the_start_stays_that_of_version_0(board: ProgressBoard) -> None:
    board.evaluated(window=0, version=0, accuracy=0.25)
    board.evaluated(window=1, version=1, accuracy=0.5)
    assert shown(board, "initial_accuracy") == {"": 0.25}


def test_the_peak_of_memory_is_at_least_what_the_process_has_held(board: ProgressBoard) -> None:
    held = bytearray(b"x" * (64 << 20))
    before = shown(board, "memory_peak_bytes")[""]
    del held
    assert shown(board, "memory_peak_bytes")[""] >= before > 64 << 20


def test_beats_count_what_is_done_and_not_what_is_waited_for(board: ProgressBoard) -> None:
    counts = [board.now.beats]
    for change in ({"activity": "generate"}, {"prompts_done": 1}, {"step": 1}, {"window": 1}, {"version": 1}):
        board.update(**change)
        counts.append(board.now.beats)
    board.beat()
    board.update_metrics(loss=0.5)
    assert counts == [0, 1, 2, 3, 4, 5]
    assert board.now.beats == 7
    for change in ({"message": "waiting for a rollout"}, {"trouble": "the judge is down"}, {"eta_seconds": 5.0}):
        board.update(**change)
    assert board.now.beats == 7
