"""A system of congener trained by Lightning: the batches, and the result, of our own engine.

    python examples/05_lightning.py                # seconds; pictures of five patterns made here

Devices, precision, loggers and checkpoints are the Lightning trainer's.
"""

import sys
import warnings
from pathlib import Path

import torch
from lightning import Trainer
from torch.utils.data import TensorDataset

from congener import Term
from congener.engine import FitConfig
from congener.integrations.lightning import DistillationModule
from congener.losses import KDLoss, SPLoss
from congener.system import System
from congener.systems import Distillation
from congener.tasks.image_classification import ImageClassification

warnings.filterwarnings("ignore", ".*LeafSpec")  # of Lightning's, under this version of torch


def pictures(count: int, seed: int) -> TensorDataset:
    """Five patterns in noise."""
    patterns = torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (count,), generator=generator)
    noise = 0.6 * torch.randn(count, 1, 12, 12, generator=generator)
    return TensorDataset(patterns[labels] + noise, labels)


def train(system: System, task: ImageClassification, steps: int, out: Path) -> Trainer:
    config = FitConfig(steps=steps, batch_size=64, lr=3e-3)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=out,
    )  # fmt: skip
    module = DistillationModule(system, task, config)
    trainer.fit(module)
    accuracy = trainer.validate(module, verbose=False)[0]["accuracy"]
    print(f"{'alone' if system.teacher is None else 'taught'}: accuracy {accuracy:.3f}")
    return trainer


def main(steps: int, out: str = "runs/example-lightning") -> None:
    task = ImageClassification.from_datasets(pictures(400, 0), pictures(200, 1))
    teacher = task.build_model("small_cnn", widths=[16, 32, 64])
    train(Distillation(teacher, None, [], task=task), task, 2 * steps, Path(out))

    student = task.build_model("small_cnn", widths=[4, 8, 8])
    terms = [Term(KDLoss()), Term(SPLoss(), 100.0, "classifier:input", "classifier:input")]
    trainer = train(Distillation(student, teacher, terms, task=task), task, steps, Path(out))
    checkpoint = Path(out, "student.ckpt")  # student and losses, without the teacher
    trainer.save_checkpoint(checkpoint)
    print(checkpoint)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
