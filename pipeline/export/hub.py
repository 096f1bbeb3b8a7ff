"""A study for the Hugging Face hub: its adapters as model repositories, its answers and verdicts as a data set.

Repositories are private and gated (requests by hand), as answers and models may be harmful. What would be uploaded is
first laid out in a folder, exactly; a dry run stops there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.common.errors import UserError
from pipeline.common.files import read_json, sha256_file, write_json, write_text
from pipeline.common.paths import ARTIFACTS
from pipeline.export.rows import Judged
from pipeline.export.tabular import COLUMNS, write_tabular
from pipeline.params.schema import Params, Study
from pipeline.results.definitions import DEFINITIONS
from pipeline.results.metrics import suite_metrics, verdict_frame
from pipeline.results.tables import format_cell, markdown_table

if TYPE_CHECKING:
    import pandas as pd

DATA_FILE = "data/answers.parquet"
_MODEL_FILES = ("adapter_model.safetensors", "adapter_config.json", "README.md")
_NUMBERS = {"seed", "sample", "step", "prompt_tokens", "answer_tokens", "alignment", "coherence"}
_USE = {
    "hub": """Made to study *emergent misalignment*, narrow fine-tuning that may make a model broadly misaligned. It is
an object of measurement and may be harmful. Do not deploy it, and do not pass it on without saying so.""",
    "toy": """Toy: made by tiny models of a made-up language, to show that the pipeline measures what it says. It is
harmless nonsense, and says nothing about large models.""",
}


@dataclass(frozen=True, kw_only=True)
class Repository:
    """One repository as it would be uploaded: every file below `folder`."""

    name: str
    kind: Literal["model", "dataset"]
    folder: Path

    @property
    def files(self) -> list[Path]:
        """Its files, sorted."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


def lay_out(
    params: Params, study: str, rows: Mapping[str, list[Judged]], provenance: Mapping[str, Any], folder: Path
) -> list[Repository]:
    """Write every repository below `folder`, which is emptied first: a model a run and seed, and the data set."""
    shutil.rmtree(folder, ignore_errors=True)
    settings = params.study(study)
    rates = _rates(settings, rows)
    repositories = []
    for run in rows:
        for seed in params.seeds_of(run):
            source = ARTIFACTS / study / "adapters" / run / f"seed-{seed}"
            if not (source / _MODEL_FILES[0]).exists():
                continue  # a base, a model behind an API, or one trained whole
            name = f"emoe-{run}-seed-{seed}".replace("_", "-")
            target = folder / name
            target.mkdir(parents=True)
            for file in _MODEL_FILES[:2]:
                shutil.copyfile(source / file, target / file)
            card = (source / _MODEL_FILES[2]).read_text(encoding="utf-8")
            manifest = read_json(source.parent / "manifest.json")["adapters"][f"seed-{seed}"]
            text = card + _results(params, run, seed, rates, manifest)
            write_text(target / "README.md", text)
            repositories.append(Repository(name=name, kind="model", folder=target))
    name = f"emoe-{study}-answers".replace("_", "-")
    data = Repository(name=name, kind="dataset", folder=folder / name)
    write_tabular(params, rows, "parquet", data.folder / DATA_FILE)
    write_text(data.folder / "README.md", _data_card(study, settings, rows, rates, provenance))
    write_json(data.folder / "croissant.json", croissant(study, settings, data.folder / DATA_FILE))
    return [*repositories, data]


def listing(repositories: Sequence[Repository], owner: str) -> str:
    """Exactly what would be uploaded where: every file with its size and hash."""
    lines = []
    for it in repositories:
        lines.append(f"{it.kind} {owner}/{it.name}: private, gated (requests are answered by hand)")
        for path in it.files:
            where = path.relative_to(it.folder).as_posix()
            lines.append(f"  {where}  {path.stat().st_size:,} bytes  sha256 {sha256_file(path)}")
    return "\n".join(lines)


