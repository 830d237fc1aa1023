"""The end of a training: what is exported is what was scored, whatever was trained."""

import json
import math
from dataclasses import replace

import pytest
import torch
from common import write_files
from safetensors.torch import load_file
from trainings import BLOCKS, CPU, LAYERS, Run, changed, plain_bpb, same
from transformers import AutoModelForCausalLM

from adept_ray.data.benchmark_tasks import draw_items
from adept_ray.data.loading import load_model
from adept_ray.training.callbacks import Callbacks
from adept_ray.training.export import score_and_export
from adept_ray.training.stage1 import run_probe
from adept_ray.training.work import ProbeWork


def test_without_layers_the_score_is_exactly_zero(work, tmp_path):
    """k = 0 trains nothing, reports and concludes like any other, and scores 0, not about 0."""
    nothing = changed(work, layers=(), k=0)
    run = Run(tmp_path / "run", nothing)
    assert [(m["score"], m["score_se"]) for m in run.metrics] == [(0, 0)] * 4
    assert run.metrics[-1]["complete"] and run.metrics[-1]["loss"] is None
    results = []
    score_and_export(
        nothing, BLOCKS, CPU, run.folders[-1], {}, Callbacks(lambda metrics, _: results.append(metrics))
    )
    assert results[0]["score"] == 0


