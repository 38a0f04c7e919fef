"""Nothing is collected that anybody may read yet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinrun_worker.ledger import LedgerWriter, collect, collectable

versions = st.sets(st.integers(0, 12), max_size=13)


def collected(**changes: object) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is collected of versions 0 to 5 and checkpoints 16 to 80, with two agents at version 4."""
    situation = {
        "weights": range(6),
        "checkpoints": (16, 32, 48, 64, 80),
        "keep_checkpoints": 2,
        "acknowledged": (4, 4),
        "newest": 5,
        "needed": (),
    }
    found = collectable(**(situation | changes))  # pyright: ignore[reportArgumentType]
    return found.weights, found.checkpoints


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({}, (0, 1, 2, 3)),
        ({"acknowledged": (5, 5)}, (0, 1, 2, 3, 4)),
        ({"acknowledged": (5, 2)}, (0, 1)),
        ({"acknowledged": (5, -1)}, ()),
        ({"acknowledged": ()}, ()),
        ({"acknowledged": (9,), "newest": 3}, (0, 1, 2)),
        ({"needed": (0, 3)}, (1, 2)),
        ({"checkpoints": ()}, (1, 2, 3)),
        ({"weights": ()}, ()),
    ],
    ids=[
        "older than what agents serve",
        "all agents at the newest",
        "one agent behind",
        "one agent serves none yet",
        "no agent",
        "agents ahead of a restarted trainer",
        "references",
        "no checkpoint: a restart needs version 0",
        "nothing there",
    ],
)
def test_weights_that_go(changes, weights):
    assert collected(**changes)[0] == weights


@pytest.mark.parametrize(
    ("checkpoints", "keep", "gone"),
    [((16, 32, 48), 1, (16, 32)), ((48, 16, 32), 2, (16,)), ((16, 32), 2, ()), ((), 2, ()), ((16,), 5, ())],
)
def test_oldest_checkpoints_go(checkpoints, keep, gone):
    assert collected(checkpoints=checkpoints, keep_checkpoints=keep)[1] == gone


def test_keeping_no_checkpoint_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        collected(keep_checkpoints=0)


@given(
    weights=versions,
    checkpoints=versions,
    keep_checkpoints=st.integers(1, 4),
    acknowledged=st.lists(st.integers(-1, 12), max_size=4),
    newest=st.integers(0, 12),
    needed=versions,
)
def test_nothing_that_may_be_read_is_collected(weights, checkpoints, keep_checkpoints, acknowledged, newest, needed):
    found = collectable(
        weights=weights,
        checkpoints=checkpoints,
        keep_checkpoints=keep_checkpoints,
        acknowledged=acknowledged,
        newest=newest,
        needed=needed,
    )

    gone = set(found.weights)
    assert gone <= weights
    assert not gone & needed
    assert all(version < newest for version in gone)
    assert all(version < served for version in gone for served in acknowledged)
    assert not gone or acknowledged
    assert checkpoints or 0 not in gone
    assert set(found.checkpoints) == checkpoints - set(sorted(checkpoints, reverse=True)[:keep_checkpoints])
    # What is left to keep is only what a reason above names: the volume does not fill up.
    if acknowledged and checkpoints:
        assert all(version >= min(newest, *acknowledged) or version in needed for version in weights - gone - {newest})


def test_collect_keeps_the_versions_of_kept_checkpoints(writer, put):
    for version in range(5):
        put(writer, "weights", version)
    for step, version in ((16, 1), (32, 2), (48, 3)):
        put(writer, "checkpoint", step, version=version)

    gone = collect(writer, keep_checkpoints=2, acknowledged=[4], newest=4, needed=[], read_by=lambda window: [window])

    assert (gone.weights, gone.checkpoints) == ((0, 1), (16,))
    assert writer.numbers("weights") == [2, 3, 4]
    assert writer.numbers("checkpoint") == [32, 48]
    assert not writer.layout.weights(0).exists()


def test_collect_keeps_what_the_newest_window_and_those_of_kept_checkpoints_read(writer, put):
    for version in range(9):
        put(writer, "weights", version)
    for step, version in ((10, 5), (12, 6), (14, 7)):
        put(writer, "checkpoint", step, version=version)

    # Three windows share a reference; the newest window begins with one of its own.
    gone = collect(
        writer, keep_checkpoints=1, acknowledged=[8], newest=8, needed=[1], read_by=lambda window: [window - (window + 1) % 3]
    )

    assert gone.checkpoints == (10, 12)
    assert writer.numbers("weights") == [1, 5, 7, 8]


def test_collect_clears_what_interrupted_writes_and_deletions_left(root, uid, put):
    writer = LedgerWriter(root, uid, 1)
    writer.claim()
    for step in (16, 32):
        put(writer, "checkpoint", step, version=3)
    for number in (2, 3):
        put(writer, "weights", number)
    (writer.begin("weights", 1) / "model").write_bytes(b"half")
    (writer.begin("weights", 4) / "model").write_bytes(b"being written")
    (writer.begin("checkpoint", 17) / "model").write_bytes(b"half")
    (writer.begin("checkpoint", 48) / "model").write_bytes(b"being written")

    gone = collect(writer, keep_checkpoints=2, acknowledged=[3], newest=3, needed=[], read_by=lambda window: [window])

    assert (gone.weights, gone.checkpoints) == ((1, 2), (17,))
    assert writer.present("weights") == [3, 4]
    assert writer.present("checkpoint") == [16, 32, 48]


def test_collecting_twice_changes_nothing(writer, put):
    for version in range(3):
        put(writer, "weights", version)
    put(writer, "checkpoint", 16, version=2)

    first = collect(writer, keep_checkpoints=1, acknowledged=[2], newest=2, needed=[], read_by=lambda window: [window])
    second = collect(writer, keep_checkpoints=1, acknowledged=[2], newest=2, needed=[], read_by=lambda window: [window])

    assert first.weights == (0, 1)
    assert (second.weights, second.checkpoints) == ((), ())
