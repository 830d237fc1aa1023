"""compare.py: ADEPT and its rivals at equal tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from adept_ray.config.specs import (
    CompareRun,
    ScoreWeights,
    TrainingSpec,
)
from adept_ray.data.blocks import Blocks
from adept_ray.engine import cluster as launch
from adept_ray.engine.crew import Job, Progress, run_job, watch_board
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.placement import check_placement, count_ranks_needed
from adept_ray.method.scores import SIDES
from adept_ray.report.comparison_page import express_verdict, write_comparison
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
from adept_ray.run.context import open_context
from adept_ray.run.preparing import Prepared, load_test_blocks, prepare, show_jobs
from adept_ray.run.record import record_run
from adept_ray.run.resuming import explain_stops, resume_settings
from adept_ray.run.settings import (
    resolve_settings,
)
from adept_ray.run.sources import Sources, find_sources
from adept_ray.run.terminal import Display
from adept_ray.run.training import build_work, plan_fit, store_blocks
from adept_ray.storage.results import Results
from adept_ray.training.scoring import tasks_key
from adept_ray.training.work import ProbeWork


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
            run.machine.micro_batch,
            importance=False,
            held_out=SIDES,
            items=items["test"],
            dtype=run.machine.dtype,
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
