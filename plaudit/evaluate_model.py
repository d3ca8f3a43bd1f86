"""Measure a saved reward model on data: predictions, metrics with intervals, baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from plaudit import __version__
from plaudit.data.load import (
    LoadedComparisons,
    check_source,
    load_comparisons,
    with_known_columns,
)
from plaudit.data.store import StoredComparisons
from plaudit.errors import DataError
from plaudit.evaluation.analysis.error_analysis import token_rewards_of, with_texts
from plaudit.evaluation.analysis.perturbations import Probed, Scores, probe
from plaudit.evaluation.analysis.surface import BASELINES, fit_baselines, fitted_comparisons
from plaudit.evaluation.compare import Scored
from plaudit.evaluation.metrics.best_of import best_of_n
from plaudit.evaluation.regression import RegressionOptions, check_regression
from plaudit.evaluation.schema import (
    METRICS_FILE,
    DataUse,
    EvaluationMetrics,
    MistakeText,
    RecordedEvaluation,
    SuiteResult,
    json_safe,
    settle,
)
from plaudit.evaluation.suites.run import SuiteRequest, run_suite
from plaudit.evaluation.summary import EvaluationContext, summarise
from plaudit.evaluation.table import (
    EVALUATIONS_FOLDER,
    HeldOut,
    ScoredSet,
    Scorer,
    ScoreTable,
    build_table,
    concatenate,
    read_held_out,
    read_table,
    write_table,
)
from plaudit.recipe.objectives import PREFERENCE, learns_from
from plaudit.recipe.schema import Source
from plaudit.report.comparison import best_of_figure
from plaudit.report.html import REPORT_FILE, write_report
from plaudit.report.plots import save_figure, write_plots
from plaudit.report.record import MISTAKES_FILE, PLOTS_FOLDER, describe_environment
from plaudit.storage.atomic import (
    check_new_folder,
    existing_path,
    write_folder,
    write_json,
    write_json_lines,
)
from plaudit.types import Dtype, ScoreRow, TokenTree

if TYPE_CHECKING:
    from plaudit.reward_model import RewardModel

NOT_RUN = "Perturbation tests were not run; run them with plaudit eval --perturbation-tests 200."
PREDICTIONS = "predictions.parquet"
_MODEL_FILES = ("plaudit.json", "adapter_config.json", "config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOptions:
    """How a model is opened.

    Attributes:
        base: Path or Hub id of an adapter's base model.
        trust_remote_code: Run Python code that comes with the model.
        dtype: Precision of the body, as in :func:`plaudit.load`.
        seed: Seed of bootstrap intervals, samples and perturbations.
    """

    base: str | None = None
    trust_remote_code: bool = False
    dtype: Dtype = "auto"
    seed: int = 42


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions(OpenOptions):
    """What :func:`plaudit.evaluate` measures and writes.

    Attributes:
        base: Path or Hub id of an adapter's base model.
        trust_remote_code: Run Python code that comes with the model.
        dtype: Precision of the body, as in :func:`plaudit.load`.
        seed: Seed of bootstrap intervals, samples and perturbations.
        out: Folder to write: predictions, ``metrics.json``, plots and the report.
        train_data: Data that the bag-of-words baseline is fitted on. Use the model's training
            data. Without it the baseline is left out.
        suites: Benchmark suites to run, made by ``plaudit.evaluation.suites.run.parse_request``,
            for example ``parse_request("rewardbench")``.
        perturbation_tests: Number of good responses to perturb and score again; 0 for none.
        best_of: Measure best-of-N by the grades of the responses.
        baseline: A model, an evaluation folder or a ``predictions.parquet`` to check against.
        regression: Metrics and significance level of the regression check.

    Examples:
        >>> from plaudit.evaluate_model import EvaluateOptions
        >>> options = EvaluateOptions(perturbation_tests=4)
        >>> result = plaudit.evaluate("runs/first", "held_out.jsonl", options)
    """

    out: Path | None = None
    train_data: tuple[Source, ...] = ()
    suites: tuple[SuiteRequest, ...] = ()
    perturbation_tests: int = 0
    best_of: bool = False
    baseline: Path | None = None
    regression: RegressionOptions = field(default_factory=RegressionOptions)


def data_use(loaded: LoadedComparisons, skipped: Mapping[str, int]) -> DataUse:
    """What became of loaded comparisons, of which a model skipped some more, by reason."""
    reasons = Counter(loaded.tally.dropped) + Counter(skipped)
    return DataUse(
        rows=loaded.tally.rows,
        used=loaded.tally.rows - sum(reasons.values()),
        dropped=dict(reasons),
        sources=tuple(
            replace(source, rows=None, used=None, sampled=None, licence=None)
            for source in loaded.sources
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result of :func:`plaudit.evaluate`.

    Attributes:
        metrics: The content of ``metrics.json``; ``metrics.eval`` has accuracy, calibration and
            the rest.
        table: One row per response: its reward and the columns of its comparison.
        mistakes: The most confident mistakes, with their texts.
    """

    metrics: RecordedEvaluation
    table: ScoreTable
    mistakes: Sequence[MistakeText] = ()


