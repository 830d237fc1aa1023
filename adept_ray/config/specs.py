"""Frozen, closed specifications of a run and a training.

Every class here is a pydantic model that can't be changed and refuses unknown keys. The docstring
under a field is its ``--help``. A change makes a new, validated copy: see :func:`apply_changes`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from adept_ray.config.choices import (
    Chat,
    Dial,
    Granularity,
    Measure,
    Normalization,
    Placement,
    ProbeKind,
    Schedule,
    Sign,
    Tasks,
    Text,
    Trackers,
    Tunes,
)
from adept_ray.config.fields import Mark, list_fields, name_flag, setting
from adept_ray.config.machine import FollowingSpec, MachineSpec
from adept_ray.config.mixtures import Corpora, Mixture, Part
from adept_ray.config.places import Place
from adept_ray.config.validation import Length, Spec, Tokens


class RunSpec(MachineSpec):
    """What a run works on and where: backbone, corpora, sizes of the held-out pieces, machine."""

    MACHINE_AFTER = "score"

    backbone: str = "smollm2-135m"
    """Preset, hub id, local folder or GGUF file of the causal LM to adapt."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a backbone or its tokenizer; never without this flag."""
    general: Corpora = Mixture((Part("boolq"),))
    """Text that must not get worse: preset, file, folder, glob, URI or hub dataset, each maybe =WEIGHT."""
    domain: Corpora = setting(Mixture((Part("medical"),)), Mark.UNPROBED)
    """Text to learn: preset, file, folder, glob, URI or hub dataset, each maybe =WEIGHT."""
    text_column: str = "text"
    """Column that holds the text in tables and hub datasets, of both sides."""
    general_column: str = ""
    """Its own for general text: a column, a path (meta.abstract) or a template ("{question}\\n{answer}")."""
    domain_column: str = setting("", Mark.UNPROBED)
    """Its own for domain text: a column, a path (meta.abstract) or a template ("{question}\\n{answer}")."""
    general_filter: str = ""
    """Which rows are general text, such as "lang == 'en' and score > 0.5"; empty: all of them."""
    domain_filter: str = setting("", Mark.UNPROBED)
    """Which rows are domain text, such as "lang == 'en' and score > 0.5"; empty: all of them."""
    chat: Chat = "plain"
    """How chats become text: their turns one after the other, or by the tokenizer's chat template."""
    skip_bad: bool = False
    """Skip and count members of archives that can't be read, in place of refusing them."""
    near_duplicates: float | None = Field(None, ge=0.3, le=0.99)
    """Similarity, such as 0.8, from which on the second of two documents is left out; needs datasketch."""
    seq_len: int = setting(128, Mark.SIZE, ge=8)
    """Length of a token block, in tokens."""
    probe_tokens: int = setting(2048, Mark.SIZE, ge=16)
    """General tokens on which stage 1 measures layer and unit importance."""
    probe: ProbeKind = "exhaustive"
    """Measure every layer on the whole probe, or give up early those that can't be chosen."""
    probe_confidence: float = Field(0.95, gt=0, lt=1)
    """Probability that no two layers are in the wrong order where their order is called certain."""
    remeasure_tokens: int = setting(128, Mark.UNPROBED, Mark.SIZE, ge=16)
    """General tokens (the first of the probe) on which unit importance is measured again."""
    validation_tokens: int = setting(1536, Mark.SIZE, ge=16)
    """Tokens of each validation split that a trial is scored on."""
    test_tokens: int = setting(4096, Mark.UNPROBED, Mark.SIZE, ge=16)
    """Tokens of each test split, looked at once, for the chosen trial."""
    general_tasks: Tasks = setting((), Mark.UNPROBED)
    """lm-eval tasks, groups or .yaml definitions that judge the general side, such as mmlu cmmlu."""
    domain_tasks: Tasks = setting((), Mark.UNPROBED)
    """lm-eval tasks, groups or .yaml definitions that judge the domain side, such as medqa_4options."""
    task_items: int = setting(200, Mark.UNPROBED, ge=1)
    """Items of each task or group (at least one a task) for validation, and as many for the test."""
    score: Measure = setting("tasks", Mark.UNPROBED)
    """What counts on a side: accuracy on its tasks if it has any, or bits per byte whatever it has."""
    json_lines: bool = setting(False, Mark.COMMAND, Mark.REPORT, flag="json")
    """Print every event as a line of JSON, for machines, and nothing else."""
    seed: int = Field(0, ge=0)
    """Seed of the split, the order of blocks and the search."""
    storage: Place = setting("results", Mark.RESULTS, Mark.PLACE, Mark.REPORT)
    """Folder or URI (s3://…, gs://…) under which the results folder NAME is made."""
    name: str = setting("", Mark.RESULTS, Mark.REPORT)
    """Name of the results folder; empty makes one from backbone, domain and time."""

    @model_validator(mode="after")
    def _check_workers(self) -> RunSpec:
        continues = getattr(self, "resume", False) or getattr(self, "more_trials", 0) > 0
        known = "workers" in self.given or not continues  # else it is the number that the run began with
        fewest, most = self.machine.min_workers, self.machine.most_workers
        if known and fewest > most:
            raise ValueError(f"--min-workers {fewest} is more than --workers {most}: lower it")
        return self

    @property
    def corpora(self) -> dict[str, Mixture]:
        """``general`` and ``domain`` → the corpora of that side."""
        return {"general": self.general, "domain": self.domain}

    @property
    def crews(self) -> int:
        """Groups of that many workers that work at the same time (at least, where that isn't known yet)."""
        return 1


