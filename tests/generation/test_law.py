"""Many keyed draws follow the rule's exact law; drafts are as long as its formula says."""

import pytest
import torch
from tests.generation.networks import llama, settings
from tests.generation.oracle import law, ranking

from congener.generation import Sampling, interleave
from congener.generation.pace import Pace

VOCABULARY, DRAWS = 8, 4000
CRITICAL = 24.3  # of chi-square at 7 degrees of freedom, one in a thousand


@pytest.mark.parametrize("top_k", [0, 1, 3, VOCABULARY])
@pytest.mark.parametrize("laws", [(Sampling(), Sampling()), (Sampling(0.5, 0.8), Sampling(2.0))])
def test_one_step_follows_the_exact_law(top_k, laws) -> None:
    student, teacher = llama(5, vocabulary=VOCABULARY), llama(6, vocabulary=VOCABULARY)
    prompt = torch.tensor([[3, 1, 4]])
    given = settings(DRAWS, index=torch.arange(DRAWS), max_new_tokens=1, eos=None, stop=(),
                     student_sampling=laws[0], teacher_sampling=laws[1])  # fmt: skip
    written = interleave(student, teacher, prompt.expand(DRAWS, -1), torch.full((DRAWS,), 3),
                         top_k=top_k, block=2, **given)  # fmt: skip
    raw = [net(input_ids=prompt).logits[0, -1].tolist() for net in (student, teacher)]
    q, p = law(raw[0], laws[0]), law(raw[1], laws[1])
    best = ranking(raw[1])[:top_k]
    kept = sum(q[token] for token in best)
    expected = DRAWS * torch.tensor(
        [q[token] * (token in best) + (1 - kept) * p[token] for token in range(VOCABULARY)]
    )
    counts = written.tokens[:, 0].bincount(minlength=VOCABULARY)
    possible = expected > 1e-9
    assert not counts[~possible].any()
    assert float(((counts - expected)[possible] ** 2 / expected[possible]).sum()) < CRITICAL
    share = written.proposed.double().mean()
    assert abs(float(share) - kept) < 4 * (0.25 / DRAWS) ** 0.5 + 1e-12


@pytest.mark.parametrize("block", [1, 2, 5])
def test_a_block_leaves_as_many_tokens_as_the_formula_says(block) -> None:
    """A student of flat law is accepted by K of V, token for token."""
    student, teacher = llama(1, layers=1, vocabulary=16), llama(2, layers=1, vocabulary=16)
    with torch.no_grad():
        student.lm_head.weight.zero_()
    longest = 40
    given = settings(64, index=torch.arange(64), max_new_tokens=longest, eos=None, stop=())
    prompt, length = torch.full((64, 1), 3), torch.ones(64, dtype=torch.int64)
    written = interleave(student, teacher, prompt, length, top_k=12, block=block, **given)
    proposed = written.proposed.tolist()
    share = sum(map(sum, proposed)) / (64 * longest)
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / (64 * longest)) ** 0.5
    kept = [length for own in proposed for length in _blocks(own, block)]
    formula = (1 - 0.75**block) / (1 - 0.75)
    assert abs(sum(kept) / len(kept) - formula) < 0.1 * formula
    # one prompt token and no padding: there is nothing to read beforehand
    alone = [interleave(student, teacher, prompt[:1], length[:1], top_k=12, block=block,
                        **(given | {"index": torch.tensor([at])})) for at in (0, 1)]  # fmt: skip
    for at, each in enumerate(alone):
        assert each.calls["teacher"] == len(_blocks(proposed[at], block, longest))


def _blocks(proposed: list[bool], block: int, longest: int | None = None) -> list[int]:
    """What blocks kept of a text; without ``longest`` not the last, which the limit cut."""
    kept, run = [], 0
    for own in proposed:
        run += 1
        if run == block or not own:
            kept.append(run)
            run = 0
    return [*kept, run] if longest and run else kept


def test_drafts_follow_the_acceptance() -> None:
    """Drafts grow with the acceptance; without any, tokens come one by one."""
    student, teacher = llama(layers=1), llama(layers=12)
    lengths = []
    for right in (0, 1, 2, 3, 4):
        pace = Pace("adaptive", student, teacher)
        for _ in range(30):
            own = torch.arange(4) < right
            pace.learn(torch.tensor([min(right + 1, 4)]), own[None])
        lengths.append(pace.length(1))
    assert lengths[0] == 1
    assert lengths == sorted(lengths)
    assert lengths[-1] >= 12
    assert 2 <= Pace("adaptive", student, teacher).length(1) <= 8
    assert Pace(5, student, teacher).length(3) == 5


@pytest.mark.parametrize("block", [0, -1, 2.5, "fast"])
def test_other_blocks_are_refused(block) -> None:
    with pytest.raises(ValueError, match='block must be "adaptive" or at least 1'):
        Pace(block, llama(), llama())
