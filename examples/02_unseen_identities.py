"""Find again what training never saw: a small embedding network learns a large one's similarities.

    python examples/02_unseen_identities.py        # seconds; data made here, two "cameras"

Your own images go the same way: arrays of uint8 with an identity and a camera for each.
"""

import sys

import torch

import congener
from congener.tasks.retrieval import Retrieval, data


def pictures(identities: int, seed: int) -> dict[str, torch.Tensor]:
    """Each identity once by each of two cameras, of which the second is dark and blurred."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(identities, 3, 4, 4, generator=generator)
    sharp = torch.nn.functional.interpolate(coarse, size=16, mode="bicubic").clamp(0, 1)
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1) * 0.6
    images = torch.stack([sharp, blurred], 1).flatten(0, 1)
    noise = 0.1 * torch.randn(images.shape, generator=generator)
    return {
        "images": ((images + noise).clamp(0, 1) * 255).to(torch.uint8),
        "labels": torch.arange(identities).repeat_interleave(2),
        "cameras": torch.tensor([0, 1]).repeat(identities),
    }


def main(steps: int, out: str = "runs/example-identities") -> None:
    train, test = pictures(120, seed=0), pictures(80, seed=1)
    arrays = data.tensors(
        train_images=train["images"],
        train_labels=train["labels"],
        train_cameras=train["cameras"],
        test_images=test["images"],
        test_labels=test["labels"],
        test_cameras=test["cameras"],
        labelled=40,  # identities that the student knows; the teacher knows all 120
        teacher="all",
    )
    recipe = congener.Recipe(
        name="identities",
        task=Retrieval(arrays),
        teacher={"name": "small_cnn", "widths": [16, 32, 64], "train": {"steps": 2 * steps}},
        student={"name": "small_cnn", "widths": [4, 8, 8]},
        arms={
            "sp": {
                "terms": [
                    {"loss": "sp", "weight": 100, "student": "classifier", "teacher": "classifier"}
                ]
            }
        },
        train={"steps": steps, "batch_size": 60, "labelled_per_batch": 40, "lr": 5e-3},
    )
    run = congener.run(recipe, out=out)
    for arm, row in run.metrics["arms"].items():
        print(f"{arm:8} recall at 1: {row['recall_at_1'][0]:.3f}")
    print(run.folder / "report.html")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 150)