def check_evaluation(data: Sequence[Source], options: EvaluateOptions) -> None:
    """Say before a model is loaded that something is missing or that ``out`` is taken.

    Raises:
        PlauditError: nothing to evaluate on, a missing file, no such baseline, or ``out`` exists.
    """
    if not data and not options.suites:
        raise DataError("nothing to evaluate on; name files or Hub ids, or set --suite.")
    names = Counter(request.suite.name for request in options.suites)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"--suite {twice} is named twice; put all of its files into one folder.")
    for source in (*data, *options.train_data):
        check_source(source)
    if options.out is not None:
        check_new_folder(options.out)
    if options.baseline is not None and not is_candidate(str(options.baseline)):
        raise DataError(
            f"--baseline {options.baseline} is not a run folder, checkpoint, model folder,"
            " evaluation folder or predictions.parquet."
        )


def evaluate(
    model: RewardModel | str | Path,
    data: str | Path | Source | Sequence[str | Path | Source] = (),
    options: EvaluateOptions = EvaluateOptions(),
    *,
    console: Console | None = None,
) -> Evaluation:
    """Measure a reward model on labelled comparisons.

    Args:
        model: A loaded model, or the path or Hub id of one.
        data: One or more files, folders or Hub dataset ids. It may be empty if ``options`` names
            suites.
        options: What to measure besides accuracy and calibration, and the folder to write.
        console: A rich console for progress. None prints nothing.

    Returns:
        The metrics, the predictions and the most confident mistakes.

    Raises:
        DataError: The data, a suite or the baseline cannot be used.
        ModelError: The model cannot be loaded.
        OutputError: ``options.out`` exists or cannot be written.

    Examples:
        >>> result = plaudit.evaluate("runs/first", "held_out.jsonl")
        >>> accuracy = result.metrics.eval.accuracy
    """
    console = Console(quiet=True) if console is None else console
    sources = as_sources(data)
    check_evaluation(sources, options)
    if isinstance(model, (str, Path)):
        model = open_model(model, console, options)
    use, block, tables = None, None, [build_table(())]
    mistakes: tuple[MistakeText, ...] = ()
    comparisons: StoredComparisons | None = None
    if sources:
        objective = model.metadata.objective
        named = model.metadata.outputs
        loaded = load_comparisons(
            sources,
            seed=options.seed,
            learns_from=learns_from(None if objective is None else objective.kind),
            # The order measures the reward, and attributes measure the outputs.
            outputs=() if named is None or named.ensemble else (*named.names, PREFERENCE),
        )
        comparisons, table, block, skipped = _measure(model, loaded, options, console)
        use = data_use(loaded, skipped)
        tables.append(table)
        numbered = (("eval", m.number, comparisons[m.number]) for m in block.mistakes)
        rewards_of = token_rewards_of(model)
        mistakes = tuple(with_texts(block.mistakes, numbered, rewards_of=rewards_of))
    suites = {}
    for request in options.suites:
        suites[request.suite.name], rows = score_suite(model, request, console)
        tables.append(build_table(rows))
    together = concatenate(tables)
    check = None
    if options.baseline is not None:
        baseline = _baseline_table(comparisons, options, console)
        check = check_regression(
            Scored(name="this model", table=together),
            Scored(name=str(options.baseline), table=baseline),
            options.regression,
        )
    metrics = RecordedEvaluation(
        plaudit_version=__version__,
        model=model.source,
        data=use,
        eval=block,
        environment={
            **describe_environment(str(next(model.module.parameters()).device)),
            "dtype": model.dtype,
        },
        suites=suites or None,
        best_of=best_of_n(together) if options.best_of else None,
        regression_check=check,
    )
    evaluation = Evaluation(metrics=settle(metrics), table=together, mistakes=mistakes)
    if options.out is not None:
        write_evaluation(options.out, evaluation)
    return evaluation