class ProbeRun(RunSpec):
    """What ``probe.py`` takes: a run and the depths of interest."""

    k_max: int = Field(8, ge=1)
    """Largest expansion depth of interest: a raced probe tells apart no layers beyond it."""


class TrainingSpec(Spec):
    """What stage 2 trains with; the search varies these fields."""

    k: int = Field(4, ge=0)
    """Expansion depth: how many layers are added."""
    tunes: Tunes = setting("copies", Mark.UNSEARCHED)
    """What is trained: copies of the placed layers, those layers themselves, all parameters, or LoRA."""
    placement: Placement = "guided"
    """Which layers are copied (see adept_ray.method.placement)."""
    offset: int = Field(0, ge=0)
    """Layers by which a placement is moved or that it leaves out (see adept_ray.method.placement)."""
    layers: tuple[int, ...] = setting((), Mark.UNSEARCHED)
    """The k layers to copy or tune, named (from 0); without any they are placed."""
    lora_rank: int = setting(8, Mark.UNSEARCHED, ge=1)
    """Rank of the LoRA matrices; alpha is twice that."""
    text: Text = setting("domain", Mark.UNSEARCHED)
    """Corpus to train on; ``general`` is the control that shows what any plain text would do."""
    replay: float = Field(0.0, ge=0, lt=1)
    """Share of general text mixed into the training text."""
    base_lr: float = Field(3e-3, gt=0)
    """Learning rate of a unit of average importance."""
    recompute_every: int = Field(16, ge=1)
    """Optimizer steps between two measurements of unit importance."""
    normalization: Normalization = "rank"
    """How unit importances become numbers in [0, 1] (see adept_ray.method.rates)."""
    granularity: Granularity = "tensor"
    """What shares a rate: each tensor's module, or a layer's attention, its mlp, its norms."""
    sign: Sign = "protect"
    """``protect`` slows the units that matter to general text, as the paper does; ``reverse`` doesn't."""
    tokens: int = setting(6144, Mark.UNSEARCHED, ge=1)
    """Domain tokens to train on."""
    tokens_per_step: int = Field(256, ge=1)
    """Tokens of one optimizer step over all workers; rounded down to whole blocks."""
    schedule: Schedule = setting("cosine", Mark.UNSEARCHED)
    """How rates go with the steps: cosine falls all along, wsd stays at its peak until a decay at the end."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the schedule rises linearly; in a search by wsd, of the first branch."""
    warmup_tokens: int = setting(0, Mark.UNSEARCHED, ge=0)
    """Tokens over which wsd rises, whatever the length; 0: the share `warmup` of this training's own."""
    decay: float = Field(0.15, gt=0, lt=1)
    """Share of the steps, at the end, over which wsd falls."""
    final_lr: float = Field(0.1, ge=0, le=1)
    """Where the schedule ends, as a share of its peak."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices (never of norms and biases)."""
    clip: float = Field(1.0, gt=0)
    """Largest global gradient norm."""
    reports: int = setting(3, Mark.UNSEARCHED, ge=1)
    """How often a training is scored on the validation splits, evenly spaced."""
    dial: Dial = setting("auto", Mark.UNSEARCHED)
    """How far it is turned from the backbone (0) to what was trained (1): auto by validation, off: 1."""

    @property
    def general_share(self) -> float:
        """Share of general text in the training text, 0…1."""
        return 1.0 if self.text == "general" else self.replay

    @model_validator(mode="after")
    def _check(self) -> TrainingSpec:
        if self.layers and (len(set(self.layers)) != self.k or len(self.layers) != self.k):
            raise ValueError(f"layers must name k = {self.k} different ones, not {list(self.layers)}")
        rise, room = self.warmup_tokens or self.warmup * self.tokens, (1 - self.decay) * self.tokens
        if self.schedule == "wsd" and rise > room + 1:  # a whole token may be the rounding's
            end = f"the last {self.decay:.0%} of {self.tokens:,} tokens"
            remedy = "train on more tokens, or lower warmup or decay"
            raise ValueError(f"a warm-up of {rise:,.0f} tokens doesn't end before the decay, {end}: {remedy}")
        return self


