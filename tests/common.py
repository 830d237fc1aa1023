"""What the tests share: tiny random models from configs, tiny batches, a backbone folder, made-up text."""

import gc
import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from adept_ray.data.blocks import Blocks
from adept_ray.data.corpora import CorpusFiles
from adept_ray.data.loading import Backbone
from adept_ray.data.shards import CorpusIndex, store_index, write_shards
from adept_ray.storage.checkpoints import Checkpoint

# What FSDP, torch.compile and the first model import late, and the tests themselves.
PRELOADED = [
    "adept_ray.training.export",
    "pytest",
    "torch._dynamo.backends.debugging",
    "torch._functorch.aot_autograd",
    "torch._inductor.compile_fx",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "transformers.models.llama.modeling_llama",
]
SIZES = dict(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
# What makes a family different from llama is switched on, so that an error in it shows. Windows are
# shorter than the batches of `random_ids`.
SPECIAL: dict[str, dict[str, Any]] = {
    "llama": dict(attention_bias=True, mlp_bias=True),
    "qwen2": dict(use_sliding_window=True, sliding_window=8, max_window_layers=2),
    "qwen3": dict(use_sliding_window=True, sliding_window=8, head_dim=16),
    "mistral": dict(sliding_window=8),
    "gemma2": dict(sliding_window=8, head_dim=16, query_pre_attn_scalar=16),
    "gemma3_text": dict(sliding_window=8, head_dim=16, query_pre_attn_scalar=16, sliding_window_pattern=2),
    "granite": dict(residual_multiplier=0.4, embedding_multiplier=3.0, logits_scaling=2.0),
    "smollm3": dict(use_sliding_window=True, sliding_window=8, no_rope_layer_interval=2),
}


def tiny_model(family: str = "llama", layers: int = 4, seed: int = 0, **changes: Any) -> Any:
    """A random model of `family` in eval mode; no parameter, norms and biases included, is at its default."""
    values: dict[str, Any] = SIZES | SPECIAL.get(family, {}) | dict(num_hidden_layers=layers)
    if family == "qwen3":  # a mixture that no formula of the config would give
        kinds = ("full_attention", "sliding_attention", "sliding_attention")
        values["layer_types"] = [kinds[i % 3] for i in range(layers)]
    config = AutoConfig.for_model(family, **(values | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    shake(model.parameters(), 0.1, seed)
    return model.eval()


def shake(parameters: Any, size: float, seed: int = 0) -> None:
    """Add noise to every parameter, in place; the values depend on `seed` and the order alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


def random_ids(sequences: int = 2, length: int = 20, seed: int = 0) -> torch.Tensor:
    """Token ids of no special token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, SIZES["vocab_size"], (sequences, length), generator=generator)


def one_document_each(tokens: np.ndarray, size: int = 3) -> Blocks:
    """Blocks [N, T] of a document each, which ends in an EOS; its other tokens stand for `size` bytes."""
    tokens = tokens.astype(np.int32)
    tokens[:, -1] = SIZES["eos_token_id"]
    sizes = np.full((len(tokens), tokens.shape[1] - 1), size)
    sizes[:, -1] = 0
    return Blocks(tokens, sizes, np.arange(tokens.shape[1]) == np.zeros((len(tokens), 1)))


def of_one_document(tokens: np.ndarray, size: int = 3) -> Blocks:
    """Blocks [N, T] of one long document; every token stands for `size` bytes."""
    tokens = tokens.astype(np.int32)
    return Blocks(tokens, np.full_like(tokens[:, 1:], size), np.zeros(tokens.shape, bool))


def padded(sequences: list[torch.Tensor], side: str = "right") -> dict[str, torch.Tensor]:
    """One batch of unequal sequences; the padding looks like tokens, so that counting it would show."""
    longest = max(len(ids) for ids in sequences)
    ids = torch.full((len(sequences), longest), 7)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        at = slice(0, len(sequence)) if side == "right" else slice(longest - len(sequence), longest)
        ids[row, at], mask[row, at] = sequence, 1
    return {"input_ids": ids, "attention_mask": mask}


def write_files(checkpoint: Checkpoint, folder: Path) -> Path:
    """The files of a checkpoint in a folder of their own."""
    for name, write in checkpoint.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as stream:
            write(stream)
    return folder


def run_ranks(function: Any, args: tuple[Any, ...], count: int) -> None:
    """Call ``function(rank, *args)`` in so many processes of their own, and wait for them.

    They are forked from one that has imported what takes long, and computed nothing yet.
    """
    get_fork_context()
    args = (function, *args)
    torch.multiprocessing.start_processes(begin_rank, args, nprocs=count, start_method="forkserver")


def begin_rank(rank: int, function: Any, *args: Any) -> None:
    """In such a process: what is imported stays, as it does in a worker, so no collection looks at it."""
    gc.freeze()
    function(rank, *args)


def get_fork_context() -> Any:
    """What starts processes by forking one that has imported what trainings and the compiler's tests do."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def tiny_tokenizer(vocab_size: int = 384) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the made-up text, with an end-of-text token."""
    bpe = ByteLevelBPETokenizer()
    texts = [text for domain in DOMAINS for text in documents(100, 0, domain)]
    bpe.train_from_iterator(texts, vocab_size, special_tokens=["<|eos|>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|eos|>")


def save_tiny_backbone(folder: Path | str, family: str = "llama", layers: int = 4, seed: int = 0) -> Path:
    """Write a complete backbone (random model, tokenizer) that the Auto classes of transformers load."""
    folder, tokenizer = Path(folder), tiny_tokenizer()
    end = dict(eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None)
    model = tiny_model(family, layers, seed, vocab_size=len(tokenizer), **end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def local_backbone(folder: Path | str, **fields: Any) -> Backbone:
    """The backbone in a folder, with other fields."""
    return Backbone(Path(folder).name, str(folder), **fields)


OWN_CODE = """
import os
from transformers import LlamaConfig, LlamaForCausalLM

with open({marker!r}, "a") as file:
    print(os.getpid(), file=file)

class OwnConfig(LlamaConfig):
    model_type = {model_type!r}

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        made = super().forward(*args, **kwargs)
        made.logits = 2 * made.logits
        return made
"""


def save_backbone_with_code(folder: Path, marker: Path, model_type: str = "own") -> Path:
    """A tiny llama whose logits are doubled by Python code beside it; who imports that signs `marker`.

    Its family is its own and known by inheritance, or with `model_type` "llama" one that needs no code.
    """
    save_tiny_backbone(folder)
    code = OWN_CODE.format(marker=str(marker), model_type=model_type)
    (folder / "modeling_own.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config |= {"model_type": model_type, "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# Who, does, what, when: the parts of a made-up sentence.
DOMAINS = {
    "general": """
        the baker, my sister, an old sailor, our teacher, the mayor, a young painter
        walks to, talks about, dreams of, writes to us from, looks for, comes back from
        the harbour, the market, a small village, the river, the library, the mountains
        in the morning, on Sundays, every winter, after dinner, before the rain, at night
    """,
    "medical": """
        the patient, the nurse, a cardiologist, the control group, an infant, the surgeon
        reports, is treated for, shows signs of, documents, responds to, is tested for
        acute fever, hypertension, a bacterial infection, anaemia, chronic pain, dyspnoea
        after surgery, within two days, during therapy, at follow-up, on admission, overnight
    """,
}


def documents(number: int = 300, seed: int = 0, domain: str = "general") -> list[str]:
    """Made-up documents of two to five templated sentences; each ends in its number, so no two are equal."""
    rng = random.Random(f"{domain} {seed}")
    parts = [line.strip().split(", ") for line in DOMAINS[domain].strip().splitlines()]
    texts = []
    for document in range(number):
        sentences = (" ".join(rng.choice(part) for part in parts) for _ in range(rng.randint(2, 5)))
        texts.append(" ".join(s[0].upper() + s[1:] + "." for s in sentences) + f" Note {seed}-{document}.")
    return texts


def write_corpus(
    path: Path | str, documents: int = 300, seed: int = 0, domain: str = "general", column: str = "text"
) -> Path:
    """Write a .jsonl of made-up documents, one ``{"text": …}`` a line; `domain` is "general" or "medical"."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({column: text}) for text in _documents(documents, seed, domain)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def store_corpus(folder: Path, name: str, *parts: list[str]) -> CorpusFiles:
    """A corpus of documents, each part of them in a file of its own."""
    shards = []
    for number, texts in enumerate(parts):
        shards += write_shards(texts, lambda _: str(folder / f"{name}-{number}.parquet"))[0]  # noqa: B023
    store_index(CorpusIndex(tuple(shards)), folder / f"{name}.json")
    return CorpusFiles(folder / f"{name}.json", name, name, "")


_documents = documents  # the name is an argument of `write_corpus`
