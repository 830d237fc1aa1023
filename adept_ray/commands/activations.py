"""activations.py: where three models keep both kinds of text apart."""

from __future__ import annotations

from pathlib import Path

from adept_ray.config.errors import UserError
from adept_ray.config.specs import (
    ActivationsRun,
    RunSpec,
    ScoreWeights,
    TrainingSpec,
)
from adept_ray.config.validation import validate_spec
from adept_ray.method.copies import RECORD
from adept_ray.run.context import open_context, open_session
from adept_ray.run.examination import plan_refusal
from adept_ray.run.load import describe_load
from adept_ray.run.preparing import Prepared, load_test_blocks, prepare
from adept_ray.run.record import record_run
from adept_ray.run.separation import measure_separations, tune_originals, write_activations
from adept_ray.run.settings import (
    check_trust,
    list_known_fingerprints,
    list_run_overrides,
    load_best,
    resolve_settings,
)
from adept_ray.run.sources import Needs, count_train_tokens, find_sources
from adept_ray.run.training import build_work, plan_fit
from adept_ray.storage.records import BestRecord

FEWEST = 8  # blocks that a density is drawn of


def draw_activations(args: ActivationsRun) -> str:
    """Measure and draw how far apart three models keep both kinds of text; returns the results' place.

    The models: the untouched backbone, its chosen layers tuned as they are (trained here, with the settings
    of the search but for the rate), and the expanded one that the search exported.
    Raises :class:`UserError` for bad input.
    """
    if "://" in args.config:
        what = f"--config {args.config}: activations are drawn beside a model"
        raise UserError(f"{what}: copy that folder here")
    best = load_best(args.config)
    run = resolve_run(args, best)
    expanded = find_expanded(args.config, best)
    session = open_session(run)
    results, display = session.results, session.display
    training = describe_tuning(args, best)
    general = training.general_share
    tokens = count_train_tokens(training.tokens, general > 0)
    sources = find_sources(session, made_from=list_known_fingerprints(best), train_tokens=tokens)
    record_run(session, sources)
    load = describe_load(run, sources, [training], best["layers"])
    with open_context(session, load, plan_refusal(session, sources)) as context:
        fit = plan_fit(context, sources, training, best["layers"])
        if fit.sharded:
            raise UserError(
                f"--config {args.config}: activations are drawn on workers that hold the whole model, and "
                "none here has the memory: use a machine with larger GPUs, or with more memory"
            )
        needs = Needs(best["k_max"], training.tokens, replay=general, least_replay=general, fit=fit)
        prepared = prepare(context, sources, needs)
        check_blocks(context.run, prepared)
        tune_originals(context, prepared, build_work(run, prepared, training, best["layers"], ScoreWeights()))
        with display.show_stage("activations", "activations of three models") as update:
            models = measure_separations(context, prepared, expanded, update)
    write_activations(results, models, best["layers"])
    record_run(session, sources, prepared, training)
    display.show_overlaps(models, best["layers"])
    place = results.publish()
    display.say(f"activations.png, activations.csv and activations.json are in {place}")
    return place


def resolve_run(args: ActivationsRun, best: BestRecord) -> RunSpec:
    """The settings of the run. Raises :class:`UserError`."""
    check_trust(args.trust_remote_code, best["run"], args.config)
    changes = {**list_run_overrides(args), "general_tasks": (), "domain_tasks": (), "min_workers": 0}
    if args.test_tokens:
        changes["test_tokens"] = args.test_tokens
    return resolve_settings(validate_spec(RunSpec, {**best["run"], **changes}, args.config), "activations")


def describe_tuning(args: ActivationsRun, best: BestRecord) -> TrainingSpec:
    """The training without expansion. Raises :class:`UserError`."""
    turned = best["training"].get("dial", "off") != "off"
    tuned = best["training"] | {"tunes": "originals", "base_lr": args.originals_lr, "reports": 1}
    tuned |= {"dial": "auto" if turned else "off"}  # its own, where the expanded model has one
    return validate_spec(TrainingSpec, tuned, args.config)


def find_expanded(config: str, best: BestRecord) -> Path:
    """The expanded model beside a best.yaml. Raises :class:`UserError` where there is none."""
    expanded = Path(config).parent / "model"
    if not best["layers"] or not (expanded / RECORD).exists():
        raise UserError(f"{config}: there is no expanded model beside it, in {expanded}")
    return expanded


def check_blocks(run: RunSpec, prepared: Prepared) -> None:
    """Refuse test splits of too few blocks for a density. Raises :class:`UserError`."""
    fewest, needed = (
        min(map(len, load_test_blocks(run, prepared.sets).values())),
        max(FEWEST, run.machine.most_workers),
    )
    if fewest < needed:
        raise UserError(
            f"--test-tokens {run.test_tokens}: {fewest} blocks of a side are too few for densities, "
            f"at least {needed} of {run.seq_len} tokens are needed"
        )
