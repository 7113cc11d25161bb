"""A sentence encoder with half of its teacher's layers keeps which sentences are alike.

    python examples/06_sentence_transformers.py    # seconds; encoder and sentences made here

With encoders of your own: teacher = SentenceTransformer("a/folder").
"""

import random
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizer

from congener.integrations.sentence_transformers import EmbeddingDistillation, cut_layers
from congener.losses import SPLoss

WORDS = ["red", "blue", "old", "young", "dog", "cat", "bird", "sees", "likes", "hears", "small"]


def encoder(width: int = 48) -> SentenceTransformer:
    """An encoder of random weights, which is enough to have neighbours."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
        Path(folder, "vocab.txt").write_text("\n".join(words), encoding="utf-8")
        BertTokenizer(vocab=f"{folder}/vocab.txt").save_pretrained(folder)
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words), hidden_size=width, intermediate_size=2 * width,
            num_hidden_layers=6, num_attention_heads=4, initializer_range=0.15,
        )  # fmt: skip
        BertModel(config).save_pretrained(folder)
        return SentenceTransformer(modules=[Transformer(folder), Pooling(width, "mean")])


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(count)]


def likeness(model: SentenceTransformer, texts: list[str]) -> torch.Tensor:
    embeddings = model.encode(texts, convert_to_tensor=True, show_progress_bar=False)
    return torch.corrcoef(embeddings).flatten()


def main(steps: int, out: str = "runs/example-sentences") -> None:
    teacher = encoder()
    student = cut_layers(teacher, [0, 2, 4])
    texts = sentences(200, 1)
    before = torch.corrcoef(torch.stack([likeness(m, texts) for m in (student, teacher)]))[0, 1]
    trainer = SentenceTransformerTrainer(
        model=student,
        args=SentenceTransformerTrainingArguments(
            out, max_steps=steps, per_device_train_batch_size=64, learning_rate=1e-3,
            report_to=[], save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict({"text": sentences(2000, 0)}),
        loss=EmbeddingDistillation(student, SPLoss(), teacher=teacher),
    )  # fmt: skip
    trainer.train()
    after = torch.corrcoef(torch.stack([likeness(m, texts) for m in (student, teacher)]))[0, 1]
    print(f"agreement on which sentences are alike: {before:.3f} when cut, {after:.3f} trained")
    student.save(out)
    print(Path(out, "model.safetensors"))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
