"""Imports point one way: the arrows of the design, held."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trainer

_PACKAGE = Path(trainer.__file__).parent

# What a module of `trainer` may import of `trainer`. A new module needs a line;
# a leaf needs an empty one. To let a leaf import a sibling, or anything but
# these three the config, is a change of the design.
_MAY_IMPORT_CONFIG = {
    "assembly.datasets",
    "assembly.mirroring",
    "assembly.networks",
    "assembly.results",
    "assembly.steps",
    "assembly.team_start",
    "data_tools",
    "main",
    "plans",
    "report",
    "run_directory",
    "stored_run",
    "train",
}
_EVERYTHING = None
_ALLOWED = {
    "": set(),
    # The story.
    "main": {
        "command_line",
        "config",
        "heartbeat",
        "interruption",
        "options",
        "train",
    },
    "train": _EVERYTHING,
    "keeping": _EVERYTHING,
    "plans": _EVERYTHING,
    # The parts of a run, made from its config.
    "assembly": set(),
    "assembly.datasets": {
        "config",
        "data",
        "data.dataset",
        "errors",
        "evaluation.extractors",
        "models",
        "samples",
    },
    "assembly.mirroring": {
        "config",
        "interruption",
        "run_directory",
        "schedule",
        "storage.bucket",
        "storage.lease",
        "storage.local",
        "storage.mirror",
    },
    "assembly.networks": {
        "adaptive_probability",
        "config",
        "divergence",
        "models",
        "train_state",
    },
    "assembly.results": {
        "assembly.datasets",
        "config",
        "data.dataset",
        "errors",
        "evaluation.evaluator",
        "evaluation.extractors",
        "evaluation.metrics",
        "outputs",
        "quality",
        "run_directory",
        "samples",
        "schedule",
        "train_state",
    },
    "assembly.steps": {
        "augmentations",
        "config",
        "data.dataset",
        "data.pipeline",
        "distribution",
        "divergence",
        "ema",
        "learning_rates",
        "losses",
        "penalties",
        "regularizer",
        "schedule",
        "team",
        "train_state",
        "train_step",
    },
    "assembly.team_start": {
        "cluster",
        "config",
        "distribution",
        "interruption",
        "rendezvous",
        "team",
    },
    # Other commands.
    "data_tools": _EVERYTHING,
    # Looking at a run.
    "evaluate": _EVERYTHING,
    "export": _EVERYTHING,
    "exported_check": {"models"},
    "generate": _EVERYTHING,
    "drawing": {"atomic_file", "generation", "samples", "video"},
    "report": _EVERYTHING,
    "reporting": set(),
    "reporting.charts": {"reporting.curves", "reporting.history"},
    "reporting.curves": set(),
    "reporting.evaluations": {"reporting.charts", "reporting.history"},
    "reporting.facts": {"reporting.charts", "reporting.history"},
    "reporting.history": set(),
    "reporting.page": {
        "reporting.evaluations",
        "reporting.facts",
        "reporting.pictures",
        "reporting.summary",
        "reporting.training_charts",
    },
    "reporting.pictures": set(),
    "reporting.summary": {"reporting.charts", "reporting.facts"},
    "reporting.training_charts": {"reporting.charts", "reporting.history"},
    "stored_run": _EVERYTHING,
    # The command line and what a run is.
    "command_line": {"errors", "options"},
    "config": {"config_rules", "options"},
    "config_rules": {"errors"},
    "options": {"errors"},
    "bad_files": {
        "atomic_file",
        "data.quarantine",
        "errors",
        "run_directory",
    },
    "run_directory": {"atomic_file", "config", "errors"},
    "messages": {"run_directory", "schedule"},
    # Several workers.
    "cluster": {"errors"},
    "meeting": {"cluster", "errors"},
    "rendezvous": {"cluster", "errors", "meeting"},
    "team": {"errors"},
    # Training.
    "train_state": {"adaptive_probability", "loss_scale", "optimizers"},
    "train_step": {
        "accumulation",
        "adversarial",
        "ema",
        "learning_rates",
        "network",
        "regularizer",
        "train_state",
        "updates",
    },
    "accumulation": {
        "adversarial",
        "generation",
        "network",
        "pixels",
        "train_state",
        "updates",
    },
    "adversarial": {"network", "randomness", "regularizer"},
    "regularizer": {"errors", "network", "penalties", "randomness"},
    # What people look at, and what looks after them.
    "health": {"heartbeat"},
    "outputs": {
        "atomic_file",
        "errors",
        "evaluation.evaluator",
        "metric_writer",
        "progress",
        "run_directory",
        "samples",
        "schedule",
    },
    "metric_writer": {"atomic_file", "errors"},
    "samples": {"atomic_file", "randomness"},
    "video": {"atomic_file", "errors"},
    # How good it is.
    "quality": {
        "errors",
        "evaluation.collapse",
        "evaluation.evaluator",
    },
    "evaluation": set(),
    "evaluation.collapse": set(),
    "evaluation.class_score": set(),
    "evaluation.classifier": {
        "errors",
        "evaluation.extractor",
        "evaluation.moments",
    },
    "evaluation.classifier_cache": {"atomic_file", "evaluation.classifier"},
    "evaluation.evaluator": {
        "data.dataset",
        "errors",
        "evaluation.extractor",
        "evaluation.feature_set",
        "evaluation.metrics",
        "generation",
        "samples",
    },
    "evaluation.extractor": set(),
    "evaluation.extractors": {
        "data.dataset",
        "errors",
        "evaluation.classifier",
        "evaluation.classifier_cache",
        "evaluation.extractor",
        "evaluation.inception",
    },
    "evaluation.feature_set": {
        "evaluation.class_score",
        "evaluation.moments",
    },
    "evaluation.frechet": {"evaluation.moments"},
    "evaluation.inception": {"errors", "evaluation.extractor"},
    "evaluation.kernel": set(),
    "evaluation.manifold": set(),
    "evaluation.metrics": {
        "errors",
        "evaluation.feature_set",
        "evaluation.frechet",
        "evaluation.kernel",
        "evaluation.manifold",
    },
    "evaluation.moments": set(),
    # Leaves.
    "adaptive_probability": set(),
    "atomic_file": {"errors"},
    "augmentations": {"errors", "randomness"},
    "deadline": set(),
    "distribution": {"deadline", "errors"},
    "divergence": {"errors", "loss_scale"},
    "ema": set(),
    "errors": set(),
    "heartbeat": set(),
    "interruption": {"errors"},
    "learning_rates": {"errors"},
    "loss_scale": set(),
    "losses": {"errors"},
    "network": set(),
    "optimizers": {"errors"},
    "penalties": {"errors", "randomness"},
    "progress": set(),
    "randomness": set(),
    "schedule": set(),
    "pixels": set(),
    "updates": {"loss_scale", "network", "optimizers"},
    "watchdog": {"errors"},
    # Kinds by name.
    "data": {
        "data.array_dataset",
        "data.cifar10",
        "data.dataset",
        "data.digits",
        "data.folder",
        "data.geometry",
        "data.images",
        "data.mnist",
        "data.records",
        "data.streamed_dataset",
        "data.tfds_source",
        "errors",
    },
    "data.array_dataset": {"data.dataset", "data.quarantine"},
    "data.cifar10": {"data.array_dataset", "data.named", "errors"},
    "data.dataset": {"data.quarantine"},
    "data.decoding": {"data.geometry", "data.headers"},
    "data.digits": {"data.array_dataset", "errors"},
    "data.files": set(),
    "data.folder": {
        "data.dataset",
        "data.files",
        "data.images",
        "data.listing",
        "data.packed",
        "data.quarantine",
        "errors",
    },
    "data.listing": {
        "data.files",
        "data.headers",
        "data.images",
        "data.patience",
    },
    "data.geometry": {"data.array_dataset"},
    "data.headers": set(),
    "data.idx": {"errors"},
    "data.images": {
        "data.dataset",
        "data.headers",
        "data.quarantine",
        "errors",
    },
    "data.mnist": {"data.array_dataset", "data.idx", "data.named", "errors"},
    "data.named": {"data.array_dataset", "data.tfds_source", "errors"},
    "data.inspection": {
        "data.dataset",
        "data.headers",
        "data.images",
        "data.quarantine",
        "data.streamed_dataset",
    },
    "data.packing": {
        "atomic_file",
        "data.files",
        "data.headers",
        "data.packed",
        "data.record_file",
        "data.streamed_dataset",
        "errors",
    },
    "data.packed": {
        "data.files",
        "data.headers",
        "data.record_file",
        "errors",
    },
    "data.patience": {"errors"},
    "data.pipeline": {
        "data.dataset",
        "data.stream_options",
        "errors",
        "randomness",
    },
    "data.quarantine": {"errors"},
    "data.record_file": set(),
    "data.replacement": set(),
    "data.record_index": {
        "atomic_file",
        "data.files",
        "data.images",
        "data.packed",
        "data.record_storage",
        "errors",
    },
    "data.record_scan": {
        "data.dataset",
        "data.files",
        "data.images",
        "data.quarantine",
        "data.record_index",
        "data.record_shard",
        "data.record_storage",
        "errors",
    },
    "data.record_shard": {
        "data.files",
        "data.headers",
        "data.images",
        "data.patience",
        "data.record_file",
        "data.record_index",
        "data.record_storage",
        "errors",
    },
    "data.record_storage": {
        "data.files",
        "data.headers",
        "data.images",
        "data.quarantine",
        "data.record_file",
    },
    "data.records": {
        "data.headers",
        "data.dataset",
        "data.files",
        "data.images",
        "data.packed",
        "data.quarantine",
        "data.record_scan",
        "data.record_shard",
        "data.record_storage",
        "errors",
    },
    "data.stream_options": set(),
    "data.streamed_dataset": {
        "data.array_dataset",
        "data.dataset",
        "data.decoding",
        "data.geometry",
        "data.headers",
        "data.images",
        "data.patience",
        "data.quarantine",
        "data.replacement",
        "data.stream_options",
        "errors",
    },
    "data.tfds_source": {
        "data.dataset",
        "data.images",
        "data.record_scan",
        "data.record_shard",
        "errors",
    },
    "models": {
        "errors",
        "models.dcgan",
        "models.dcgan28",
        "models.gangogh",
        "models.r3gan",
        "models.sngan",
    },
    "models.conditional": {"models.layers"},
    "models.dcgan": {"models.conditional", "models.layers"},
    "models.dcgan28": {"models.conditional", "models.layers"},
    "models.gangogh": {"models.conditional", "models.layers"},
    "models.grouped_convolution": set(),
    "models.layers": {"randomness"},
    "models.r3gan": {
        "models.conditional",
        "models.grouped_convolution",
        "models.resampling",
    },
    "models.resampling": set(),
    "models.sngan": {
        "models.conditional",
        "models.layers",
        "models.spectral_norm",
    },
    "models.spectral_norm": set(),
    # Where checkpoints are kept.
    "background": {"checkpoint", "errors", "storage.manifest"},
    "finiteness": {"errors"},
    "snapshot": set(),
    "generation": {"randomness"},
    "preflight": {
        "atomic_file",
        "errors",
        "storage",
        "storage.files",
        "storage.finder",
        "storage.manifest",
    },
    "retention": {"errors", "storage", "storage.finder", "storage.manifest"},
    "checkpoint": {
        "atomic_file",
        "errors",
        "finiteness",
        "retention",
        "snapshot",
        "storage",
        "storage.files",
        "storage.finder",
        "storage.manifest",
    },
    "storage": {"storage.manifest"},
    "storage.files": {"storage.manifest"},
    "storage.bucket": {
        "atomic_file",
        "storage.cloud_requests",
        "storage.manifest",
        "storage.objects",
        "storage.transfers",
    },
    "storage.cloud_requests": {"errors", "storage.objects"},
    "storage.fetch_cache": {"errors", "storage.local", "storage.manifest"},
    "storage.objects": {"errors", "storage.manifest"},
    "storage.durability": {"storage.manifest"},
    "storage.lease_object": {
        "errors",
        "storage.bucket",
        "storage.manifest",
        "storage.objects",
    },
    "storage.mirror": {
        "errors",
        "storage.bucket",
        "storage.durability",
        "storage.lease",
        "storage.local",
        "storage.manifest",
        "storage.mirror_checkpoints",
        "storage.mirror_files",
        "storage.uploader",
    },
    "storage.uploader": {
        "errors",
        "storage.lease",
        "storage.manifest",
        "storage.mirror_checkpoints",
        "storage.mirror_files",
        "storage.objects",
    },
    "storage.mirror_checkpoints": {
        "atomic_file",
        "errors",
        "preflight",
        "retention",
        "storage.bucket",
        "storage.finder",
        "storage.local",
        "storage.manifest",
        "storage.remote",
    },
    "storage.mirror_files": {
        "atomic_file",
        "run_directory",
        "storage.bucket",
        "storage.files",
        "storage.manifest",
        "storage.objects",
    },
    "storage.lease": {
        "errors",
        "storage.bucket",
        "storage.cloud_requests",
        "storage.lease_object",
        "storage.objects",
    },
    "storage.remote": {
        "errors",
        "storage.bucket",
        "storage.fetch_cache",
        "storage.local",
        "storage.manifest",
        "storage.objects",
        "storage.remote_layout",
    },
    "storage.remote_layout": {"storage.manifest", "storage.objects"},
    "storage.transfers": {
        "errors",
        "storage.cloud_requests",
        "storage.manifest",
    },
    "storage.finder": {
        "errors",
        "storage",
        "storage.files",
        "storage.manifest",
    },
    "storage.local": {
        "atomic_file",
        "errors",
        "storage.files",
        "storage.manifest",
    },
    "storage.manifest": set(),
}

# A typo in a flag is answered at once, and tools that only look at a run
# directory start at once: these import no TensorFlow.
_WITHOUT_TENSORFLOW = {
    "",
    "atomic_file",
    "cluster",
    "command_line",
    "config",
    "config_rules",
    "data",
    "data.array_dataset",
    "data.cifar10",
    "data.dataset",
    "data.digits",
    "data.files",
    "data.folder",
    "data.headers",
    "data.idx",
    "data.images",
    "data.listing",
    "data.mnist",
    "data.named",
    "data.packed",
    "data.quarantine",
    "data.record_file",
    "data.record_index",
    "data.record_scan",
    "data.record_shard",
    "data.record_storage",
    "data.records",
    "data.tfds_source",
    "data_tools",
    "errors",
    "health",
    "heartbeat",
    "evaluate",
    "export",
    "generate",
    "options",
    "interruption",
    "main",
    "meeting",
    "messages",
    "preflight",
    "progress",
    "rendezvous",
    "report",
    "reporting",
    "reporting.charts",
    "reporting.curves",
    "reporting.evaluations",
    "reporting.facts",
    "reporting.history",
    "reporting.page",
    "reporting.pictures",
    "reporting.summary",
    "reporting.training_charts",
    "retention",
    "run_directory",
    "schedule",
    "storage",
    "storage.bucket",
    "storage.cloud_requests",
    "storage.durability",
    "storage.fetch_cache",
    "storage.files",
    "storage.finder",
    "storage.lease",
    "storage.lease_object",
    "storage.local",
    "storage.manifest",
    "storage.mirror",
    "storage.mirror_checkpoints",
    "storage.mirror_files",
    "storage.objects",
    "storage.remote",
    "storage.remote_layout",
    "storage.transfers",
    "video",
    "watchdog",
}


def _paths():
    """Returns the files of the package by module name, "" being itself."""
    paths = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        parts = path.relative_to(_PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        paths[".".join(parts)] = path
    return paths


def _imports(text, modules):
    """Returns which of `modules` a module's text imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "Imports are absolute here."
            for alias in node.names:
                names.append(f"{node.module}.{alias.name}")
    found = set()
    for name in names:
        first, _, rest = name.partition(".")
        if first != "trainer":
            continue
        while rest and rest not in modules:
            rest = rest.rpartition(".")[0]  # A class, say, of a module.
        found.add(rest)
    return found - {""}


