"""Reference vectors of published code, and the contract of every loss."""

from congener.conformance.cases import Check, check_case, load_arrays, load_cases, run_case
from congener.conformance.proof import Finding, largest_errors, verify

__all__ = [
    "Check",
    "Finding",
    "check_case",
    "largest_errors",
    "load_arrays",
    "load_cases",
    "run_case",
    "verify",
]
