"""A tokenizer and an encoder as transformers writes them, and texts of their words."""

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from congener.tasks.hub_folder import quiet_transformers
from congener.tasks.text_classification import Splits, TextClassification, data

__all__ = ["WORDS", "save_encoder", "save_tokenizer", "sentences", "splits", "task"]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["good", "fine", "bad", "poor", "film", "book", "a", "the", "##s", '"', ",", "and", "so"]


def save_tokenizer(folder: Path, words: list[str] = WORDS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    return folder


def save_encoder(folder: Path, layers: int = 4, **options: Any) -> Path:
    """A BERT of 16 dimensions, with the tokenizer's vocabulary."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    sizes |= {"max_position_embeddings": 16, "vocab_size": len(SPECIAL) + len(WORDS)}
    sizes |= {"num_hidden_layers": layers, "initializer_range": 0.3}
    torch.manual_seed(1)
    network = BertModel(BertConfig(**(sizes | options)))
    with quiet_transformers():
        network.save_pretrained(folder)
    return folder


def sentences(count: int, start: int = 0) -> tuple[list[str], list[int]]:
    """Texts that are good or bad, of unlike lengths, and which they are."""
    praise, blame = ("good", "fine"), ("bad", "poor")
    texts, labels = [], []
    for number in range(start, start + count):
        kind = number % 2
        word = (blame, praise)[kind][number // 2 % 2]
        texts.append(" ".join(["a", word, "film", *["and", "so"] * (number % 4)]))
        labels.append(kind)
    return texts, labels


def splits(**options: Any) -> Splits:
    texts, labels = sentences(40)
    more, theirs = sentences(20, 41)
    given: dict[str, Any] = {
        "train_texts": texts, "train_labels": labels, "test_texts": more, "test_labels": theirs,
        "class_names": ("bad", "good"),
    }  # fmt: skip
    return data.texts(**(given | options))


def task(folder: Path, max_tokens: int | None = 12, **options: Any) -> TextClassification:
    found = splits(**options)
    return TextClassification(found, tokenizer=str(save_tokenizer(folder)), max_tokens=max_tokens)
