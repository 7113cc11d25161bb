"""The engine: one function, :func:`fit`, over Hugging Face Accelerate."""

from congener.engine.answers import build_store, fields_of, longest_answer
from congener.engine.checkpoint import load_weights
from congener.engine.config import FitConfig
from congener.engine.evaluate import Predictions, evaluate, predict
from congener.engine.feed import steps_per_epoch
from congener.engine.loop import FitResult, fit
from congener.engine.machine import build_accelerator, check_alike, company, on_first, process_state
from congener.engine.sampled import learns_from_samples
from congener.engine.samplers import check_groups
from congener.engine.stages import check_stage, data_fingerprint, prepare
from congener.engine.superclasses import superclasses
from congener.engine.teaching import check_teaching, instruct

__all__ = [
    "FitConfig",
    "FitResult",
    "Predictions",
    "build_accelerator",
    "build_store",
    "check_alike",
    "check_groups",
    "check_stage",
    "check_teaching",
    "company",
    "data_fingerprint",
    "evaluate",
    "fields_of",
    "fit",
    "instruct",
    "learns_from_samples",
    "load_weights",
    "longest_answer",
    "on_first",
    "predict",
    "prepare",
    "process_state",
    "steps_per_epoch",
    "superclasses",
]
