"""Two models answer the same question: as they would alone, whichever way it is asked."""

import io
import json

import pytest
import torch
import yaml
from common import save_tiny_backbone, tiny_tokenizer
from pyarrow import fs
from transformers import AutoModelForCausalLM

from adept_ray.commands.chat import chat_with_both
from adept_ray.config.errors import UserError
from adept_ray.config.model_specs import ChatRun
from adept_ray.data.backbones import resolve_backbone
from adept_ray.run.chatting import encode_question, lay_out
from adept_ray.run.terminal import Display
from adept_ray.storage.files import open_filesystem

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<bot>"
QUESTION = "The patient was treated with"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a backbone and the results of a search that has ended."""
    folder = tmp_path_factory.mktemp("chat")
    save_tiny_backbone(folder / "backbone")
    save_tiny_backbone(folder / "results" / "mine" / "model", layers=5, seed=1)
    backbone = resolve_backbone(str(folder / "backbone"), folder)
    run = {"backbone": str(folder / "backbone"), "trust_remote_code": False}
    best = {"run": run, "training": {}, "layers": [1], "score": {}, "k_max": 1}
    best["backbone"] = backbone.fingerprint
    (folder / "results" / "mine" / "best.yaml").write_text(yaml.safe_dump(best))
    (folder / "results" / "mine" / "run.json").write_text("{}")
    return folder


def chat(capsys, place, **settings):
    """The events of a chat with the results at a place."""
    chat_with_both(ChatRun(results=str(place), json_lines=True, max_new_tokens=6, **settings))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def continue_greedily(folder, text):
    """What a model adds to a text by taking the likeliest token six times, each in a pass of its own."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), tiny_tokenizer()
    ids = tokenizer(text, return_tensors="pt").input_ids
    before = ids.shape[1]
    with torch.inference_mode():
        for _ in range(6):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
            if ids[0, -1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(ids[0, before:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["path", "s3"])
def test_each_model_answers_as_it_does_alone(request, folder, capsys, tmp_path, kind):
    """Greedily, from a folder or from behind a URI; without a chat template the text is continued."""
    place = folder / "results" / "mine"
    if kind == "s3":
        request.getfixturevalue("s3").create_bucket(Bucket="chat")
        filesystem, path = open_filesystem("s3://chat/mine")
        fs.copy_files(str(place), path, fs.LocalFileSystem(), filesystem)
        place = "s3://chat/mine"
    *_, answers = chat(capsys, place, prompt=QUESTION)
    assert answers["event"] == "answers" and answers["question"] == QUESTION
    assert answers["backbone"] == continue_greedily(folder / "backbone", QUESTION)
    assert answers["result"] == continue_greedily(folder / "results" / "mine" / "model", QUESTION)


def test_every_line_of_a_pipe_is_a_question(folder, capsys, monkeypatch):
    """Blank ones aren't. Drawn answers are the same again under the same seed."""
    monkeypatch.setattr("sys.stdin", io.StringIO("One\n\n  Two\nOne\n"))
    events = chat(capsys, folder / "results" / "mine", temperature=1.5)
    first, second, third = [event for event in events if event["event"] == "answers"]
    assert [first["question"], second["question"]] == ["One", "Two"]
    assert (first["backbone"], first["result"]) == (third["backbone"], third["result"])


def test_a_tokenizer_with_a_chat_template_is_asked_by_it():
    """The question is the user's turn, and the model's begins."""
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(encode_question(tokenizer, "Why?")[0]) == "Why?"
    tokenizer.chat_template = TEMPLATE
    assert tokenizer.decode(encode_question(tokenizer, "Why?")[0]) == "<user>Why?<bot>"
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(UserError, match="chat template refuses a question alone: no system turn"):
        encode_question(tokenizer, "Why?")


@pytest.mark.parametrize(("width", "beside"), [(120, True), (60, False)])
def test_answers_are_side_by_side_where_there_is_room(capsys, width, beside):
    """Else one after the other; nothing in them is taken for markup."""
    display = Display()
    display.console.width = width
    display.console.print(lay_out({"backbone": "one [red]x[/red]", "result": "two"}, width))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert any("one [red]x[/red]" in line for line in lines)
    assert any("one" in line and "two" in line for line in lines) is beside
    assert max(map(len, lines)) <= width


def test_what_has_no_model_is_refused(folder, tmp_path):
    """A folder without results, a run that isn't over, and code that may run where it mayn't."""
    for files, said in (
        ((), "holds no results: give a results folder, such as results/NAME"),
        (("run.json",), "has no model yet: its search or training has to come to its end first"),
    ):
        for name in files:
            (tmp_path / name).write_text("{}")
        with pytest.raises(UserError, match=f"{tmp_path} {said}"):
            chat_with_both(ChatRun(results=str(tmp_path)))
    with pytest.raises(UserError, match="was made without --trust-remote-code"):
        chat_with_both(ChatRun(results=str(folder / "results" / "mine"), trust_remote_code=True))


def test_a_backbone_that_has_changed_is_not_the_untouched_one(folder, tmp_path):
    best = yaml.safe_load((folder / "results" / "mine" / "best.yaml").read_text())
    (tmp_path / "model").mkdir()
    for name in ("run.json", "model/config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(best | {"backbone": "another"}))
    with pytest.raises(UserError, match="the backbone 'backbone' has changed since"):
        chat_with_both(ChatRun(results=str(tmp_path), prompt="x"))
