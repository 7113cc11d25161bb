"""Reference vectors of published code, and the public API run on them."""

from congener.conformance.cases import Check, check_case, load_arrays, load_cases, run_case

__all__ = ["Check", "check_case", "load_arrays", "load_cases", "run_case"]