class SearchRun(RunSpec):
    """What ``tune_k.py`` takes: a run and how to search it."""

    search_space: Path = Path("default")
    """Ranges, score weights and first trials: the name of one that ships, such as quick, or a file."""
    range: tuple[str, ...] = ()
    """Other ends for ranges of the search space: NAME=LOW:HIGH, such as k=1:16."""
    trials: int = setting(8, Mark.SIZE, ge=1, aliases=("--max-trials",))
    """Number of trials; fewer where --max-hours is over first."""
    max_hours: float | None = setting(None, Mark.CHANGEABLE, Mark.TRIALS, gt=0)
    """Hours of search in all; no trial begins that would end later if it took as long as the longest."""
    max_new_params: str = ""
    """Most parameters to add: a share of the backbone's (10%) or a number (15M, 1.5B, 2e7)."""
    strategy: Literal["trials", "grow"] = "trials"
    """Independent trials, or one model that is given the next layer again and again."""
    tokens_per_trial: int = setting(6144, Mark.SIZE, ge=1)
    """Domain tokens that a trial trains on unless it is stopped early."""
    reports: int = setting(3, Mark.SIZE, ge=1)
    """How often a trial is scored on the validation splits; from the second time on it may be stopped."""
    schedule: Schedule = setting("cosine", Mark.TRIALS)
    """How rates go: cosine; or wsd, by which each report is of a training twice as long as the one before."""
    dial: Dial = "auto"
    """How far a model is turned from the backbone (0) to what was trained (1): auto by validation, off: 1."""
    concurrent: int | Literal["auto"] = setting(1, Mark.CHANGEABLE, Mark.TRIALS)
    """Trials at once, each on --workers of its own; auto: with so many all are over first."""
    pareto: bool = setting(False, Mark.TRIALS)
    """Search for all trade-offs between the domain and the general side; the weights only pick among them."""
    min_gain_per_layer: float | None = Field(None, ge=0)
    """Points of score that every added layer has to earn."""
    for_tokens: Length = setting("", Mark.CHANGEABLE)
    """Domain tokens of the training that follows, such as 50M; empty: as many as a trial has."""
    tolerance: float | None = setting(None, Mark.CHANGEABLE, ge=0)
    """Points of score that a smaller k may cost; without: what trainings of other seeds differ by."""
    study: str = setting("", Mark.PLACE, Mark.TRIALS)
    """Where Optuna keeps its trials: sqlite:///FILE, postgresql://…, or a path; empty: in the results."""
    track: Trackers = setting((), Mark.CHANGEABLE)
    """Experiment trackers to feed: wandb, mlflow, tensorboard, trackio; several may be named."""
    resume: bool = setting(False, Mark.COMMAND)
    """Continue the search of that NAME, with the settings it began with."""
    more_trials: int = setting(0, Mark.COMMAND, Mark.TRIALS, ge=0)
    """Extend the finished search of that NAME by so many trials."""
    report_only: bool = setting(False, Mark.COMMAND, Mark.REPORT)
    """Write report and model card of that NAME again, a search or a training, and do nothing else."""
    comparison: Place = setting("", Mark.COMMAND, Mark.REPORT)
    """With --report-only: results folder or URI of compare.py, whose rivals the report shows from then on."""

    @field_validator("concurrent")
    @classmethod
    def _check_concurrent(cls, concurrent: int | str) -> int | str:
        if isinstance(concurrent, int) and concurrent < 1:
            raise ValueError(f"must be at least 1, or auto, not {concurrent}")
        return concurrent

    @model_validator(mode="after")
    def _check(self) -> SearchRun:
        if self.comparison and not self.report_only:
            raise ValueError("--comparison is for --report-only")
        fields = type(self).model_fields
        others = [n for n in list_fields(SearchRun, Mark.TRIALS) if getattr(self, n) != fields[n].default]
        if self.strategy == "grow" and others:
            flag = name_flag(SearchRun, others[0])
            raise ValueError(f"{flag} is for independent trials: leave it out with --strategy grow")
        return self

    @property
    def crews(self) -> int:
        return 1 if self.concurrent == "auto" else min(self.concurrent, self.trials)


