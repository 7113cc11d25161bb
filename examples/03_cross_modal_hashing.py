"""Words find pictures and pictures find words: codes of one space, searched with faiss.

    python examples/03_cross_modal_hashing.py      # seconds; colours and their descriptions

Train a coupled network, let a smaller one follow it, pack the codes of the database and ask it.
"""

import sys

import torch

import congener
from congener.runner import load_student
from congener.tasks.cross_modal_retrieval import CrossModalRetrieval, data, index
from congener.tasks.cross_modal_retrieval.data.splits import as_bytes
from congener.tasks.cross_modal_retrieval.exported import export, load

WORDS = {"red": (1, 0, 0), "green": (0, 0.8, 0), "blue": (0, 0, 1), "yellow": (1, 0.9, 0)}
MANNERS = ["a {} square", "something {}", "the colour {}", "{} as can be", "all in {}"]


def pairs(count: int, seed: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Pictures of one colour in noise, a description of each, and which colour it is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(WORDS), (count,), generator=generator)
    colours = torch.tensor(list(WORDS.values()))[labels].view(-1, 3, 1, 1).expand(-1, 3, 12, 12)
    noise = 0.3 * torch.randn(colours.shape, generator=generator)
    pictures = ((colours + noise).clamp(0, 1) * 255).to(torch.uint8)
    manners = torch.randint(len(MANNERS), (count,), generator=generator).tolist()
    names = list(WORDS)
    texts = [MANNERS[m].format(names[k]) for m, k in zip(manners, labels.tolist(), strict=True)]
    return pictures, texts, labels


def main(steps: int, out: str = "runs/example-hashing") -> None:
    (pictures, texts, labels), (asked, words, theirs) = pairs(200, 0), pairs(40, 1)
    task = CrossModalRetrieval(
        data.paired_tensors(
            train_first=pictures, train_second=texts, train_labels=labels,
            query_first=asked, query_second=words, query_labels=theirs, label_names=list(WORDS),
        )
    )  # fmt: skip
    encoders = {"first": {"name": "cnn", "width": 8}, "second": {"name": "ngrams", "width": 32}}
    recipe = congener.Recipe(
        name="hashing",
        task=task,
        teacher={"name": "coupled", "bits": 32, **encoders, "train": {"steps": steps, "lr": 3e-3}},
        student={"name": "coupled", "bits": 16, **encoders},
        arms={"hashing": {"system": {"name": "mm_hashing", "soft_weight": 1.0}}},
        train={"steps": steps, "batch_size": 50, "lr": 3e-3},
    )
    run = congener.run(recipe, out=out)
    for arm, row in run.metrics["arms"].items():
        print(f"{arm:8} mAP of both directions: {row['map'][0]:.3f}")

    student = load_student(recipe, run.folder, "hashing", 0)
    folder = run.folder / "export"
    if not folder.exists():
        export(student, task, folder)  # the encoders, two indexes of the database, what is in them
    found = load(student, folder)
    with torch.no_grad():
        code = index.pack_codes(found.network.second(as_bytes(["something blue"])))
    bits, places = index.search(found.indexes[0], code, count=5)
    colours = [found.items["labels"][place] for place in places[0].tolist()]
    print("the five pictures nearest to 'something blue':", colours, bits[0].tolist())
    print(run.folder / "report.html")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 150)
