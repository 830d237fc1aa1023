"""The commands: find k, probe only, train at full length, compare. Arguments in, results folder out."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import yaml

from adept_ray import launch
from adept_ray.assets import CORPORA
from adept_ray.backbones import PRESETS as BACKBONES
from adept_ray.backbones import load_model, load_tokenizer, resolve_backbone
from adept_ray.benchmarks import OFFLINE, accuracies, at_chance, correct, draw, is_file
from adept_ray.checkpoint import STATE
from adept_ray.compare import Field, Training, compare, from_csv, to_csv, trainings
from adept_ray.comparison_report import verdict, write_comparison
from adept_ray.config import (
    ActivationsRun,
    CompareRun,
    EvaluateRun,
    Interrupted,
    ProbeRun,
    RunSpec,
    ScoreWeights,
    SearchRun,
    SearchSpace,
    TrainingSpec,
    TrainRun,
    UserError,
    load_search_space,
    load_yaml,
    overlay,
    validated,
)
from adept_ray.corpus import Blocks
from adept_ray.crew import Progresses, Task, crew, do, watching
from adept_ray.display import Display
from adept_ray.evidence import Importance, Side, checked
from adept_ray.expansion import RECORD
from adept_ray.figures import draw_importance, save, separation_figure
from adept_ray.methods import Entrant, entrants
from adept_ray.placement import check_placement, placed, ranks_needed
from adept_ray.prepare import Prepared, Sources, find_sources, notes, prepare, test_blocks
from adept_ray.probe import ProbeJob
from adept_ray.report import write_report
from adept_ray.scoring import SIDES, tasks_of
from adept_ray.search import check_space, choose, search, training_of
from adept_ray.storage import Results, default_name, delete, fetched, write_json
from adept_ray.train import TrainJob

R = TypeVar("R", bound=RunSpec)
Begun = TypeVar("Begun", SearchRun, CompareRun)
SHOWN = 4  # layers whose densities are drawn
PACKAGES = ("adept_ray", "ray", "torch", "transformers", "optuna", "datasets", "pyarrow", "gguf", "lm_eval")


def find_k(run: SearchRun) -> str:
    """Search k, recompute frequency and base rate; write the results folder; returns its place.

    Raises :class:`UserError` for bad input, KeyboardInterrupt when it was stopped half-way.
    """
    display = Display()
    run = settled(run)
    results = Results(run.storage, run.name)
    results.open(run.resume)
    if run.resume:
        run = as_begun(run, json.loads((results.folder / "run.json").read_text())["run"])
    space = load_search_space(run.search_space)
    launch.check_workers(run)
    sources = find_sources(run, display)
    base = TrainingSpec(tokens=run.tokens_per_trial)
    k_max = check_space(space, sources.layers, base)
    write_run(results, run, display, sources)
    with resumable("scripts/tune_k.py", run), at_work(run, results, display) as board:
        replays = "replay" in space.parameters
        receptive = "placement" in space.parameters and "receptive" in space.parameters["placement"].values
        made = prepare(run, sources, display, board, k_max, run.tokens_per_trial, replays, receptive)
        results.write_json("importance.json", made.importance)
        job = job_of(run, made, base, (), space.score)
        rows = run_trials(run, space, job, made, results, display, board)
        choice = choose(rows)
        row = next(row for row in rows if row["trial"] == choice.trial)
        training = training_of(row, base)
        job = job_of(run, made, training, placed(made.layer_importance, training, run.seed), space.score)
        test = conclude(run, job, made, results, display, board, row["saved"])
        delete_checkpoints(rows, choice.trial)
    write_best(results, run, made, job, test, asdict(choice), k_max)
    write_run(results, run, display, sources, made)
    write_report(results.folder)
    summary(display, choice.reason, test, job, made, results)
    return results.publish()


def train_full(args: TrainRun) -> str:
    """Train at full length with what a search found and export the model; returns the results' place.

    Raises :class:`UserError` for bad input.
    """
    display = Display()
    best = load_best(args.config)
    run = validated(RunSpec, {**best["run"], **given(args)}, str(args.config))
    run = settled(run, "train")
    results = Results(run.storage, run.name)
    results.open(args.resume)
    training = validated(
        TrainingSpec, {**best["training"], "tokens": args.tokens, "reports": args.reports}, str(args.config)
    )
    if args.resume:
        check_same(training, json.loads((results.folder / "run.json").read_text())["training"])
    launch.check_workers(run)
    sources = find_sources(run, display)
    if best.get("backbone") not in (None, sources.backbone.fingerprint):
        raise UserError(f"{run.backbone} has changed since {args.config} was written: search again with it")
    write_run(results, run, display, sources, training=training)
    again = f"scripts/train.py --config {shlex.quote(str(args.config))} --tokens {args.tokens}"
    with resumable(again, run), at_work(run, results, display) as board:
        made = prepare(run, sources, display, board, best["k_max"], args.tokens, training.replay > 0)
        results.write_json("importance.json", made.importance)
        weights = validated(ScoreWeights, best["score"], str(args.config))
        job = job_of(run, made, training, tuple(best["layers"]), weights)
        with (
            display.stage("train", f"stage 2, {job.steps} steps") as update,
            watching(board, lambda progress, _: update(*progress.get("train", (0, job.steps)))),
        ):
            last = do(board, Task("train", "train", job, put(made.blocks), results.ray))
        test = conclude(run, job, made, results, display, board, last["saved"])
    write_best(results, run, made, job, test, best.get("choice", {}), best["k_max"])
    write_run(results, run, display, sources, made, training)
    summary(display, f"Trained with the configuration of {args.config}.", test, job, made, results)
    return results.publish()


def compare_methods(run: CompareRun) -> str:
    """Train and score the rivals on the same blocks; write the comparison; returns the results' place.

    Raises :class:`UserError` for bad input, KeyboardInterrupt when it was stopped half-way.
    """
    display = Display()
    run = settled(run, "compare")
    results = Results(run.storage, run.name)
    results.open(run.resume)
    if run.resume:
        run = as_begun(run, json.loads((results.folder / "run.json").read_text())["run"])
    rivals = entrants(run)
    launch.check_workers(run)
    sources = find_sources(run, display)
    for rival in rivals:
        check_placement(rival.training, sources.layers)
    k_max = max(ranks_needed(rival.training, sources.layers) for rival in rivals)
    write_run(results, run, display, sources)
    with resumable("scripts/compare.py", run), at_work(run, results, display) as board:
        receptive = any(rival.training.placement == "receptive" for rival in rivals)
        tokens = run.tokens * (run.seeds + 1)
        made = prepare(run, sources, display, board, k_max, tokens, replay=True, receptive=receptive)
        results.write_json("importance.json", made.importance)
        field = field_of(run, made, results, display, board)
        rows = run_comparison(run, rivals, field, results, display)
    write_run(results, run, display, sources, made)
    about = {rival.label: rival.about for rival in rivals}
    summaries = write_comparison(results.folder, rows, about, run.model_dump(mode="json"))
    display.say(f"\n{verdict(summaries)}")
    display.comparison(summaries)
    for name in ("comparison.html", "comparison.csv", "runs.csv"):
        display.say(f"{name + ':':16} {results.place}/{name}")
    return results.publish()


def field_of(run: CompareRun, made: Prepared, results: Results, display: Display, board: Any) -> Field:
    """What all trainings of a comparison share; measures the untouched backbone on the test splits."""
    backbone, tests = made.sources.backbone, test_blocks(run, made.sets)
    items = {"rate": made.sources.items_of("validation"), "test": made.sources.items_of("test")}
    with display.stage("untouched", "the untouched backbone on the test splits"):
        job = ProbeJob(
            backbone.source,
            backbone.revision,
            run.micro_batch,
            importance=False,
            held_out=SIDES,
            items=items["test"],
        )
        found = do(board, Task("untouched", "probe", job, put(tests)))
    answers = {tasks_of(side): right for side, right in found["correct"].items()}
    judged = {"rate": {side: made.blocks[side] for side in SIDES}, "test": tests}
    return Field(
        board,
        job_of(run, made, TrainingSpec(), (), ScoreWeights()),
        made.layer_importance,
        [
            put(own_blocks(run, made, number, judged["test" if number else "rate"]))
            for number in range(run.seeds + 1)
        ],
        {"rate": made.before, "test": found["nats"] | answers},
        judged,
        items,
        f"{results.ray}/trainings",
    )


def own_blocks(
    run: CompareRun, made: Prepared, number: int, judged: Mapping[str, Blocks]
) -> dict[str, Blocks]:
    """The blocks of one seed: no two seeds train on a common one, unless there are too few.

    Then all train on all of them, each in an order of its own.
    """
    blocks = {**made.blocks, **judged}
    needed = run.tokens * (run.seeds + 1) // run.seq_len
    for name in ("train", "replay"):
        if len(blocks[name]) >= needed:
            blocks[name] = blocks[name].piece(number, run.seeds + 1)
    return blocks


def run_comparison(
    run: CompareRun, rivals: Sequence[Entrant], field: Field, results: Results, display: Display
) -> list[Training]:
    """Run the trainings under a progress bar; runs.csv is written as they end."""
    file = results.folder / "runs.csv"
    known = from_csv(file.read_text()) if file.exists() else []
    total = trainings(rivals, run.rate_trials, run.seeds)
    now = ("", 0)  # the task that runs, and how many are over

    def ended(rows: list[Training], name: str) -> None:
        nonlocal now
        now = (name, len(rows))
        if rows:
            # Those of an earlier attempt that are still to come stay in the file.
            later = [row for row in known if row.key not in {r.key for r in rows}]
            results.write("runs.csv", to_csv([asdict(row) for row in [*rows, *later]]))
            display.training(asdict(rows[-1]))

    with display.stage("compare", f"{total} trainings") as update:

        def show(progress: Progresses, _: object) -> None:
            name, over = now
            done, of = progress.get(name, (0, 1))
            update(round(1000 * (over + done / of)), 1000 * total)

        with watching(field.board, show):
            return compare(rivals, field, run.rate_trials, run.seeds, known, ended)


def draw_activations(args: ActivationsRun) -> str:
    """Measure and draw how far apart three models keep both kinds of text; returns the results' place.

    The models: the untouched backbone, its chosen layers tuned as they are (trained here, with the settings
    of the search but for the rate), and the expanded one that the search exported.
    Raises :class:`UserError` for bad input.
    """
    display = Display()
    best = load_best(args.config)
    changes = {**given(args), **({"test_tokens": args.test_tokens} if args.test_tokens else {})}
    run = settled(validated(RunSpec, {**best["run"], **changes}, str(args.config)), "activations")
    expanded = args.config.parent / "model"
    if not best["layers"] or not (expanded / RECORD).exists():
        raise UserError(f"{args.config}: there is no expanded model beside it, in {expanded}")
    results = Results(run.storage, run.name)
    results.open(resume=False)
    launch.check_workers(run)
    sources = find_sources(run, display)
    write_run(results, run, display, sources)
    training = validated(
        TrainingSpec,
        best["training"] | {"tunes": "originals", "base_lr": args.originals_lr, "reports": 1},
        str(args.config),
    )
    with at_work(run, results, display) as board:
        made = prepare(run, sources, display, board, best["k_max"], training.tokens, training.replay > 0)
        job = job_of(run, made, training, tuple(best["layers"]), ScoreWeights())
        with display.stage("train", f"tuning without expansion, {job.steps} steps"):
            last = do(board, Task("without", "train", job, put(made.blocks), results.ray))
        conclude(run, job, made, results, display, board, last["saved"])
        with display.stage("activations", "activations of three models"):
            models = separations(run, made, results, expanded, board)
    results.write_json("activations.json", {"layers": best["layers"], "models": models})
    rows = [
        {"model": name, "layer": row["layer"], "copy": row["copy"], "overlap": row["overlap"]}
        for name, rows in models.items()
        for row in rows
    ]
    results.write("activations.csv", to_csv(rows))
    save(separation_figure(models, best["layers"][:SHOWN]), results.folder / "activations.png")
    write_run(results, run, display, sources, made, training)
    display.overlaps(models, best["layers"])
    place = results.publish()
    display.say(f"activations.png, activations.csv and activations.json are in {place}")
    return place


def separations(
    run: RunSpec, made: Prepared, results: Results, expanded: Path, board: Any
) -> dict[str, list[dict[str, Any]]]:
    """Name of a model → a row a layer (see :func:`adept_ray.figures.separation_figure`)."""
    tests = test_blocks(run, made.sets)
    if (fewest := min(map(len, tests.values()))) < max(8, run.workers):
        raise UserError(f"--test-tokens {run.test_tokens}: {fewest} blocks of a side are too few to compare")
    backbone = made.sources.backbone
    folders = {
        "untouched": (backbone.source, backbone.revision),
        "without expansion": (str(results.folder / "model"), None),
        "expanded": (str(expanded.resolve()), None),
    }
    blocks = put(tests)
    found = {}
    for name, (source, revision) in folders.items():
        job = ProbeJob(source, revision, run.micro_batch, importance=False, separation=True)
        measured = do(board, Task(f"activations of {name}", "probe", job, blocks))["separation"]
        added = json.loads((expanded / RECORD).read_text())["added_layers"] if name == "expanded" else []
        found[name] = [
            {"layer": at - sum(a <= at for a in added), "copy": at in added, **row}
            for at, row in enumerate(measured)
        ]
    return found


def evaluate(run: EvaluateRun) -> None:
    """Score a model on benchmark tasks and print the table. Raises :class:`UserError` for bad input."""
    import torch

    display = Display()
    with display.stage("tasks", "benchmark tasks"):
        items = draw(run.tasks or OFFLINE, run.items, run.seed, run.cache)["test"]
    with display.stage("model", run.model):
        backbone = resolve_backbone(run.model, run.cache)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load_model(backbone.source, backbone.revision).to(device)
        tokenizer = load_tokenizer(backbone.source, backbone.revision)
    with display.stage("items", f"{len(items)} items"):
        right = correct(model, tokenizer, items, run.micro_batch, quiet=False)
    rows = accuracies(items, right)
    display.accuracies(rows)
    for sentence in at_chance(items, right):
        display.say(f"warning: {sentence}")
    if run.output:
        run.output.parent.mkdir(parents=True, exist_ok=True)
        about = {"model": backbone.name, "fingerprint": backbone.fingerprint, "seed": run.seed}
        write_json(run.output, about | {"versions": versions(), "tasks": rows})
        display.say(f"written to {run.output}")


def probe_only(run: ProbeRun) -> str:
    """Run stage 1 alone; write importance.json and importance.png; returns the results' place.

    Raises :class:`UserError` for bad input.
    """
    display = Display()
    run = settled(run, "probe")
    results = Results(run.storage, run.name)
    results.open(resume=False)
    launch.check_workers(run)
    sources = find_sources(run, display, with_domain=False)
    write_run(results, run, display, sources)
    with at_work(run, results, display) as board:
        made = prepare(run, sources, display, board, run.k_max)
    results.write_json("importance.json", made.importance)
    draw_importance(made.importance, (), results.folder / "importance.png")
    write_run(results, run, display, sources, made)
    display.importance(made.importance)
    place = results.publish()
    display.say(f"importance.json and importance.png are in {place}")
    return place


def settled(run: R, what: str = "") -> R:
    """`run` with a name and with absolute paths, so that what it writes can be used from anywhere."""
    changes: dict[str, Any] = {} if run.name else {"name": default_name(run, what)}
    presets = {*BACKBONES, *CORPORA}
    for field in ("backbone", "general", "domain", "search_space", "cache"):
        value = getattr(run, field, "")
        if value and str(value) not in presets and Path(value).expanduser().exists():
            changes[field] = str(Path(value).expanduser().resolve())
    for field in ("general_tasks", "domain_tasks"):
        names = getattr(run, field)
        changes[field] = [str(Path(name).resolve()) if is_file(name) else name for name in names]
    return overlay(run, changes)


@contextmanager
def at_work(run: RunSpec, results: Results, display: Display) -> Iterator[Any]:
    """A cluster and a crew on it; yields the board that takes tasks."""
    with launch.cluster(run) as dashboard:
        display.say(f"results: {results.place}   Ray dashboard: {dashboard or 'off'}")
        with crew(run, results.ray) as board:
            yield board


@contextmanager
def resumable(command: str, run: RunSpec) -> Iterator[None]:
    """Turn Ctrl-C into :class:`Interrupted` with the command line that goes on."""
    try:
        yield
    except KeyboardInterrupt:
        elsewhere = "" if run.storage == RunSpec().storage else f" --storage {shlex.quote(run.storage)}"
        raise Interrupted(f"python {command} --name {run.name} --resume{elsewhere}") from None


def as_begun(run: Begun, begun: Mapping[str, Any]) -> Begun:
    """The settings that a run began with, to resume it; a flag that contradicts them is refused."""
    saved, defaults = validated(type(run), begun, "run.json"), type(run)()
    own = ("resume", "cache", "storage", "name", "dashboard")
    for name in (n for n in type(run).model_fields if n not in own):
        asked, had = getattr(run, name), getattr(saved, name)
        if asked not in (had, getattr(defaults, name)):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {asked}: the run '{run.name}' began with {had}, so leave that flag out")
    return overlay(saved, {name: getattr(run, name) for name in own})


def check_same(training: TrainingSpec, begun: Mapping[str, Any]) -> None:
    """Refuse to resume a training as another one: the schedule would break. Raises :class:`UserError`."""
    for name, value in training.model_dump(mode="json").items():
        if value != begun[name]:
            raise UserError(f"{name} is {value}, but the training to be resumed began with {begun[name]}")


def load_best(path: Path) -> dict[str, Any]:
    """Read a best.yaml. Raises :class:`UserError` when it lacks a part."""
    best = load_yaml(path)
    for part in ("run", "training", "layers", "score", "k_max"):
        if part not in best:
            raise UserError(f"{path}: no '{part}' in it; give the best.yaml that a search wrote")
    return best


def given(args: TrainRun | ActivationsRun) -> dict[str, Any]:
    """The fields of the run that a command which goes on from a best.yaml was given anew."""
    names = ("workers", "gpus_per_worker", "micro_batch", "cache", "storage", "name")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def job_of(
    run: RunSpec, made: Prepared, training: TrainingSpec, layers: Sequence[int], weights: ScoreWeights
) -> TrainJob:
    """The training of `layers` with `training` on what was prepared."""
    backbone = made.sources.backbone
    return TrainJob(
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
    )


def put(blocks: Any) -> Any:
    """A reference to `blocks` in the object store, read once by every process that needs them."""
    import ray

    return ray.put(blocks)


def run_trials(
    run: SearchRun,
    space: SearchSpace,
    job: TrainJob,
    made: Prepared,
    results: Results,
    display: Display,
    board: Any,
) -> list[dict[str, Any]]:
    """Search under a live table; trials.csv is written as trials end."""
    over: list[str] = []

    def watch(progress: Progresses, rows: list[dict[str, Any]]) -> None:
        show(progress, rows)
        now = [row["trial"] for row in rows if row["state"] != "running"]
        if now != over:
            over[:] = now
            write_trials(results, [row for row in rows if row["trial"] in now])

    started = time.monotonic()
    with display.trials(run.trials) as show, watching(board, watch):
        rows = search(run, space, job, made.layer_importance, put(made.blocks), results.ray)
    display.seconds["search"] = round(time.monotonic() - started, 1)
    display.say(f"search: {display.seconds['search']:.1f} s")
    write_trials(results, rows)
    return rows


def write_trials(results: Results, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write trials.csv."""
    text = io.StringIO()
    names = [
        name
        for name in rows[0]
        if name not in ("saved", "error")
        and (not name.endswith("_accuracy") or any(row[name] is not None for row in rows))
    ]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    results.write("trials.csv", text.getvalue())


