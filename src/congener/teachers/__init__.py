"""Teachers: ``teacher(batch) -> Outputs``, without gradient."""

from congener.teachers.bridge import Bridge, Preprocessing, bridge
from congener.teachers.cached import CachedTeacher
from congener.teachers.fidelity import Fidelity, fidelity
from congener.teachers.formats import Field
from congener.teachers.frozen import FrozenTeacher, fingerprint, structure
from congener.teachers.group import TeacherGroup
from congener.teachers.manner import Manner
from congener.teachers.store import TeacherStore

__all__ = [
    "Bridge",
    "CachedTeacher",
    "Fidelity",
    "Field",
    "FrozenTeacher",
    "Manner",
    "Preprocessing",
    "TeacherGroup",
    "TeacherStore",
    "bridge",
    "fidelity",
    "fingerprint",
    "structure",
]
