"""Looks of picture files that are kept in the cache folder, so that a data set is looked at once. No torch here."""

import hashlib
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from resnetkit.data.decoding.opening import most_pixels
from resnetkit.files import cache_folder

MOST_KEPT = 200_000
"""Looks of more files than this are not kept: of some 1,400 bytes each, they need 280 MB."""
AT_ONCE = 500
"""Number of looks that are read or written together."""
KEY_BYTES = 16
SETTLED_SECONDS = 2.0
"""A file that was written less than this before is looked at again: it may change within one tick of its clock."""
WAIT_SECONDS = 2.0
"""So long another process may write; after that, looks are not kept."""


class KeptLooks:
    """Bytes for each picture file, found by its path, size and time of its last change; the oldest uses go first.

    A cache folder that can't be read or written is no error: nothing is found, and nothing is kept.
    """

    def __init__(self, version: str, *, folder: Path | None = None, most: int = MOST_KEPT) -> None:
        """`version` names the form of the bytes; those of another version are not found."""
        self._file = (folder or cache_folder()) / "looks.sqlite"
        self._version, self._most = version, most

    def key(self, path: Path) -> bytes | None:
        """Return the key of a file as it is now; None if it can't be found, or was written just now."""
        try:
            status = path.stat()
        except (OSError, ValueError):
            return None
        if abs(time.time() - status.st_mtime) < SETTLED_SECONDS:
            return None
        parts = (self._version, Path.cwd() / path, status.st_size, status.st_mtime_ns, most_pixels())
        text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, digest_size=KEY_BYTES).digest()

    def find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return what is kept of these keys, and note that it was used."""
        found: dict[bytes, bytes] = {}
        with suppress(sqlite3.Error, OSError), self._opened() as base:
            for some in _blocks(keys):
                marks = ",".join("?" * len(some))
                rows = base.execute(f"SELECT key, look FROM looks WHERE key IN ({marks})", some).fetchall()
                found |= dict(rows)
            with base:
                base.executemany("UPDATE looks SET used = ? WHERE key = ?", [(time.time(), key) for key in found])
        return found

    def keep(self, looks: Mapping[bytes, bytes]) -> None:
        """Keep the bytes of these keys; of too many, those go whose last use is the longest time ago."""
        if not looks:
            return
        with suppress(sqlite3.Error, OSError), self._opened(write=True) as base, base:
            rows = [(key, time.time(), look) for key, look in looks.items()]
            base.executemany("INSERT OR REPLACE INTO looks VALUES (?, ?, ?)", rows)
            (count,) = base.execute("SELECT count(*) FROM looks").fetchone()
            if count > self._most:
                base.execute(
                    "DELETE FROM looks WHERE key IN (SELECT key FROM looks ORDER BY used LIMIT ?)",
                    (count - self._most,),
                )

    @contextmanager
    def _opened(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        if not write and not self._file.is_file():
            raise OSError
        self._file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(self._file, timeout=WAIT_SECONDS)) as base:
                base.execute("CREATE TABLE IF NOT EXISTS looks (key BLOB PRIMARY KEY, used REAL, look BLOB)")
                base.execute("CREATE INDEX IF NOT EXISTS by_use ON looks (used)")
                yield base
        except sqlite3.OperationalError:  # read-only, full, or in use
            raise
        except sqlite3.DatabaseError:  # broken: it begins anew
            self._file.unlink(missing_ok=True)
            raise


def _blocks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), AT_ONCE):
        yield keys[start : start + AT_ONCE]
