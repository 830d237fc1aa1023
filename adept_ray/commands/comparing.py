"""The commands that compare models: rivals at equal tokens, activations, benchmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from adept_ray.config.specs import (
    ActivationsRun,
    CompareRun,
    EvaluateRun,
    RunSpec,
    ScoreWeights,
    TrainingSpec,
    UserError,
    validate_spec,
)
from adept_ray.data.backbones import load_model, load_tokenizer, resolve_backbone
from adept_ray.data.benchmark_tasks import (
    OFFLINE,
    answer_items,
    draw_items,
    find_tasks_at_chance,
    summarise_accuracies,
)
from adept_ray.data.packing import Blocks
from adept_ray.engine import cluster as launch
from adept_ray.engine.crew import Job, Progress, run_job, watch_board
from adept_ray.method.expansion import RECORD
from adept_ray.method.placement import check_placement, count_ranks_needed
from adept_ray.method.sharding import PLAIN, Fit
from adept_ray.report.comparison_page import express_verdict, write_comparison
from adept_ray.report.figures import save_figure, separation_figure
from adept_ray.rivals.comparison import (
    ComparedTraining,
    ComparisonField,
    compare_entrants,
    count_trainings,
    format_csv,
    parse_runs,
    trains_anything,
)
from adept_ray.rivals.methods import Entrant, list_entrants
from adept_ray.run.context import (
    build_work,
    check_trust,
    explain_stops,
    known_fingerprints,
    list_versions,
    load_best,
    open_context,
    overrides_from,
    plan_fit,
    record_run,
    resolve_settings,
    resume_settings,
    store_blocks,
    test_and_export,
)
from adept_ray.run.preparing import Prepared, Sources, find_sources, load_test_blocks, prepare, show_jobs
from adept_ray.run.terminal import Display, Update
from adept_ray.storage.files import Results, fetch_temporarily, write_json
from adept_ray.training.scoring import SIDES, tasks_key
from adept_ray.training.stage1 import ProbeWork

FEWEST = 8  # blocks of a kind of text that a density is drawn of
SHOWN = 4  # layers whose densities are drawn


def compare_methods(run: CompareRun) -> str:
    """Train and score the rivals on the same blocks; write the comparison; returns the results' place.

    Raises :class:`UserError` for bad input, KeyboardInterrupt when it was stopped half-way.
    """
    display = Display(run.json_lines)
    run = resolve_settings(run, "compare")
    results = Results(run.storage, run.name)
    results.open(run.resume)
    if run.resume:
        run = resume_settings(run, results.about()["run"])
    rivals = list_entrants(run)
    launch.check_workers(run)
    sources = find_sources(run, display, made_from=results.about().get("fingerprints"))
    for rival in rivals:
        check_placement(rival.training, sources.layers)
    k_max = max(count_ranks_needed(rival.training, sources.layers) for rival in rivals)
    record_run(results, run, display, sources)
    with explain_stops("scripts/compare.py", run, results, display):
        with open_context(run, results, display) as (board, memory):
            receptive = any(rival.training.placement == "receptive" for rival in rivals)
            rivals = plan_rivals(run, sources, rivals, memory, display)
            tokens = run.tokens // run.passes * (run.seeds + 1)
            fits = [rival.fit for rival in rivals]
            fit = Fit(any(each.recompute for each in fits), any(each.sharded for each in fits))
            made = prepare(run, sources, display, board, k_max, tokens, True, receptive, fit)
            results.write_json("importance.json", made.importance)
            field = build_field(run, made, results, display, board, fit)
            rows = run_comparison(run, rivals, field, results, display)
        record_run(results, run, display, sources, made)
        about = {rival.label: rival.about for rival in rivals}
        summaries = write_comparison(results.folder, rows, about, run.model_dump(mode="json"))
    display.say(f"\n{express_verdict(summaries)}")
    display.comparison(summaries)
    for name in ("comparison.html", "comparison.csv", "runs.csv"):
        display.say(f"{name + ':':16} {results.place}/{name}")
    return results.publish()


def plan_rivals(
    run: CompareRun, sources: Sources, rivals: Sequence[Entrant], memory: int, display: Display
) -> list[Entrant]:
    """The rivals with how they are made to fit; those of the same size are planned once."""
    found: dict[tuple[str, int, int], Fit] = {}
    ready = []
    for rival in rivals:
        spec = rival.training
        size = (spec.tunes, spec.k, spec.lora_rank)
        if trains_anything(spec) and size not in found:
            found[size] = plan_fit(run, sources, spec, memory, display, what=rival.label)
        ready.append(replace(rival, fit=found.get(size, PLAIN)))
    return ready


def build_field(
    run: CompareRun, made: Prepared, results: Results, display: Display, board: Any, fit: Fit
) -> ComparisonField:
    """What all trainings of a comparison share; measures the untouched backbone on the test splits.

    `fit` is how that is made to fit into the workers' memories.
    """
    backbone, tests = made.sources.backbone, load_test_blocks(run, made.sets)
    items = {"rate": made.sources.items_of("validation"), "test": made.sources.items_of("test")}
    with show_jobs(display, board, "untouched", "the untouched backbone on the test splits", "untouched"):
        work = ProbeWork(
            backbone.source,
            backbone.revision,
            run.micro_batch,
            importance=False,
            held_out=SIDES,
            items=items["test"],
            dtype=run.dtype,
            fit=fit,
            trusted=backbone.trusted,
        )
        found = run_job(board, Job("untouched", "probe", work, store_blocks(tests)))
    answers = {tasks_key(side): right for side, right in found["correct"].items()}
    judged = {"rate": {side: made.blocks[side] for side in SIDES}, "test": tests}
    return ComparisonField(
        board,
        build_work(run, made, TrainingSpec(), (), ScoreWeights()),
        made.layer_importance,
        [
            store_blocks(split_blocks(run, made, number, judged["test" if number else "rate"]))
            for number in range(run.seeds + 1)
        ],
        {"rate": made.before, "test": found["nats"] | answers},
        judged,
        items,
        f"{results.ray}/trainings",
    )


def split_blocks(
    run: CompareRun, made: Prepared, number: int, judged: Mapping[str, Blocks]
) -> dict[str, Blocks]:
    """The blocks of one seed: no two seeds train on a common one, unless there are too few.

    Then all train on all of them, each in an order of its own. What a seed has is gone through as often as
    the training is long.
    """
    blocks = {**made.blocks, **judged}
    needed = run.tokens // run.passes * (run.seeds + 1) // run.seq_len
    for name in ("train", "replay"):
        if len(blocks[name]) >= needed:
            blocks[name] = blocks[name].piece(number, run.seeds + 1)
    return blocks


def run_comparison(
    run: CompareRun, rivals: Sequence[Entrant], field: ComparisonField, results: Results, display: Display
) -> list[ComparedTraining]:
    """Run the trainings under a progress bar; runs.csv is written as they end."""
    file = results.folder / "runs.csv"
    known = parse_runs(file.read_text()) if file.exists() else []
    total = count_trainings(rivals, run.rate_trials, run.seeds)
    now = ("", 0)  # the job that runs, and how many are over

    def ended(rows: list[ComparedTraining], name: str) -> None:
        nonlocal now
        now = (name, len(rows))
        if rows:
            # Those of an earlier attempt that are still to come stay in the file.
            later = [row for row in known if row.key not in {r.key for r in rows}]
            results.write("runs.csv", format_csv([asdict(row) for row in [*rows, *later]]))
            display.training(asdict(rows[-1]))

    with display.stage("compare", f"{total} trainings") as update:

        def show(progress: Progress, _: object) -> None:
            name, over = now
            done, of = progress.get(name, (0, 1))
            update(round(1000 * (over + done / of)), 1000 * total)

        with watch_board(field.board, show):
            return compare_entrants(rivals, field, run.rate_trials, run.seeds, known, ended)


def draw_activations(args: ActivationsRun) -> str:
    """Measure and draw how far apart three models keep both kinds of text; returns the results' place.

    The models: the untouched backbone, its chosen layers tuned as they are (trained here, with the settings
    of the search but for the rate), and the expanded one that the search exported.
    Raises :class:`UserError` for bad input.
    """
    display = Display(args.json_lines)
    if "://" in args.config:
        raise UserError(
            f"--config {args.config}: activations are drawn beside a model: copy that folder here"
        )
    best = load_best(args.config)
    check_trust(args.trust_remote_code, best["run"], args.config)
    changes: dict[str, Any] = {
        **overrides_from(args),
        "general_tasks": (),
        "domain_tasks": (),
        "min_workers": 0,
    }
    if args.test_tokens:
        changes["test_tokens"] = args.test_tokens
    run = resolve_settings(validate_spec(RunSpec, {**best["run"], **changes}, args.config), "activations")
    expanded = Path(args.config).parent / "model"
    if not best["layers"] or not (expanded / RECORD).exists():
        raise UserError(f"{args.config}: there is no expanded model beside it, in {expanded}")
    results = Results(run.storage, run.name)
    results.open(resume=False)
    launch.check_workers(run)
    sources = find_sources(run, display, made_from=known_fingerprints(best))
    record_run(results, run, display, sources)
    training = validate_spec(
        TrainingSpec,
        best["training"] | {"tunes": "originals", "base_lr": args.originals_lr, "reports": 1},
        args.config,
    )
    with open_context(run, results, display) as (board, memory):
        fit = plan_fit(run, sources, training, memory, display, best["layers"])
        if fit.sharded:
            raise UserError("activations are taken of whole models, and this one has to be shared out")
        replays = training.replay > 0
        made = prepare(run, sources, display, board, best["k_max"], training.tokens, replays, fit=fit)
        tests = load_test_blocks(run, made.sets)
        if (fewest := min(map(len, tests.values()))) < max(FEWEST, run.workers):
            raise UserError(
                f"--test-tokens {run.test_tokens}: {fewest} blocks of a side are too few for densities, "
                f"at least {max(FEWEST, run.workers)} of {run.seq_len} tokens are needed"
            )
        work = build_work(run, made, training, tuple(best["layers"]), ScoreWeights())
        work = replace(work, fit=fit)
        with show_jobs(display, board, "train", f"tuning without expansion, {work.steps} steps", "without"):
            last = run_job(board, Job("without", "train", work, store_blocks(made.blocks), results.ray))
        test_and_export(run, work, made, results, display, board, last["saved"])
        with display.stage("activations", "activations of three models") as update:
            models = measure_separations(run, made, results, expanded, board, update)
    results.write_json("activations.json", {"layers": best["layers"], "models": models})
    rows = [
        {"model": name, "layer": row["layer"], "copy": row["copy"], "overlap": row["overlap"]}
        for name, rows in models.items()
        for row in rows
    ]
    results.write("activations.csv", format_csv(rows))
    save_figure(separation_figure(models, best["layers"][:SHOWN]), results.folder / "activations.png")
    record_run(results, run, display, sources, made, training)
    display.overlaps(models, best["layers"])
    place = results.publish()
    display.say(f"activations.png, activations.csv and activations.json are in {place}")
    return place


def measure_separations(
    run: RunSpec, made: Prepared, results: Results, expanded: Path, board: Any, update: Update
) -> dict[str, list[dict[str, Any]]]:
    """Name of a model → a row a layer (see :func:`adept_ray.report.figures.separation_figure`)."""
    backbone = made.sources.backbone
    added = json.loads((expanded / RECORD).read_text())["added_layers"]
    blocks = store_blocks(load_test_blocks(run, made.sets))
    found = {}
    with fetch_temporarily(f"{results.place}/model") as without:
        folders = {
            "untouched": (backbone.source, backbone.revision),
            "without expansion": (str(without), None),
            "expanded": (str(expanded.resolve()), None),
        }
        for name, (source, revision) in folders.items():
            work = ProbeWork(
                source,
                revision,
                run.micro_batch,
                importance=False,
                separation=True,
                dtype=run.dtype,
                trusted=backbone.trusted,
            )
            measured = run_job(board, Job(f"activations of {name}", "probe", work, blocks))["separation"]
            copies = added if name == "expanded" else []
            found[name] = [
                {"layer": at - sum(a <= at for a in copies), "copy": at in copies, **row}
                for at, row in enumerate(measured)
            ]
            update(len(found), len(folders))
    return found


def evaluate_model(run: EvaluateRun) -> None:
    """Score a model on benchmark tasks and print the table. Raises :class:`UserError` for bad input."""
    import torch

    display = Display(run.json_lines)
    with display.stage("tasks", "benchmark tasks"):
        items = draw_items(run.tasks or OFFLINE, run.items, run.seed, run.cache)["test"]
    with display.stage("model", run.model):
        trusted = run.trust_remote_code
        backbone = resolve_backbone(run.model, run.cache, trusted)
        device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
        model = load_model(backbone.source, backbone.revision, dtype, device=device, trusted=trusted)
        tokenizer = load_tokenizer(backbone.source, backbone.revision, trusted)
    with display.stage("items", f"{len(items)} items"):
        right = answer_items(model, tokenizer, items, run.micro_batch, quiet=not display.live)
    rows = summarise_accuracies(items, right)
    display.accuracies(rows)
    for sentence in find_tasks_at_chance(items, right):
        display.warn(sentence)
    if run.output:
        run.output.parent.mkdir(parents=True, exist_ok=True)
        about = {"model": backbone.name, "fingerprint": backbone.fingerprint, "seed": run.seed}
        write_json(run.output, about | {"versions": list_versions(), "tasks": rows})
        display.say(f"written to {run.output}")
