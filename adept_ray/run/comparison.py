"""The trainings of a comparison: what they need, what they share, and how they are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from adept_ray.config.specs import CompareRun, ScoreWeights, TrainingSpec
from adept_ray.data.blocks import Blocks
from adept_ray.engine.client import run_job
from adept_ray.engine.job import Job, JobProgress
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.placement import count_ranks_needed
from adept_ray.method.scores import SIDES, tasks_key
from adept_ray.rivals.comparison import (
    ComparisonField,
    compare_entrants,
    count_trainings,
    name_dial_blocks,
    trains_anything,
)
from adept_ray.rivals.methods import Entrant
from adept_ray.rivals.table import ComparedTraining, format_csv, parse_runs
from adept_ray.run.context import Context
from adept_ray.run.preparing import Prepared, load_test_blocks
from adept_ray.run.sources import Needs, Sources, name_parts
from adept_ray.run.stage_one import describe_probe, store_blocks
from adept_ray.run.training import build_work, plan_fit


def list_needs(run: CompareRun, rivals: Sequence[Entrant], sources: Sources) -> Needs:
    """What all the rivals need together: of each measurement and of memory the most that one needs."""
    return Needs(
        max(count_ranks_needed(rival.training, sources.layers) for rival in rivals),
        run.tokens // run.passes * (run.seeds + 1),
        replay=1.0,  # one of them trains on nothing else
        trainings=run.seeds + 1,
        passes=run.passes,
        reception=any(rival.training.placement == "receptive" for rival in rivals),
        fit=Fit(any(rival.fit.recompute for rival in rivals), any(rival.fit.sharded for rival in rivals)),
    )


def describe_size(rival: Entrant) -> tuple[str, int, int]:
    """What of a rival decides how much memory it takes, as long as its layers aren't known."""
    return rival.training.tunes, rival.training.k, rival.training.lora_rank


def plan_rivals(context: Context[CompareRun], sources: Sources, rivals: Sequence[Entrant]) -> list[Entrant]:
    """The rivals, each with how it is made to fit on the lowest layers; those of a size are planned once."""
    fits: dict[tuple[str, int, int], Fit] = {}
    planned = []
    for rival in rivals:
        size = describe_size(rival)
        if trains_anything(rival.training) and size not in fits:
            fits[size] = plan_fit(context, sources, rival.training, what=rival.label)
        planned.append(replace(rival, fit=fits.get(size, PLAIN)))
    return planned


def build_field(context: Context[CompareRun], prepared: Prepared) -> ComparisonField:
    """What all trainings of a comparison share; measures the untouched backbone on the test splits."""
    run, sources, tests = context.run, prepared.sources, load_test_blocks(context.run, prepared.sets)
    items = {"rate": sources.select_items("validation"), "test": sources.select_items("test")}
    work = replace(describe_probe(run, sources, prepared.fit), held_out=SIDES, items=items["test"])
    with context.show_jobs("untouched", "the untouched backbone on the test splits", "untouched"):
        measured = run_job(context.board, Job("untouched", "probe", work, store_blocks(tests)))
    answers = {tasks_key(side): right for side, right in measured["correct"].items()}
    judged = {"rate": {side: prepared.blocks[side] for side in SIDES}, "test": tests}
    return ComparisonField(
        board=context.board,
        work=replace(build_work(run, prepared, TrainingSpec(), (), ScoreWeights()), fit=PLAIN),
        importance=prepared.layer_importance,
        references=[
            store_blocks(split_blocks(run, prepared, number, judged["test" if number else "rate"]))
            for number in range(run.seeds + 1)
        ],
        before={"rate": prepared.before, "test": measured["nats"] | answers},
        judged=judged,
        items=items,
        storage=f"{context.results.ray}/trainings",
        fit_to_layers=context.fit_to_layers,
    )


def split_blocks(
    run: CompareRun, prepared: Prepared, number: int, judged: Mapping[str, Blocks]
) -> dict[str, Blocks]:
    """The blocks of one seed: no two seeds train on a common one, unless there are too few.

    If there are too few, every seed trains on all of them in an order of its own. A training goes through its
    blocks as often as it is long.
    """
    blocks = {**prepared.blocks, **judged, **name_dial_blocks(prepared.blocks)}
    needed = run.tokens // run.passes * (run.seeds + 1)
    for name, share in (part for side in name_parts(run).values() for part in side.items()):
        if blocks[name].has_pieces(run.seeds + 1, needed * share):
            blocks[name] = blocks[name].take_piece(number, run.seeds + 1)
    return blocks


def run_comparison(
    context: Context[CompareRun], rivals: Sequence[Entrant], field: ComparisonField
) -> list[ComparedTraining]:
    """Run the trainings under a progress bar; runs.csv is written as they end."""
    run, results, display = context.run, context.results, context.display
    file = results.folder / "runs.csv"
    known = parse_runs(file.read_text(encoding="utf-8")) if file.exists() else []
    total = count_trainings(rivals, run.rate_trials, run.seeds)
    now = ("", 0)  # the job that runs, and how many are over

    def record(rows: list[ComparedTraining], name: str) -> None:
        nonlocal now
        now = (name, len(rows))
        if rows:
            # Rows of an earlier attempt that are still to come stay in the file.
            later = [row for row in known if row.key not in {r.key for r in rows}]
            results.write("runs.csv", format_csv([asdict(row) for row in [*rows, *later]]))
            display.show_training(rows[-1])

    with display.show_stage("compare", f"{total} trainings") as update:

        def show(progress: JobProgress, _: object) -> None:
            name, over = now
            done, of = progress.get(name, (0, 1))
            update(round(1000 * (over + done / of)), 1000 * total)

        with context.watch_jobs(show):
            return compare_entrants(rivals, field, run.rate_trials, run.seeds, known, record)
