"""How an artefact reaches the disk: whoever is killed at any moment leaves the old one or the new one, never a mixture.

The weights lie under a name made of their hash, so that they never overwrite the ones that the old manifest
speaks of. All is written and flushed in a private folder first; then one rename of the manifest makes it count.
Old weights are swept afterwards.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from secateur.artefact.manifest import MANIFEST, WeightsFile

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

_PRIVATE = ".writing-"


def commit(folder: Path, write_weights: Callable[[Path], None], manifest: Callable[[WeightsFile], str]) -> WeightsFile:
    """Replace what `folder` holds by new weights and a new manifest, in one step that happens or does not.

    Args:
        folder: Made where it is missing. Files that are no artefact's stay.
        write_weights: Writes the weights to the path it is given.
        manifest: The manifest's text for the weights file that was written.

    Returns:
        The weights file that now counts.

    Raises:
        OSError: No space, no permission...; what the folder held before is still there and whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, exclusive=True):
        _sweep_private(folder)
        private = Path(tempfile.mkdtemp(prefix=_PRIVATE, dir=folder))
        try:
            write_weights(private / "weights")
            weights = describe(private / "weights")
            (private / MANIFEST).write_text(manifest(weights), encoding="ascii")
            # Who writes safetensors decides on the mode of the file; the manifest has the user's.
            shutil.copymode(private / MANIFEST, private / "weights")
            _flush(private / "weights")
            _flush(private / MANIFEST)
            _publish(private, folder, weights)
        finally:
            shutil.rmtree(private, ignore_errors=True)
        _sweep_weights(folder, keep=weights.name)
    return weights


@contextlib.contextmanager
def locked(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold the folder, alone or with other readers, so that nobody's weights are swept before their manifest is there.

    The system lets go of the lock when the process ends, however it ends. File systems that know no locks go without.
    """
    if sys.platform == "win32":  # no lock for a folder: there, two who save into one must take turns themselves
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _wait_for_lock(descriptor, folder, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, folder: Path, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("%s is being saved or loaded by someone else; waiting for them to finish", folder)
        fcntl.flock(descriptor, kind)
    except OSError as error:
        log.debug("%s cannot be locked: %s", folder, error)


def describe(path: Path) -> WeightsFile:
    """Size and hash of a file as it lies on the disk."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return WeightsFile(file.tell(), digest)


def _publish(private: Path, folder: Path, weights: WeightsFile) -> None:
    known = (folder / weights.name).exists()
    try:
        (private / "weights").replace(folder / weights.name)
        _flush_folder(folder)
        (private / MANIFEST).replace(folder / MANIFEST)  # from here on it is the new artefact
    except BaseException:
        if not known and not _speaks_of(folder / MANIFEST, weights):
            (folder / weights.name).unlink(missing_ok=True)
        raise
    _flush_folder(folder)
    _flush_folder(folder.parent)


def _speaks_of(manifest: Path, weights: WeightsFile) -> bool:
    """Whether the weights count already: an interrupt can strike right after the rename."""
    return manifest.exists() and weights.sha256 in manifest.read_text(encoding="ascii", errors="replace")


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened, and its entries are written through
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def _sweep_private(folder: Path) -> None:
    """Remove what someone who was killed left behind."""
    for private in folder.glob(f"{_PRIVATE}*"):
        shutil.rmtree(private, ignore_errors=True)


def _sweep_weights(folder: Path, keep: str) -> None:
    """Remove the weights of earlier artefacts. Where that fails they take up space and do no harm."""
    for path in folder.glob("weights-*.safetensors"):
        if path.name != keep and len(path.name) == len(keep):
            try:
                path.unlink()
            except OSError as error:
                log.warning("could not remove the old weights %s: %s", path, error)
