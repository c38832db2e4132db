"""Every mistake in a manifest gets one message that names file, line, field, value, expectation and nearest choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.loading import SpecError, check_file, load_job, nearest

GOOD = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: good}
spec:
  model: {source: pvc://models/clip}
  data:
    train: {source: pvc://captions/train}
  training: {epochs: 2, batchSize: 16}
  modules:
    - name: visual
      parameters: ["vision_model.*"]
      optimizer: {type: SGD, learningRate: 2e-5, momentum: 0.9}
      schedule:
        - {type: Warmup, steps: 20}
        - {type: CosineAnnealing, cycles: 3}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def issues(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_job(write(tmp_path, text))
    return [str(issue).removeprefix(f"{tmp_path}/") for issue in caught.value.issues]


def test_a_good_job_is_read_and_its_numbers_are_numbers(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD))
    assert job.spec.modules is not None
    assert job.spec.modules[0].optimizer is not None
    assert job.spec.modules[0].optimizer.learning_rate == 2e-5


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("momentum:", "momentun:", "job.yaml:12:50: spec.modules[0].optimizer.momentun: unknown field; expected one of "
         "type, learningRate, weightDecay, momentum, dampening, nesterov; did you mean 'momentum'?"),
        ("type: SGD", "type: Sgd", "job.yaml:12:19: spec.modules[0].optimizer.type: 'Sgd' is not one of SGD, Adam, "
         "AdamW, RMSprop, Adagrad, Adafactor, NAdam, RAdam, Muon; did you mean 'SGD'?"),
        ("CosineAnnealing", "Cosine", "did you mean 'CosineAnnealing'?"),
        ("learningRate: 2e-5", "learningRate: 0", "job.yaml:12:30: spec.modules[0].optimizer.learningRate: 0: expected "
         "greater than 0"),
        ("batchSize: 16", 'batchSize: "16"', "spec.training.batchSize: '16': expected a whole number"),
        ("batchSize: 16", "batchSize: 1.5", "spec.training.batchSize: 1.5: expected a whole number"),
        ("training: {epochs: 2, batchSize: 16}", "training: [2]", "spec.training: [2]: expected a mapping"),
        ('["vision_model.*"]', "[]", "spec.modules[0].parameters: []: expected at least 1 item"),
        ('["vision_model.*"]', "vision", "spec.modules[0].parameters: 'vision': expected a list"),
        ("- name: visual", "- name: text model", "'text model' is not a name of letters, digits, '-' and '_'"),
        ("pvc://captions/train", "pvc://a..b/train", "is not of the form hf://org/repo or pvc://claim/path"),
        ("{source: pvc://models/clip}", "{source: pvc://models/clip, revision: v2}", "spec.model.revision: revision "
         "requires a Hugging Face Hub repository"),
        ("metadata: {name: good}", "metadata: {generateName: good-}", "metadata.name: is required: generateName works "
         "with `kubectl create` only"),
        ("  modules:", "  suspend: yes\n  modules:", "write true, or quote it: 'yes'"),
        ("batchSize: 16", "batchSize: 010", "write 8, or quote it: '010'"),
        ("batchSize: 16", f"batchSize: {'1' * 5000}", "kubectl reads 1111"),
        ("pvc://captions/train", "pvc://captions/../etc", "is not of the form hf://org/repo or pvc://claim/path"),
        ("pvc://captions/train", "s3://captions", "is not of the form hf://org/repo or pvc://claim/path"),
        ("epochs: 2,", "epochs: 2, steps: 10,", "job.yaml:8:25: spec.training.steps: set at most one of epochs and "
         "steps"),
        ("steps: 20", "steps: 20, epochs: 1", "set at most one of steps, epochs and fraction"),
        ("data:\n    train: {source: pvc://captions/train}\n", "data: {}\n", "spec.data.train: is required"),
        ("name: good", "name: Good", "metadata.name: 'Good' is not a name of lower-case letters"),
        ("name: good", f"name: {'g' * 41}", "metadata.name: 'ggg"),
        ("cycles: 3", "cycles: .inf", "spec.modules[0].schedule[1].cycles"),
        ("kind: FineTuneJob", "kind: FineTunejob", "expected one FineTuneJob, found a FineTunejob"),
        ("metadata: {name: good}", "metadata: {name: good}\nmetadata: {name: again}", "job.yaml:4:1: duplicate key"),
        ("  model:", "\tmodel:", "job.yaml:5:1: not valid YAML: a tab; write spaces"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    found = issues(tmp_path, GOOD.replace(old, new, 1))
    assert any(expected in issue for issue in found), found


def test_every_mistake_is_named_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = issues(tmp_path, GOOD.replace("epochs: 2", "epoch: 2").replace("type: Warmup", "type: Warm"))
    assert [issue.split(": ")[1] for issue in found] == ["spec.training.epoch", "spec.modules[0].schedule[0].type"]


def test_what_kubectl_reads_differently_has_to_be_quoted(tmp_path: Path) -> None:
    found = issues(tmp_path, GOOD.replace('["vision_model.*"]', "[y, 'no']"))
    assert found == [
        "job.yaml:11:20: spec.modules[0].parameters[0]: kubectl reads y as the boolean true, YAML 1.2 as the text 'y'; "
        "write true, or quote it: 'y'"
    ]


def test_settings_change_fields_by_name_and_position(tmp_path: Path) -> None:
    job = load_job(
        write(tmp_path, GOOD),
        [
            "modules.visual.optimizer.learningRate=1e-4",
            "training.epochs=7",
            "modules.0.schedule.0.steps=5",
            "task=Contrastive",
        ],
    )
    assert job.spec.modules is not None
    assert job.spec.modules[0].optimizer is not None
    assert (job.spec.modules[0].optimizer.learning_rate, job.spec.training.epochs) == (1e-4, 7)
    assert (job.spec.modules[0].schedule or [])[0].steps == 5


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.epochs", "expected path=value"),
        ("modules.visul.frozen=true", "no item 'visul' here; there is visual"),
        ("training.epochs.x=1", "has nothing inside"),
        ("training.epoch=1", "did you mean 'epochs'"),
        ("training.batchSize=010", "kubectl reads 010 as the number 8, YAML 1.2 as the number 10"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, setting: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        load_job(write(tmp_path, GOOD), [setting])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nothing\.yaml: cannot be read: No such file"):
        load_job(tmp_path / "nothing.yaml")


def test_several_documents_are_judged_one_by_one() -> None:
    service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n"
    verdicts = check_file(f"{service}---\n{GOOD}---\n{GOOD.replace('SGD', 'SDG')}", "all.yaml")
    assert [(verdict.kind, len(verdict.issues)) for verdict in verdicts] == [
        ("Service", 0),
        ("FineTuneJob", 0),
        ("FineTuneJob", 1),
    ]
    assert verdicts[0].skipped == "not a FineTuneJob but a Service"


def test_nearest_forgives_case_first_and_guesses_nothing_far() -> None:
    assert nearest("sgd", ["SGD", "Adam"]) == "SGD"
    assert nearest("Cosine", ["Constant", "CosineAnnealing"]) == "CosineAnnealing"
    assert nearest("xyz", ["SGD", "Adam"]) is None


def test_errors_of_the_name_and_of_the_spec_are_told_together(tmp_path: Path) -> None:
    found = issues(tmp_path, GOOD.replace("name: good", "name: Good").replace("epochs: 2", "epochs: 0"))
    assert ["metadata.name" in found[0], "spec.training.epochs" in found[1]] == [True, True]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: good", "name: {{ .Values.name }}", "job.yaml:3:18: {{ belongs to a template: render it first"),
        ("epochs: 2", 'epochs: "{{ .Values.epochs }}"', "{{ belongs to a template"),
        ("epochs: 2", "epochs: &n 2, seed: *m", "no anchor &m before this"),
        ("epochs: 2", "epochs: !!float 2", "not every reader knows the tag"),
        ("epochs: 2", "epochs: .nan", "expected a finite number"),
        ("epochs: 2", "? [a] : b", "a key has to be text"),
        ("epochs: 2", "1: 2", "the key 1 is not text; quote it"),
        ("epochs: 2", "<<: 3", "<< merges mappings only"),
    ],
)
def test_what_is_no_plain_manifest_is_named(old: str, new: str, expected: str) -> None:
    (verdict,) = check_file(GOOD.replace(old, new, 1), "job.yaml")
    assert any(expected in str(issue) for issue in verdict.issues), verdict.issues


def test_aliases_of_aliases_do_not_grow_without_end() -> None:
    laughs = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 12))
    (verdict,) = check_file(f"l0: &l0 [lol]\n{laughs}", "laughs.yaml")
    assert "its aliases stand for too much" in str(verdict.issues[0])


def test_anchors_and_merges_are_read_as_kubectl_reads_them(tmp_path: Path) -> None:
    text = GOOD.replace("epochs: 2", "<<: [&own {epochs: 5}, {seed: 3, epochs: 9}], precision: &p BF16")
    training = load_job(write(tmp_path, text)).spec.training
    assert (training.epochs, training.seed, training.batch_size, training.precision) == (5, 3, 16, "BF16")


def test_the_items_of_a_list_are_judged_one_by_one_with_their_own_lines() -> None:
    item = "\n".join(f"    {line}" for line in GOOD.replace("momentum", "momentun").splitlines())
    text = f"apiVersion: v1\nkind: List\nitems:\n  - kind: Service\n    apiVersion: v1\n  -\n{item}\n"
    service, job = check_file(text, "list.yaml")
    assert service.skipped == "not a FineTuneJob but a Service"
    assert str(job.issues[0]).startswith("list.yaml:18:54: spec.modules[0].optimizer.momentun: unknown field")


def test_null_is_a_field_left_out_and_whole_floats_are_integers(tmp_path: Path) -> None:
    text = GOOD.replace("epochs: 2, batchSize: 16", "epochs: ~, batchSize: 1.6e1, precision: null")
    training = load_job(write(tmp_path, text)).spec.training
    assert (training.epochs, training.batch_size, training.precision) == (None, 16, "Auto")
    long = load_job(write(tmp_path, GOOD.replace("batchSize: 16", f"batchSize: {'0' * 5000}9")))
    assert long.spec.training.batch_size == 9


def test_what_is_not_supported_yet_is_named_as_such(tmp_path: Path) -> None:
    assert (
        "spec.training.compile: not yet supported: compile"
        in issues(tmp_path, GOOD.replace("epochs: 2", "compile: true"))[0]
    )
    assert (
        "spec.task: not yet supported: task Custom"
        in issues(tmp_path, GOOD.replace("spec:", "spec:\n  task: Custom\n  entrypoint: a.b:c"))[0]
    )


def test_errors_inside_a_map_name_the_key() -> None:
    (verdict,) = check_file(GOOD + '  runtime: {nodeSelector: {a.b/c: 1, "d e": x}}\n', "job.yaml")
    assert "spec.runtime.nodeSelector.a.b/c: 1: expected text" in str(verdict.issues[0])


@pytest.mark.parametrize("field", ["cpu", "memory", "ephemeralStorage", "sharedMemory"])
@pytest.mark.parametrize("value", ["0.5", "true", "-1", '"-1"', "5GB", '"4 Gi"', "[]", "{}", '""', "1e20"])
def test_a_quantity_is_one_mistake(field: str, value: str) -> None:
    (verdict,) = check_file(GOOD + f"  resources: {{{field}: {value}}}\n", "job.yaml")
    (issue,) = verdict.issues
    assert issue.path == f"spec.resources.{field}"
    assert "is not a quantity, e.g. 8, 500m or 32Gi" in issue.message


@pytest.mark.parametrize("value", ["4", '"0.5"', '".5"', "500m", '"1e9"', "32Gi", "0", "1.5Ti"])
def test_a_quantity_is_what_kubernetes_takes(value: str) -> None:
    (verdict,) = check_file(GOOD + f"  resources: {{cpu: {value}}}\n", "job.yaml")
    assert verdict.issues == ()


@pytest.mark.parametrize(
    ("path", "good"),
    [("/data", True), ("/data/more", True), ("/opt/data", True), ("/claimsx", True), ("/claims", False),
     ("/claims/x", False), ("/etc", False), ("/etc/finetune/x", False), ("/opt", False), ("/usr/lib", False),
     ("/var", False), ("/var/data", True), ("/tmp", False)],
)  # fmt: skip
def test_a_volume_hides_nothing_that_the_trainer_needs(path: str, good: bool) -> None:
    (verdict,) = check_file(GOOD + f"  runtime: {{volumes: [{{claim: c, mountPath: {path}}}]}}\n", "job.yaml")
    assert bool(verdict.issues) is not good, verdict.issues


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("- name: visual", "- name: Text_model"),
        ("pvc://captions/train", "pvc://captions/date=2026-01-01/part+a@b"),
        ("optimizer:", "freeze: {untilStep: 0}\n      optimizer:"),
        ("metadata: {name: good}", "metadata: {name: good, labels: {a: ~}, annotations: {b: ~}}"),
        ("  modules:", "  runtime: {env: [{name: my.app-level, value: x}]}\n  modules:"),
        ("  modules:", "  runtime: {affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: "
         "{nodeSelectorTerms: [{matchFields: [{key: metadata.name, operator: In, values: [node-1]}]}]}}}}\n  modules:"),
    ],
)  # fmt: skip
def test_what_people_write_elsewhere_is_taken(old: str, new: str) -> None:
    assert old in GOOD
    (verdict,) = check_file(GOOD.replace(old, new, 1), "job.yaml")
    assert verdict.issues == ()
