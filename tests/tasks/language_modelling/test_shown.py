"""What a report shows of answers, and how alike two networks are."""

import torch
from tests.tasks.language_modelling.test_metrics import repeats, trained
from tests.tasks.language_modelling.tiny import batch_of, llama, task
from torch import nn

from congener.losses import GKDLoss
from congener.tasks.language_modelling import LanguageModelling, teacher_forced_kl


def test_a_teacher_forced_divergence_by_hand() -> None:
    found = task()
    student, teacher = llama(found, 1), trained(2)
    values = []
    texts = found.texts("test")
    for row in range(12):
        length, prompt = int(texts.length[row]), int(texts.prompt[row])
        tokens = texts.tokens[row : row + 1, :length].long()
        with torch.no_grad():
            p, q = (
                net(input_ids=tokens).logits[0].double().softmax(-1) for net in (teacher, student)
            )
        for place in range(prompt - 1, length - 1):
            values.append(float((p[place] * (p[place] / q[place]).log()).sum()))
    expected = sum(values) / len(values)
    assert abs(teacher_forced_kl(student, teacher, found) - expected) < 1e-5
    assert abs(teacher_forced_kl(student, teacher, found, batch_size=5) - expected) < 1e-5
    assert teacher_forced_kl(teacher, teacher, found) < 1e-6
    assert teacher_forced_kl(student, teacher, found, "train") != expected
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_the_divergence_is_what_training_lowers() -> None:
    found = task()
    student, teacher = llama(found, 1), trained(2)
    batch = batch_of(found, range(12), "test")
    with torch.no_grad():
        loss = GKDLoss(beta=0)(found.call(student, batch), found.call(teacher, batch))
    assert abs(float(loss) - teacher_forced_kl(student, teacher, found)) < 1e-5


def test_prompts_on_which_networks_disagree_come_first() -> None:
    found = task(check=repeats)
    networks: dict[str, nn.Module] = {"teacher": trained(1), "alone": trained(2)}
    (shown,) = found.exhibits(networks, {})
    assert list(shown.rows) == ["prompt", "teacher", "alone"]
    prompts, taught, alone = shown.rows.values()
    assert len(prompts) == len(taught) == 6
    assert len(alone) == 7
    assert alone[-1].caption.startswith("KL to the teacher: ")
    nats = teacher_forced_kl(networks["alone"], networks["teacher"], found)
    assert alone[-1].caption == f"KL to the teacher: {nats:.4f} nats a token"
    assert all(panel.hit is None for panel in (*prompts, alone[-1]))
    for prompt, *panels in zip(prompts, taught, alone, strict=False):
        question = [int(word) for word in prompt.caption.split()]
        for panel in panels:
            answer = panel.caption
            words = [] if answer == "(nothing)" else answer.split()
            ended = answer != "(did not end)"
            right = ended and repeats(question, [int(word) for word in words])
            assert panel.hit is right
    differ = [a.hit != b.hit for a, b in zip(taught, alone, strict=False)]
    assert any(differ)


def test_without_a_teacher_or_a_rule_there_are_answers_alone() -> None:
    found = task()
    assert not found.exhibits({"alone": llama(found).eval()}, {"alone": None})
    found.generates = True
    (shown,) = found.exhibits({"alone": llama(found).eval()}, {"alone": None})
    assert [len(row) for row in shown.rows.values()] == [6, 6]
    assert all(panel.hit is None for row in shown.rows.values() for panel in row)
    assert shown.text.endswith(".")


def test_right_answers_are_marked_where_there_is_one() -> None:
    found = task(one_answer=True)
    (shown,) = found.exhibits({"alone": trained(1)}, {})
    assert {panel.hit for panel in shown.rows["alone"]} <= {True, False}


def test_long_answers_are_cut() -> None:
    found = LanguageModelling({"name": "shuffle", "samples": 40, "test": 8})
    words = found.vocabulary
    object.__setattr__(words, "decode", lambda tokens: "x" * 500)
    (shown,) = found.exhibits({"alone": llama(found).eval()}, {})
    assert len(shown.rows["prompt"][0].caption) == 202
