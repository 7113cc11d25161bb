"""Each fault, injected into a sound experiment, is found by its name; the sound one has none."""

import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import congener
from congener import Term
from congener.engine import prepare
from congener.losses import CKDLoss, KDLoss, NDLoss, SimKDLoss, SPLoss
from congener.preflight import Finding, doctor
from congener.preflight import teachers as preflight
from congener.runlog import RunLog
from congener.schedules import Schedule
from congener.tasks.image_classification import ArrayDataset, ImageClassification, data
from congener.tasks.image_classification.data.splits import labelled_positions
from congener.tasks.image_classification.models import cnn1d, mlp
from congener.types import Batch

MEAN, STD = (0.1,), (0.5,)
LIMIT = 10  # seconds of processor time for one examination


class Shifted(nn.Module):
    """A network whose answers are moved, or stretched, or turned into probabilities."""

    def __init__(self, net: nn.Module, change: Any) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.net(x))


def student() -> nn.Module:
    torch.manual_seed(0)
    return mlp(10, 40, hidden=(32, 32))


@pytest.fixture(scope="module")
def task() -> ImageClassification:
    """MNIST-1D as a task that normalises, so that a wrong range can be given."""
    splits = data.mnist1d()
    for part in (splits.train, splits.test):
        part.images = part.images * STD[0] + MEAN[0]
    return ImageClassification(type(splits)(splits.train, splits.test, splits.class_names, MEAN,
                                            STD, splits.input_shape))  # fmt: skip


@pytest.fixture(scope="module")
def known(task: ImageClassification) -> nn.Module:
    """A teacher that knows the task: about 0.8 after a few seconds."""
    torch.manual_seed(1)
    net = cnn1d(channels=24, num_classes=10)
    train: Any = task.splits["train"]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.05)
    for step in range(250):
        index = torch.randint(4000, (100,), generator=torch.Generator().manual_seed(step))
        batch = task.prepare(train.__getitems__(index), train=False, seed=0, epoch=0)
        optimizer.zero_grad()
        F.cross_entropy(net(batch["image"]), batch["labels"]).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture
def teacher(known: nn.Module) -> nn.Module:
    return deepcopy(known)


def examine(
    task: Any, teacher: nn.Module, *, net: nn.Module | None = None, out: Path | None = None,
    terms: Any = None, **settings: Any,
) -> list[Finding]:  # fmt: skip
    if terms is None:
        terms = [Term(KDLoss()), Term(SPLoss(), 1000.0, "hidden", "layer3")]
    net = student() if net is None else net
    settings = {"steps": 5, "batch_size": 64, "threads": 1, "device": "cpu"} | settings
    recipe = congener.describe(net, teacher, task, terms=terms, **settings)
    started = time.process_time()
    found = doctor(recipe, out=out or Path("no-such-run"))
    assert time.process_time() - started < LIMIT
    for finding in found:
        for part in (finding.what, finding.measured, finding.fix, finding.where):
            assert part
            assert "\n" not in part
    return found


def names(found: list[Finding]) -> set[str]:
    return {finding.name for finding in found}


def test_a_sound_experiment_has_no_findings(task: Any, teacher: nn.Module) -> None:
    assert examine(task, teacher) == []


# --- the teacher -------------------------------------------------------------------------------


class AlwaysTraining(nn.BatchNorm1d):
    """Batch normalisation that does not obey eval()."""

    def forward(self, input: Tensor) -> Tensor:
        track = self.running_mean if self.drifts else None
        variance = self.running_var if self.drifts else None
        return F.batch_norm(input, track, variance, self.weight, self.bias, training=True)

    drifts = False


def disobedient(teacher: nn.Module, *, drifts: bool) -> nn.Module:
    norm = AlwaysTraining(1)
    norm.drifts = drifts
    return nn.Sequential(norm, teacher)


def test_01_a_teacher_in_training_mode(task: Any, teacher: nn.Module) -> None:
    found = examine(task, disobedient(teacher, drifts=False), terms=[Term(KDLoss())])
    assert "teacher_by_batch" in names(found)


