"""What ``fit`` adds to a step: a tiny net, where nothing else takes time, against a loop by hand.

python benchmarks/bench_overhead.py [words]
"""

import loops
import torch
import torch.nn.functional as F
from harness import main
from races import Race, Ratio, Tick
from torch import nn

from congener.systems import Distillation
from congener.tasks.image_classification import ImageClassification

SAMPLES, WIDTH = 4096, 40


def data() -> loops.Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(SAMPLES, 1, WIDTH, generator=generator)
    return loops.Data(images, torch.randint(loops.CLASSES, (SAMPLES,), generator=generator))


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, loops.CLASSES)
    )


def by_hand(tick: Tick) -> None:
    images, labels = data()
    student, teacher = network(0), network(1).eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), **loops.OPTIMIZER)
    for rows in loops.order(SAMPLES):
        x, y = images[rows], labels[rows]
        optimizer.zero_grad()
        with torch.no_grad():
            answer = teacher(x)
        logits = student(x)
        loss = F.cross_entropy(logits, y) + loops.KD_WEIGHT * loops.kd(logits, answer)
        loss.backward()
        optimizer.step()
        tick(student)


def ours(tick: Tick) -> None:
    task: ImageClassification = loops.task_of(data())
    system = Distillation(network(0), network(1), loops.terms("kd"), task=task)
    loops.run(tick, system, task, {"log_every": 10**6})


BENCHES = [
    Race(
        {"by hand": by_hand, "ours": ours},
        [Ratio("overhead: of fit in a step of a tiny net", "ours", "by hand", excess_goal=50)],
        alike={"ours": 1e-4},
        steps=SAMPLES // loops.BATCH,
        rounds=7,
        starts=3,
        warm_up=SAMPLES // loops.BATCH,
    )
]

if __name__ == "__main__":
    main(BENCHES)
