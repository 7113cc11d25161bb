"""A task whose samples have several tags: sounds of two pitches, of unlike lengths."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener.engine.held import Held
from congener.ops.collectives import global_mean
from congener.task import Task
from congener.types import Batch, Exhibit, Panel

HOP, SAMPLES, TAGS = 8, 64, 3


class Frames(nn.Module):
    """Frames of a sound, their mean within its length, and a logit for each tag."""

    def __init__(self, width: int = 6, outputs: int = TAGS) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, width, HOP, stride=HOP)
        self.frames = nn.ReLU()
        self.head = nn.Linear(width, outputs)

    def forward(self, waveform: Tensor, length: Tensor) -> Tensor:
        frames = self.frames(self.conv(waveform[:, None]).transpose(1, 2))
        inside = (torch.arange(frames.shape[1]) < (length[:, None] // HOP)).float()[..., None]
        result: Tensor = self.head((frames * inside).sum(1) / inside.sum(1))
        return result


class Tones(Task):
    """Tags are pitches; a few training clips, and one of the test set, have no known tag."""

    metric = "micro_auprc"
    class_names = ("low", "middle", "high")
    augments = False

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        tags = (torch.rand(60, TAGS, generator=generator) < 0.4).float()
        pitches = torch.stack([torch.sin(k * torch.arange(SAMPLES) / 3) for k in (1, 2, 4)])
        sound = tags @ pitches + 0.2 * torch.randn(60, SAMPLES, generator=generator)
        length = torch.randint(2 * HOP, SAMPLES + 1, (60,), generator=generator)
        sound[torch.arange(SAMPLES) >= length[:, None]] = 0
        tags[[5, 45]] = -100.0
        columns = {"waveform": sound, "length": length, "labels": tags, "index": torch.arange(60)}
        self.splits = {
            "train": Held({name: value[:40] for name, value in columns.items()}),
            "test": Held({name: value[40:] for name, value in columns.items()}),
        }

    def build_model(self, name: str, **kwargs: Any) -> nn.Module:
        return Frames(**kwargs)

    def collate(self, samples: Any) -> Batch:
        return dict(samples)

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        return dict(batch)

    def call(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch["waveform"], batch["length"])

    def logits(self, result: Any) -> Tensor:
        tensor: Tensor = result
        return tensor

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        known = batch["labels"] >= 0
        values = F.binary_cross_entropy_with_logits(
            logits.float(), batch["labels"].clamp(min=0), reduction="none"
        )
        return global_mean(values.flatten(), known.flatten())

    def metrics(self, device: torch.device) -> Any:
        return _Hits()

    def mask(self, batch: Batch, feature: Tensor) -> Tensor | None:
        return torch.arange(feature.shape[1]) < batch["length"][:, None] // HOP

    def exhibits(
        self, networks: Mapping[str, nn.Module], taps: Mapping[str, str | None]
    ) -> Sequence[Exhibit]:
        """A clip and, for each network, a matrix of ones times the number of its parameters."""
        test: Any = self.splits["test"]
        clip = test.columns["waveform"][0]
        assert not any(network.training for network in networks.values())
        assert not torch.is_grad_enabled()
        rows = {"clip": [Panel("as it is", clip.view(8, 8), "spectrogram")]}
        for name, network in networks.items():
            size = sum(p.numel() for p in network.parameters())
            rows[name] = [Panel(f"tap {taps[name]}", size * torch.eye(8), "similarity")]
        return [Exhibit("Frames of <a> clip", "Bright & alike.", rows, (clip, 8000))]


class _Hits:
    """The share of known tags that are told: it stands in for the area under a curve."""

    def __init__(self) -> None:
        self.right = self.known = 0.0

    def update(self, result: Any, batch: Batch) -> None:
        known = batch["labels"] >= 0
        self.right += float((((result > 0).float() == batch["labels"]) & known).sum())
        self.known += float(known.sum())

    def compute(self) -> dict[str, float]:
        return {"micro_auprc": self.right / self.known}
