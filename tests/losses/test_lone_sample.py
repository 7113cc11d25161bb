"""A batch of one, where that says nothing, is told once; where it is on purpose, not at all."""

import numpy as np
import pytest
import torch

from congener.conformance import load_arrays, load_cases, run_case
from congener.conformance.table import LOSSES, LossCase
from congener.losses import dist_inter_loss, sp_loss
from congener.ops import collectives
from congener.ops.collectives import lone_sample_expected, warn_if_alone

TOLD = {name: x for name, x in LOSSES.items() if x.lone is not None}
TOLD |= {name: LOSSES[name] for name in ("dist", "dist_paper")}
SILENT = {name: x for name, x in LOSSES.items() if name not in TOLD}


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "_WARNED", set())


def lone(*cases: LossCase, **options: object) -> list[torch.Tensor]:
    return [case.call(*case.make(7, batch=1), **options) for case in cases]


@pytest.mark.parametrize(("name", "case"), TOLD.items(), ids=TOLD)
def test_told_once_with_the_name_and_the_way_out(name: str, case: LossCase) -> None:
    loss = "cskd" if name == "cswt" else name.split("_")[0]  # L_CSWT is CSKD's own
    with pytest.warns(UserWarning, match=rf"^{loss}.* a batch of one .* larger batches") as told:
        lone(case, case, scope="local", reduction="none")
    assert len(told) == 1
    assert told[0].filename != collectives.__file__
    lone(case)


@pytest.mark.parametrize("case", SILENT.values(), ids=SILENT)
def test_one_sample_with_signal_is_no_matter(case: LossCase) -> None:
    assert lone(case)[0].isfinite()


def test_each_loss_is_told_for_itself() -> None:
    with pytest.warns(UserWarning, match="batch of one") as told:
        lone(*(LOSSES[name] for name in ("sp", "ckd", "sp")))
    assert [str(x.message).split()[0] for x in told] == ["sp", "ckd"]


def test_two_samples_or_none_or_other_ranks_are_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (0, 2):
        sp_loss(torch.ones(rows, 3), torch.ones(rows, 3))
    dist_inter_loss(*LOSSES["dist_inter"].make(7, batch=1))
    monkeypatch.setattr(collectives, "_world_size", lambda: 2)
    warn_if_alone(torch.ones(1, 3), "sp", scope="global")
    with pytest.warns(UserWarning, match="sp"):
        warn_if_alone(torch.ones(1, 3), "sp", scope="local")


def test_silent_while_compiling() -> None:
    torch.compiler.reset()
    compiled = torch.compile(sp_loss, fullgraph=True, backend="eager")
    assert compiled(torch.ones(1, 3), torch.ones(1, 3)) == 0


def _fail_after_a_lone_sample() -> None:
    with lone_sample_expected():
        lone(LOSSES["sp"])
        raise KeyError


def test_on_purpose_it_is_silent_and_told_afterwards() -> None:
    with lone_sample_expected():
        lone(LOSSES["sp"])
    with pytest.raises(KeyError):
        _fail_after_a_lone_sample()
    with pytest.warns(UserWarning, match="sp"):
        lone(LOSSES["sp"])


@pytest.mark.parametrize("name", ["sp_1", "cckd_rbf_1", "pkt_1", "ckd_1", "rkd_1", "cskd_full_1"])
def test_a_reference_case_may_be_one_sample(name: str) -> None:
    case = next(x for x in load_cases() if x["case"] == name)
    inputs = {k: x[:1] for k, x in load_arrays(case).items() if "__" not in k and x.ndim}
    assert all(np.isfinite(x).all() for x in run_case(case, inputs).values())
