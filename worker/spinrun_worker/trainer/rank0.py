"""The parts that rank 0 alone has: they face rollouts, data and people."""

from dataclasses import dataclass

from spinrun_worker.trainer.evaluation import Evaluations
from spinrun_worker.trainer.pairs import PairMaker
from spinrun_worker.trainer.reporting.recorder import Recorder
from spinrun_worker.trainer.sampling.client import RolloutClient
from spinrun_worker.trainer.sampling.draws import Draws
from spinrun_worker.trainer.sampling.requests import Requests
from spinrun_worker.trainer.storage.windows import Windows


@dataclass(frozen=True)
class Rank0Parts:
    """Only collective methods, which rank 0 runs for all, touch them; see `Distributed.on_rank0`."""

    rollouts: RolloutClient
    requests: Requests
    draws: Draws
    evaluations: Evaluations
    windows: Windows
    pairs: PairMaker
    recorder: Recorder
