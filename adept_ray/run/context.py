"""What the commands share: settings made definite, a crew at work, resuming, files of a results folder."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO, TypeVar

import yaml

from adept_ray.config.search_space import SearchSpace
from adept_ray.config.specs import (
    ActivationsRun,
    InterruptedRun,
    RunSpec,
    ScoreWeights,
    TrainingSpec,
    TrainRun,
    UnfinishedRun,
    UserError,
    apply_changes,
    load_yaml,
    mask_password,
    validate_spec,
)
from adept_ray.data.backbones import PRESETS as BACKBONES
from adept_ray.data.benchmark_tasks import is_task_file
from adept_ray.data.documents import CORPORA
from adept_ray.engine import cluster as launch
from adept_ray.engine.crew import CrewLost, Job, JobFailed, JobRefused, run_job, start_crews
from adept_ray.method.memory_plan import choose_fit, plan_memory
from adept_ray.method.sharding import Fit
from adept_ray.report.evidence import Importance, Side, check_record
from adept_ray.run.preparing import Prepared, Sources, list_notes, load_test_blocks, show_jobs
from adept_ray.run.terminal import Display
from adept_ray.storage.files import (
    Results,
    delete_folder,
    describe_full_disk,
    fetch_temporarily,
    is_disk_full,
    make_run_name,
    measure_size,
)
from adept_ray.training.pace import compiling_pays
from adept_ray.training.scoring import SIDES
from adept_ray.training.stage2 import TrainWork
from adept_ray.training.state import STATE

OUTPUT_LOG = "ray.log"
WORTH_ASKING = 1000  # steps of a worker; to find out whether compiled layers are faster takes as long as some
SHOWN_FILES = ("report.html", "trials.csv", "best.yaml", "model")
R = TypeVar("R", bound=RunSpec)
Begun = TypeVar("Begun", bound=RunSpec)
# Of a command that goes on with a run: what is its own, and what it may change, since no loss depends on it.
OWN = ("resume", "more_trials", "storage", "name", "json_lines")
CHANGEABLE = (
    "workers",
    "min_workers",
    "concurrent",
    "micro_batch",
    "activation_checkpointing",
    "sharding",
    "compile",
    "dashboard",
    "cache",
    "max_hours",
)
PACKAGES = ("adept_ray", "ray", "torch", "transformers", "optuna", "datasets", "pyarrow", "gguf", "lm_eval")


def resolve_settings(run: R, what: str = "") -> R:
    """`run` with a name and with absolute paths, so that what it writes can be used from anywhere."""
    changes: dict[str, Any] = {} if run.name else {"name": make_run_name(run, what)}
    if not (getattr(run, "resume", False) or getattr(run, "more_trials", 0)):
        changes["precision"] = run.dtype  # whatever a later command of this run has for GPUs
    presets = {*BACKBONES, *CORPORA}
    for field in ("backbone", "general", "domain", "search_space"):
        value = getattr(run, field, "")
        if value and str(value) not in presets and Path(value).expanduser().exists():
            changes[field] = str(Path(value).expanduser().resolve())
    if study := getattr(run, "study", ""):
        changes["study"] = resolve_study(study)
    for field in ("general_tasks", "domain_tasks"):
        names = getattr(run, field)
        changes[field] = [str(Path(name).resolve()) if is_task_file(name) else name for name in names]
    return apply_changes(run, changes)


def resolve_study(study: str) -> str:
    """A ``--study`` whose file, if it is one, is named by an absolute path."""
    scheme, found, file = study.rpartition("sqlite:///")
    if "://" in study and not (found and not scheme and file != ":memory:"):
        return study
    return f"{found}{Path(file).expanduser().absolute()}"


@contextmanager
def open_context(
    run: RunSpec, results: Results, display: Display, trains: bool = True
) -> Iterator[tuple[Any, int]]:
    """A cluster and a crew on it; yields the board that takes tasks, and the memory of a worker in bytes.

    Where nothing `trains` nothing is compiled either. Raises :class:`UserError` for what can't be.
    """
    with redirect_output(results), launch.connect_cluster(run) as dashboard:
        enter = launch.explain_dashboard_token() if dashboard else ""
        display.show(f"results: {results.place}   Ray dashboard: {dashboard or 'off'}{enter}")
        display.event("results", place=results.place, dashboard=dashboard, enter=enter.strip(" ()"))
        asked, run = run, launch.resolve_crews(run)
        if run != asked:
            display.say(f"trials at once: {run.crews}, what the cluster has room for")
        if trains:
            launch.check_compiler(run)
        memory = launch.measure_worker_memory(run)  # asked now: the crew may take every GPU there is
        with start_crews(run, results.ray, display.say, memory) as board, report_stage_times(display, board):
            yield board, memory


@contextmanager
def redirect_output(results: Results) -> Iterator[None]:
    """Send what Ray, Tune and Train print here, and what workers print, to a file among the results.

    What :class:`Display` writes still comes to the terminal, and so does what is printed afterwards. A run
    that goes on adds to what it printed before, behind a URI too.
    """
    results.fetch((OUTPUT_LOG,))
    file = results.folder / OUTPUT_LOG
    try:
        with (
            file.open("a", buffering=1) as log,
            redirect_stdout(log),
            redirect_stderr(log),
            redirect_logging(log),
        ):
            yield
    finally:
        results.write(OUTPUT_LOG, file.read_text(errors="replace"))


@contextmanager
def redirect_logging(log: TextIO) -> Iterator[None]:
    """Send what Ray logs to `log`: its handlers took hold of stderr when Ray was imported."""
    import ray  # so that they are there

    handlers = [
        each for each in logging.getLogger(ray.__name__).handlers if isinstance(each, logging.StreamHandler)
    ]
    before = [handler.setStream(log) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            handler.setStream(stream)


@contextmanager
def report_stage_times(display: Display, board: Any) -> Iterator[None]:
    """Tell the board the seconds of every stage, those that are over already too."""

    def tell(event: str, _: object = None) -> None:
        if event == "stage_ended":
            board.timed.remote(display.seconds)

    tell("stage_ended")
    display.listeners.append(tell)
    try:
        yield
    finally:
        display.listeners.remove(tell)


@contextmanager
def explain_stops(command: str, run: RunSpec, results: Results, display: Display) -> Iterator[None]:
    """Turn Ctrl-C into :class:`InterruptedRun`, a full disk into :class:`UserError`: both name what goes on.

    What a run that stops half-way has spent is kept in run.json, for the one that goes on to add to.
    """
    try:
        with keep_spent_time(results, display):
            yield
    except KeyboardInterrupt:
        raise InterruptedRun(format_resume_command(command, run)) from None
    except UnfinishedRun as problem:
        told = f"{problem}; what is finished is kept: go on with {format_resume_command(command, run)}"
        raise UserError(told) from problem
    except Exception as problem:
        if isinstance(problem, UserError) or not is_disk_full(problem):
            raise
        raise UserError(
            f"{describe_full_disk(problem)} go on with {format_resume_command(command, run)}"
        ) from problem


@contextmanager
def keep_spent_time(results: Results, display: Display) -> Iterator[None]:
    """Write to run.json what was spent, if what is done here stops half-way."""
    try:
        yield
    except BaseException:
        if not has_ended(about := results.about()):
            with suppress(OSError):  # the disk may be full
                results.write_json("run.json", about | {"spent": sum_spent(about, display)})
        raise


def format_resume_command(command: str, run: RunSpec) -> str:
    """The command line that goes on with a run."""
    trust = " --trust-remote-code" if run.trust_remote_code else ""
    elsewhere = "" if run.storage == RunSpec().storage else f" --storage {shlex.quote(run.storage)}"
    return f"python {command} --name {run.name} --resume{trust}{elsewhere}"


def check_trust(trusted: bool, begun: Mapping[str, Any], what: str) -> None:
    """Refuse to go on with other code than a run of those settings had: no file can ask for trust.

    Raises :class:`UserError`.
    """
    if trusted != begun.get("trust_remote_code", False):
        had, so = ("without", "leave it out") if trusted else ("with", "give it again if that code may run")
        raise UserError(f"{what} was made {had} --trust-remote-code: {so}")


def resume_settings(run: Begun, begun: Mapping[str, Any]) -> Begun:
    """The settings that a run began with, to resume it; a flag that contradicts them is refused.

    What no result depends on (see CHANGEABLE) may be given anew; what isn't given (is not in the
    `model_fields_set` of `run`) stays as it was.
    """
    saved = validate_spec(type(run), begun, "run.json")
    check_trust(run.trust_remote_code, begun, f"the run '{run.name}'")
    changes = {name: getattr(run, name) for name in OWN if hasattr(run, name)}
    for name in (n for n in type(run).model_fields if n in run.model_fields_set and n not in OWN):
        asked, had = getattr(run, name), getattr(saved, name)
        if asked == had:
            continue
        if name not in CHANGEABLE:
            flag = "--" + name.replace("_", "-")
            if name == "study":
                asked, had = mask_password(asked), mask_password(had)
            raise UserError(f"{flag} {asked}: the run '{run.name}' began with {had}, so leave that flag out")
        changes[name] = asked
    return apply_changes(saved, changes, where=f"resuming '{run.name}'")


def resume_training(
    args: TrainRun, best: Mapping[str, Any], begun: Mapping[str, Any]
) -> tuple[RunSpec, TrainingSpec]:
    """The settings that a training at full length began with, to resume it.

    `best` is the best.yaml that was given, `begun` the run.json of the training. Raises :class:`UserError`
    for a flag or a best.yaml that contradicts them, and for what is no training.
    """
    if "training" not in begun:
        raise UserError(f"'{args.name}' is no training at full length: check --name and --storage")
    run = resolve_settings(resume_settings(RunSpec.model_construct(**overrides_from(args)), begun["run"]))
    file = resolve_settings(validate_spec(RunSpec, best["run"], args.config))
    for name in (name for name in RunSpec.model_fields if name not in TrainRun.model_fields):
        if (asked := getattr(file, name)) != (had := getattr(run, name)):
            raise UserError(
                f"{args.config}: {name} is {asked}, but the training to be resumed began with {had}"
            )
    training = validate_spec(TrainingSpec, begun["training"], "run.json")
    reports = args.reports if "reports" in args.model_fields_set else training.reports
    wanted = {**best["training"], "tokens": args.tokens, "reports": reports}
    check_same_training(validate_spec(TrainingSpec, wanted, args.config), begun["training"])
    return run, training


def check_same_training(training: TrainingSpec, begun: Mapping[str, Any]) -> None:
    """Refuse to resume a training as another one: the schedule would break. Raises :class:`UserError`."""
    had = validate_spec(TrainingSpec, begun, "run.json").model_dump(mode="json")
    for name, value in training.model_dump(mode="json").items():
        if value != had[name]:
            raise UserError(f"{name} is {value}, but the training to be resumed began with {had[name]}")


def load_best(place: str | Path) -> dict[str, Any]:
    """Read a best.yaml, behind a path or URI. Raises :class:`UserError` for one that can't be used."""
    if "://" in str(place):
        parent, _, name = str(place).rpartition("/")
        try:
            with fetch_temporarily(parent, [name]) as folder:
                best = load_yaml(folder / name)
        except OSError as problem:
            raise UserError(f"{place}: can't be read: {launch.first_line(problem)}") from problem
    else:
        best = load_yaml(Path(place))
    for part in ("run", "training", "layers", "score", "k_max"):
        if part not in best:
            raise UserError(f"{place}: no '{part}' in it; give the best.yaml that a search wrote")
    return best


