"""What a search asks: its settings, its space as it is searched, and how large k may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from adept_ray.config.calls import format_command
from adept_ray.config.search_space import SearchSpace
from adept_ray.config.specs import SearchRun, TrainingSpec
from adept_ray.config.validation import apply_changes, fingerprint
from adept_ray.engine.layout import Load
from adept_ray.method.memory_plan import count_layer_parameters
from adept_ray.report.rerun import format_flags
from adept_ray.run.disk_needs import count_trials_with_room
from adept_ray.run.load import describe_load
from adept_ray.run.preparing import Prepared
from adept_ray.run.sources import Sources
from adept_ray.search.branches import check_schedule
from adept_ray.search.edges import DepthLimit
from adept_ray.search.ranges import (
    check_space,
    double_amount,
    limit_depths,
    parse_amount,
    put_paper_first,
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """A search space as it is searched in a run, and what its depths need."""

    space: SearchSpace
    limit: DepthLimit
    """How large k may be, whatever the space says."""
    base: TrainingSpec
    """What every trial trains with, apart from what is searched."""
    deepest: TrainingSpec
    """A deepest training of the space."""
    k_max: int
    """How many of the least important layers have to be in the right order."""

    def describe_load(self, run: SearchRun, sources: Sources) -> Load:
        """The trials of a search: of the largest k, with the smallest steps."""
        trials = run.trials if run.strategy == "trials" else 1
        load = describe_load(run, sources, [self.deepest], trials=trials)
        if run.concurrent != "auto":
            return load
        return replace(load, at_once=count_trials_with_room(run, sources, self.space))

    def may_take(self, parameter: str, value: object) -> bool:
        """Whether a trial may have that value of a searched parameter."""
        searched = self.space.parameters.get(parameter)
        return searched is not None and value in searched.values


def pose_question(
    run: SearchRun, begun_with: SearchSpace, sources: Sources, say: Say = lambda text: None
) -> Question:
    """What a run asks on these sources; `begun_with` is the space of its file.

    `say` hears of a budget that shortens the range of k. Raises :class:`UserError` for a k or a placement
    that the backbone doesn't allow.
    """
    sizes = {"tokens": run.tokens_per_trial, "reports": run.reports}
    base = TrainingSpec(**sizes, schedule=run.schedule, dial=run.dial)
    check_schedule(begun_with, base, run.seq_len)
    space, most = limit_space(run, begun_with, sources, say)
    deepest, k_max = check_space(space, sources.layers, base)
    return Question(space, limit_k(run, sources, most), base, deepest, k_max)


def limit_space(
    run: SearchRun, space: SearchSpace, sources: Sources, say: Say = lambda text: None
) -> tuple[SearchSpace, int]:
    """The space as it is searched, and the largest k that backbone and budget allow.

    A budget shortens the range of k, and `say` hears of it. The paper's setting is tried first. Raises
    :class:`UserError`.
    """
    most = sources.layers
    if run.max_new_params:
        total, sizes = count_layer_parameters(sources.build_skeleton())
        limit = parse_amount(run.max_new_params, total)
        allowed, most = limit_depths(space, sizes, limit, f"--max-new-params {run.max_new_params}")
        if allowed != space:
            say(
                f"--max-new-params {run.max_new_params}: at most {limit / 1e6:.1f} M parameters are added, "
                f"so no k above {most} is tried"
            )
        space = allowed
    return put_paper_first(space), most


def limit_k(run: SearchRun, sources: Sources, most: int) -> DepthLimit:
    """How large k may be (at most `most` in its budget), and the command with twice that budget."""
    if not run.max_new_params:
        return DepthLimit(sources.layers, most)
    twice = apply_changes(run, {"max_new_params": double_amount(run.max_new_params)})
    return DepthLimit(sources.layers, most, f"--max-new-params {run.max_new_params}", rerun_command(twice))


def rerun_command(run: SearchRun) -> str:
    """The command that starts such a search again."""
    return format_command(f"tune-k {format_flags(run)}".strip())


def name_question(run: SearchRun, space: SearchSpace, prepared: Prepared) -> str:
    """The name of a study. Searches of the same question share it and learn from each other's trials."""
    sizes = (run.tokens_per_trial, run.validation_tokens, run.seq_len, run.task_items, run.score)
    probed = (run.probe, run.probe_tokens, run.probe_confidence, run.remeasure_tokens)
    tasks = (run.general_tasks, run.domain_tasks)
    searched = space.model_dump(exclude={"run", "first", "judge_after"})
    goal = (run.pareto, run.min_gain_per_layer or 0.0, *([run.dial] if run.dial != "off" else ()))
    # By wsd a reading also depends on how many there are: they decide how long the warm-up is.
    goal += (run.schedule, run.reports) if run.schedule != "cosine" else ()
    dtype = run.machine.dtype
    return f"adept_ray {fingerprint(prepared.fingerprints, sizes, probed, tasks, searched, dtype, goal)}"