class DoctorRun(SearchRun):
    """What ``doctor.py`` takes: the search that is to follow, and how long the training after it."""

    train_tokens: int = Field(0, ge=0)
    """Tokens that train.py will train on (its --tokens), to say how long that takes; 0: it isn't asked."""


class PickRun(FollowingSpec):
    """What ``pick.py`` takes: a finished search, and what counts now."""

    MACHINE_AFTER = "min_gain_per_layer"
    MACHINE_FLAGS = ("workers", "gpus_per_worker", "micro_batch", "cache")

    results: Place = setting(..., positional=True)
    """Results folder of a search, or its URI."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a backbone or its tokenizer; never without this flag."""
    general: float = setting(0.5, Mark.PICK, ge=0, le=1)
    """Weight of the general side; the domain side has the rest of 1."""
    min_gain_per_layer: float | None = setting(None, Mark.PICK, ge=0)
    """Points of score that every added layer has to earn."""
    dial: Dial = setting("auto", Mark.PICK)
    """How far the model is turned from the backbone (0) to what was trained (1): auto by weights, off: 1."""
    json_lines: bool = setting(False, Mark.COMMAND, Mark.REPORT, flag="json")
    """Print every event as a line of JSON, for machines, and nothing else."""

    def list_picked(self) -> dict[str, object]:
        """The settings that say what is picked, with their values."""
        return {name: getattr(self, name) for name in list_fields(PickRun, Mark.PICK)}


class TrainRun(FollowingSpec):
    """What ``train.py`` takes: the configuration that a search found, and how long to train with it."""

    MACHINE_AFTER = "reports"
    MACHINE_FLAGS = (
        "workers",
        "min_workers",
        "gpus_per_worker",
        "micro_batch",
        "precision",
        "activation_checkpointing",
        "sharding",
        "compile",
        "cache",
    )

    config: Place
    """File ``best.yaml`` of a results folder, or its URI."""
    tokens: Tokens = Field(ge=1)
    """Domain tokens to train on, such as 50M."""
    settings: Literal["length", "trial"] = "length"
    """Take the k and the rate that the search expects to be best at that length, or its chosen trial's."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a backbone or its tokenizer; never without this flag."""
    reports: int = Field(10, ge=1)
    """How often to score on the validation splits and write a checkpoint."""
    dial: Dial = "auto"
    """How far a model is turned from the backbone (0) to what was trained (1): auto by validation, off: 1."""
    storage: Place = setting("results", Mark.RESULTS, Mark.PLACE, Mark.REPORT)
    """Folder or URI (s3://…, gs://…) under which the results folder NAME is made."""
    name: str = setting("", Mark.RESULTS, Mark.REPORT)
    """Name of the results folder; empty makes one from backbone, domain and time."""
    track: Trackers = setting((), Mark.CHANGEABLE)
    """Experiment trackers to feed: wandb, mlflow, tensorboard, trackio; several may be named."""
    resume: bool = setting(False, Mark.COMMAND)
    """Continue the training of that NAME from its last checkpoint."""
    json_lines: bool = setting(False, Mark.COMMAND, Mark.REPORT, flag="json")
    """Print every event as a line of JSON, for machines, and nothing else."""