def conclude(
    run: RunSpec,
    job: TrainJob,
    made: Prepared,
    results: Results,
    display: Display,
    board: Any,
    checkpoint: str,
) -> dict[str, Any]:
    """Look once at the test splits, export the model and the winner's rates; returns the test's numbers."""
    backbone = made.sources.backbone
    about = {"backbone": backbone.name, "revision": backbone.revision, "run": run.name}
    with display.stage("test", "test splits and export"):
        blocks = put(test_blocks(run, made.sets))
        job = replace(job, items=made.sources.items_of("test"))
        extra = {"checkpoint": checkpoint, "about": about}
        found = do(board, Task("conclude", "conclude", job, blocks, results.ray, extra=extra))
        results.adopt(f"{found['saved']}/model", "model")
        delete(f"{results.ray}/conclude")
        with fetched(checkpoint) as folder:
            state = json.loads((folder / STATE).read_text())
    results.write("rates.jsonl", "".join(json.dumps(row) + "\n" for row in state["rates"]))
    return {**{side: side_of(found, side, job.by_tasks) for side in SIDES}, "score": found["score"]}


def side_of(found: Mapping[str, Any], side: str, by_tasks: bool) -> dict[str, Any]:
    """What best.yaml says of a side, from the metrics of the test; `measure` is what its delta is of."""
    measures = [measure for measure in ("bpb", "accuracy") if f"{side}_{measure}" in found]
    said: dict[str, Any] = {"measure": measures[-1] if by_tasks else "bpb"}
    for measure in measures:
        said[f"before_{measure}"] = found[f"{side}_{measure}_before"]
        said[f"after_{measure}"] = found[f"{side}_{measure}"]
    return said | {"delta": found[f"{side}_delta"], "standard_error": found[f"{side}_delta_se"]}


