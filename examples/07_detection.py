"""A detector of less than half the size learns from few annotated scenes, and runs as ONNX.

    python examples/07_detection.py            # some ten minutes; a report at the end
    python examples/07_detection.py 100        # a minute, in which it learns next to nothing

Scenes: digits on photos. The student learns what the teacher finds, where it looks (FGD), and how
it sees images made to mislead it (IKD). It is torchvision's RetinaNet, which torchvision loads and
ONNX Runtime runs.
"""

import sys
import warnings
from pathlib import Path

import onnxruntime
import torch
from safetensors.torch import load_file

import congener
from congener.tasks.detection import Detection

DATA = {"name": "digit_scenes", "scenes": 700, "test": 80, "teacher": 500, "labelled": 80}
TASK = {"detector": "retinanet", "anchor_scale": 2, "augment": {"name": "crop_flip", "flip": 0}}
STUDENT = {"widths": [8, 16, 24, 24], "channels": 32, "convolutions": 1, "norm": "batch"}
TRAIN = {"batch_size": 16, "lr": 6e-3, "schedule": "cosine", "warmup": 20}
FGD = {"loss": "fgd", "weight": 0.02, "student": "backbone.fpn.layer_blocks.0",
       "teacher": "backbone.fpn.layer_blocks.0"}  # fmt: skip
RECIPE = {
    "name": "detection",
    "task": {"name": "detection", "data": DATA} | TASK,
    "teacher": {"name": "small_cnn", "channels": 32, "norm": "batch"},
    "student": {"name": "small_cnn"} | STUDENT,
    "arms": {
        "kd": {"terms": [{"loss": "detection_kd"}]},
        "ikd": {"system": {"name": "ikd"}, "terms": [{"loss": "detection_kd"}, FGD]},
    },
}


def exported(weights: Path, file: str) -> float:
    """Write the detector as ONNX; the largest difference between its scores and torchvision's."""
    task = Detection(DATA, **TASK)
    detector = task.build_model("small_cnn", **STUDENT).eval()  # a torchvision RetinaNet
    detector.load_state_dict(load_file(weights))
    detector.score_thresh = 0.0  # so that there is something to compare, however short the training
    image = task.splits["test"].images[0] / 255
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter that traces is the one that can do this
        torch.onnx.export(detector, ([image],), file, dynamo=False, input_names=["image"])
        (expected,) = detector([image])
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": image.numpy()})[1]
    return float(abs(found - expected["scores"].numpy()).max())


def main(steps: int, out: str = "runs/example-detection") -> None:
    RECIPE["train"] = RECIPE["teacher"]["train"] = TRAIN | {"steps": steps}
    run = congener.run(RECIPE, out=out)
    for arm, row in run.metrics["arms"].items():
        print(f"{arm:10} mAP {row['map'][0]:.3f}")
    weights = run.folder / "arms" / "ikd" / "seed-0" / "weights.safetensors"
    print(f"ONNX: scores differ by {exported(weights, f'{out}/detector.onnx'):.0e} at most")
    print(run.folder / "report.html")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
