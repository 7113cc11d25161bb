"""Whatever is wrong with a recipe is one sentence with its place, before anything is written."""

import re
from pathlib import Path

import pytest
from tests.cli.refusal import names, refused

TRAIN = "train: {steps: 2, batch_size: 10, device: cpu}\nseeds"
TEACHER = "  train: {steps: 2, batch_size: 10, device: cpu}\nstudent"
KD = "{name: kd, temperature: 4}"
STUDENT = "{name: mlp, hidden: [8]}"

# (what, the text that is there, what stands there instead, the sentence)
CASES = [
    ("key", "student: {", "studnet: {", r"line 9: unknown key 'studnet'; did you mean 'student'\?"),
    ("key of an arm", "    task_weight: 0.5", "    weight: 0.5",
     r"line 12: unknown key 'arms.kd.weight'; did you mean 'task_weight'\?"),
    ("key of a term", "weight: 0.5\n  sp", "wieght: 0.5\n  sp",
     r"line 15: unknown key 'arms.kd.terms.0.wieght'; did you mean 'weight'\?"),
    ("key of train", TRAIN, "train: {step: 2}\nseeds",
     r"line 22: unknown key 'train.step'; did you mean 'steps'"),
    ("key of teacher.train", TEACHER, "  train: {step: 2}\nstudent",
     r"line 8: unknown key 'teacher.train.step'; did you mean 'steps'"),
    ("key of published", "seeds: [0]", "published: {sorce: x, arms: {kd: 0.1}}",
     r"line 23: unknown key 'published.sorce'; did you mean 'source'\?"),
    ("missing train", TRAIN, "seeds", r": the key 'train' is missing\."),
    ("missing name", KD, "{temperature: 4}",
     r"line 14: the key 'arms.kd.terms.0.loss.name' is missing\."),
    ("loss", "loss: sp\n", "loss: spp\n",
     r"line 18: There is no loss named 'spp'; did you mean 'sp' or 'fsp' or 'iusp'\?"),
    ("network", STUDENT, "mpl", r"line 9: There is no network named 'mpl'; did you mean 'mlp'\?"),
    ("teacher", "  name: mlp\n", "  name: mpl\n",
     r"line 5: There is no network named 'mpl'; did you mean 'mlp'\?"),
    ("timm", STUDENT, "timm:resnett", r"line 9: timm has no network named 'resnett'; did you mean"),
    ("library", STUDENT, "tim:resnet18", r"library of networks named 'tim'; did you mean 'timm'"),
    ("task", "name: image_classification", "name: image_clasification",
     r"line 2: There is no task named .*; did you mean 'image_classification'"),
    ("data", "name: mnist,", "name: minst,",
     r"line 2: There is no data set named 'minst'; did you mean 'mnist'"),
    ("augmentation", "  data:", "  augment: crop_flop\n  data:",
     r"no augmentation named 'crop_flop'; did you mean 'crop_flip'\?"),
    ("argument of a loss", KD, "{name: kd, temprature: 4}",
     r"line 14: The loss 'kd' takes no argument 'temprature'; did you mean 'temperature'\?"),
    ("argument of a network", STUDENT, "{name: mlp, hiden: [8]}",
     r"line 9: The network 'mlp' takes no argument 'hiden'; did you mean 'hidden'\?"),
    ("argument of a task", "  data:", "  augmet: none\n  data:",
     r"line 2: The task .* takes no argument 'augmet'; did you mean 'augment'\?"),
    ("argument of data", "name: mnist,", "name: mnist, polo: 9,",
     r"line 2: The data set 'mnist' takes no argument 'polo'; did you mean 'pool'"),
    ("lacking argument", "name: mnist,", "name: image_folder,",
     r"The data set 'image_folder' needs the argument 'size'\."),
    ("data without name", "name: mnist, root", "root", r"mapping without a 'name'; expected"),
    ("number", "weight: 0.5\n  sp", "weight: heavy\n  sp",
     r"line 15: 'arms.kd.terms.0.weight' is 'heavy': expected a number\."),
    ("infinity", "weight: 0.5\n  sp", "weight: .inf\n  sp",
     r"line 15: 'arms.kd.terms.0.weight' is inf: expected a finite number\."),
    ("infinite lr", TRAIN, "train: {steps: 2, lr: .inf}\nseeds",
     r"line 22: 'train.lr' is inf: expected a finite number\."),
    ("integer", TRAIN, "train: {steps: many}\nseeds",
     r"line 22: 'train.steps' is 'many': expected a whole number\."),
    ("fraction", TRAIN, "train: {steps: 2.5}\nseeds",
     r"line 22: 'train.steps' is 2.5: expected a whole number\."),
    ("boolean", "seeds: [0]", "alone: maybe", r"'alone' is 'maybe': expected true or false\."),
    ("`no` is a string", "seeds: [0]", "title: no\nalone: [no]",
     r"line 24: 'alone' is \['no'\]: expected true or false\."),
    ("list", "seeds: [0]", "seeds: 0", r"'seeds' is 0: expected a list, as in \[0, 1\]\."),
    ("mapping", TRAIN, "train: 7\nseeds", r"'train' is 7: expected a mapping of names to values"),
    ("name or mapping", KD, "[kd]",
     r"loss' is \['kd'\]: expected a name, or a mapping of names to values\."),
    ("arms as list", "seeds: [0]", "published: {source: x, arms: [1]}",
     r"'published.arms' is \[1\]: expected a mapping of names to values\."),
    ("path", TEACHER, "  checkpoint: [x]\nstudent",
     r"line 8: 'teacher.checkpoint' is \['x'\]: expected a path\."),
    ("text", "seeds: [0]", "title: 3", r"'title' is 3: expected text\."),
    ("choice", TRAIN, "train: {steps: 2, optimizer: sdg}\nseeds",
     r"'train.optimizer' is 'sdg': expected 'sgd' or 'adamw'; did you mean 'sgd'\?$"),
    ("range", TRAIN, "train: {steps: 0}\nseeds",
     r"'train.steps' is 0: expected greater than or equal to 1\."),
    ("negative seed", "seeds: [0]", "seeds: [-1]",
     r"line 23: 'seeds.0' is -1: expected greater than or equal to 0\."),
    ("temperature below zero", KD, "{name: kd, temperature: -1}",
     r"line 14: The loss 'kd': temperature must be positive and finite, not -1\."),
    ("temperature in words", KD, "{name: kd, temperature: hot}",
     r"line 14: The argument 'temperature' of the loss 'kd' is 'hot': expected a number\."),
    ("reduction", KD, "{name: kd, reduction: avg}",
     r"line 14: The argument 'reduction' of the loss 'kd' is 'avg': expected 'mean'"),
    ("widths", STUDENT, "{name: mlp, hidden: wide}", r"'hidden' of the network 'mlp' is 'wide': "),
    ("sizes", STUDENT, "{name: mlp, hidden: [-3]}", r"line 9: The network 'mlp' cannot be built"),
    ("data's number", "name: mnist,", "name: mnist, pool: all,",
     r"'pool' of the data set 'mnist' is 'all': expected a whole number\."),
    ("data's range", "name: mnist,", "name: mnist, pool: 500,",
     r"MNIST has 30 training samples, too few for .*pool=500"),
    ("student's tap", "student: hidden\n", "student: hiden\n",
     r"line 17: The network has no module 'hiden' to tap; did you mean 'hidden'"),
    ("teacher's tap", "teacher: hidden.0", "teacher: hidden.7",
     r"line 17: The network has no module 'hidden.7' to tap; did you mean 'hidden.0'"),
    ("tap's side", "teacher: hidden.0", "teacher: hidden.0:out",
     r"'hidden.0:out' should end in ':input' or ':output', not ':out'\."),
    ("tap forgotten", "        teacher: hidden.0\n", "",
     r"line 17: The term 'sp' compares features, so it needs a `student` tap and a `teacher` tap"),
    ("taps unread", KD, KD + "\n        student: hidden",
     r"line 13: The term 'kd' compares logits and reads no taps; remove"),
    ("students' classes", STUDENT, "{name: mlp, num_classes: 7}",
     r"line 9: the student gives 7 classes but the data has 10; build it with num_classes=10\."),
    ("teacher's classes", "  hidden: [16]\n", "  num_classes: 12\n",
     r"line 5: the teacher gives 12 classes but the data has 10; build it with num_classes=10\."),
    ("two lengths", TRAIN, "train: {steps: 2, epochs: 2}\nseeds",
     r"line 22: train: give either `epochs` or `steps`, one of them\."),
    ("teacher without weights", TEACHER, "student",
     r"line 5: teacher: the teacher needs either `checkpoint` or `train`, one of them\."),
    ("seed twice", "seeds: [0]", "seeds: [0, 3, 3]",
     r"line 23: seeds: the seed 3 is listed twice; list every seed once\."),
    ("no seeds", "seeds: [0]", "seeds: []", r"line 23: 'seeds' is \[\]: .*at least 1 item"),
    ("terms and arms", "seeds: [0]", "terms: [{loss: kd}]",
     r"either `terms` .* or `arms`, not both"),
    ("arm in a folder", "  kd:\n", "  k/d:\n",
     r"'k/d' names a folder: take a short name without slashes"),
    ("arm above", "  kd:\n", "  ../../kd:\n", r"'../../kd' names a folder: take a short name"),
    ("reserved arm", "  kd:\n", "  teacher:\n", r"an arm cannot be called 'teacher'.*rename it\."),
    ("name above", "seeds: [0]", "name: ../../out", r"line 23: name: '../../out' names a folder"),
    ("hidden name", "seeds: [0]", "name: .git", r"line 23: name: '.git' names a folder"),
    ("long name", "seeds: [0]", f"name: {'x' * 300}", r"line 23: name: 'xxx+' names a folder"),
    ("terms alike", "      - loss: sp\n", "      - loss: kd\n      - loss: kd\n      - loss: sp\n",
     r"The terms are called kd, kd, sp; give each a `name` of its own"),
    ("dot in a term", "loss: sp\n", "loss: sp\n        name: a.b\n",
     r"line 17: A term cannot be called 'a.b'; give it another `name`\."),
    ("term of torch's", "loss: sp\n", "loss: sp\n        name: keys\n",
     r"line 17: A term cannot be called 'keys'; give it another `name`\."),
    ("foreign loss", "loss: sp\n", "loss: my.package.Loss\n",
     r"line 18: The loss 'my.package.Loss' is code outside congener.*add `--trust my`"),
    ("foreign network", STUDENT, "{name: os.system, command: touch fired}",
     r"line 9: The network 'os.system' is code outside congener.*add `--trust os`"),
    ("foreign task", "name: image_classification", "name: subprocess.run",
     r"line 2: The task 'subprocess.run' is code outside congener.*add `--trust subprocess`"),
    ("foreign data", "name: mnist,", "name: os.system,",
     r"line 2: The data set 'os.system' is code outside congener"),
    ("duplicate key", "seeds: [0]", "seeds: [0]\nseeds: [1]",
     r"line 24: this is no valid YAML \(found duplicate key .*seeds"),
    ("torn YAML", "seeds: [0]", "seeds: [0", r"line 24: this is no valid YAML \(expected"),
    ("key that is a list", "  kd:\n", "  ? [a]\n  :\n", r"the key \('a',\) is no text"),
    ("tag", "seeds: [0]", "seeds: !!python/object/apply:os.system ['touch fired']",
     r"line 23: the tag '.*os.system' is refused; a recipe holds plain values only\."),
    ("tag on a scalar", "seeds: [0]", "title: !!python/name:os.system", r"the tag .* is refused"),
    ("tag on a mapping", STUDENT, "!!python/object:os.Foo {name: mlp}", r"the tag .* is refused"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("there", "instead", "sentence"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_a_bad_recipe(there, instead, sentence, recipe: Path, text, congener) -> None:
    assert text.count(there) == 1
    recipe.write_text(text.replace(there, instead))
    refused(congener("run", recipe), re.escape(str(recipe)) + ".*" + sentence)
    assert names() == ["recipe.yaml"]


def test_the_recipe_itself_is_good(recipe: Path, congener) -> None:
    said = congener("validate", recipe)
    assert (said.code, said.err) == (0, "")
    assert said.out == f"{recipe} is valid: arms alone, kd, sp.\n"


@pytest.mark.parametrize("verb", ["run", "validate"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"Cannot read the recipe .*r\.yml: No such file or directory"),
        (b"\xff\xfe\x00\x01", r"r\.yml is no text file \(.*\); expected YAML"),
        (b"\x89PNG\r\n\x1a\n\x00", r"r\.yml is no text file"),
        (b"a\x00b: 1", r"r\.yml.* no valid YAML"),
        (b"", r"r\.yml is empty; expected the keys of a recipe, such as task, student and train"),
        (b"# nothing\n", r"r\.yml is empty; expected the keys of a recipe"),
        (b"just words", r"r\.yml holds a str; expected the keys of a recipe"),
        (b"- a\n- b\n", r"r\.yml holds a list; expected the keys of a recipe"),
        (b"a: 1\n---\nb: 2\n", r"r\.yml.*no valid YAML \(expected a single document"),
        (b"a: [*b]\n", r"r\.yml, line 1: this is no valid YAML \(found undefined alias 'b'\)"),
        (b"[" * 500, r"r\.yml.* no valid YAML \(it is nested too deeply\)"),
    ],
    ids=["missing", "bytes", "png", "nul", "empty", "comment", "words", "list", "two", "alias",
         "deep"],
)  # fmt: skip
def test_a_file_that_is_no_recipe(verb, content, sentence, tmp_path, congener, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "r.yml"
    if content is not None:
        path.write_bytes(content)
    refused(congener(verb, path), sentence)
    assert names() == ([] if content is None else ["r.yml"])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.lr", r"The override 'train.lr' should read key=value, as in train.lr=0.1\."),
        ("=3", r"The override '=3' should read key=value"),
        ("train.=3", r"The override 'train.=3' should read key=value"),
        ("train..lr=3", r"The override 'train..lr=3' should read key=value"),
        ("seeds.4=1", r"asks for item '4' of a list of 1\."),
        ("seeds.first=1", r"asks for item 'first' of a list of 1\."),
        ("seeds.0.x=1", r"looks inside 'seeds.0', which is 0\."),
        ("train.lr=[", r"override 'train.lr=\[', line 1: this is no valid YAML"),
        ("train.lr=!!python/name:os.system", r"the tag .* is refused"),
        ("trian.lr=1", r"recipe.yaml: unknown key 'trian'; did you mean 'train'"),
        ("train.rl=1", r"recipe.yaml, line 22: unknown key 'train.rl'; did you mean 'lr'"),
        ("student=mpl", r"no network named 'mpl'; did you mean 'mlp'"),
    ],
)
def test_a_bad_override(override, sentence, recipe, congener) -> None:
    refused(congener("run", recipe, override), sentence)
    assert names() == ["recipe.yaml"]


def test_names_nearby_are_offered(tmp_path, congener, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(congener("run", "deno"), r"There is no recipe 'deno'; did you mean 'demo'")
    refused(congener("run", "demo.yaml"), r"There is no recipe 'demo.yaml'; did you mean 'demo'")
    refused(congener("run", "."), r"Cannot read the recipe \.: Is a directory\.")
    refused(
        congener("show", "spp"),
        r"There is no loss or system 'spp'; did you mean 'sp' or 'fsp' or 'iusp'\?",
    )
    refused(congener("show", "sskdd"), r"There is no loss or system 'sskdd'; did you mean 'sskd'")
    refused(congener("show", ""), r"There is no loss or system ''; known: ")
    assert names() == []


def test_a_folder_called_like_a_recipe_does_not_hide_it(tmp_path, congener, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert congener("validate", "demo").out == "demo is valid: arms alone, kd, sp, kd+sp.\n"


def test_the_commands_own_mistakes(congener) -> None:
    for words in (["runn"], ["run"], ["run", "demo", "--ot", "x"], ["show"], ["report"]):
        said = congener(*words)
        assert said.code == 2
        assert "Usage: congener" in said.err