def _measure(
    model: RewardModel, loaded: LoadedComparisons, options: EvaluateOptions, console: Console
) -> tuple[StoredComparisons, ScoreTable, EvaluationMetrics, Mapping[str, int]]:
    """Scored comparisons, their table, their metrics, and skipped rows by reason."""
    from plaudit.tokens.batch import PackedBatcher

    train = [with_known_columns(source) for source in options.train_data]
    objective = model.metadata.objective
    labels = learns_from(None if objective is None else objective.kind)
    fitted_on = (
        load_comparisons(train, seed=options.seed, learns_from=labels).comparisons if train else []
    )
    kept, held_out, skipped = score_comparisons(
        model, loaded.comparisons, console, scorers=fit_baselines(BASELINES, fitted_on)
    )
    probed: Probed | str = NOT_RUN
    if options.perturbation_tests:
        with console.status("perturbation tests"):
            probed = probe(
                kept,
                model.encode,
                lambda trees: [
                    Scores.of(outputs_KO, model.rewards_of(outputs_KO), model.metadata.outputs)
                    for outputs_KO in model.output_trees(trees)
                ],
                most=options.perturbation_tests,
                seed=options.seed,
                packed=isinstance(model.batcher, PackedBatcher),
            )
    block = summarise(
        held_out.table,
        EvaluationContext(
            dataset="eval",
            baselines=held_out.baseline_differences(),
            baselines_fitted_on=fitted_comparisons(fitted_on),
            perturbations=probed,
            stored_temperature=model.metadata.probability_temperature,
            objective=model.metadata.objective,
            outputs=model.metadata.outputs,
            seed=options.seed,
        ),
    )
    return kept, held_out.table, block, skipped


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Predictions, mistakes, metrics, plots and report, all or no folder.

    Raises:
        OutputError: the folder cannot be written.
    """
    files = {
        PREDICTIONS: lambda path: write_table(evaluation.table, path),
        MISTAKES_FILE: lambda path: write_json_lines(path, map(json_safe, evaluation.mistakes)),
        METRICS_FILE: lambda path: write_json(path, json_safe(evaluation.metrics)),
        # These two read what was just written beside them.
        PLOTS_FOLDER: lambda path: write_plots(path.parent),
        REPORT_FILE: lambda path: write_report(path.parent),
    }
    best_of = evaluation.metrics.best_of
    if best_of is not None:
        files["best_of.png"] = lambda path: save_figure(best_of_figure(best_of), path)
    write_folder(folder, files)


def as_sources(data: str | Path | Source | Sequence[str | Path | Source]) -> tuple[Source, ...]:
    """Paths and Hub ids as sources."""
    entries = [data] if isinstance(data, (str, Path, Source)) else list(data)
    return tuple(e if isinstance(e, Source) else Source(path=str(e)) for e in entries)


# ---- scoring -------------------------------------------------------------------------------------


def open_model(path: str | Path, console: Console, options: OpenOptions) -> RewardModel:
    """:func:`plaudit.reward_model.load` under a status line."""
    from plaudit.reward_model import LoadOptions, load_model

    loading = LoadOptions(
        base=options.base, dtype=options.dtype, trust_remote_code=options.trust_remote_code
    )
    with console.status(f"loading {path}"):
        return load_model(path, loading)


def score_comparisons(
    model: RewardModel,
    comparisons: StoredComparisons,
    console: Console,
    *,
    name: str = "",
    scorers: Mapping[str, Scorer | None] = MappingProxyType({}),
) -> tuple[StoredComparisons, HeldOut, Mapping[str, int]]:
    """Scored comparisons, their columns with one dataset ``eval``, and skipped rows by reason.

    ``name`` tells the model from others in progress bars and errors. ``scorers`` are the baselines
    that score the same responses.

    Raises:
        DataError: the model can score none of them.
    """
    from plaudit.tokens.store import encode_rows

    with progress_bars(console) as show:
        encoded = encode_rows(model.encoder, comparisons, on_rows=partial(show, "encoding")).of(
            comparisons
        )
        if not len(encoded.comparisons):
            counts = ", ".join(f"{reason} {count}" for reason, count in encoded.dropped.items())
            example = f"; {encoded.example}" if encoded.example else ""
            raise DataError(
                f"{name and f'{name}: '}None of the {len(comparisons)} comparisons can be scored"
                f" ({counts}{example}); the maximum length of the model is"
                f" {model.metadata.max_length} tokens."
            )
        tokens, total = 0, int(encoded.trees.column("packed").sum())

        def count(batch: Sequence[TokenTree]) -> None:
            nonlocal tokens
            tokens += sum(tree.tokens for tree in batch)
            show(f"scoring {name}".strip(), tokens, total)

        outputs = model.output_trees(encoded.trees, on_batch=count)
    kept = encoded.comparisons
    # One name for the whole set: each file of it is a slice by source.
    scored = ScoredSet(
        dataset="eval",
        comparisons=kept,
        trees=encoded.trees,
        rewards=list(map(model.rewards_of, outputs)),
        outputs=None if model.metadata.outputs is None else outputs,
    )
    return kept, read_held_out([scored], scorers, model.metadata.outputs), encoded.dropped


def score_suite(
    model: RewardModel, request: SuiteRequest, console: Console
) -> tuple[SuiteResult, tuple[ScoreRow, ...]]:
    """:func:`run_suite` under a progress bar."""
    with progress_bars(console) as show:
        return run_suite(model, request, on_batch=partial(show, f"scoring {request.suite.title}"))


@contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar for each task on a terminal, gone afterwards.

    Yields what is called with the task, what is done of it, and the total (None: not known yet).
    """
    from rich.progress import MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:

        def show(task: str, done: int, total: int | None) -> None:
            if task not in bars:
                bars[task] = progress.add_task(escape(task), total=total)
            progress.update(bars[task], completed=done, total=total)

        yield show


