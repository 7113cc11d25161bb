"""Divergences of token distributions over large vocabularies.

``plain`` is TRL's step written out: log-softmax, the mixture by log-sum-exp, two divergences of all
tokens, then the mean over those that have labels. ``peer`` is TRL's own code, where it is
installed: of logits what its GKDTrainer calls, and of hidden states what its DistillationTrainer
calls, which computes the logits piece by piece, anew in each of its passes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from harness import Comparison, main, value_and_gradient
from torch import Tensor

from congener.losses import gkd_loss, skew_kl_loss, total_variation_loss, uld_loss
from congener.ops.head import LazyLogits, loss_from_hidden

Inputs = dict[str, Any]


def tokens(shape: tuple[int, ...], share: float = 1.0) -> Inputs:
    """Logits (batch, tokens, vocab), and a mask that keeps a share of the tokens."""
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(shape, generator=generator)
    teacher = 2 * torch.randn(shape, generator=generator)
    mask = torch.rand(shape[:-1], generator=generator) < share
    return {"student": student, "teacher": teacher, "mask": mask}


def jensen_shannon(student: Tensor, teacher: Tensor, mask: Tensor, beta: float) -> Tensor:
    log_q, log_p = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    share = torch.tensor(beta)
    log_m = torch.logsumexp(torch.stack([log_q + torch.log1p(-share), log_p + share.log()]), dim=0)
    from_teacher = F.kl_div(log_m, log_p, reduction="none", log_target=True)
    from_student = F.kl_div(log_m, log_q, reduction="none", log_target=True)
    terms = beta * from_teacher + (1 - beta) * from_student
    return terms[mask].sum() / mask.sum()


def trl(student: Tensor, teacher: Tensor, mask: Tensor, beta: float) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    labels = torch.where(mask, 0, -100)
    value: Tensor = GKDTrainer.generalized_jsd_loss(student, teacher, labels=labels, beta=beta)
    return value


def forward(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    log_q, log_p = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True)[mask].sum() / mask.sum()


def reverse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return forward(student=teacher, teacher=student, mask=mask)


def skew(student: Tensor, teacher: Tensor, mask: Tensor, alpha: float) -> Tensor:
    q, p = F.softmax(student, dim=-1), F.softmax(teacher, dim=-1)
    terms = p * (F.log_softmax(teacher, dim=-1) - (alpha * p + (1 - alpha) * q).log())
    return terms[mask].sum() / mask.sum()


def variation(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    difference = (F.softmax(student, dim=-1) - F.softmax(teacher, dim=-1)).abs()
    return 0.5 * difference[mask].sum() / mask.sum()


def ranked(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    q = F.softmax(student, dim=-1).sort(dim=-1, descending=True).values
    p = F.softmax(teacher, dim=-1).sort(dim=-1, descending=True).values
    per_position = (q - p).abs().sum(dim=-1) * mask
    return (per_position.sum(dim=1) / mask.sum(dim=1)).mean()


def run(loss: Callable[..., Tensor], keyword: str | None, given: Inputs) -> Any:
    """``keyword`` names the mask of a loss here; the plain forms take it by place."""
    mask = given["mask"]
    if keyword is None:
        return value_and_gradient(loss, given["student"], given["teacher"], mask)
    kept = {keyword: mask}
    return value_and_gradient(partial(loss, **kept), given["student"], given["teacher"])


def hidden_states(shape: tuple[int, ...], channels: int, share: float = 1.0) -> Inputs:
    """Hidden states (batch, tokens, channels), twice as wide for the teacher, and both heads."""
    generator = torch.Generator().manual_seed(0)
    vocab, given = shape[-1], {}
    for name, width in (("student", channels), ("teacher", 2 * channels)):
        given[f"{name}_hidden"] = torch.randn(*shape[:-1], width, generator=generator)
        given[f"{name}_weight"] = 2 * torch.randn(vocab, width, generator=generator) / width**0.5
    mask = torch.rand(shape[:-1], generator=generator) < share
    return given | {"mask": mask}


def dense_head(student: LazyLogits, teacher: LazyLogits, mask: Tensor, beta: float) -> Tensor:
    with torch.no_grad():
        teacher_logits = F.linear(*teacher)
    return jensen_shannon(F.linear(*student), teacher_logits, mask, beta)


def trl_head(student: LazyLogits, teacher: LazyLogits, mask: Tensor, beta: float) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    given = (student.hidden[mask], student.weight, None, teacher.hidden[mask], teacher.weight, None)
    per_token: Tensor = ChunkedDivergenceFunction.apply(*given, beta)[0]
    return per_token.mean()


def our_head(student: LazyLogits, teacher: LazyLogits, mask: Tensor, beta: float) -> Tensor:
    return loss_from_hidden(
        partial(gkd_loss, beta=beta, reduction="none"), student, teacher, mask=mask
    )


def run_head(loss: Callable[..., Tensor], given: Inputs) -> Any:
    leaves = [given[f"student_{name}"].detach().requires_grad_() for name in ("hidden", "weight")]
    teacher = LazyLogits(given["teacher_hidden"], given["teacher_weight"])
    value = loss(LazyLogits(*leaves), teacher, given["mask"])
    return value.detach(), *torch.autograd.grad(value, leaves)


def of_heads(shape: tuple[int, ...], channels: int, share: float = 1.0, **goals: Any) -> Comparison:
    size = " x ".join(map(str, shape)) + f" from {channels} channels"
    return Comparison(
        f"gkd beta 0.5 {size}" + (f", {share:.0%} of the tokens" if share < 1 else ""),
        partial(hidden_states, shape, channels, share),
        partial(run_head, partial(dense_head, beta=0.5)),
        partial(run_head, partial(our_head, beta=0.5)),
        peer=partial(run_head, partial(trl_head, beta=0.5)),
        peer_package="trl",
        **goals,
    )


def comparison(name: str, shape: tuple[int, ...], plain: Callable[..., Tensor],
               ours: Callable[..., Tensor], *, share: float = 1.0, keyword: str = "mask",
               **goals: Any) -> Comparison:  # fmt: skip
    size = " x ".join(map(str, shape))
    return Comparison(
        f"{name} {size}" + (f", {share:.0%} of the tokens" if share < 1 else ""),
        partial(tokens, shape, share),
        partial(run, plain, None),
        partial(run, ours, keyword),
        **goals,
    )


SMALL, LARGE = (4, 64, 32_768), (2, 64, 131_072)
GOAL: dict[str, float] = {"goal": 0.16, "memory_ratio_goal": 0.4}
TRL: dict[str, Any] = {
    "peer": partial(run, partial(trl, beta=0.5), None), "peer_package": "trl", "peer_goal": 0.16,
}  # fmt: skip
half = partial(jensen_shannon, beta=0.5)

BENCHES = [
    comparison("gkd beta 0.5", SMALL, half, gkd_loss, **GOAL, **TRL),
    comparison("gkd beta 0.5", LARGE, half, gkd_loss, **GOAL, **TRL),
    comparison("gkd beta 0.5", SMALL, half, gkd_loss, share=0.3, **GOAL, **TRL),
    of_heads((8, 64, 32_768), 128, peer_goal=0.6, memory_ratio_goal=0.4),
    of_heads((8, 64, 32_768), 128, share=0.3, peer_goal=0.6, memory_ratio_goal=0.4),
    comparison("gkd forward", SMALL, forward, partial(gkd_loss, beta=0.0)),
    comparison("gkd reverse", SMALL, reverse, partial(gkd_loss, beta=1.0)),
    comparison("skew", SMALL, partial(skew, alpha=0.1), skew_kl_loss),
    comparison("total variation", SMALL, variation, total_variation_loss, rtol=1e-2),
    comparison("uld", SMALL, ranked, uld_loss, keyword="student_mask", rtol=1e-2),
]

if __name__ == "__main__":
    main(BENCHES)
