"""A synthetic run folder, as the runner writes it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from congener.report import write_report

CLASSES = 10
STEPS = 3000
LEVELS = {"alone": 0.61, "kd": 0.66, "sp": 0.705, "kd+sp": 0.70}
TEACHER = 0.924
SP = "Tung & Mori: Similarity-Preserving Knowledge Distillation. ICCV 2019. https://arxiv.org/abs/1907.09682"
KD = "Hinton et al.: Distilling the Knowledge in a Neural Network. 2015. https://arxiv.org/abs/1503.02531"
TERMS: dict[str, dict[str, Any]] = {
    "sp": {
        "name": "sp",
        "loss": "SPLoss(reduction='mean', scope='global')",
        "weight": 3000.0,
        "student": "net.2",
        "teacher": ["net.6"],
        "equation": "L = ‖Gᵗ − Gˢ‖²_F / B²,  G = rows of Q·Qᵀ, each divided by its norm",
        "paper": SP,
    },
    "kd": {
        "name": "kd",
        "loss": "KDLoss(temperature=4, reduction='mean', scope='global')",
        "weight": 0.9,
        "student": None,
        "teacher": None,
        "equation": "L = τ² · meanᵢ KL( softmax(zᵗᵢ/τ) ‖ softmax(zˢᵢ/τ) )",
        "paper": KD,
    },
}


def metrics(levels: dict[str, float] = LEVELS, seeds: int = 3) -> dict[str, Any]:
    """``metrics.json`` of a run in which arms end near their level."""
    noise = np.array([-0.004, 0.001, 0.003])[:seeds]
    arms: dict[str, Any] = {"teacher": _arm("teacher", [TEACHER] * seeds, [0.926] * seeds, [])}
    arms["teacher"] |= {
        "model": "cnn",
        "parameters": 5_240_000,
        "macs": 61_000_000,
        "bytes": 20_960_000,
        "latency_ms": 4.6,
        "trained": 1,
    }
    comparisons = {}
    alone = levels["alone"] + noise
    for name, level in levels.items():
        values = level + (noise if name == "alone" else noise[::-1])
        terms = [TERMS[part] for part in name.split("+") if part in TERMS]
        role = "alone" if name == "alone" else "distilled"
        arms[name] = _arm(role, values.tolist(), (values + 0.008).tolist(), terms)
        if name != "alone":
            difference = values - alone
            comparisons[name] = {
                "against": "alone",
                "mean_difference": float(difference.mean()),
                "wins": int((difference > 0).sum()),
                "n": seeds,
                "p": 0.0021 if seeds > 1 else None,
            }
    return {
        "name": "sp-mnist1d",
        "title": "SP on MNIST-1D, cnn → mlp",
        "metric": "accuracy",
        "higher_is_better": True,
        "task": "image_classification",
        "data": "MNIST-1D, 4000 training and 1000 test signals of 40 values",
        "class_names": [f"digit {label}" for label in range(CLASSES)],
        "seeds": list(range(seeds)),
        "steps": STEPS,
        "batch_size": 64,
        "command": "congener run sp-mnist1d-cnn-mlp --seeds 3",
        "evaluated_on": "test",
        "seconds": 754.2,
        "arms": arms,
        "comparisons": comparisons,
        "published": None,
    }


def _arm(role: str, values: list[float], best: list[float], terms: list[Any]) -> dict[str, Any]:
    return {
        "role": role,
        "model": "mlp",
        "parameters": 61_770,
        "macs": 61_440,
        "bytes": 247_080,
        "latency_ms": 0.42,
        "accuracy": values,
        "best": best,
        "task_weight": 1.0,
        "terms": terms,
        "seconds": [38.0] * len(values),
    }


def events(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Events of a run that ends at the values of ``content``."""
    random = np.random.default_rng(3)
    result: list[dict[str, Any]] = []
    for name, arm in content["arms"].items():
        for seed, last in enumerate(arm["accuracy"]):
            fit = "teacher" if name == "teacher" else f"{name}/{seed}"
            if name == "teacher" and seed:
                continue
            result.append({"event": "fit_started", "fit": fit, "steps": STEPS})
            for step in range(30, STEPS + 1, 30):
                fall = float(np.exp(-step / 700))
                weighted = {"task": (0.3 + 2.0 * fall) * float(random.uniform(0.85, 1.15))}
                for term in arm["terms"]:
                    scale = 0.4 if term["name"] == "sp" else 1.6
                    weighted[term["name"]] = scale * (fall + 0.1) * float(random.uniform(0.9, 1.1))
                result.append(
                    {"event": "step", "fit": fit, "step": step, "epoch": step // 63, "lr": 0.05,
                     "total": sum(weighted.values()), "terms": weighted, "weighted": weighted}
                )  # fmt: skip
                if step % 60 == 0:
                    value = last - (last - 0.1) * float(np.exp(-step / 500))
                    value += float(random.normal(0, 0.006)) * (step < STEPS)
                    result.append(
                        {"event": "evaluation", "fit": fit, "step": step, "epoch": step // 63,
                         "metrics": {"accuracy": value, "cross_entropy": 1.0}}
                    )  # fmt: skip
            result.append({"event": "fit_finished", "fit": fit})
    return result


