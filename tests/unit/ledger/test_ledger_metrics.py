"""metrics.jsonl survives crashes, and of repeated steps the newest attempt's line counts."""

import json
import math

import pytest

from spinrun_worker.ledger import LedgerWriter, TornError, read_metrics


def steps(path) -> list[int]:
    return [line.step for line in read_metrics(path)]


def test_lines_are_read_back(writer, step_line):
    lines = [step_line(1, loss=0.693147), step_line(2, loss=0.5), step_line(2, event="window", ties=3)]
    for line in lines:
        writer.append_metrics(line)
    writer.close()

    assert read_metrics(writer.layout.metrics) == lines


def test_each_line_is_one_write(writer, step_line, operations):
    for step in (1, 2, 3):
        writer.append_metrics(step_line(step, loss=0.5))

    assert [operation for operation, _ in operations].count("write") == 3
    assert [operation for operation, _ in operations].count("fsync") == 0
    writer.sync()
    assert operations[-1] == ("fsync", writer.layout.metrics)


def test_numbers_that_json_does_not_have_are_read_back_and_leave_valid_json(writer, step_line):
    writer.append_metrics(step_line(1, loss=math.nan, margin=math.inf))
    writer.close()

    (line,) = read_metrics(writer.layout.metrics)
    assert math.isnan(line.values["loss"])
    assert line.values["margin"] == math.inf

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(writer.layout.metrics.read_text(), parse_constant=refuse)


@pytest.mark.parametrize(
    "torn",
    [
        b'{"event": "step", "att',
        b"\0" * 100,
        b'{"event":"step","attempt":1,"time":1,"window":0,"step":9,"version":0,"values":{}}',
    ],
    ids=["cut", "zeros", "only the line end is missing"],
)
def test_torn_last_line_is_skipped_and_then_cut(writer, root, uid, step_line, torn):
    writer.append_metrics(step_line(1))
    writer.close()
    with writer.layout.metrics.open("ab") as file:
        file.write(torn)

    assert steps(writer.layout.metrics) == [1]
    second = LedgerWriter(root, uid, attempt=2)
    second.claim()
    second.append_metrics(step_line(2, attempt=2))
    second.close()
    assert steps(writer.layout.metrics) == [1, 2]
    assert len(writer.layout.metrics.read_bytes().splitlines()) == 2


def test_very_long_torn_line_is_cut(writer, step_line):
    writer.append_metrics(step_line(1))
    writer.close()
    with writer.layout.metrics.open("ab") as file:
        file.write(b"x" * 300_000)

    writer.append_metrics(step_line(2))
    writer.close()

    assert steps(writer.layout.metrics) == [1, 2]


def test_file_that_is_nothing_but_a_torn_line_is_emptied(writer, step_line):
    writer.layout.metrics.write_bytes(b'{"event"')

    assert steps(writer.layout.metrics) == []
    writer.append_metrics(step_line(1))
    writer.close()
    assert steps(writer.layout.metrics) == [1]


def test_last_line_that_is_there_in_its_length_only_is_skipped(writer, step_line):
    writer.append_metrics(step_line(1))
    writer.close()
    with writer.layout.metrics.open("ab") as file:
        file.write(b"\0\0\0\n")

    assert steps(writer.layout.metrics) == [1]


def test_damaged_line_in_the_middle_is_named(writer, step_line):
    writer.append_metrics(step_line(1))
    writer.close()
    content = writer.layout.metrics.read_bytes()
    writer.layout.metrics.write_bytes(content + b"?\n" + content)

    with pytest.raises(TornError, match=r"metrics\.jsonl, line 2, is not a valid line of metrics"):
        read_metrics(writer.layout.metrics)


def test_newest_attempt_counts_for_each_step_window_and_evaluation(writer, step_line):
    written = [
        step_line(0, event="evaluation", accuracy=0.1),
        step_line(1, loss=1.1),
        step_line(2, loss=1.2),
        step_line(2, event="window", pairs=12),
        step_line(2, event="evaluation", window=1, accuracy=0.2),
        step_line(3, window=1, loss=1.3),
        step_line(4, window=1, loss=1.4),
        # The second attempt resumes after step 2; then an older one, unaware that it is superseded, still writes a line.
        step_line(2, attempt=2, event="evaluation", window=1, accuracy=0.25),
        step_line(3, attempt=2, window=1, loss=2.3),
        step_line(3, attempt=1, window=1, loss=9.9),
        step_line(3, attempt=2, window=1, loss=2.4),
    ]
    writer.layout.metrics.write_text("".join(line.model_dump_json(by_alias=True) + "\n" for line in written))

    assert [(line.event, line.step, line.values) for line in read_metrics(writer.layout.metrics)] == [
        ("evaluation", 0, {"accuracy": 0.1}),
        ("step", 1, {"loss": 1.1}),
        ("step", 2, {"loss": 1.2}),
        ("window", 2, {"pairs": 12}),
        ("evaluation", 2, {"accuracy": 0.25}),
        ("step", 3, {"loss": 2.4}),
        ("step", 4, {"loss": 1.4}),
    ]


def test_missing_file_has_no_figures(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_writer_may_go_on_after_close(writer, step_line):
    writer.append_metrics(step_line(1))
    writer.close()
    writer.close()
    writer.append_metrics(step_line(2))
    writer.close()

    assert steps(writer.layout.metrics) == [1, 2]
