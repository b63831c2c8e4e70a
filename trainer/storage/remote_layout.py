"""Which object of a bucket is which part of which checkpoint.

DIRECTORY/step-000000350/MANIFEST.json          the commit
DIRECTORY/step-000000350/ATTEMPT/state.index    data of one attempt
DIRECTORY/scratch-ATTEMPT/...                   a directory of trials
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

from trainer.storage.manifest import FILE_NAME, FileRecord, Manifest, step_of
from trainer.storage.objects import StoredObject

_SCRATCH = "scratch-"


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names of the objects of a store.

    Attributes:
        directory: What they begin with, up to a slash.
    """

    directory: str

    def scratch(self, attempt: str) -> "Layout":
        """Where an attempt has its trials."""
        return Layout(f"{self.directory}/{_SCRATCH}{attempt}")

    def manifest(self, name: str) -> str:
        """The object that makes a checkpoint exist."""
        return f"{self.directory}/{name}/{FILE_NAME}"

    def data(self, name: str, attempt: str) -> str:
        """What the data objects of an attempt begin with."""
        return f"{self.directory}/{name}/{attempt}/"

    def file(self, manifest: Manifest, file: FileRecord) -> str:
        """The object of one file."""
        return self.data(manifest.name, manifest.attempt) + file.name

    def committed(self, objects: Iterable[StoredObject]) -> set[str]:
        """Returns the names of the checkpoints that have a manifest."""
        return {
            name
            for (name, *rest), _ in self._parts(objects)
            if rest == [FILE_NAME] and step_of(name) is not None
        }

    def doubtful(
        self, objects: Iterable[StoredObject]
    ) -> dict[tuple[str, str], list[StoredObject]]:
        """Groups what may be left over, by checkpoint and attempt.

        Where a checkpoint has a manifest, the data of one attempt is its own;
        it is in no group if it is the only one. Trials are a group without a
        checkpoint. What is not ours is in none.
        """
        objects = list(objects)
        groups = collections.defaultdict(list)
        for (name, *rest), file in self._parts(objects):
            if name.startswith(_SCRATCH):
                groups["", name.removeprefix(_SCRATCH)].append(file)
            elif step_of(name) is not None and len(rest) == 2:
                groups[name, rest[0]].append(file)
        committed = self.committed(objects)
        attempts = collections.Counter(name for name, _ in groups)
        return {
            (name, attempt): group
            for (name, attempt), group in groups.items()
            if name not in committed or attempts[name] > 1
        }

    def _parts(
        self, objects: Iterable[StoredObject]
    ) -> Iterator[tuple[list[str], StoredObject]]:
        for file in objects:
            yield file.name.removeprefix(f"{self.directory}/").split("/"), file
