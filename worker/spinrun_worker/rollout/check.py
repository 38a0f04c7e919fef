"""`python -m spinrun_worker.rollout.check`: what a rollout's model contradicts, said before its vLLM starts.

vLLM would end with a traceback, start after start. Bad input ends this with exit code 2 and a termination message, from which the
operator ends the run.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from spinrun_api.documents import InvalidDocumentError, read_run
from spinrun_protocol.environment import TERMINATION_LOG
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.logs import facts_of, log_to_stderr
from spinrun_protocol.termination import TerminationMessage, encode
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.model_config import fit_to_model

logger = logging.getLogger("spinrun_worker.rollout.check")


def main() -> int:
    """Check the model, and write the lengths that the spec leaves open; returns the exit code."""
    arguments = _arguments()
    facts = log_to_stderr("check")
    try:
        run = read_run(arguments.run)
        facts.always |= facts_of(run)
        spec = fit_to_model(run).spec
    except (ConfigurationError, InvalidDocumentError) as error:
        logger.error("%s", error)
        _leave_word(str(error))
        return ExitCode.INVALID_CONFIGURATION
    arguments.lengths.write_text(f"max-model-len: {spec.max_prompt_tokens + spec.max_tokens}\n", "utf-8")
    return ExitCode.COMPLETE


def _leave_word(message: str) -> None:
    path = os.environ.get(TERMINATION_LOG)
    if path:
        words = TerminationMessage(
            result="Failed", reason="InvalidConfiguration", message=message, exit_code=ExitCode.INVALID_CONFIGURATION
        )
        try:
            Path(path).write_bytes(encode(words))
        except OSError as error:
            logger.warning("cannot write the termination log %s: %s", path, error)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spinrun_worker.rollout.check", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="file of the resolved SpinRun")
    parser.add_argument("--lengths", type=Path, required=True, help="file to write for vLLM's --config")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
