"""A small language model learns from a large one inside Hugging Face's Trainer.

    python examples/04_transformers_trainer.py     # seconds; networks and texts made here

What a script of Trainer, or of TRL's SFTTrainer, needs besides are the lines marked with (*).
"""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from congener import Term  # (*)
from congener.integrations.transformers import DistillationMixin  # (*)
from congener.losses import GKDLoss  # (*)

DIGITS, EQUALS, END = 10, 10, 11


class Distiller(DistillationMixin, Trainer):  # (*)
    """A Trainer with a teacher."""


def network(width: int) -> LlamaForCausalLM:
    torch.manual_seed(width)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=12, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=2, bos_token_id=None, eos_token_id=END, pad_token_id=END,
        )
    )  # fmt: skip


def sums(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Texts as 7 5 = 1 2 ., of which the part behind the sign is to be learnt."""
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randint(DIGITS, (2, count), generator=generator)
    sign, end = torch.full((count,), EQUALS), torch.full((count,), END)
    total = one + other
    texts = torch.stack([one, other, sign, total // 10, total % 10, end], 1)
    labels = texts.masked_fill(torch.arange(6) < 3, -100)
    return [{"input_ids": x, "labels": y} for x, y in zip(texts, labels, strict=True)]


def settings(steps: int, out: str) -> TrainingArguments:
    return TrainingArguments(
        out, max_steps=steps, per_device_train_batch_size=32, gradient_accumulation_steps=2,
        learning_rate=3e-3, logging_steps=max(1, steps // 4), report_to=[], disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip


def main(steps: int, out: str = "runs/example-trainer") -> None:
    teacher = network(48)
    Trainer(teacher, settings(2 * steps, f"{out}/teacher"), train_dataset=sums(2000, 0)).train()
    student = Distiller(
        model=network(16),
        args=settings(steps, f"{out}/student"),
        train_dataset=sums(2000, 1),
        teacher=teacher,  # (*)
        terms=[Term(GKDLoss(beta=0.5), weight=2.0)],  # (*)
    )
    student.train()
    print(f"the student's own loss on new sums: {student.evaluate(sums(200, 2))['eval_loss']:.3f}")
    student.save_model()  # the student alone
    print(Path(out, "student", "model.safetensors"))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