def known_fingerprints(best: Mapping[str, Any]) -> dict[str, str]:
    """What a best.yaml knows of what it was made from."""
    return {"backbone": best["backbone"]} if "backbone" in best else {}


def overrides_from(args: TrainRun | ActivationsRun) -> dict[str, Any]:
    """The fields of the run that a command which goes on from a best.yaml was given anew."""
    machine = (
        "workers",
        "min_workers",
        "gpus_per_worker",
        "micro_batch",
        "precision",
        "activation_checkpointing",
        "sharding",
        "compile",
    )
    names = (*machine, "trust_remote_code", "cache", "storage", "name", "json_lines")
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def build_work(
    run: RunSpec, made: Prepared, training: TrainingSpec, layers: Sequence[int], weights: ScoreWeights
) -> TrainWork:
    """The training of `layers` with `training` on what was prepared."""
    backbone = made.sources.backbone
    return TrainWork(
        source=backbone.source,
        revision=backbone.revision,
        training=training,
        layers=tuple(layers),
        units=made.importance["units"],
        before=made.before,
        weights=weights,
        seq_len=run.seq_len,
        micro_batch=run.micro_batch,
        seed=run.seed,
        items=made.sources.items_of("validation"),
        by_tasks=run.score == "tasks",
        dtype=run.dtype,
        trusted=backbone.trusted,
    )