def _gram(labels: np.ndarray, noise: float, random: np.random.Generator) -> np.ndarray:
    centres = random.uniform(0, 1, (CLASSES, 24)) ** 3
    features = np.maximum(centres[labels] + random.normal(0, noise, (labels.size, 24)), 0)
    gram = features @ features.T
    return (gram / np.linalg.norm(gram, axis=1, keepdims=True)).astype(np.float32)


def write_analysis(folder: Path, content: dict[str, Any], *, samples: int = 128) -> None:
    """``analysis/<arm>.npz`` for every arm."""
    (folder / "analysis").mkdir()
    random = np.random.default_rng(5)
    labels = np.arange(1000) % CLASSES
    teacher = np.where(random.uniform(size=1000) < TEACHER, labels, (labels + 1) % CLASSES)
    gram_labels = np.sort(np.arange(samples) % CLASSES)
    for name, arm in content["arms"].items():
        seeds = len(arm["accuracy"])
        right = random.uniform(size=(seeds, 1000)) < arm["accuracy"][0] + 0.06 * np.sin(labels)
        predictions = np.where(right, labels, random.integers(0, CLASSES, (seeds, 1000)))
        noise = 0.12 if name == "teacher" else 0.4 if name == "alone" else 0.2
        own = {} if name == "teacher" else {"teacher_predictions": teacher}
        np.savez(
            folder / "analysis" / f"{name}.npz",
            labels=labels,
            predictions=teacher[None] if name == "teacher" else predictions,
            **own,
            gram=_gram(gram_labels, noise, np.random.default_rng(1)),
            gram_labels=gram_labels,
            gram_tap=np.array("net.6" if name == "teacher" else "net.2"),
        )


def write_run(folder: Path, content: dict[str, Any] | None = None, *, samples: int = 128) -> Path:
    """A whole run folder."""
    content = metrics() if content is None else content
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    lines = [json.dumps(event) for event in events(content)]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text("name: sp-mnist1d\nseeds: [0, 1, 2]\n")
    environment = {"python": "3.11.7", "torch": "2.14.1", "device": "cpu"}
    (folder / "environment.json").write_text(json.dumps(environment))
    write_analysis(folder, content, samples=samples)
    return folder


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """Makers of run folders and their parts."""
    return SimpleNamespace(metrics=metrics, run=write_run, levels=LEVELS, terms=TERMS)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, its report written; tests only read it."""
    path = write_run(tmp_path_factory.mktemp("runs") / "sp")
    write_report(path)
    return path


@pytest.fixture(scope="session")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text("utf-8")
