"""An audio tagger of a sixtieth of the size: which frames of a clip the teacher hears as alike.

    python examples/01_audio_tagging.py            # a minute or two; a report at the end
    python examples/01_audio_tagging.py 1500       # the steps of the recipe that is shipped

Clips of 16 played instruments; the teacher reads 64 mel bands, the student 40, from the same clip.
"""

import sys

import congener

RECIPE = {
    "name": "audio",
    "task": {
        "name": "audio_tagging",
        "data": {"name": "instruments", "train": 400, "test": 200, "seconds": 2.0},
    },
    "teacher": {"name": "crnn", "train": {"batch_size": 32, "lr": 2e-3}},
    "student": "small_crnn",
    "arms": {
        "kd": {"terms": [{"loss": "multilabel_kd"}]},
        "iusp": {"terms": [{"loss": "iusp", "weight": 100, "student": "gru", "teacher": "gru"}]},
    },
    "train": {"batch_size": 32, "lr": 5e-3},
    "seeds": [0, 1],
}


def main(steps: int, out: str = "runs/example-audio") -> None:
    RECIPE["train"]["steps"] = steps
    RECIPE["teacher"]["train"]["steps"] = steps
    run = congener.run(RECIPE, out=out)
    for arm, row in run.metrics["arms"].items():
        figures = ", ".join(f"{value:.3f}" for value in row["micro_auprc"])
        print(f"{arm:10} micro-AUPRC {figures}")
    print(run.folder / "report.html")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 150)
