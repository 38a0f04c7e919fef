"""Run files that nobody would write in good faith: a sentence and exit code 2, at once, wherever they are read."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from spinrun_api.documents import MAX_FILE_BYTES, MAX_PROBLEMS, InvalidDocumentError, parse_run, read_documents, read_run
from spinrun_api.yaml_text import load_value
from unit.cli.conftest import DOCUMENT
from unit.cli.shell import Shell

HEAD = """\
apiVersion: spinrun.dev/v1alpha1
kind: SpinRun
metadata: {name: demo}
spec:
  model: {source: a/b}
  data: {prompts: {source: arithmetic}}
  preference: {rule: {kind: lastNumber}}
  duration: {windows: 1}
"""


def text(content: str) -> bytes:
    """The content after the lines that make it a SpinRun."""
    return (HEAD + content).encode()


FILES: dict[str, tuple[bytes, str]] = {
    "not UTF-8": (b"a: 1\nb: \xff", "line 2: is not UTF-8 text (byte 0xff): save the file as UTF-8"),
    "UTF-16": ("kind: SpinRun".encode("utf-16"), "line 1: is not UTF-8 text"),
    "Latin-1": ("kind: SpinRun # é".encode("latin-1"), "line 1: is not UTF-8 text"),
    "NUL": (b'a: 1\nb: "a\0b"', "line 2: holds the character U+0000"),
    "escape": (b"a: \x1b[31m", "line 1: holds the character U+001B"),
    "duplicate key": (text("  duration: {windows: 5}\n"), "line 9: the key duration is already on line 8: remove one of them"),
    "int64": (text("  rollout: {template: {x: 0x8000000000000000}}\n"), "line 9: 0x8000000000000000 is out of range"),
    "infinity in a template": (text("  rollout: {template: {x: [.inf]}}\n"), "line 9: .inf is not a finite number"),
    "date in a template": (text("  trainer: {template: {x: 2024-01-01}}\n"), "line 9: 2024-01-01 is a date in YAML"),
    "key in a template": (text("  trainer: {template: {nodeSelector: {1: x}}}\n"), "line 9: the key 1 is not text"),
    "tag in a template": (text("  trainer: {template: {x: !!set {a}}}\n"), "line 9: the tag !!set"),
    "python": (text("  trainer: {template: {x: !!python/name:os.system ''}}\n"), "line 9: the tag !!python/name:os.system"),
    "template inside itself": (text("  trainer: {template: &a {x: *a}}\n"), "line 9: *a stands inside of &a itself"),
    "sexagesimal": (text("  trainer: {warmupSteps: 1:30}\n"), "spec.trainer.warmupSteps: input should be a valid integer"),
    "Python's name": (text("  lifecycle: {backoff_limit: 3}\n"), "unknown field (did you mean backoffLimit?)"),
    "list": (b"- 1", "a document must be a mapping"),
    "second document": (text("--- [1]\n"), "a document must be a mapping"),
    "kind of a list": (b"kind: [SpinRun]", "no document of kind SpinRun"),
    "large": (b"#" * (MAX_FILE_BYTES + 1), "is larger than 4 MB"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["validate", "local", "submit"])
@pytest.mark.parametrize("name", FILES)
def test_hostile_file_is_refused_with_a_sentence(spinrun: Shell, tmp_path: Path, command: str, name: str) -> None:
    content, words = FILES[name]
    path = tmp_path / "run.yaml"
    path.write_bytes(content)

    code, out, err = spinrun(command, str(path))

    assert code == 2
    if command == "validate" or name != "kind of a list":
        assert words in out + err
    assert str(path) in out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("name", ["not UTF-8", "duplicate key", "infinity in a template", "large"])
def test_stored_run_is_read_by_the_same_loader(tmp_path: Path, name: str) -> None:
    content, words = FILES[name]
    path = tmp_path / "run.yaml"
    path.write_bytes(content)

    with pytest.raises(InvalidDocumentError) as caught:
        read_run(path)

    assert words in str(caught.value)


@pytest.mark.parametrize("command", ["validate", "local", "submit"])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("fifo", "is a pipe: name a file"),
        ("link to a fifo", "is a pipe: name a file"),
        (".", "is a directory: name a file"),
        ("/dev/zero", "is a device or a socket: name a file"),
        ("/dev/null", "is a device or a socket: name a file"),
        ("absent", "cannot be read: No such file or directory"),
        ("x" * 300, "cannot be read: File name too long"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("huge", "is larger than 4 MB"),
    ],
    ids=["fifo", "link", "directory", "zero", "null", "absent", "long name", "loop", "huge"],
)
def test_what_is_not_a_file_of_a_sensible_size_is_not_read(
    spinrun: Shell, tmp_path: Path, command: str, path: str, words: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link to a fifo").symlink_to("fifo")
    (tmp_path / "loop").symlink_to("loop")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(100_000_000)

    code, out, err = spinrun(command, str(tmp_path / path))

    assert code == 2
    assert words in out + err


def test_pipe_of_the_shell_is_read_to_its_end() -> None:
    reader, writer = os.pipe()
    threading.Thread(target=lambda: (os.write(writer, HEAD.encode()), os.close(writer))).start()

    (document,) = read_documents(Path(f"/dev/fd/{reader}"))

    assert document["metadata"] == {"name": "demo"}
    os.close(reader)


def test_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.encode())

    assert read_run(path).metadata.name == "demo"


def test_problems_are_told_up_to_a_number_and_counted_beyond_it() -> None:
    document = DOCUMENT | {"spec": DOCUMENT["spec"] | {"x" * 500 + str(number): 1 for number in range(300)}}

    with pytest.raises(InvalidDocumentError) as caught:
        parse_run(document)

    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert caught.value.problems[-1].message == "200 further problems: correct these first"
    assert max(len(str(problem)) for problem in caught.value.problems) < 200


@pytest.mark.parametrize(
    "content",
    [
        '  "x\\nother.yaml: OK (x)": 1\n',
        '  rollout: {replicas: "x\\nother.yaml: OK (x)"}\n',
        "  trainer: {warmupSteps: !!int |\n a\n b}\n",
    ],
)
def test_each_problem_is_one_line_that_names_its_file(spinrun: Shell, tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text(content))

    code, out, _ = spinrun("validate", str(path))

    assert code == 2
    assert all(line.startswith(f"{path}: ") for line in out.splitlines())


@pytest.mark.parametrize(
    "override",
    [
        "spec.x=[",
        "spec.x=.nan",
        "spec.x={a: 1, a: 2}",
        "spec.x=99999999999999999999",
        "spec.x=1\n---\n2",
        "spec.x=\udcff",
        "a." * 5000 + "b=1",
    ],
    ids=lambda value: ascii(value)[:30],
)
@pytest.mark.parametrize("command", ["local", "submit"])
def test_hostile_override_is_refused_with_a_sentence(spinrun: Shell, run_file: Path, command: str, override: str) -> None:
    code, _, err = spinrun(command, str(run_file), "--set", override)

    assert code == 2
    assert "--set" in err
    assert all(each.isprintable() or each == "\n" for each in err)


def test_names_and_messages_are_printed_in_any_locale(tmp_path: Path) -> None:
    path = tmp_path / "läuft→.yaml"
    path.write_text(HEAD + "  größe: 1\n", encoding="utf-8")

    for encoding in ("ascii", "latin-1", "utf-8"):
        result = subprocess.run(
            [sys.executable, "-m", "spinrun_cli.main", "validate", str(path)],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": encoding},
            check=False,
        )
        assert (result.returncode, result.stderr) == (2, b"")
        assert b"unknown field" in result.stdout


def test_run_file_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from spinrun_cli.local.folder import replace_text
replace_text(Path({str(tmp_path / "run.yaml")!r}), {"größe: 💥"!a})
"""
    subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", program],
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        check=True,
    )

    assert load_value((tmp_path / "run.yaml").read_text(encoding="utf-8")) == {"größe": "💥"}
