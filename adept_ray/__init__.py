"""ADEPT (arXiv 2510.10071) with the expansion depth found by search.

The names below are the method itself: pure torch, no Ray, for any supported Hugging Face causal LM.
They are imported when first used, so that a process which only launches others starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adept_ray.method.expansion import expand, export, select_layers, source_importance
    from adept_ray.method.importance import LayerImportance, layer_importance, unit_importance
    from adept_ray.method.rates import parameter_groups, set_rates, unit_rates, unit_scales

__version__ = "0.1.0"
__all__ = [
    "LayerImportance",
    "expand",
    "export",
    "layer_importance",
    "parameter_groups",
    "select_layers",
    "set_rates",
    "source_importance",
    "unit_importance",
    "unit_rates",
    "unit_scales",
]

_HOMES = {
    "LayerImportance": "method.importance",
    "layer_importance": "method.importance",
    "unit_importance": "method.importance",
    "expand": "method.expansion",
    "export": "method.expansion",
    "select_layers": "method.expansion",
    "source_importance": "method.expansion",
    "parameter_groups": "method.rates",
    "set_rates": "method.rates",
    "unit_rates": "method.rates",
    "unit_scales": "method.rates",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'adept_ray' has no attribute '{name}'")
    return getattr(import_module(f"adept_ray.{_HOMES[name]}"), name)
