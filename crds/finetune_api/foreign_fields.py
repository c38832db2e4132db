"""Where the settings of other projects are in a FineTuneJob: their `numTrainEpochs` is `training.epochs` here.

The names are those of Hugging Face TrainingArguments, PEFT, Axolotl, LLaMA-Factory, torchtune, PyTorch Lightning,
Kubeflow Trainer, KAITO and Katib, and fields of this API that are often put in the wrong place. Case and separators are
ignored, so snake_case spellings need no entries of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from finetune_api.suggestions import normalize


@dataclass(frozen=True)
class ForeignField:
    """A setting of other projects.

    Args:
        names: what it is called there.
        fields: paths of the fields that set it here, relative to `spec`; empty if it cannot be set.
        note: how it works here; may be empty.
    """

    names: tuple[str, ...]
    fields: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        if not self.fields:
            return self.note
        return f"use {', '.join(self.fields)}" + (f" ({self.note})" if self.note else "")


def find_foreign_field(name: str) -> ForeignField | None:
    """The entry for a field that another project calls by this name.

    >>> str(find_foreign_field("num_train_epochs"))
    'use training.epochs'
    """
    return _by_name().get(normalize(name))


@cache
def _by_name() -> dict[str, ForeignField]:
    return {normalize(name): entry for entry in FOREIGN_FIELDS for name in entry.names}


def _entry(names: str, fields: str, note: str = "") -> ForeignField:
    return ForeignField(tuple(names.split()), tuple(fields.split()), note)


FOREIGN_FIELDS = (
    # Optimizers and schedules
    _entry("learningRate lr baseLr maxLr embeddingLearningRate", "modules[].optimizer.learningRate", "set per module"),
    _entry("optimizer optim optimizerType optimizerName", "modules[].optimizer.type", "set per module"),
    _entry("optimArgs optimizerArgs optimizerConfig", "modules[].optimizer", "set per module"),
    _entry("weightDecay", "modules[].optimizer.weightDecay", "set per module"),
    _entry("momentum sgdMomentum", "modules[].optimizer.momentum", "set per module"),
    _entry("adamBeta1 beta1", "modules[].optimizer.beta1", "set per module"),
    _entry("adamBeta2 beta2", "modules[].optimizer.beta2", "set per module"),
    _entry("betas adamBetas", "modules[].optimizer.beta1 modules[].optimizer.beta2", "set per module"),
    _entry("adamEpsilon epsilon eps", "modules[].optimizer.epsilon", "set per module"),
    _entry(
        "lrScheduler lrSchedulerType lrSchedulerKwargs lrSchedulerConfig scheduler schedule learningRateScheduler "
        "lrDecayStyle",
        "modules[].schedule",
        "a list of phases per module, e.g. [{type: Warmup, steps: 100}, {type: CosineAnnealing}]",
    ),
    _entry(
        "warmup warmupSteps numWarmupSteps lrWarmupSteps warmupIters",
        "modules[].schedule[].steps",
        "the first phase of a schedule: {type: Warmup, steps: N}",
    ),
    _entry(
        "warmupRatio warmupFraction warmupProportion",
        "modules[].schedule[].fraction",
        "the first phase of a schedule: {type: Warmup, fraction: 0.03}",
    ),
    _entry(
        "minLr minLearningRate minLrRate minLrRatio cosineMinLrRatio etaMin",
        "modules[].schedule[].minFactor",
        "a factor on the base rate: {type: CosineAnnealing, minFactor: 0.1}",
    ),
    _entry(
        "maxGradNorm clipNorm gradClip gradClipNorm gradientClipVal gradientClipping maxNorm clipGrad",
        "modules[].clipGradNorm training.clipGradNorm",
        "per module, over all modules, or both",
    ),
    _entry("l1 l1Lambda", "modules[].regularization.l1", "set per module"),
    _entry("l2 l2Lambda", "modules[].regularization.l2", "set per module"),
    _entry(
        "freezeTrainableLayers freezeTrainableModules unfrozenParameters freezeVisionTower trainableParameters",
        "modules[].parameters modules[].frozen unmatched",
        "a module selects parameters by glob",
    ),
    # Length and batches
    _entry("epochs numTrainEpochs numEpochs maxEpochs nEpochs", "training.epochs"),
    _entry(
        "maxSteps numSteps maxTrainSteps numTrainingSteps trainSteps trainIters maxIters",
        "training.steps",
        "instead of epochs",
    ),
    _entry(
        "batchSize trainBatchSize globalBatchSize totalBatchSize",
        "training.batchSize",
        "samples per optimizer step, over all devices",
    ),
    _entry(
        "microBatchSize perDeviceTrainBatchSize perDeviceBatchSize trainMicroBatchSizePerGpu deviceTrainMicrobatchSize",
        "training.microBatchSize",
        "batchSize is the number of samples per optimizer step, over all devices",
    ),
    _entry(
        "gradientAccumulationSteps gradientAccumulation accumulateGradBatches gradAccumSteps",
        "training.batchSize training.microBatchSize",
        "gradients of batchSize / microBatchSize micro-batches are accumulated",
    ),
    _entry("perDeviceEvalBatchSize evalBatchSize", "training.microBatchSize", "evaluation uses the same"),
    # Precision, memory, speed
    _entry("bf16 bfloat16 pureBf16", "training.precision", "precision: BF16"),
    _entry("fp16 float16 half", "training.precision", "precision: FP16"),
    _entry("fp32 float32", "training.precision", "precision: FP32"),
    _entry("precision dtype torchDtype mixedPrecision computeDtype", "training.precision"),
    _entry(
        "gradientCheckpointing activationCheckpointing enableActivationCheckpointing gradientCheckpointingKwargs",
        "training.activationCheckpointing",
    ),
    _entry("compile torchCompile", "training.compile"),
    _entry("deterministic fullDeterminism useDeterministicAlgorithms", "training.deterministic"),
    _entry("seed randomSeed dataSeed seedEverything", "training.seed"),
    _entry(
        "loadIn4bit loadIn8bit quantization quantizationBit quantizationConfig bnb4bitComputeDtype",
        "",
        "quantization is not supported",
    ),
    # Evaluation and checkpoints
    _entry(
        "evalStrategy evaluationStrategy evalSteps evalDelay evalFrequency evaluateEvery valCheckInterval "
        "checkValEveryNEpoch",
        "evaluation.every",
    ),
    _entry("metric metricForBestModel monitor", "evaluation.metric"),
    _entry("greaterIsBetter", "evaluation.direction"),
    _entry(
        "loadBestModelAtEnd saveBest saveTopK keepBest",
        "checkpoint.keepBest",
        "the best checkpoint becomes the output",
    ),
    _entry("earlyStopping earlyStop earlyStoppingPatience patience", "evaluation.earlyStopping.patience"),
    _entry("earlyStoppingThreshold", "evaluation.earlyStopping.minDelta"),
    _entry(
        "saveStrategy saveSteps saveEvery saveFrequency savesPerEpoch checkpointInterval everyNTrainSteps",
        "checkpoint.everySteps checkpoint.everyEpochs",
    ),
    _entry("trainTimeInterval saveSeconds saveIntervalSeconds", "checkpoint.everySeconds"),
    _entry("saveTotalLimit keepLast maxCheckpoints", "checkpoint.keep"),
    _entry("resume resumeFromCheckpoint autoResume ckptPath", "", "runs resume automatically from the last checkpoint"),
    _entry("outputDir outputPath saveDir savePath checkpointDir defaultRootDir", "output.destination"),
    _entry("overwriteOutputDir", "output.ifExists", "ifExists: Overwrite"),
    _entry("loggingSteps loggingStrategy logEveryNSteps", "", "every step is logged to metrics.jsonl"),
    _entry(
        "loggingDir reportTo wandbProject useWandb tensorboardDir",
        "",
        "experiment trackers are not supported; metrics are in metrics.jsonl and in Prometheus",
    ),
    _entry("pushToHub hubModelId", "", "uploads to the Hugging Face Hub are not supported"),
    # Model and task
    _entry(
        "baseModel modelName modelId modelPath modelNameOrPath pretrainedModelNameOrPath pretrained",
        "model.source",
    ),
    _entry("modelRevision", "model.revision"),
    _entry("trustRemoteCode", "", "code from a model repository is never run"),
    _entry("stage trainingType finetuningType tuningMethod taskType problemType", "task"),
    # Data
    _entry(
        "dataset datasets datasetName datasetPath datasetDir dataPath dataDir dataFiles trainFile trainDataset "
        "trainData",
        "data.train.source",
    ),
    _entry("datasetConfig datasetConfigName subset", "data.train.config"),
    _entry("datasetSplit trainSplit", "data.train.split"),
    _entry("validationFile validationDataset evalFile evalDataset valDataset testDatasets", "data.validation.source"),
    _entry(
        "valSetSize valSize validationSize validationSplit validationSplitPercentage testSize",
        "data.validation.fraction",
    ),
    _entry("datasetTextField textColumn textField", "data.columns.text"),
    _entry("labelColumn labelColumnName labelField targetColumn", "data.columns.label"),
    _entry("imageColumn imageColumnName", "data.columns.image"),
    _entry("promptColumn", "data.columns.prompt"),
    _entry("completionColumn responseColumn", "data.columns.completion"),
    _entry("messagesColumn messagesField fieldMessages", "data.columns.messages"),
    _entry(
        "maxLength maxSeqLength maxSeqLen sequenceLen seqLen cutoffLen modelMaxLength blockSize contextLength",
        "data.maxLength",
    ),
    _entry("packing samplePacking multipackSampling neatPacking", "data.packing"),
    _entry("numWorkers dataloaderNumWorkers preprocessingNumWorkers datasetNumProc", "data.workers"),
    _entry("numFolds kFolds nSplits", "data.fold.count"),
    # LoRA
    _entry("lora loraConfig peft peftConfig", "modules[].adapter", "set per module"),
    _entry("r loraR loraRank", "modules[].adapter.rank", "set per module"),
    _entry("loraAlpha", "modules[].adapter.alpha", "set per module"),
    _entry("loraDropout", "modules[].adapter.dropout", "set per module"),
    _entry(
        "targetModules loraTarget loraTargetModules loraTargetLinear loraAttnModules",
        "modules[].adapter.targetModules",
        "set per module",
    ),
    _entry("useDora", "modules[].adapter.type", "set per module, type: DoRA"),
    # Devices and pods
    _entry("nodes numNodes nNodes numReplicas", "resources.nodes"),
    _entry(
        "gpus gpuCount nGpu numGpus devices numProcesses numProcPerNode nProcPerNode worldSize",
        "resources.gpusPerNode",
        "one process per GPU",
    ),
    _entry("accelerator useCpu noCuda cpuOnly", "resources.device"),
    _entry("strategy deepspeed fsdp fsdpConfig ddpBackend", "", "the trainer chooses the parallelism strategy"),
    _entry("resourcesPerNode resourcesPerWorker limits requests", "resources", "per pod"),
    _entry("cpu", "resources.cpu"),
    _entry("memory", "resources.memory"),
    _entry("instanceType labelSelector nodeSelector", "runtime.nodeSelector"),
    _entry(
        "trainer runtimeRef template podTemplate podTemplateOverrides pytorchReplicaSpecs",
        "runtime resources",
        "arbitrary pod templates are not supported",
    ),
    _entry("image trainerImage containerImage", "runtime.image"),
    _entry("env environment", "runtime.env"),
    _entry("tolerations", "runtime.tolerations"),
    _entry("volumes volumeMounts", "runtime.volumes"),
    _entry("serviceAccount serviceAccountName", "runtime.serviceAccountName"),
    _entry("backoffLimit maxRestarts restartPolicy maxFailures", "retry.limit"),
    _entry("runPolicy", "retry activeDeadlineSeconds ttlSecondsAfterFinished suspend"),
    _entry("queue localQueue", "queueName"),
    # Katib
    _entry(
        "maxTrialCount parallelTrialCount maxFailedTrialCount trialTemplate searchSpace",
        "",
        "hyperparameter search is not supported",
    ),
)