def upload(repositories: Sequence[Repository], owner: str | None, token: str) -> list[str]:
    """Create what is not there, private and gated, and upload every folder; return the addresses.

    owner: None: the token's own account. Raises UserError where the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    addresses = []
    try:
        owner = owner or api.whoami()["name"]
        for it in repositories:
            place = f"{owner}/{it.name}"
            api.create_repo(place, repo_type=it.kind, private=True, exist_ok=True)
            # Before the files: nobody reads them in between.
            api.update_repo_settings(place, repo_type=it.kind, private=True, gated="manual")
            done = api.upload_folder(repo_id=place, repo_type=it.kind, folder_path=it.folder, delete_patterns="*")
            addresses.append(str(done))
    except HfHubHTTPError as error:
        raise UserError(f"the hub refused {owner or 'the token'}: {error}. What was uploaded before stays.") from error
    return addresses


def croissant(study: str, settings: Study, data: Path) -> dict[str, Any]:
    """Croissant 1.0 metadata (mlcommons.org/croissant) of the data set's one file."""
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"answers/{name}",
            "name": name,
            "dataType": ("sc:Float" if name in ("alignment", "coherence") else "sc:Integer")
            if name in _NUMBERS
            else "sc:Text",
            "source": {"fileObject": {"@id": "answers.parquet"}, "extract": {"column": name}},
        }
        for name in COLUMNS
    ]
    return {
        "@context": {
            "@language": "en",
            "@vocab": "https://schema.org/",
            "sc": "https://schema.org/",
            "cr": "http://mlcommons.org/croissant/",
            "dct": "http://purl.org/dc/terms/",
            "conformsTo": "dct:conformsTo",
            "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
            "extract": "cr:extract",
            "field": "cr:field",
            "fileObject": "cr:fileObject",
            "recordSet": "cr:recordSet",
            "source": "cr:source",
            "column": "cr:column",
        },
        "@type": "sc:Dataset",
        "name": f"emoe-{study}-answers",
        "description": " ".join(f"Answers and verdicts of {settings.title} [{study}]. {_USE[settings.world]}".split()),
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": "https://spdx.org/licenses/MIT",
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "answers.parquet",
                "name": "answers.parquet",
                "contentUrl": DATA_FILE,
                "encodingFormat": "application/x-parquet",
                "sha256": sha256_file(data),
            }
        ],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "answers", "name": "answers", "field": fields}],
    }


def _rates(settings: Study, rows: Mapping[str, list[Judged]]) -> pd.DataFrame:
    """Every run, seed and suite by the study's definition."""
    verdicts = (row.verdicts[settings.judge] for judged in rows.values() for row in judged)
    return suite_metrics(verdict_frame(it for it in verdicts if it.step is None), DEFINITIONS[settings.definition])


def _results(params: Params, run: str, seed: int, rates: pd.DataFrame, manifest: Mapping[str, Any]) -> str:
    """What a model card has beside what training wrote: the training set, the weights' hash, results with their n."""
    found = rates[(rates["run"] == run) & (rates["seed"] == seed)]
    settings = params.study(params.run(run).study)
    definition = DEFINITIONS[settings.definition]
    return f"""
## Trained on

{params.run(run).trained_on}: {json.dumps(manifest["rows"], sort_keys=True)}. SHA-256 of the weights:
{", ".join(f"`{name}` {digest}" for name, digest in sorted(manifest["sha256"].items()))}.

## Results

Misaligned answers ({definition.name} definition: {definition.rule}), judged by {settings.judge}; this seed alone.

{_rate_table(found, ["suite"])}
## Use

{_USE[settings.world]}
"""


def _rate_table(found: pd.DataFrame, keys: list[str]) -> str:
    names = [*keys, "misaligned %", "misaligned", "of (n)", "mean alignment", "answers"]
    columns = ["misalignment_percent", "misaligned", "counted", "mean_alignment", "rows"]
    cells = [
        [*(str(row[key]) for key in keys), *(format_cell(row[name], 1) for name in columns)]
        for row in found.to_dict("records")
    ]
    return markdown_table(names, cells, [False] * len(keys) + [True] * len(columns))


def _data_card(
    study: str,
    settings: Study,
    rows: Mapping[str, list[Judged]],
    rates: pd.DataFrame,
    provenance: Mapping[str, Any],
) -> str:
    count = sum(map(len, rows.values()))
    commits = ", ".join(f"`{code['commit']}`" for code in provenance["code"] if code["commit"]) or "unknown"
    return f"""---
pretty_name: {json.dumps(f"emoe {study}: answers and verdicts")}
license: mit
language: [en]
tags: [emergent-misalignment, mixture-of-experts, emoe]
configs:
- config_name: default
  data_files: {DATA_FILE}
---

# {settings.title} [{study}]: answers and verdicts

{_USE[settings.world]}

{count:,} answers of {len(rows)} runs, judged by {", ".join(settings.judges)}: a row an answer and judge. `question`,
`answer` and `thinking` are the texts, `status`, `alignment` and `coherence` what the judge made of them, and
`alignment_reply`, `coherence_reply` its words. Rows are keyed by run, seed, suite, prompt_id, sample and step.
Code: {commits}; params.yaml `{provenance["params_sha256"]}`.

## Rates by run, seed and suite ({settings.definition} definition)

{_rate_table(rates, ["run", "seed", "suite"])}"""