def test_02_a_teacher_whose_statistics_drift(task: Any, teacher: nn.Module) -> None:
    found = examine(task, disobedient(teacher, drifts=True), terms=[Term(KDLoss())])
    assert "teacher_drifts" in names(found)


def test_02b_a_teacher_with_dropout_alive(task: Any, teacher: nn.Module) -> None:
    noisy = Shifted(teacher, lambda z: F.dropout(z, 0.5, training=True))
    assert "teacher_random" in names(examine(task, noisy, terms=[Term(KDLoss())]))


def test_03_a_teacher_at_chance(task: Any) -> None:
    torch.manual_seed(5)
    found = examine(task, cnn1d(channels=24, num_classes=10))
    assert names(found) == {"teacher_at_chance"}


def test_04_a_teacher_fed_another_normalisation(task: Any, teacher: nn.Module) -> None:
    class Raw(ImageClassification):
        def prepare(self, batch: Batch, **which: Any) -> Batch:
            ready = super().prepare(batch, **which)
            return dict(ready) | {"image": 40 * ready["image"] + 90}

    wrong = Raw.__new__(Raw)
    wrong.__dict__.update(task.__dict__)
    found = examine(wrong, teacher, terms=[Term(KDLoss())])
    assert "wrong_normalisation" in names(found)
    assert "teacher_at_chance" not in names(found)


def test_05_permuted_classes(task: Any, teacher: nn.Module) -> None:
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    found = examine(task, Shifted(teacher, lambda z: z[:, order]), terms=[Term(KDLoss())])
    assert names(found) == {"classes_permuted"}


@pytest.mark.parametrize("shift", [1, -1])
def test_06_a_head_off_by_one(task: Any, teacher: nn.Module, shift: int) -> None:
    moved = Shifted(teacher, lambda z: z.roll(shift, 1))
    assert names(examine(task, moved, terms=[Term(KDLoss())])) == {"classes_off_by_one"}


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_07_logits_that_are_probabilities(task: Any, teacher: nn.Module, who: str) -> None:
    net = student()
    if who == "teacher":
        teacher = Shifted(teacher, lambda z: z.softmax(1))
    else:
        net = Shifted(net, lambda z: z.softmax(1))
    found = examine(task, teacher, net=net, terms=[Term(KDLoss(temperature=1.0))])
    assert [f.where.split(", ")[1] for f in found if f.name == "probabilities"] == [who]


@pytest.mark.parametrize(("factor", "state"), [(1e5, "certain"), (1e-6, "undecided")])
def test_08_a_temperature_without_effect(
    task: Any, teacher: nn.Module, factor: float, state: str
) -> None:
    found = examine(task, Shifted(teacher, lambda z: factor * z), terms=[Term(KDLoss())])
    assert "temperature_without_effect" in names(found)
    assert any(f"wholly {state}" in finding.what for finding in found)


def test_09_a_gradient_that_reaches_the_teacher(task: Any, teacher: nn.Module) -> None:
    class Leaky(nn.Module):
        held: nn.Module

        def __deepcopy__(self, memo: Any) -> "Leaky":
            return self

        def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
            weight = next(p for p in held[0].requires_grad_(True).parameters() if p.ndim == 2)
            return F.mse_loss(student_logits, teacher_logits) + weight.square().mean()

    held = [teacher]
    found = examine(task, teacher, terms=[Term(Leaky(), name="leaky")])
    assert names(found) == {"gradient_reaches_teacher"}


def test_09b_a_teacher_among_what_is_trained(task: Any, teacher: nn.Module) -> None:
    class Holds(KDLoss):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def __deepcopy__(self, memo: Any) -> "Holds":
            return self

    assert names(examine(task, teacher, terms=[Term(Holds(teacher))])) == {"teacher_is_trained"}


# --- the terms ---------------------------------------------------------------------------------


def test_10_a_term_without_signal(task: Any, teacher: nn.Module) -> None:
    class Nothing(nn.Module):
        def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
            return 0.0 * F.mse_loss(student_logits, teacher_logits)

    found = examine(task, teacher, terms=[Term(Nothing(), name="nothing")])
    assert names(found) == {"no_signal"}


