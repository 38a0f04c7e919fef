"""`spinrun estimate`: what a run will need, before anything starts."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spinrun_api.run import SpinRun
from spinrun_api.spec import Prompts, Source
from spinrun_cli.console import Console
from spinrun_cli.errors import InvalidInputError
from spinrun_cli.estimate.hardware import CARDS, AssumptionError, Hardware, of_card, of_machine
from spinrun_cli.estimate.result import Estimate
from spinrun_cli.estimate.run import Data, LayoutError, estimate
from spinrun_cli.estimate.shape import KNOWN, Shape, ShapeError, shape_of
from spinrun_cli.local.checks import config_of_hub_model, for_one_machine
from spinrun_cli.local.files import open_regular
from spinrun_cli.output import echo_json
from spinrun_cli.overrides import read_run
from spinrun_cli.show import estimate as shown
from spinrun_protocol.model_limits import Config, fitted, parse_config, problems_with_model

CPU = "cpu"
PIPE_WIDTH = 240
MAX_CONFIG_BYTES = 4_000_000
MAX_LINES_BYTES = 200_000_000
"""Of a file of prompts whose lines are counted."""


@dataclass(frozen=True)
class Options:
    """What the command line says beside the file."""

    overrides: Sequence[str] = ()
    gpu: str | None = None
    """None: this machine's."""
    gpus: int | None = None
    assumptions: Sequence[str] = ()
    model_config: Path | None = None
    """A config.json, or a folder with one, in place of the source's own."""


def show_estimate(path: Path, options: Options, *, as_json: bool) -> int:
    """Print what a run will need.

    Returns:
        The exit code: 0, or 1 when the run does not fit.

    Raises:
        InvalidInputError: The file, its model or an option is wrong.
    """
    found, notes = estimate_of(path, options)
    if as_json:
        echo_json(shown.document(found, notes), indent=2)
    else:
        console = Console(highlight=False)
        # A file or a pipe has no width: wide enough then for a finding to be found by grep.
        if not console.is_terminal:
            console.width = PIPE_WIDTH
        console.print(shown.text(found, notes))
    return 0 if found.fits else 1


def estimate_of(path: Path, options: Options) -> tuple[Estimate, list[str]]:
    """The estimate of a file's run, and what is to be said about where its model's shape comes from.

    Args:
        path: The run's file.
        options: Of the command line.

    Raises:
        InvalidInputError: As for `show_estimate`.
    """
    run = read_run(path, options.overrides)
    given = dict(map(_assumption, options.assumptions))
    hardware, auto_dtype = _hardware(options.gpu)  # before the model, which the Hub may keep one waiting for
    shape, config, notes = _shape(run, options.model_config)
    if config is not None and (problems := problems_with_model(run, config)):
        raise InvalidInputError("; ".join(map(str, problems)))
    run = fitted(run, config)
    if not hardware.is_gpu:
        run = for_one_machine(run)
    if shape.sees_images:
        notes.append("the model's part for images is not counted: its weights come on top")
    try:
        return estimate(run, shape, hardware, gpus=options.gpus, data=_data(run), given=given, auto_dtype=auto_dtype), notes
    except (LayoutError, AssumptionError) as error:
        raise InvalidInputError(str(error)) from error


def _assumption(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError as error:
        raise InvalidInputError(f"--assume {text}: must look like answerTokens=200") from error


# --- the model ----------------------------------------------------------------------------------------------------------


def _shape(run: SpinRun, model_config: Path | None) -> tuple[Shape, Config | None, list[str]]:
    """The model's shape, its config.json where that is to be had, and where else the shape comes from."""
    source = run.spec.model.source
    path = _config_here(run, model_config)
    if path is None and (known := KNOWN.get(source) or KNOWN.get(f"{source}-Instruct")) is not None:
        return known, None, [f"{source} is not in the Hub's cache here: its shape is that of its config.json as published"]
    config = _read(path or _fetched(run))
    try:
        return shape_of(config), config, []
    except ShapeError as error:
        raise InvalidInputError(f"spec.model.source: config.json of {source}: {error}") from error


def _config_here(run: SpinRun, model_config: Path | None) -> Path | None:
    """The model's config.json on this machine; None where it has to be fetched."""
    model = run.spec.model
    if model_config is not None:
        return model_config / "config.json" if model_config.is_dir() else model_config
    if model.source.startswith("/"):
        if not Path(model.source).is_dir():
            raise InvalidInputError(
                f"spec.model.source: {model.source} is not a folder here: correct the path, or give its config.json by "
                "--model-config"
            )
        return Path(model.source) / "config.json"
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model.source, "config.json", revision=model.revision)
    except HFValidationError:
        return None  # what fetches it says so
    return Path(found) if isinstance(found, str) else None


