"""Tensors written to a stream in the format of safetensors, whose own library writes to paths alone."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from adept_ray.storage.files import Stream

TYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}
ALIGNMENT = 8  # bytes


def write_tensors(tensors: Mapping[str, torch.Tensor], stream: Stream) -> None:
    """Write `tensors`, which are on the CPU, as a .safetensors file; no second copy is made of them.

    The format: the length of the header, the header as JSON, and the values of one tensor after the other
    (https://github.com/huggingface/safetensors#format).
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    stream.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        stream.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