def _actual():
    paths = _paths()
    return {
        module: _imports(path.read_text(), paths)
        for module, path in paths.items()
    }


def test_every_module_is_classified():
    assert sorted(_paths()) == sorted(_ALLOWED)


def test_modules_import_only_what_the_design_lets_them():
    forbidden = {
        module: sorted(imports - set(_ALLOWED.get(module, ())))
        for module, imports in _actual().items()
        if _ALLOWED.get(module, ()) is not _EVERYTHING
    }
    assert {m: names for m, names in forbidden.items() if names} == {}


def test_nobody_imports_the_story():
    for module, imports in _actual().items():
        assert "main" not in imports
        assert "train" not in imports or module == "main"


def test_hyperparameters_reach_the_parts_as_arguments():
    for module, imports in _actual().items():
        if module not in _MAY_IMPORT_CONFIG:
            assert "config" not in imports, module


def test_there_is_no_way_round():
    # Raises CycleError, which names the modules.
    graphlib.TopologicalSorter(_actual()).prepare()


@pytest.mark.parametrize(
    "text",
    [
        "import trainer.data.mnist",
        "import os, trainer.data.mnist as m",
        "from trainer.data import mnist",
        "from trainer.data import mnist as m",
        "from trainer.data.mnist import load",
        "def f():\n    if x:\n        from trainer.data import mnist",
    ],
)
def test_this_test_sees_every_way_to_import(text):
    assert _imports(text, _paths()) == {"data.mnist"}


