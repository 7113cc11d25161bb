"""The one table of what is public: a loss that is not listed here fails the build."""

from congener.conformance.table import (
    contrast,
    established,
    feature,
    frames,
    maps,
    relation,
    response,
    stages,
    tokens,
)
from congener.conformance.table.case import LossCase

__all__ = ["LOSSES", "NOT_LOSSES", "LossCase"]

LOSSES: dict[str, LossCase] = {
    name: case
    for group in (contrast, established, feature, frames, maps, relation, response, stages, tokens)
    for name, case in group.LOSSES.items()
}

NOT_LOSSES = {
    "fgd_foreground": "marks of places, tested in tests/losses/test_fgd.py",
    "fgfi_near_object": "marks of places, tested in tests/losses/test_fgfi.py",
    "mgd_visible": "marks of places, tested in tests/losses/test_mgd.py",
    "crd_update": "what CRD remembers, tested in tests/losses/test_crd.py",
    "crd_contrast_index": "whom CRD contrasts, tested in tests/losses/test_crd.py",
    "class_means": "constants of ND, tested in tests/losses/test_nd.py",
    "binary_codes": "bits of codes, tested in tests/losses/test_mm_hashing.py",
    "SimKDProjector": "what the exported student keeps of SimKD: tests/losses/test_simkd.py",
    "adain": "a re-styled map, tested in tests/losses/test_adain.py",
    "channel_statistics": "means and deviations, tested in tests/losses/test_adain.py",
    "ofd_margin": "margins, tested in tests/losses/test_ofd.py",
    "Loss": "what the modules have in common",
    "backward_divergence": "climbed, not minimised, through both: tests/losses/test_backward_kd.py",
    "head_cross_entropy_loss": "labels alone, no teacher: tests/losses/test_mhkd.py",
    "mixed_cross_entropy_loss": "labels alone, no teacher: tests/losses/test_mixed_labels.py",
    "standardize_logits": "logits, tested in tests/losses/test_lskd.py",
    "cswt_temperatures": "temperatures, tested in tests/losses/test_cskd.py",
}
"""Public names of ``congener.losses`` that are no loss, each with the reason."""
