"""Systems: what is trained together. ``__all__`` is the registry."""

from congener.systems.backward_kd import BackwardKD
from congener.systems.cskd_mlld import TwoViewCSKD
from congener.systems.distillation import Distillation
from congener.systems.dml import DML
from congener.systems.ikd import IKD
from congener.systems.mhkd import MHKD
from congener.systems.mixkd import MixKD
from congener.systems.mm_hashing import MMHashing
from congener.systems.pseudo_label import PseudoLabel
from congener.systems.simkd import SimKD
from congener.systems.skd import SKD
from congener.systems.sskd import SSKD
from congener.systems.stkd import STKD

__all__ = [
    "DML",
    "IKD",
    "MHKD",
    "SKD",
    "SSKD",
    "STKD",
    "BackwardKD",
    "Distillation",
    "MMHashing",
    "MixKD",
    "PseudoLabel",
    "SimKD",
    "TwoViewCSKD",
]