_TENSORFLOW = {"keras", "tensorboard", "tensorflow", "tensorflow_datasets"}
# Whoever renders a job needs none of what submits it.
_CLIENTS = {
    "google.api_core",
    "google.auth",
    "google.cloud.aiplatform_v1",
    "kubernetes",
    "requests",
}


def _trainers():
    return [
        f"trainer.{name}".rstrip(".") for name in sorted(_WITHOUT_TENSORFLOW)
    ]


def _launchers():
    return sorted(
        f"launch.{path.stem}"
        for path in (_PACKAGE.parent / "launch").glob("*.py")
    )


@pytest.mark.parametrize(
    ("names", "heavy"),
    [(_trainers(), _TENSORFLOW), (_launchers(), _TENSORFLOW | _CLIENTS)],
)
def test_what_must_start_at_once_imports_nothing_heavy(names, heavy):
    code = """
import importlib, sys
heavy = set(sys.argv[1].split())
for name in sys.argv[2:]:
    importlib.import_module(name)
    found = heavy.intersection(sys.modules)
    if found:
        sys.exit(f"{name} imports {found}")
"""
    result = subprocess.run(
        [sys.executable, "-c", code, " ".join(heavy), *names],
        cwd=_PACKAGE.parent,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stderr == ""
    assert result.returncode == 0