def plan_fit(
    run: RunSpec,
    sources: Sources,
    training: TrainingSpec,
    memory: int,
    display: Display,
    layers: Sequence[int] | None = None,
    what: str = "",
) -> Fit:
    """Show what `training` will take of a worker's `memory`; returns how it is made to fit.

    As long as `layers` aren't known they are taken for the lowest ones, where a gradient passes the most.
    Raises :class:`UserError` for what doesn't fit.
    """
    if (sequences := max(1, training.tokens_per_step // run.seq_len)) < run.workers:
        display.warn(
            f"a step of {training.tokens_per_step} tokens has {sequences} blocks, so "
            f"{run.workers - sequences} of {run.workers} workers have nothing to train on: raise "
            "tokens_per_step"
        )
    lowest = tuple(range(training.k) if layers is None else layers)
    what = what or f"k = {training.k}"
    try:
        code = sources.backbone.trusted, sources.backbone.revision
        needs = plan_memory(sources.config, training, lowest, run.seq_len, run.dtype, *code)
    except UserError:
        raise
    except Exception as problem:  # a pass without data is more than some architectures can do
        display.say(f"{what}: what it will take can't be said beforehand ({launch.first_line(problem)})")
        return Fit(run.activation_checkpointing == "on", run.sharding == "on", run.compile == "on")
    fit = choose_fit(needs, run, memory, what)
    display.plan(needs, run, fit, memory, what)
    return fit


def choose_compiling(
    run: RunSpec, work: TrainWork, steps: int, made: Prepared, display: Display, board: Any
) -> TrainWork:
    """`work` with compiled layers where `run` leaves that open and it pays over so many `steps`.

    Each command asks its own workers: those that go on with a run may be others. `display` is told.
    """
    if run.compile != "auto" or steps < WORTH_ASKING or not work.layers:
        return work
    try:
        with show_jobs(display, board, "pace", "steps with and without torch.compile", "pace"):
            found = run_job(board, Job("pace", "pace", work, store_blocks(made.blocks)))
    except (CrewLost, JobRefused):
        raise
    except JobFailed as problem:
        display.say(f"trained without torch.compile: timing it failed ({launch.find_cause(problem)})")
        return work
    if found["fault"]:
        display.say(f"trained without torch.compile, which a worker can't use: {found['fault']}")
        return work
    compiled = compiling_pays(found, steps)
    times = {name: found[name] for name in ("plain", "compiled", "compiling")}
    display.event("pace", **times, steps=steps, compile=compiled)
    display.show(
        f"a step takes {found['plain']:.3g} s, by torch.compile {found['compiled']:.3g} s, which took "
        f"{found['compiling']:.0f} s; {steps:,} steps: trained {'with' if compiled else 'without'} it"
    )
    return replace(work, fit=replace(work.fit, compiled=compiled))


def store_blocks(blocks: Any) -> Any:
    """A reference to `blocks` in the object store, read once by every process that needs them."""
    import ray

    return ray.put(blocks)


def test_and_export(
    run: RunSpec,
    work: TrainWork,
    made: Prepared,
    results: Results,
    display: Display,
    board: Any,
    checkpoint: str,
) -> dict[str, Any]:
    """Look once at the test splits, export the model and the winner's rates; returns the test's numbers."""
    backbone = made.sources.backbone
    about = {"backbone": backbone.name, "revision": backbone.revision, "run": run.name}
    with show_jobs(display, board, "test", "test splits and export", "conclude"):
        blocks = store_blocks(load_test_blocks(run, made.sets))
        work = replace(work, items=made.sources.items_of("test"))
        extra = {"checkpoint": checkpoint, "about": about}
        found = run_job(board, Job("conclude", "conclude", work, blocks, results.ray, extra=extra))
        kept, whole = measure_size(checkpoint), measure_size(f"{found['saved']}/model")
        results.adopt(f"{found['saved']}/model", "model")
        delete_folder(f"{results.ray}/conclude")
        with fetch_temporarily(checkpoint) as folder:
            state = json.loads((folder / STATE).read_text())
    results.write("rates.jsonl", "".join(json.dumps(row) + "\n" for row in state["rates"]))
    display.show(
        f"a checkpoint, of what is trained alone: {kept / 1e6:.1f} MB; the whole model: {whole / 1e6:.1f} MB"
    )
    display.event("sizes", checkpoint=kept, model=whole)
    return {**{side: describe_side(found, side, work.by_tasks) for side in SIDES}, "score": found["score"]}


def describe_side(found: Mapping[str, Any], side: str, by_tasks: bool) -> dict[str, Any]:
    """What best.yaml says of a side, from the metrics of the test; `measure` is what its delta is of."""
    measures = [measure for measure in ("bpb", "accuracy") if f"{side}_{measure}" in found]
    said: dict[str, Any] = {"measure": measures[-1] if by_tasks else "bpb"}
    for measure in measures:
        said[f"before_{measure}"] = found[f"{side}_{measure}_before"]
        said[f"after_{measure}"] = found[f"{side}_{measure}"]
    return said | {"delta": found[f"{side}_delta"], "standard_error": found[f"{side}_delta_se"]}


def record_best(
    results: Results,
    run: RunSpec,
    made: Prepared,
    work: TrainWork,
    test: Mapping[str, Any],
    choice: Mapping[str, Any],
    k_max: int,
) -> None:
    """Write best.yaml: all that ``train.py`` needs, and the evidence for it."""
    spec = {n: v for n, v in run.model_dump(mode="json").items() if n in RunSpec.model_fields}
    best = {
        "run": spec,
        "training": work.training.model_dump(mode="json"),
        "layers": list(work.layers),
        "k_max": k_max,
        "score": work.weights.model_dump(),
        "choice": dict(choice),
        "test": dict(test),
        "backbone": made.sources.backbone.fingerprint,
    }
    results.write("best.yaml", yaml.safe_dump(best, sort_keys=False, allow_unicode=True))


def record_run(
    results: Results,
    run: RunSpec,
    display: Display,
    sources: Sources,
    made: Prepared | None = None,
    training: TrainingSpec | None = None,
    space: SearchSpace | None = None,
) -> None:
    """Write run.json: the settings, and, when `made` is given, versions, fingerprints and wall clock.

    What an earlier command of the same run wrote holds until this one has ended, so that one which is cut
    off leaves results that can be read; what the commands spent adds up.
    """
    had = results.about()
    about = {"command": shlex.join(["python", *sys.argv]), **had}
    about |= {"run": run.model_dump(mode="json"), "seed": run.seed, "notes": list_notes(sources)}
    about["fingerprints"] = sources.fingerprints | had.get("fingerprints", {})
    about["ended"] = made is not None
    if training:
        about["training"] = training.model_dump(mode="json")
    if space:
        about["space"] = space.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if made:
        about |= {"versions": list_versions(), "fingerprints": made.fingerprints, **sum_spent(had, display)}
        about = {name: value for name, value in about.items() if name not in ("spent", "pick")}
    results.write_json("run.json", about)


def sum_spent(about: Mapping[str, Any], display: Display) -> dict[str, Any]:
    """Wall clock in seconds, by stage and in all, and peak memory of a run's commands, this one included.

    `about` is the run.json that the earlier ones left.
    """
    had = about.get("spent", about)
    before, now = seconds_before(about), {**display.seconds, "total": display.total()}
    stages = [name for name in dict.fromkeys([*before, *now]) if name != "total"]
    seconds = {name: round(before.get(name, 0.0) + now.get(name, 0.0), 1) for name in (*stages, "total")}
    peaks = [peak for peak in (had.get("peak_memory_gib"), launch.Memory.peak_gib()) if peak is not None]
    return {"seconds": seconds, "peak_memory_gib": max(peaks, default=None)}


def seconds_before(about: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by stage that the commands took which left this run.json."""
    return about.get("spent", about).get("seconds", {})


def has_ended(about: Mapping[str, Any]) -> bool:
    """Whether the last command of a run, whose run.json this is, came to its end."""
    return about.get("ended", "seconds" in about)


def list_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that isn't installed
            found[package] = "not installed"
    return found


def show_summary(
    display: Display,
    why: str,
    test: Mapping[str, Any],
    work: TrainWork,
    made: Prepared,
    results: Results,
    advised_k: int | None = None,
) -> None:
    """The last lines of a run: k, the advised one where it is another, why, what it gained, its files."""
    layers, k = " ".join(map(str, work.layers)) or "none", work.training.k
    advised_k = k if advised_k is None else advised_k
    head = f"k = {k}" if advised_k == k else f"advice: k = {advised_k}   exported: k = {k}"
    display.show(f"\n{head}   layers copied: {layers}\n{why}")
    doubt = check_record(Importance, made.importance, "importance").doubt(work.layers)
    if doubt:
        display.show(doubt)
    for side in SIDES:
        found = check_record(Side, test[side], "test")
        display.show(
            f"{side + ':':9} {found.levels('bits per byte')} on the test split, "
            f"{found.delta:+.2f} ± {found.standard_error:.2f} {found.unit} against the untouched backbone"
        )
    files = {name: f"{results.place}/{name}" for name in SHOWN_FILES if results.holds(name)}
    for name, place in files.items():
        display.show(f"{name + ':':12} {place}")
    facts = {"k": k, "advised_k": advised_k, "layers": work.layers, "reason": why, "doubt": doubt}
    display.event("summary", **facts, test=test, files=files, seconds=display.seconds)