def _baseline_table(
    comparisons: StoredComparisons | None, options: EvaluateOptions, console: Console
) -> ScoreTable:
    """Recorded scores of the baseline, or its scores of the same data and suites."""
    path = options.baseline
    assert path is not None
    if is_recorded(path):
        return recorded_table(path)
    model = open_model(path, console, options)
    tables = [build_table(score_suite(model, request, console)[1]) for request in options.suites]
    if comparisons is not None:
        tables.insert(0, score_comparisons(model, comparisons, console, name=str(path))[1].table)
    return concatenate(tables)


# ---- models and recorded scores ------------------------------------------------------------------


def is_candidate(argument: str) -> bool:
    """Whether a word of the command line names a model or recorded scores, rather than data."""
    path = existing_path(argument) or Path(argument)
    if path.is_dir():
        names = (*_MODEL_FILES, PREDICTIONS, EVALUATIONS_FOLDER)
        return any((path / name).exists() for name in names)
    return path.name == PREDICTIONS


def is_recorded(path: Path) -> bool:
    """Whether a candidate is scores alone, without a model to score more."""
    return path.is_file() or not any((path / file).is_file() for file in _MODEL_FILES)


def recorded_table(path: Path) -> ScoreTable:
    """The scores recorded in a run or evaluation folder, or in a ``predictions.parquet``.

    Raises:
        DataError: there are none.
    """
    file = path if path.is_file() else path / PREDICTIONS
    if not file.is_file():
        raise DataError(
            f"{path} has no {PREDICTIONS}, so it has no recorded scores; name data to score it"
            " on: plaudit compare A B pairs.jsonl."
        )
    return read_table(file)
