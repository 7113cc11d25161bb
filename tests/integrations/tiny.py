"""Networks and texts for the trainers of others, so small that a step takes milliseconds."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
)

WORDS, LONGEST = 19, 9


def language_model(hidden: int = 16, *, words: int = WORDS, seed: int = 1) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words, hidden_size=hidden, intermediate_size=2 * hidden,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32,
            initializer_range=0.5, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        )
    ).double()  # fmt: skip


def classifier(hidden: int = 16, *, seed: int = 1, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS, hidden_size=hidden, intermediate_size=2 * hidden,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=classes,
            initializer_range=0.5,
        )
    ).double()  # fmt: skip


def texts(count: int = 8, *, seed: int = 0) -> dict[str, Tensor]:
    """Prompts and responses of different lengths, padded on the right, as columns."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, WORDS, (count, LONGEST), generator=generator)
    prompt = torch.randint(1, 4, (count,), generator=generator)
    length = prompt + torch.randint(1, LONGEST - 3, (count,), generator=generator)
    length[0] = LONGEST
    places = torch.arange(LONGEST)
    tokens[places >= length[:, None]] = 0
    return {"tokens": tokens, "prompt": prompt, "length": length}


def conversations(count: int = 8, *, seed: int = 0) -> list[dict[str, Tensor]]:
    """The same texts as a causal language model of transformers reads them."""
    given = texts(count, seed=seed)
    places = torch.arange(LONGEST)
    response = (places >= given["prompt"][:, None]) & (places < given["length"][:, None])
    mask = (places < given["length"][:, None]).long()
    labels = given["tokens"].where(response, -100)
    columns = zip(given["tokens"], mask, labels, strict=True)
    return [{"input_ids": t, "attention_mask": m, "labels": y} for t, m, y in columns]


def sentences(count: int = 8, *, unlabelled: int = 0) -> list[dict[str, Any]]:
    """Texts of one of three classes, the first of them without a label."""
    rows: list[dict[str, Any]] = [dict(row) for row in conversations(count)]
    for place, row in enumerate(rows):
        row["labels"] = torch.tensor(-100 if place < unlabelled else place % 3)
    return rows


def settings(folder: Path, **changes: Any) -> TrainingArguments:
    """Three steps of plain descent on a CPU, in batches of eight: a wrong factor shows."""
    given: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "max_steps": 3,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "optim": "sgd",
        "max_grad_norm": 0.0, "use_cpu": True,
        "report_to": [], "save_strategy": "no", "disable_tqdm": True,
        "logging_strategy": "no", "dataloader_pin_memory": False, "remove_unused_columns": False,
    }  # fmt: skip
    return TrainingArguments(**given | changes)
