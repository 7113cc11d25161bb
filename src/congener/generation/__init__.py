"""Texts written by a language model, or by a student whose teacher corrects it as it writes.

Every random number belongs to a (sample, position, role): a text depends on the seed, the step and
the sample alone, and not on the batch, the number of processes, or how many tokens are drafted at
a time.
"""

from congener.generation.block import interleave
from congener.generation.caches import check_writes
from congener.generation.sampling import Sampling, accepted, draw, law
from congener.generation.sequential import interleave_sequential
from congener.generation.single import generate
from congener.generation.texts import STUDENT, TEACHER, Written

__all__ = [
    "STUDENT",
    "TEACHER",
    "Sampling",
    "Written",
    "accepted",
    "check_writes",
    "draw",
    "generate",
    "interleave",
    "interleave_sequential",
    "law",
]
