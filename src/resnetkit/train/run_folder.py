"""The folder of a training run: its files, its lock, and how it is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from resnetkit.display import shell
from resnetkit.errors import TrainingError


@dataclass(frozen=True)
class RunFolder:
    """The files of one training run."""

    path: Path

    @property
    def best(self) -> Path:
        """Model file with the lowest validation error; without validation, the last one."""
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        """Model file of the last evaluation, as far as the state was saved after it; at the end, of the last one."""
        return self.path / "last.safetensors"

    @property
    def state(self) -> Path:
        """Training state to resume from."""
        return self.path / "state.pt"

    @property
    def ladder(self) -> Path:
        """The rungs that are done, in the folder of a run up the ladder. The runs of its rungs are subfolders."""
        return self.path / "ladder.json"

    @property
    def recipe(self) -> Path:
        """The recipe, and the data and machine of the run."""
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """Training and validation metrics, one JSON document per line."""
        return self.path / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        """Plot of error and learning rate over the run."""
        return self.path / "curves.png"

    @property
    def report(self) -> Path:
        """HTML report of the finished run."""
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        """Copy of the printed lines."""
        return self.path / "log.txt"

    def refuse_existing(self) -> None:
        """Raise TrainingError if the folder contains files, other than those that a failed start leaves."""
        left_by_a_start = {".lock", self.log.name}
        if self.path.exists() and (
            not self.path.is_dir() or any(path.name not in left_by_a_start for path in self.path.iterdir())
        ):
            raise TrainingError(
                f"{self.path} exists already. Give another `out`, or go on with: "
                f"resnetkit train --resume {shell(self.path)}"
            )

    def create(self) -> None:
        """Create the folder. Raises TrainingError if that fails."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{self.path} can't be made: {error.strerror}. Give another `out`.") from error

    def create_beside(self) -> "RunFolder":
        """Create the folder and return it; if it exists, the first of <name>-2, <name>-3, ... that does not exist.

        Runs that start at the same time get different folders. Raises TrainingError if that fails.
        """
        RunFolder(self.path.parent).create()
        run, number = self, 1
        while True:
            try:
                run.path.mkdir()
            except FileExistsError:
                number += 1
                run = RunFolder(self.path.with_name(f"{self.path.name}-{number}"))
            except OSError as error:
                raise TrainingError(f"{run.path} can't be made: {error.strerror}. Give another `out`.") from error
            else:
                return run

    def in_use(self) -> bool:
        """Return whether a process has locked the folder; False where this can't be found out."""
        try:
            import fcntl

            with (self.path / ".lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except (ImportError, OSError):
            return False
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process, and remove incomplete files.

        Raises TrainingError if another process has locked it.
        """
        with (self.path / ".lock").open("w") as lock:
            try:
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # Windows has no flock: there, users must not start two runs in one folder.
                pass
            except OSError as error:
                raise TrainingError(f"{self.path} is in use by another process; wait for it, or stop it") from error
            for half_written in self.path.glob(".*.part"):
                half_written.unlink()
            yield
