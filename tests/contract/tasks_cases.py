"""The table of the task packs. What is not listed here fails the build."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tests.systems.scenes import squares

from congener.losses import (
    CCKDLoss,
    DetectionKDLoss,
    FGDLoss,
    GKDLoss,
    IUSPLoss,
    KDLoss,
    MultiLabelKDLoss,
    SPLoss,
)
from congener.task import Task
from congener.tasks.audio_tagging import AudioTagging
from congener.tasks.audio_tagging import data as sounds
from congener.tasks.cross_modal_retrieval import CrossModalRetrieval
from congener.tasks.cross_modal_retrieval import data as pairs
from congener.tasks.detection import Detection
from congener.tasks.image_classification import ImageClassification
from congener.tasks.image_classification import data as images
from congener.tasks.language_modelling import LanguageModelling
from congener.tasks.language_modelling import data as answers
from congener.tasks.retrieval import Retrieval
from congener.tasks.retrieval import data as identities
from congener.tasks.text_classification import TextClassification
from congener.tasks.text_classification import data as texts
from congener.types import Batch, Term


@dataclass(frozen=True)
class TaskCase:
    """One task pack on data so small that a step takes milliseconds.

    ``build`` makes the task, with some samples of the training set without a label; ``unlabelled``
    takes the labels from rows of a batch. ``student`` and ``teacher`` are networks by name; the
    student has neither batch normalisation nor dropout, so that two processes train as one does.
    ``terms`` are what the student learns from the teacher. ``inputs``: the keys of a batch that a
    network sees. ``wrong`` is a name with a slip, of ``meant`` or of the student's network.
    """

    covers: str
    build: Callable[[], Task]
    student: Mapping[str, Any]
    teacher: Mapping[str, Any]
    terms: Callable[[], list[Term]]
    inputs: tuple[str, ...]
    wrong: str
    lr: float = 1e-2
    meant: str | None = None

    def unlabelled(self, batch: Batch, rows: slice) -> Batch:
        labels = batch["labels"].clone()
        labels[rows] = -100
        return batch | {"labels": labels}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_classification() -> Task:
    labels = torch.arange(60) % 3
    centres = torch.randn(3, 1, 6, 6, generator=_generator(1))
    pixels = centres[labels] + 0.3 * torch.randn(60, 1, 6, 6, generator=_generator(2))
    train = labels[:40].clone()
    train[3::5] = -100
    arrays = images.tensors(
        train_images=pixels[:40], train_labels=train,
        test_images=pixels[40:], test_labels=labels[40:], num_classes=3,
    )  # fmt: skip
    return ImageClassification(arrays, augment="shift")


def audio_tagging() -> Task:
    """Tones of three pitches, one to three at a time, in clips of unlike lengths."""
    generator = _generator(3)
    times = torch.arange(4000) / 8000
    tones = torch.stack([torch.sin(2 * torch.pi * pitch * times) for pitch in (400, 1000, 2500)])
    labels = (torch.rand(60, 3, generator=generator) < 0.5).to(torch.int8)
    labels[:, 0] |= (labels.sum(1) == 0).to(torch.int8)
    sound = labels.float() @ tones + 0.05 * torch.randn(60, 4000, generator=generator)
    waveforms = (sound / 4 * 32767).to(torch.int16)
    lengths = torch.randint(2000, 4001, (60,), generator=generator)
    train = labels[:40].clone()
    train[3::5] = -100
    arrays = sounds.tensors(
        train_waveform=waveforms[:40], train_length=lengths[:40], train_labels=train,
        test_waveform=waveforms[40:], test_length=lengths[40:], test_labels=labels[40:],
        tag_names=("low", "middle", "high"), sample_rate=8000,
    )  # fmt: skip
    return AudioTagging(arrays, augment="gain")


def retrieval() -> Task:
    generator = _generator(4)
    patterns = torch.rand(30, 3, 8, 8, generator=generator)
    both = patterns.repeat_interleave(2, 0) + 0.1 * torch.randn(60, 3, 8, 8, generator=generator)
    pixels = (both.clamp(0, 1) * 255).to(torch.uint8)
    labels, cameras = torch.arange(60) // 2, torch.arange(60) % 2
    train = labels[:40].clone()
    train[30:] = -100
    arrays = identities.tensors(
        train_images=pixels[:40], train_labels=train, train_cameras=cameras[:40],
        test_images=pixels[40:], test_labels=labels[40:], test_cameras=cameras[40:],
    )  # fmt: skip
    return Retrieval(arrays)


def cross_modal_retrieval() -> Task:
    generator = _generator(5)
    labels = torch.arange(60) % 3
    first = torch.randn(3, 6, generator=generator)[labels]
    second = torch.randn(3, 5, generator=generator)[labels]
    first = first + 0.5 * torch.randn(60, 6, generator=generator)
    second = second + 0.5 * torch.randn(60, 5, generator=generator)
    train = labels[:40].clone()
    train[3::5] = -100
    arrays = pairs.paired_tensors(
        train_first=first[:40], train_second=second[:40], train_labels=train,
        query_first=first[40:50], query_second=second[40:50], query_labels=labels[40:50],
        database_first=first[50:], database_second=second[50:], database_labels=labels[50:],
    )  # fmt: skip
    return CrossModalRetrieval(arrays, margin=2.0)


def _lengths(longest: int) -> torch.Tensor:
    """Of 60 texts; one of the longest in each four."""
    lengths = torch.randint(longest // 2, longest, (60,), generator=_generator(6))
    lengths[::4] = longest
    return lengths


def text_classification() -> Task:
    """Texts of the tokens of their class, and of others."""
    labels = torch.arange(60) % 3
    tokens = torch.randint(1, 16, (60, 9), generator=_generator(7))
    told = torch.rand(60, 9, generator=_generator(8)) < 0.6
    tokens = torch.where(told, labels[:, None] + 1, tokens)
    lengths, train = _lengths(9), labels[:40].clone()
    train[3::5] = -100
    arrays = texts.tensors(
        train_tokens=tokens[:40], train_length=lengths[:40], train_labels=train,
        test_tokens=tokens[40:], test_length=lengths[40:], test_labels=labels[40:], vocab_size=16,
    )  # fmt: skip
    return TextClassification(arrays)


def language_modelling() -> Task:
    """Tokens, a sign, and the tokens again."""
    lengths = _lengths(5)
    tokens = torch.full((60, 12), 9)
    for row, count in enumerate(lengths.tolist()):
        digits = torch.randint(0, 7, (count,), generator=_generator(row))
        text = [*digits.tolist(), 7, *digits.tolist(), 8]
        tokens[row, : len(text)] = torch.tensor(text)
    prompt, length = lengths + 1, 2 * lengths + 2
    train = length[:40].clone()
    train[3::5] = prompt[:40][3::5]
    arrays = answers.tensors(
        train_tokens=tokens[:40], train_prompt=prompt[:40], train_length=train,
        test_tokens=tokens[40:], test_prompt=prompt[40:], test_length=length[40:],
        vocabulary=10, eos=8, pad=9, one_answer=True,
    )  # fmt: skip
    return LanguageModelling(arrays)


def detection() -> Task:
    return Detection(squares(40, 20), augment="crop_flip")


BERT = {
    "name": "transformers:bert", "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "initializer_range": 0.3, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def _terms(*terms: Term) -> list[Term]:
    return list(terms)


TASKS = {
    "image_classification": TaskCase(
        "ImageClassification",
        image_classification,
        {"name": "mlp", "hidden": [8]},
        {"name": "mlp", "hidden": [16]},
        lambda: _terms(Term(KDLoss(), 0.5), Term(SPLoss(), 10.0, "hidden", "hidden")),
        ("image",),
        "mpl",
    ),
    "audio_tagging": TaskCase(
        "AudioTagging",
        audio_tagging,
        {"name": "cnn_lstm", "bands": 8, "channels": 4, "hidden": 8},
        {"name": "cnn_lstm", "bands": 16, "channels": 8, "hidden": 16},
        lambda: _terms(
            Term(MultiLabelKDLoss(), 0.5), Term(IUSPLoss(), 10.0, "lstm", "lstm", name="iusp")
        ),
        ("waveform", "length"),
        "cnn_lstn",
        lr=3e-2,
    ),
    "retrieval": TaskCase(
        "Retrieval",
        retrieval,
        {"name": "small_cnn", "norm": False, "widths": (4, 8), "convolutions": 1, "dims": 8},
        {"name": "small_cnn", "norm": False, "widths": (4, 8), "convolutions": 1, "dims": 8},
        lambda: _terms(Term(CCKDLoss(), 1.0, "classifier", "classifier")),
        ("image",),
        "smal_cnn",
    ),
    "cross_modal_retrieval": TaskCase(
        "CrossModalRetrieval",
        cross_modal_retrieval,
        {"name": "coupled", "bits": 6, "first": {"name": "mlp", "width": 8},
         "second": {"name": "mlp", "width": 8}},
        {"name": "coupled", "bits": 12, "first": {"name": "mlp", "width": 16},
         "second": {"name": "mlp", "width": 16}},
        lambda: _terms(Term(SPLoss(), 1.0, ("first", "second"), ("first", "second"))),
        ("first", "second"),
        "coupeld",
    ),
    "text_classification": TaskCase(
        "TextClassification",
        text_classification,
        BERT | {"hidden_size": 8},
        BERT | {"hidden_size": 16},
        lambda: _terms(Term(KDLoss(), 0.5), Term(SPLoss(), 10.0, "bert.pooler", "bert.pooler")),
        ("tokens", "mask"),
        "pretraind",
        lr=3e-2,
        meant="pretrained",
    ),
    "detection": TaskCase(
        "Detection",
        detection,
        {"name": "small_cnn", "norm": "none", "widths": (8, 8, 8), "levels": 1, "channels": 32,
         "convolutions": 1},
        {"name": "small_cnn", "widths": (8, 16, 16), "levels": 1, "channels": 32,
         "convolutions": 1},
        lambda: _terms(Term(DetectionKDLoss()),
                       Term(FGDLoss(32, 32), 0.1, "backbone.fpn.layer_blocks.0",
                            "backbone.fpn.layer_blocks.0")),
        ("image",),
        "smal_cnn",
    ),
    "language_modelling": TaskCase(
        "LanguageModelling",
        language_modelling,
        {"name": "llama", "hidden_size": 8, "layers": 1, "heads": 2},
        {"name": "llama", "hidden_size": 16, "layers": 1, "heads": 2},
        lambda: _terms(Term(GKDLoss(beta=0.0))),
        ("tokens", "mask", "labels"),
        "lama",
        lr=5e-2,
    ),
}  # fmt: skip
