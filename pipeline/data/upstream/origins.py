"""Where files are taken from: a local folder, or GitHub."""

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

from tqdm import tqdm

from pipeline.common.errors import UserError
from pipeline.data.upstream.download import BusyError, UnreachableError, download
from pipeline.data.upstream.pinned import is_pinned
from pipeline.data.upstream.sources import Source


class MissingError(Exception):
    """The file is not to be had from an origin; the text says why."""


class Origin(Protocol):
    """Something that files are taken from."""

    def take(self, pin: Source) -> tuple[bytes, str]:
        """The file's bytes, not yet verified, and the place they are from.

        Raises MissingError where the origin has no such file, UserError where it cannot hand it over.
        """


@dataclass(frozen=True)
class Local:
    """A folder laid out like data/. The authors' notebook may lie beside the place of its extract."""

    folder: Path

    def take(self, pin: Source) -> tuple[bytes, str]:
        """See Origin."""
        file = self.folder / pin.path
        notebook = file.with_name(Path(pin.upstream).name)
        if pin.notebook_blob and not file.is_file() and notebook.is_file():
            file = notebook
        try:
            return file.read_bytes(), str(file)
        except OSError as error:
            raise MissingError(f"{error.strerror} in {self.folder}") from error


@dataclass
class Network:
    """GitHub's raw files, or a mirror of them.

    Downloads that were cut off wait in `partials` and are continued. Once the server is out of reach,
    it is not asked again.
    """

    base: str
    partials: Path
    _offline: str = field(default="", init=False)

    def take(self, pin: Source) -> tuple[bytes, str]:
        """See Origin. The other places of a file are asked where the first does not hand over its bytes."""
        first, *others = (pin, *pin.elsewhere)
        for place, after in zip((first, *others), (*others, None), strict=True):
            try:
                content, where = self._take(place)
            except (MissingError, UserError):
                if after is None:
                    raise
                continue
            if after is None or is_pinned(content, pin):
                return content, where
        raise AssertionError("a file has one place at least")

    def _take(self, pin: Source) -> tuple[bytes, str]:
        if pin.notebook_blob:
            # Its other cells hold what nobody else should keep: it never touches the disk.
            notebook = BytesIO()
            self._download(pin, notebook, None)
            return notebook.getvalue(), pin.url(self.base)
        self.partials.mkdir(parents=True, exist_ok=True)
        partial = self.partials / pin.path.replace("/", "__")
        continued = partial.exists()
        content = self._download_to(pin, partial)
        if continued and not is_pinned(content, pin):
            # The beginning that was continued may be the bad part.
            content = self._download_to(pin, partial)
        return content, pin.url(self.base)

    def _download_to(self, pin: Source, partial: Path) -> bytes:
        """The whole file. `partial` outlives this call only when the connection fails or the process dies."""
        with partial.open("r+b" if partial.exists() else "w+b") as stream:
            try:
                self._download(pin, stream, pin.bytes)
            except MissingError:
                if stream.tell() == 0:
                    partial.unlink()
                raise
            except Exception:
                partial.unlink()
                raise
        content = partial.read_bytes()
        partial.unlink()
        return content

    def _download(self, pin: Source, stream: BinaryIO, limit: int | None) -> None:
        if self._offline:
            raise MissingError(self._offline)
        # disable=None: no bar where the output is not a terminal.
        with tqdm(desc=pin.path, total=limit, unit="B", unit_scale=True, leave=False, disable=None) as bar:

            def progress(done: int, total: int | None) -> None:
                bar.total = total
                bar.update(done - bar.n)

            try:
                download(pin.url(self.base), stream, limit, progress)
            except BusyError as error:
                raise MissingError(f"{self.base} does not hand it over: {error}") from error
            except UnreachableError as error:
                self._offline = f"no answer from {self.base}: {error}"
                raise MissingError(self._offline) from error
