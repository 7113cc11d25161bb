"""Teachers: ``teacher(batch) -> Outputs``, without gradient."""

from congener.teachers.frozen import FrozenTeacher, fingerprint
from congener.teachers.group import TeacherGroup

__all__ = ["FrozenTeacher", "TeacherGroup", "fingerprint"]