class CompareRun(RunSpec):
    """What ``compare.py`` takes: a run, the rivals, and how thoroughly to compare them."""

    methods: tuple[str, ...] = ()
    """Methods to compare; none means all. A variant is NAME:key=value, such as adept:placement=uniform."""
    k: int = Field(4, ge=1)
    """Expansion depth of the methods that add or choose layers."""
    recompute_every: int = Field(16, ge=1)
    """Optimizer steps between two measurements of unit importance."""
    tokens: int = Field(6144, ge=1)
    """Tokens that each method trains on."""
    passes: int = Field(1, ge=1)
    """Times that a training goes through its text: more than once, it sees tokens / passes distinct ones."""
    tokens_per_step: int = Field(256, ge=1)
    """Tokens of one optimizer step over all workers; rounded down to whole blocks."""
    rate_trials: int = Field(4, ge=1)
    """Base rates tried for each method, on the validation splits; with 1 each takes its own default."""
    seeds: int = Field(3, ge=1)
    """Trainings of each method at its best rate, each on other blocks, scored on the test splits."""
    replay: float = Field(0.2, ge=0, lt=1)
    """Share of general text that the method ``replay`` mixes in."""
    lora_rank: int = Field(8, ge=1)
    """Rank of the LoRA matrices of ``lora`` and ``tasl``."""
    dial: Dial = "auto"
    """How far a model is turned from the backbone (0) to what was trained (1): auto by validation, off: 1."""
    resume: bool = setting(False, Mark.COMMAND)
    """Continue the comparison of that NAME; trainings that ended aren't run again."""

    @model_validator(mode="after")
    def _check(self) -> CompareRun:
        if (distinct := self.tokens // self.passes) < self.seq_len:
            raise ValueError(
                f"--tokens {self.tokens} in --passes {self.passes}: {distinct} distinct tokens don't fill a "
                f"block of --seq-len {self.seq_len}: raise --tokens, or lower one of the others"
            )
        return self


class ActivationsRun(FollowingSpec):
    """What ``activations.py`` takes: what a search found, and how to train the same without expansion."""

    MACHINE_AFTER = "test_tokens"
    MACHINE_FLAGS = tuple(name for name in TrainRun.MACHINE_FLAGS if name != "min_workers")

    config: Place
    """File ``best.yaml`` of a results folder, beside which the expanded ``model`` lies."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a backbone or its tokenizer; never without this flag."""
    originals_lr: float = Field(1e-3, gt=0)
    """Base learning rate of the chosen layers when they are tuned themselves, without expansion."""
    test_tokens: int | None = Field(None, ge=64)
    """Tokens of each test split to look at; default: as the search had."""
    storage: Place = setting("results", Mark.RESULTS, Mark.PLACE, Mark.REPORT)
    """Folder or URI (s3://…, gs://…) under which the results folder NAME is made."""
    name: str = setting("", Mark.RESULTS, Mark.REPORT)
    """Name of the results folder; empty makes one from backbone, domain and time."""
    json_lines: bool = setting(False, Mark.COMMAND, Mark.REPORT, flag="json")
    """Print every event as a line of JSON, for machines, and nothing else."""


class ScoreWeights(Spec):
    """Weights of the combined score w_g·Δ_general + w_d·Δ_domain."""

    general: float = Field(0.5, ge=0)
    """Weight of the general side."""
    domain: float = Field(0.5, ge=0)
    """Weight of the domain side."""
    retain: bool = False
    """A loss on the general side counts, a gain doesn't: min(Δ_general, 0) takes the place of Δ_general."""
