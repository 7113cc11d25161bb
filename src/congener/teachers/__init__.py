"""Teachers: ``teacher(batch) -> Outputs``, without gradient."""

from congener.teachers.bridge import Bridge, Preprocessing, bridge
from congener.teachers.frozen import FrozenTeacher, fingerprint
from congener.teachers.group import TeacherGroup

__all__ = ["Bridge", "FrozenTeacher", "Preprocessing", "TeacherGroup", "bridge", "fingerprint"]