METHODS = {
    "all": {"tunes": "all"},
    "originals": {"tunes": "originals"},
    "lora": {"tunes": "lora", "lora_rank": 2},
    "tasl": {"tunes": "tasl", "lora_rank": 2},
    "replay": {"replay": 0.4},
    "general": {"text": "general"},
    "block": {"granularity": "block", "sign": "reverse"},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_resumes_and_is_exported(work, method, tmp_path):
    """It lowers the loss, ends with the same weights when resumed, and exports what it was scored with.

    That is the model turned back by a fifth, which every method can be.
    """
    work = changed(work, **METHODS[method], reports=2, dial=0.8)
    straight = Run(tmp_path / "straight", work)
    side = "general" if method == "general" else "domain"
    assert straight.metrics[-1][f"{side}_delta"] > 0.2
    resumed = Run(tmp_path / "resumed", work, resume=straight.folders[0])
    assert same(resumed.weights(), straight.weights()) and resumed.metrics[-1] == straight.metrics[-1]
    results = []

    def keep(metrics, made):
        results.append(metrics)
        write_files(made, tmp_path)

    score_and_export(work, BLOCKS, CPU, straight.folders[-1], {}, Callbacks(keep))
    assert results[0]["domain_bpb"] == pytest.approx(straight.metrics[-1]["domain_bpb"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert plain_bpb(loaded, BLOCKS["domain"]) == pytest.approx(results[0]["domain_bpb"], rel=1e-4)


def test_the_exported_model_is_the_one_scored(work, whole, tmp_path):
    """Reloaded by transformers it has the bits per byte reported; adept.json says what was added."""
    results = []

    def report(metrics, made):
        results.append(metrics)
        write_files(made, tmp_path)

    score_and_export(
        work, BLOCKS, CPU, whole.folders[-1], {"backbone": "tiny", "run": "a run"}, Callbacks(report)
    )
    (result,) = results
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    plain = load_model(work.backbone)
    for side in ("general", "domain"):
        assert result[f"{side}_bpb"] == pytest.approx(plain_bpb(exported, BLOCKS[side]), rel=1e-5)
        assert result[f"{side}_bpb_before"] == pytest.approx(plain_bpb(plain, BLOCKS[side]), rel=1e-5)
        assert result[f"{side}_delta"] == pytest.approx(whole.metrics[-1][f"{side}_delta"], rel=1e-6)
    assert result["score"] == pytest.approx(whole.metrics[-1]["score"], rel=1e-6)
    record = json.loads((tmp_path / "model" / "adept.json").read_text())
    layers = {"added_layers": [1, 4], "source_layers": [0, 2]}
    assert record == {**layers, "dial": 1.0, "backbone": "tiny", "run": "a run"}
    assert (tmp_path / "model" / "tokenizer.json").exists()


def test_a_backbone_of_fewer_bits_is_trained_and_exported_in_them(work, whole, tmp_path):
    """bfloat16 throughout but for what is trained: it learns, resumes, and is scored as it is exported."""
    low = replace(work, backbone=replace(work.backbone, dtype="bfloat16"))
    asked = ProbeWork(low.backbone, 2, held_out=("general", "domain"))
    found = run_probe(asked, BLOCKS, CPU)
    low = replace(low, before=found["nats"], units=found["importance"]["units"])
    run = Run(tmp_path / "run", low)
    assert run.metrics[-1]["domain_delta"] == pytest.approx(whole.metrics[-1]["domain_delta"], rel=0.1)
    assert {tensor.dtype for tensor in run.weights().values()} == {torch.float32}
    resumed = Run(tmp_path / "resumed", low, resume=run.folders[1])
    assert same(resumed.weights(), run.weights())
    results = []

    def report(metrics, made):
        results.append(metrics)
        write_files(made, tmp_path)

    score_and_export(low, BLOCKS, CPU, run.folders[-1], {}, Callbacks(report))
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    exported_low = replace(low.backbone, source=str(tmp_path / "model"))
    asked = replace(asked, backbone=exported_low, importance=False)
    nats = run_probe(asked, BLOCKS, CPU)["nats"]["domain"]
    bits = sum(nats) / math.log(2) / BLOCKS["domain"].bytes.sum()
    assert results[0]["domain_bpb"] == pytest.approx(bits, rel=1e-9)


@pytest.mark.slow
def test_a_training_that_changes_the_backbone_leaves_it_to_others_as_it_was(work, whole, tmp_path):
    """All parameters trained, LoRA merged: the next training starts from the backbone none the less."""
    for tunes in ("all", "originals", "lora"):
        spec = work.training.model_copy(update={"tunes": tunes, "k": 2 if tunes == "originals" else 0})
        other = replace(work, training=spec, layers=LAYERS if tunes == "originals" else ())
        run = Run(tmp_path / tunes, other)
        score_and_export(other, BLOCKS, CPU, run.folders[-1], {}, Callbacks(lambda *_: None))
        assert same(Run(tmp_path / f"after {tunes}", work).weights(), whole.weights())


def test_tasks_are_scored_in_training_and_at_the_end(work, whole, tmp_path):
    """Their accuracy takes the place of bits per byte on its side; nothing else of the training changes."""
    choices = ["the nurse", "the baker"]
    rows = [{"question": "Who reports?", "choices": choices, "answer": i % 2} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(f"""
task: reports
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""")
    items = draw_items([str(tmp_path / "task.yaml")], 4, 0, tmp_path)
    asked = ProbeWork(work.backbone, 2, importance=False, items={"domain": items["validation"]})
    found = run_probe(asked, {}, CPU)
    before = {**work.before, "domain tasks": found["correct"]["domain"]}
    tested = replace(work, items={"domain": items["validation"]}, before=before)
    by_tasks = Run(tmp_path / "run", tested).metrics[-1]
    plain = whole.metrics[-1]
    assert by_tasks["domain_bpb"] == plain["domain_bpb"] and by_tasks["loss"] == plain["loss"]
    moved = by_tasks["domain_accuracy"] - by_tasks["domain_accuracy_before"]
    assert by_tasks["domain_delta"] == pytest.approx(100 * moved)
    assert by_tasks["score"] == pytest.approx(0.5 * plain["general_delta"] + 0.5 * 100 * moved)
    results = []
    ended = replace(tested, items={"domain": items["test"]}, by_tasks=False)
    score_and_export(
        ended, BLOCKS, CPU, whole.folders[-1], {}, Callbacks(lambda metrics, _: results.append(metrics))
    )
    assert results[0]["score"] == pytest.approx(plain["score"]) and "domain_accuracy" in results[0]
