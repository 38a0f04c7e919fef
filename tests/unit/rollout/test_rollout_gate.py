"""The gate: samples and switches exclude each other."""

import asyncio
from pathlib import Path

import pytest

from spinrun_protocol.ledger import Manifest
from spinrun_worker.rollout.gate import Gate, Served, VersionChangedError
from spinrun_worker.rollout.staging import Weights
from support.rollouts import Publisher


def served(manifest: Manifest) -> Served:
    return Served(Weights(manifest, Path("/scratch"), {}, 100), max_model_len=64)


async def test_what_is_served_passes(publisher: Publisher) -> None:
    manifest, gate = publisher.publish(3), Gate()
    gate.open(served(manifest))
    with gate.passing(3, manifest.digest) as found:
        assert found.weights.manifest == manifest


async def test_another_version_or_other_weights_do_not_pass(publisher: Publisher) -> None:
    manifest, gate = publisher.publish(3), Gate()
    gate.open(served(manifest))
    for version, digest in ((2, manifest.digest), (3, "0" * 32)):
        with pytest.raises(VersionChangedError, match="version 3 with digest"), gate.passing(version, digest):
            pass


async def test_nothing_passes_a_shut_gate(publisher: Publisher) -> None:
    manifest, gate = publisher.publish(3), Gate()
    gate.open(served(manifest))
    gate.shut()
    assert gate.served is None
    with pytest.raises(VersionChangedError, match="no version is"), gate.passing(3, manifest.digest):
        pass


async def test_drain_waits_for_the_last_one_inside_and_lets_nobody_in(publisher: Publisher) -> None:
    manifest, gate = publisher.publish(3), Gate()
    gate.open(served(manifest))
    with gate.passing(3, manifest.digest), gate.passing(3, manifest.digest):
        drained = asyncio.create_task(gate.drain())
        await asyncio.sleep(0)
        with pytest.raises(VersionChangedError), gate.passing(3, manifest.digest):
            pass
    assert not drained.done()
    await asyncio.wait_for(drained, 1)


async def test_a_request_that_fails_leaves_too(publisher: Publisher) -> None:
    manifest, gate = publisher.publish(3), Gate()
    gate.open(served(manifest))
    with pytest.raises(RuntimeError), gate.passing(3, manifest.digest):
        raise RuntimeError
    await asyncio.wait_for(gate.drain(), 1)
