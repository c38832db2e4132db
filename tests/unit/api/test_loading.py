"""Every error in a manifest gets one message with file, line, field, value, expectation and nearest choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.loading import ManifestError, check_manifests, load_job

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
    with pytest.raises(ManifestError) as caught:
        load_job(write(tmp_path, text))
    return [str(issue).removeprefix(f"{tmp_path}/") for issue in caught.value.issues]


def test_load_job_parses_exponents_as_numbers(tmp_path: Path) -> None:
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
        ("batchSize: 16", 'batchSize: "16"', "spec.training.batchSize: '16': expected an integer"),
        ("batchSize: 16", "batchSize: 1.5", "spec.training.batchSize: 1.5: expected an integer"),
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
        ("  model:", "\tmodel:", "job.yaml:5:1: not valid YAML: indentation contains a tab; use spaces"),
    ],
)  # fmt: skip
def test_error_names_field_value_and_expectation(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    found = issues(tmp_path, GOOD.replace(old, new, 1))
    assert any(expected in issue for issue in found), found


def test_all_errors_are_reported_in_file_order(tmp_path: Path) -> None:
    found = issues(tmp_path, GOOD.replace("epochs: 2", "epoch: 2").replace("type: Warmup", "type: Warm"))
    assert [issue.split(": ")[1] for issue in found] == ["spec.training.epoch", "spec.modules[0].schedule[0].type"]


def test_ambiguous_scalar_must_be_quoted(tmp_path: Path) -> None:
    found = issues(tmp_path, GOOD.replace('["vision_model.*"]', "[y, 'no']"))
    assert found == [
        "job.yaml:11:20: spec.modules[0].parameters[0]: kubectl reads y as the boolean true, YAML 1.2 as the "
        "string 'y'; write true, or quote it: 'y'"
    ]


def test_overrides_select_list_items_by_name_and_index(tmp_path: Path) -> None:
    job = load_job(
        write(tmp_path, GOOD),
        [
            "modules.visual.optimizer.learningRate=1e-4",
            "training.epochs=7",
            "modules.0.schedule.0.steps=5",
            "task=Contrastive",
            "spec.modules[visual].schedule[1].cycles=2",
            "metadata.name=other",
            "runtime.nodeSelector[kubernetes.io/arch]=arm64",
        ],
    )
    assert job.spec.modules is not None
    assert job.spec.modules[0].optimizer is not None
    assert (job.spec.modules[0].optimizer.learning_rate, job.spec.training.epochs) == (1e-4, 7)
    warmup, cosine = job.spec.modules[0].schedule or []
    assert (warmup.steps, getattr(cosine, "cycles", None)) == (5, 2)
    assert (job.name, job.spec.runtime.node_selector) == ("other", {"kubernetes.io/arch": "arm64"})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "expected path=value, e.g. training.epochs=1"),
        ("modules[0.frozen=true", "expected path=value, e.g. training.epochs=1"),
        ("modules.visul.frozen=true", "spec.modules has no item 'visul'; available: 0 (visual); did you mean "
         "'visual'?"),
        ("modules[3].frozen=true", "spec.modules has no item '3'; available: 0 (visual)"),
        ("training.epochs.x=1", "spec.training.epochs is 2, which has no fields"),
        ("training.batchSize=010", "kubectl reads 010 as the number 8, YAML 1.2 as the number 10; write 8, or "
         "quote it: '010'"),
        ("spec.training.epoch=1", "spec.training.epoch: unknown field; expected one of epochs, steps, batchSize, "
         "microBatchSize, precision, clipGradNorm, seed, deterministic, compile, activationCheckpointing; "
         "did you mean 'epochs'?"),
        ("modules[0].optimizer.learningRate=x", "spec.modules[0].optimizer.learningRate: 'x': expected a number"),
        ("metadata.name=Bad", "metadata.name: 'Bad' is not a name of lower-case letters, digits and '-' that starts "
         "with a letter"),
    ],
)  # fmt: skip
def test_invalid_override_is_reported_instead_of_a_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ManifestError) as raised:
        load_job(write(tmp_path, GOOD), [override])
    assert str(raised.value) == f"--set {override}: {message}"


def test_rule_broken_by_an_override_is_reported_for_that_override(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as raised:
        load_job(write(tmp_path, GOOD), ["training.seed=1", "training.steps=5", "task=CausalLM"])
    assert str(raised.value) == "--set training.steps=5: spec.training.steps: set at most one of epochs and steps"


def test_override_does_not_take_the_blame_for_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("momentum:", "momentun:"))
    with pytest.raises(ManifestError) as raised:
        load_job(path, ["training.epochs=0"])
    in_override, in_file = raised.value.issues
    assert (in_file.path, in_file.line, in_file.override) == ("spec.modules[0].optimizer.momentun", 12, None)
    assert (in_override.path, in_override.line, in_override.override) == (
        "spec.training.epochs",
        None,
        "training.epochs=0",
    )


@pytest.mark.parametrize("written", ["epochs: 0", "epochs: 010", "epochs: x"])
def test_override_corrects_an_invalid_value(tmp_path: Path, written: str) -> None:
    job = load_job(write(tmp_path, GOOD.replace("epochs: 2", written)), ["training.epochs=7"])
    assert job.spec.training.epochs == 7


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nothing\.yaml: cannot be read: No such file"):
        load_job(tmp_path / "nothing.yaml")


def test_check_manifests_reports_each_document() -> None:
    service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n"
    results = check_manifests(f"{service}---\n{GOOD}---\n{GOOD.replace('SGD', 'SDG')}", "all.yaml")
    assert [(result.kind, len(result.issues)) for result in results] == [
        ("Service", 0),
        ("FineTuneJob", 0),
        ("FineTuneJob", 1),
    ]
    assert results[0].skipped == "kind is Service, not FineTuneJob"


def test_metadata_and_spec_errors_are_reported_together(tmp_path: Path) -> None:
    found = issues(tmp_path, GOOD.replace("name: good", "name: Good").replace("epochs: 2", "epochs: 0"))
    assert ["metadata.name" in found[0], "spec.training.epochs" in found[1]] == [True, True]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: good", "name: {{ .Values.name }}", "job.yaml:3:18: {{ is template syntax: render the template first"),
        ("epochs: 2", 'epochs: "{{ .Values.epochs }}"', "{{ is template syntax"),
        ("epochs: 2", "epochs: &n 2, seed: *m", "anchor &m is not defined before this alias"),
        ("epochs: 2", "epochs: !!float 2", "is not portable between YAML parsers"),
        ("epochs: 2", "epochs: .nan", "expected a finite number"),
        ("epochs: 2", "? [a] : b", "a key must be a string"),
        ("epochs: 2", "1: 2", "the key 1 is not a string; quote it"),
        ("epochs: 2", "<<: 3", "<< can merge mappings only"),
    ],
)
def test_rejects_templates_and_unsupported_yaml(old: str, new: str, expected: str) -> None:
    (result,) = check_manifests(GOOD.replace(old, new, 1), "job.yaml")
    assert any(expected in str(issue) for issue in result.issues), result.issues


def test_rejects_exponential_alias_expansion() -> None:
    laughs = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 12))
    (result,) = check_manifests(f"l0: &l0 [lol]\n{laughs}", "laughs.yaml")
    assert "its aliases expand to too many nodes" in str(result.issues[0])


def test_anchors_and_merges_follow_kubectl(tmp_path: Path) -> None:
    text = GOOD.replace("epochs: 2", "<<: [&own {epochs: 5}, {seed: 3, epochs: 9}], precision: &p BF16")
    training = load_job(write(tmp_path, text)).spec.training
    assert (training.epochs, training.seed, training.batch_size, training.precision) == (5, 3, 16, "BF16")


def test_items_of_a_list_are_reported_with_their_own_lines() -> None:
    item = "\n".join(f"    {line}" for line in GOOD.replace("momentum", "momentun").splitlines())
    text = f"apiVersion: v1\nkind: List\nitems:\n  - kind: Service\n    apiVersion: v1\n  -\n{item}\n"
    service, job = check_manifests(text, "list.yaml")
    assert service.skipped == "kind is Service, not FineTuneJob"
    assert str(job.issues[0]).startswith("list.yaml:18:54: spec.modules[0].optimizer.momentun: unknown field")


def test_null_means_unset_and_integral_floats_are_integers(tmp_path: Path) -> None:
    text = GOOD.replace("epochs: 2, batchSize: 16", "epochs: ~, batchSize: 1.6e1, precision: null")
    training = load_job(write(tmp_path, text)).spec.training
    assert (training.epochs, training.batch_size, training.precision) == (None, 16, "Auto")
    long = load_job(write(tmp_path, GOOD.replace("batchSize: 16", f"batchSize: {'0' * 5000}9")))
    assert long.spec.training.batch_size == 9


def test_unsupported_features_are_rejected_by_name(tmp_path: Path) -> None:
    assert (
        "spec.training.compile: not yet supported: compile"
        in issues(tmp_path, GOOD.replace("epochs: 2", "compile: true"))[0]
    )
    assert (
        "spec.task: not yet supported: task Custom"
        in issues(tmp_path, GOOD.replace("spec:", "spec:\n  task: Custom\n  entrypoint: a.b:c"))[0]
    )


def test_duplicate_list_item_is_named() -> None:
    env = "[{name: A, value: one}, {name: A, value: two}]"
    (result,) = check_manifests(GOOD + f"  runtime: {{env: {env}}}\n", "job.yaml")
    assert "spec.runtime.env[1].name: duplicate value 'A': each name must be unique" in str(result.issues[0])


def test_invalid_key_of_a_map_is_named() -> None:
    (result,) = check_manifests(GOOD + '  runtime: {nodeSelector: {"d e": x}}\n', "job.yaml")
    assert "spec.runtime.nodeSelector: 'd e': each key must be a label key" in str(result.issues[0])


def test_error_in_a_map_names_the_key() -> None:
    (result,) = check_manifests(GOOD + '  runtime: {nodeSelector: {a.b/c: 1, "d e": x}}\n', "job.yaml")
    assert "spec.runtime.nodeSelector.a.b/c: 1: expected a string" in str(result.issues[0])


@pytest.mark.parametrize("field", ["cpu", "memory", "ephemeralStorage", "sharedMemory"])
@pytest.mark.parametrize("value", ["0.5", "true", "-1", '"-1"', "5GB", '"4 Gi"', "[]", "{}", '""', "1e20"])
def test_invalid_quantity_is_one_issue(field: str, value: str) -> None:
    (result,) = check_manifests(GOOD + f"  resources: {{{field}: {value}}}\n", "job.yaml")
    (issue,) = result.issues
    assert issue.path == f"spec.resources.{field}"
    assert "is not a quantity, e.g. 8, 500m or 32Gi" in issue.message


@pytest.mark.parametrize("value", ["4", '"0.5"', '".5"', "500m", '"1e9"', "32Gi", "0", "1.5Ti"])
def test_accepts_kubernetes_quantities(value: str) -> None:
    (result,) = check_manifests(GOOD + f"  resources: {{cpu: {value}}}\n", "job.yaml")
    assert result.issues == ()


@pytest.mark.parametrize(
    ("path", "good"),
    [("/data", True), ("/data/more", True), ("/opt/data", True), ("/claimsx", True), ("/claims", False),
     ("/claims/x", False), ("/etc", False), ("/etc/finetune/x", False), ("/opt", False), ("/usr/lib", False),
     ("/var", False), ("/var/data", True), ("/tmp", False)],
)  # fmt: skip
def test_volume_must_not_hide_reserved_folders(path: str, good: bool) -> None:
    (result,) = check_manifests(GOOD + f"  runtime: {{volumes: [{{claim: c, mountPath: {path}}}]}}\n", "job.yaml")
    assert bool(result.issues) is not good, result.issues


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
def test_accepts_common_manifest_forms(old: str, new: str) -> None:
    assert old in GOOD
    (result,) = check_manifests(GOOD.replace(old, new, 1), "job.yaml")
    assert result.issues == ()