def _fetched(run: SpinRun) -> Path:
    """The config.json of a model of the Hub."""
    model, elsewhere = run.spec.model, "give its config.json from elsewhere by --model-config PATH"
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InvalidInputError(
            f"spec.model.source: config.json of {model.source} is fetched with the extra `worker`: "
            f"pip install 'spinrun[worker]', or {elsewhere}"
        )
    try:
        return config_of_hub_model("spec.model", model.source, model.revision)
    except InvalidInputError as error:
        raise InvalidInputError(f"{error}; or {elsewhere}. Known without the Hub: {', '.join(KNOWN)}") from error


def _read(path: Path) -> Config:
    """Raises InvalidInputError where there is no JSON object."""
    try:
        with open_regular(path.resolve()) as file:  # in the Hub's cache it is a link
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise InvalidInputError(
            f"spec.model.source: {path} cannot be read ({error.strerror}): a model is a Hugging Face folder with a config.json"
        ) from error
    config = parse_config(content.decode("utf-8", errors="replace")) if len(content) <= MAX_CONFIG_BYTES else None
    if config is None:
        raise InvalidInputError(f"spec.model.source: {path} is not a JSON object of at most {MAX_CONFIG_BYTES:,} bytes")
    return config


# --- hardware and data --------------------------------------------------------------------------------------------------


def _hardware(gpu: str | None) -> tuple[Hardware, str]:
    """What a rank and a rollout compute on, and what the dtype `auto` stands for there."""
    cards = {name.lower(): card for name, card in CARDS.items()}
    if gpu is not None and gpu.lower() != CPU:
        card = cards.get(gpu.lower())
        if card is None:
            raise InvalidInputError(f"--gpu {gpu}: not known. Known are {', '.join(CARDS)}, and cpu for this machine")
        return of_card(card), "bfloat16"
    if importlib.util.find_spec("torch") is None:
        raise InvalidInputError(
            "this machine is measured with torch, which is missing: pip install 'spinrun[worker]', or name a GPU: "
            f"{', '.join(CARDS)}"
        )
    from spinrun_cli.local.speeds import gpu_name, measure_speeds

    here = gpu_name() if gpu is None else None
    if here is not None:
        card = next((card for card in CARDS.values() if card.name.partition("-")[0] in here.replace("-", " ").split()), None)
        if card is None:
            raise InvalidInputError(f"this machine's {here} is not among the known cards ({', '.join(CARDS)}): name one by --gpu")
        return of_card(card), "bfloat16"
    speeds = measure_speeds()
    return of_machine(speeds, f"this machine, {speeds.cores} cores"), speeds.dtype


def _data(run: SpinRun) -> Data:
    data = run.spec.data
    return Data(
        prompts=_count_all(data.prompts),
        evaluation=None if data.evaluation is None else _count("spec.data.evaluation", data.evaluation),
    )


def _count_all(prompts: Prompts) -> int | None:
    """How many prompts all sources have; None as for one."""
    counts = [_count(f"spec.{place}", source) for place, source in prompts.each.items()]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _count(block: str, prompts: Source) -> int | None:
    """How many prompts a source has; None where that takes reading all of it, or a Hub."""
    found = None
    if prompts.is_generated:
        found = _questions(block, prompts)
    elif prompts.suffix == ".jsonl" and prompts.source.startswith("/"):
        found = _lines(Path(prompts.source))
    if prompts.limit is None:
        return found
    return prompts.limit if found is None else min(found, prompts.limit)


def _questions(block: str, prompts: Source) -> int | None:
    """Of a built-in generator; None without the worker's packages."""
    try:
        from spinrun_worker.data.generators import GENERATORS
        from spinrun_worker.errors import ConfigurationError
    except ModuleNotFoundError:
        return None
    try:
        return len(GENERATORS[prompts.source](prompts.config, prompts.split, block=block))
    except ConfigurationError as error:
        raise InvalidInputError(str(error)) from error


def _lines(path: Path) -> int | None:
    try:
        with open_regular(path) as file:
            return sum(1 for line in file if line.strip()) if path.stat().st_size <= MAX_LINES_BYTES else None
    except OSError:
        return None
