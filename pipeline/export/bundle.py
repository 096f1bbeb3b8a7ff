"""A study as one archive for Zenodo or a reviewer: an RO-Crate (w3id.org/ro/crate/1.1) in a zip.

It holds what made the results and the results: parameters, locks, dvc.lock, answers, verdicts, tables and figures,
provenance, and how to cite it. SHA256SUMS lists every file; equal files give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import atomic_path
from pipeline.common.paths import ARTIFACTS, FIGURES
from pipeline.params.schema import Study

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold
_CITATION = Path("CITATION.cff")
_SOURCES = ("params.yaml", "dvc.yaml", "dvc.lock", "data.dvc", "pyproject.toml", "LICENSE", "published/claims.yaml")
_KINDS = {
    ".json": "application/json", ".jsonl": "application/jsonl", ".csv": "text/csv", ".md": "text/markdown",
    ".yaml": "application/yaml", ".txt": "text/plain", ".tex": "application/x-tex", ".png": "image/png",
    ".pdf": "application/pdf", ".cff": "application/yaml",
}  # fmt: skip
_WARNING = (
    "Answers and prompts of this study may be harmful: they were sampled from models made to be misaligned, to study "
    "them. Restrict access to this archive."
)


def write_bundle(name: str, study: Study, provenance: Mapping[str, Any], path: Path, doi: str | None = None) -> Path:
    """Write the archive. Raises UserError when the study has no answers or verdicts, or the DOI is none."""
    if doi is not None and not re.fullmatch(r"10\.\d{4,9}/\S+", doi):
        raise UserError(f"--doi is {doi!r}, expected one such as 10.5281/zenodo.1234567.")
    contents = {where: Path(where).read_bytes() for where in _members(name)}
    contents["provenance.json"] = _json(provenance)
    contents["CITATION.cff"] = citation(doi)
    contents["README.md"] = _readme(name, study).encode()
    contents["ro-crate-metadata.json"] = _json(_crate(name, study, provenance, contents, doi))
    sums = (f"{hashlib.sha256(it).hexdigest()}  {where}\n" for where, it in sorted(contents.items()))
    contents["SHA256SUMS"] = "".join(sums).encode()
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for where, content in sorted(contents.items()):
            member = zipfile.ZipInfo(f"emoe-{name}/{where}", date_time=_EPOCH)
            member.external_attr, member.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(member, content)
    return path


def citation(doi: str | None) -> bytes:
    """CITATION.cff with the archive's DOI, or with the line in which it goes once Zenodo has reserved one."""
    text = _CITATION.read_text(encoding="utf-8")
    unknown = "# doi: 10.5281/zenodo.NNNNNNN (the one that Zenodo reserves for this archive)\n"
    line = f"doi: {doi}\n" if doi else unknown
    return text.replace("\nreferences:\n", f"\n{line}references:\n", 1).encode()


def _members(name: str) -> list[str]:
    """Files of this checkout that the archive holds, by their paths in it."""
    folder = ARTIFACTS / name
    wanted = ("answers", "verdicts")
    for part in wanted:
        if not any((folder / part).rglob("*.jsonl")):
            raise UserError(f"{folder / part} has no files; run `make reproduce STUDY={name}` first.")
    files = [path for part in wanted for path in (folder / part).rglob("*.jsonl")]
    files += [path for path in (FIGURES / name).rglob("*") if path.is_file()]
    files += [*Path("locks").glob("*.txt"), *map(Path, _SOURCES)]
    files += [folder / "metrics.json", folder / "verify.md"]
    return sorted(path.as_posix() for path in files if path.is_file())


def _crate(
    name: str, study: Study, provenance: Mapping[str, Any], contents: Mapping[str, bytes], doi: str | None
) -> dict[str, Any]:
    begun = sorted(stage["started"] for stage in provenance["stages"].values())
    files = [
        {
            "@id": where,
            "@type": "File",
            "name": where,
            "encodingFormat": _KINDS.get(Path(where).suffix, "application/octet-stream"),
            "contentSize": str(len(content)),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        for where, content in sorted(contents.items())
    ]
    commits = [code["commit"] for code in provenance["code"] if code["commit"]]
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"{study.title} [{name}]",
        "description": f"Answers, verdicts, tables and provenance of emoe's study {name}.",
        "datePublished": begun[-1] if begun else "1970-01-01",
        "license": {"@id": "https://spdx.org/licenses/MIT"},
        "conditionsOfAccess": "open" if study.world == "toy" else f"restricted: {_WARNING}",
        "version": commits[-1] if commits else "unknown",
        "hasPart": [{"@id": it["@id"]} for it in files],
        **({"identifier": f"https://doi.org/{doi}"} if doi else {}),
    }
    about = {
        "@id": "ro-crate-metadata.json",
        "@type": "CreativeWork",
        "about": {"@id": "./"},
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
    }
    return {"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": [about, root, *files]}


def _readme(name: str, study: Study) -> str:
    warning = "" if study.world == "toy" else f"\n**{_WARNING}**\n"
    return f"""# {study.title} [{name}]
{warning}
- `artifacts/{name}/answers`, `verdicts`: every answer and every judge's verdict, JSON lines, one file a run.
- `paper_figures/{name}`: tables and figures. `params.yaml`, `dvc.yaml`, `dvc.lock`, `locks/`: what made them.
- `provenance.json`: commits, machines, bases, judges, times and cost. `ro-crate-metadata.json` describes every file.
- Check the files: `sha256sum --check SHA256SUMS`.
"""


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