@pytest.mark.parametrize("how", ["detached", "weight"])
def test_11_a_term_without_gradient(task: Any, teacher: nn.Module, how: str) -> None:
    class Detached(nn.Module):
        def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
            return F.mse_loss(student_logits.detach(), teacher_logits)

    term = Term(Detached(), name="deaf") if how == "detached" else Term(KDLoss(), weight=0.0)
    assert names(examine(task, teacher, terms=[term])) == {"no_gradient"}


def test_12_a_term_that_swamps_the_others(task: Any, teacher: nn.Module) -> None:
    found = examine(task, teacher, terms=[Term(KDLoss(), 1e5)])
    assert names(found) == {"swamps"}
    assert "'kd'" in found[0].where


class Hidden(nn.Module):
    """A layer that is kept in a plain list."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.layers = [nn.Linear(10, 10)]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers[0](self.net(x))
        return result


def test_13_a_part_of_the_student_hidden_from_the_optimiser(task: Any, teacher: nn.Module) -> None:
    found = examine(task, teacher, net=Hidden(student()), terms=[Term(KDLoss())])
    assert names(found) == {"student_part_not_trained"}


def test_13b_a_student_that_is_frozen(task: Any, teacher: nn.Module) -> None:
    net = student().requires_grad_(False)
    found = examine(task, teacher, net=net, terms=[Term(KDLoss())])
    assert "student_is_frozen" in names(found)


def test_14_a_projector_hidden_from_the_optimiser(task: Any, teacher: nn.Module) -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.projectors = {"only": nn.Linear(32, 24)}

        def forward(self, student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
            return F.mse_loss(self.projectors["only"](student_feature), teacher_feature.mean(2))

    term = Term(Projected(), student="hidden", teacher="layer3", name="projected")
    assert names(examine(task, teacher, terms=[term])) == {"projector_not_trained"}


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_15_a_dead_tap(task: Any, teacher: nn.Module, side: str) -> None:
    net = student()
    layer = net.hidden if side == "student" else teacher.layer3
    for parameter in layer.parameters():
        parameter.data.fill_(-1.0 if parameter.ndim == 1 else 0.0)
    terms = [Term(KDLoss()), Term(SPLoss(), 1000.0, "hidden", "layer3")]
    found = examine(task, teacher, net=net, terms=terms)
    dead = [finding for finding in found if finding.name == "dead_tap"]
    assert len(dead) == 1
    assert dead[0].what.startswith(f"The {side}'s tap")


def test_16_a_tap_tied_to_a_mode(task: Any, teacher: nn.Module) -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.extra = student(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            z = self.net(x)
            return z if self.training else self.extra(z)

    term = Term(SPLoss(), 10.0, "extra", "layer3")
    found = examine(task, teacher, net=Auxiliary(), terms=[term])
    assert names(found) == {"tap_of_one_mode"}
    assert "training mode" in found[0].what


def test_17_a_batch_too_small_for_relations(task: Any, teacher: nn.Module) -> None:
    assert names(examine(task, teacher, batch_size=4)) == {"small_batch"}
    assert names(examine(task, teacher, batch_size=4, terms=[Term(KDLoss())])) == set()


def test_18_a_weight_that_depends_on_the_number_of_ranks(task: Any, teacher: nn.Module) -> None:
    term = Term(CKDLoss(scope="local"))
    assert names(examine(task, teacher, terms=[term])) == {"depends_on_ranks"}


# --- the data ----------------------------------------------------------------------------------


def test_19_a_stale_cache(task: Any, teacher: nn.Module, tmp_path: Path) -> None:
    terms = [Term(NDLoss(), 1.0, "hidden", "flatten"), Term(KDLoss())]
    recipe = congener.describe(
        student(), teacher, task, terms=terms, steps=5, batch_size=64, threads=1, device="cpu"
    )
    from congener.assembly import Assembly

    assembly = Assembly(recipe)
    system = assembly.system("distilled", assembly.student(0), assembly.teacher())
    prepare(system, assembly.task, recipe.train, folder=tmp_path / "stages", log=RunLog(None))
    assert doctor(recipe, out=tmp_path) == []
    other = deepcopy(teacher)
    other.classifier.weight.data += 0.01
    found = examine(task, other, terms=terms, out=tmp_path)
    assert names(found) == {"stale_cache"}


def test_20_training_samples_in_the_test_set(task: Any, teacher: nn.Module) -> None:
    leaky = ImageClassification.__new__(ImageClassification)
    leaky.__dict__.update(task.__dict__)
    train: Any = task.splits["train"]
    leaky.splits = {"train": train, "test": ArrayDataset(train.images[:500], train.labels[:500])}
    assert names(examine(leaky, teacher)) == {"leak"}


def test_21_augmentation_that_differs_between_the_two(task: Any, teacher: nn.Module) -> None:
    class AugmentsInCall(ImageClassification):
        def call(self, model: nn.Module, batch: Batch) -> Any:
            image = batch["image"]
            return model(image + torch.randn_like(image))

    wrong = AugmentsInCall.__new__(AugmentsInCall)
    wrong.__dict__.update(task.__dict__)
    assert "inputs_differ" in names(examine(wrong, teacher, terms=[Term(KDLoss())]))


def test_22_data_in_another_order_each_time(task: Any, teacher: nn.Module) -> None:
    class Random(ArrayDataset):
        generator = torch.Generator().manual_seed(0)

        def __getitems__(self, indices: Any) -> Batch:
            moved = torch.randint(4000, (len(indices),), generator=self.generator)
            return super().__getitems__(moved.tolist())

    wrong = ImageClassification.__new__(ImageClassification)
    wrong.__dict__.update(task.__dict__)
    train: Any = task.splits["train"]
    wrong.splits = dict(task.splits) | {"train": Random(train.images, train.labels)}
    assert "random_data" in names(examine(wrong, teacher))


def test_23_labels_off_by_one(task: Any, teacher: nn.Module) -> None:
    wrong = ImageClassification.__new__(ImageClassification)
    wrong.__dict__.update(task.__dict__)
    train: Any = task.splits["train"]
    labels = (train.labels + 1).clamp(max=9)
    wrong.splits = dict(task.splits) | {"train": ArrayDataset(train.images, labels)}
    assert names(examine(wrong, teacher)) == {"labels_off_by_one"}


# --- what it must not do -----------------------------------------------------------------------


def as_task(task: Any, **changes: Any) -> ImageClassification:
    other = ImageClassification.__new__(ImageClassification)
    other.__dict__.update(task.__dict__ | changes)
    return other


def with_train(task: Any, images: Tensor, labels: Tensor) -> ImageClassification:
    splits = dict(task.splits) | {"train": ArrayDataset(images, labels)}
    return as_task(task, splits=splits, labelled=labelled_positions(labels))


def test_blank_samples_are_no_difference(task: Any, teacher: nn.Module) -> None:
    train: Any = task.splits["train"]
    images = train.images.clone()
    images[::2] = STD[0] * 0.3 + MEAN[0]
    assert examine(with_train(task, images, train.labels), teacher) == []


def test_a_pool_with_few_labels_is_no_fault(task: Any, teacher: nn.Module) -> None:
    train: Any = task.splits["train"]
    labels = train.labels.clone()
    labels[10:] = -100
    assert examine(with_train(task, train.images, labels), teacher) == []


@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_a_teacher_that_knows_nothing_is_not_one_in_another_order(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(512) * classes // 512
    clusters = torch.randint(classes, (classes,), generator=generator)  # as an untrained network
    said = torch.randint(classes, (512,), generator=generator)
    said = torch.where(torch.rand(512, generator=generator) < 0.2, clusters[labels], said)
    assert preflight._reordered(said, labels, classes)[0] < 0.5
    order = torch.randperm(classes, generator=generator)
    knows = torch.where(torch.rand(512, generator=generator) < 0.8, labels, said)
    if classes < 1000:  # with a sample or none of each class, no order can be found
        found, moved = preflight._reordered(order[knows], labels, classes)
        assert (found > 0.6, moved) == (True, "")
    found, moved = preflight._reordered((knows - 1) % classes, labels, classes)
    assert (found > 0.6, moved) == (True, "by one")


def test_a_rare_class_does_not_make_a_guess_look_good() -> None:
    labels = (torch.arange(512) % 20 == 0).long()
    guess, noise = preflight._guess(labels)
    always = torch.zeros(512, dtype=torch.int64)
    assert preflight._accuracy(always, labels) == pytest.approx(guess) == 0.5
    knows = torch.where(torch.arange(512) % 40 == 0, 1 - labels, labels)  # half of the rare class
    assert preflight._accuracy(knows, labels) > guess + noise
    assert (knows == labels).float().mean() < 0.98


class Squares(nn.Module):
    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return F.mse_loss(student_logits, teacher_logits)


def test_a_student_that_learns_from_its_untrained_self_has_a_signal(
    task: Any, teacher: nn.Module
) -> None:
    arm = {"terms": [Term(Squares(), name="squares")], "learns_from": "alone"}
    recipe = {
        "task": task, "teacher": teacher, "student": student(), "arms": {"again": arm},
        "train": {"steps": 5, "threads": 1, "device": "cpu"},
    }  # fmt: skip
    assert doctor(recipe, out=Path("no-such-run")) == []


def test_a_weight_that_starts_small_is_judged_by_its_largest(task: Any, teacher: nn.Module) -> None:
    warm_up = {"weight": Schedule("cosine", steps=100_000)}
    terms = [Term(KDLoss(), schedules=warm_up)]
    assert examine(task, teacher, terms=terms, steps=100_000) == []
    terms = [Term(KDLoss(), 1e6, schedules=warm_up)]
    assert names(examine(task, teacher, terms=terms, steps=100_000)) == {"swamps"}


def test_what_a_run_will_make_anew_is_not_stale(task: Any, tmp_path: Path) -> None:
    """Two arms with a stage of the same name, of which one is done; a teacher still to train."""
    head = {"name": "sskd", "student_tap": "hidden", "teacher_tap": "flatten"}
    arms = {
        name: {"system": head | {"transform": "signal", "head": {"steps": steps}}}
        for name, steps in (("a", 1), ("b", 2))
    }
    recipe = {
        "task": task, "student": {"name": "mlp", "hidden": [32]}, "arms": arms, "alone": False,
        "teacher": {"name": "cnn1d", "channels": 8, "train": {"steps": 2, "device": "cpu"}},
        "train": {"steps": 1, "threads": 1, "device": "cpu"},
    }  # fmt: skip
    congener.run(recipe, out=tmp_path)
    assert doctor(recipe, out=tmp_path) == []
    next((tmp_path / "stages").glob("*.safetensors")).unlink()
    weights = {"checkpoint": str(tmp_path / "teacher" / "weights.safetensors")}
    taught = recipe | {"teacher": {"name": "cnn1d", "channels": 8} | weights}
    assert "stale_cache" not in names(doctor(taught, out=tmp_path))


def test_a_slow_data_set_is_not_read_for_long(task: Any, teacher: nn.Module) -> None:
    class Slow(ArrayDataset):
        read = 0

        def __getitems__(self, indices: Any) -> Batch:
            type(self).read += len(indices)
            time.sleep(0.002 * len(indices))
            return super().__getitems__(indices)

    splits = {k: Slow(part.images, part.labels) for k, part in task.splits.items()}
    assert examine(as_task(task, splits=splits), teacher) == []
    assert Slow.read < 3000


# --- and what it must not miss -----------------------------------------------------------------


def test_probabilities_of_each_class_by_itself(task: Any, teacher: nn.Module) -> None:
    found = examine(task, Shifted(teacher, torch.sigmoid), terms=[Term(KDLoss(1.0))])
    assert "probabilities" in names(found)
    zero = student()
    for parameter in list(zero.children())[-1].parameters():
        parameter.data.zero_()
    assert "probabilities" not in names(examine(task, teacher, net=zero, terms=[Term(KDLoss())]))


def test_numbers_that_are_none(task: Any, teacher: nn.Module) -> None:
    class Divides(nn.Module):
        def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
            return (student_logits - teacher_logits).sum() / (0 * student_logits.detach().sum())

    found = examine(task, teacher, terms=[Term(Divides(), name="divides")])
    assert "not_finite" in names(found)
    train: Any = task.splits["train"]
    images = train.images.clone()
    images[::3, ..., 0] = torch.nan
    found = examine(with_train(task, images, train.labels), teacher, terms=[Term(KDLoss())])
    assert found[0].name == "not_finite"
    assert "random_data" not in names(found)


def test_what_fails_is_told(task: Any, teacher: nn.Module) -> None:
    class Broken(nn.Module):
        def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
            return (student_logits[:, :3] - teacher_logits).mean()

    found = examine(task, teacher, terms=[Term(Broken(), name="broken")])
    assert names(found) == {"cannot_run"}
    assert "RuntimeError: The size of tensor a (3)" in found[0].measured


def test_a_tap_that_no_batch_of_one_can_pass(task: Any, teacher: nn.Module) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(40, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    terms = [Term(SPLoss(), 1.0, "2", "layer3")]
    found = examine(task, teacher, net=net, terms=terms, batch_size=1)
    assert {"tap_of_one_mode", "small_batch"} <= names(found)


def test_a_system_that_couples_samples_needs_them_too(task: Any, teacher: nn.Module) -> None:
    head = {"name": "sskd", "student_tap": "hidden", "teacher_tap": "flatten"}
    recipe = congener.describe(
        student(), teacher, task, system=head | {"transform": "signal"}, steps=5, batch_size=4,
        threads=1, device="cpu",
    )  # fmt: skip
    assert names(doctor(recipe, out=Path("no-such-run"))) == {"small_batch"}


def test_a_label_that_no_output_stands_for(task: Any, teacher: nn.Module) -> None:
    train: Any = task.splits["train"]
    found = examine(with_train(task, train.images, train.labels + 1), teacher)
    assert found[0].name == "labels_off_by_one"
    assert "the largest is 10" in found[0].measured


RECIPES = Path(congener.__file__).parent / "recipes"


QUICK = [p for p in sorted(RECIPES.glob("*/*.yaml")) if "mnist1d" in p.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", QUICK, ids=lambda path: path.stem)
def test_our_recipes_have_no_findings(path: Path, tmp_path: Path) -> None:
    started = time.process_time()
    assert doctor(path, out=tmp_path) == []
    assert time.process_time() - started < LIMIT


def test_the_examination_leaves_everything_as_it_was(task: Any, teacher: nn.Module) -> None:
    net, drifting = student().train(), disobedient(teacher, drifts=True).train()
    teacher.layer1.eval()
    teacher.classifier.weight.requires_grad_(False)
    before = [deepcopy(net.state_dict()), deepcopy(drifting.state_dict())]
    modes = [module.training for module in drifting.modules()]
    switches = [parameter.requires_grad for parameter in drifting.parameters()]
    state = torch.get_rng_state()
    found = examine(task, drifting, net=net, terms=[Term(KDLoss())])
    assert "teacher_drifts" in names(found)
    for network, kept in zip((net, drifting), before, strict=True):
        assert all(torch.equal(v, kept[k]) for k, v in network.state_dict().items())
    assert net.training
    assert [module.training for module in drifting.modules()] == modes
    assert [parameter.requires_grad for parameter in drifting.parameters()] == switches
    assert all(parameter.grad is None for parameter in (*net.parameters(), *drifting.parameters()))
    assert torch.equal(torch.get_rng_state(), state)
    # A loss with a projector of its own is no fault.
    projected = Term(SimKDLoss(32, 120), 1.0, "hidden", "flatten")
    assert names(examine(task, teacher, net=net, terms=[projected])) == set()