def delete_checkpoints(rows: Sequence[Mapping[str, Any]], keep: str) -> None:
    """Delete the checkpoints of all trials but the chosen one: they are most of the folder's size."""
    for row in rows:
        if row["saved"] and row["trial"] != keep:
            delete(row["saved"])


def write_best(
    results: Results,
    run: RunSpec,
    made: Prepared,
    job: TrainJob,
    test: Mapping[str, Any],
    choice: Mapping[str, Any],
    k_max: int,
) -> None:
    """Write best.yaml: all that ``train.py`` needs, and the evidence for it."""
    spec = {n: v for n, v in run.model_dump(mode="json").items() if n in RunSpec.model_fields}
    best = {
        "run": spec,
        "training": job.training.model_dump(mode="json"),
        "layers": list(job.layers),
        "k_max": k_max,
        "score": job.weights.model_dump(),
        "choice": dict(choice),
        "test": dict(test),
        "backbone": made.sources.backbone.fingerprint,
    }
    results.write("best.yaml", yaml.safe_dump(best, sort_keys=False, allow_unicode=True))


def write_run(
    results: Results,
    run: RunSpec,
    display: Display,
    sources: Sources,
    made: Prepared | None = None,
    training: TrainingSpec | None = None,
) -> None:
    """Write run.json: the settings, and, when `made` is given, versions, fingerprints and wall clock."""
    about: dict[str, Any] = {"run": run.model_dump(mode="json"), "seed": run.seed, "notes": notes(sources)}
    if training:
        about["training"] = training.model_dump(mode="json")
    if made:
        about |= {
            "versions": versions(),
            "fingerprints": made.fingerprints,
            "seconds": {**display.seconds, "total": display.total()},
            "peak_memory_gib": launch.Memory.peak_gib(),
            "command": shlex.join(["python", *sys.argv]),
        }
    results.write_json("run.json", about)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that isn't installed
            found[package] = "not installed"
    return found


def summary(
    display: Display, why: str, test: Mapping[str, Any], job: TrainJob, made: Prepared, results: Results
) -> None:
    """The last lines of a run: k, why, what it gained, where everything lies."""
    layers = " ".join(map(str, job.layers)) or "none"
    display.say(f"\nk = {job.training.k}   layers copied: {layers}\n{why}")
    if doubt := checked(Importance, made.importance, "importance").doubt(job.layers):
        display.say(doubt)
    for side in SIDES:
        found = checked(Side, test[side], "test")
        display.say(
            f"{side + ':':9} {found.levels('bits per byte')} on the test split, "
            f"{found.delta:+.2f} ± {found.standard_error:.2f} {found.unit} against the untouched backbone"
        )
    for name in ("report.html", "trials.csv", "best.yaml", "model"):
        if (results.folder / name).exists():
            display.say(f"{name + ':':12} {results.place}/{name}")
