"""Who answers for the teacher: ``teacher(batch) -> Outputs``."""

from congener.teachers.frozen import FrozenTeacher, fingerprint

__all__ = ["FrozenTeacher", "fingerprint"]
