"""The engine: one function, :func:`fit`, over Hugging Face Accelerate."""

from congener.engine.checkpoint import load_weights
from congener.engine.config import FitConfig
from congener.engine.evaluate import Predictions, evaluate, predict
from congener.engine.feed import steps_per_epoch
from congener.engine.loop import FitResult, fit
from congener.engine.machine import build_accelerator, process_state
from congener.engine.samplers import check_groups
from congener.engine.stages import check_stage, prepare
from congener.engine.superclasses import superclasses

__all__ = [
    "FitConfig",
    "FitResult",
    "Predictions",
    "build_accelerator",
    "check_groups",
    "check_stage",
    "evaluate",
    "fit",
    "load_weights",
    "predict",
    "prepare",
    "process_state",
    "steps_per_epoch",
    "superclasses",
]
