import json
import re
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from pipeline.audit.cells import audit
from pipeline.audit.figures import draw, run_frame
from pipeline.audit.figures_experts import misalignment_by_configuration, misalignment_by_expert
from pipeline.audit.published import read_published
from pipeline.common.errors import UserError
from pipeline.results.adapter_norms import adapter_norms
from pipeline.results.contrasts import Contrast
from pipeline.results.definitions import DEFINITIONS, STANDARD
from pipeline.results.figures.adapters import adapter_magnitude
from pipeline.results.figures.contrasts import contrast_figure
from pipeline.results.figures.density import alignment_by_coherence, cell_counts
from pipeline.results.figures.examples import choose_examples, example_cards
from pipeline.results.figures.runs import misalignment_by_run, refusal_by_run
from pipeline.results.figures.sparsity import misalignment_by_sparsity
from pipeline.results.figures.style import COLUMN_WIDTH, PAGE_WIDTH, ROLES, SERIES
from pipeline.results.frames import metrics_with_intervals, over_seeds
from pipeline.results.metrics import suite_metrics
from pipeline.results.statistics import Interval
from pipeline.results.study_tables import headline_table, run_by_suite_table, run_table
from pipeline.results.tables import write_table

COMMITTED = Path(__file__).parents[2] / "paper_figures" / "published"


def png_size(path):
    """Width and height in pixels, and the text chunks."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return struct.unpack(">II", content[16:24]), b"tEXtSoftware" in content or b"tIME" in content


@pytest.fixture(scope="session")
def study(judged, selected):
    """Real judged answers as a study: a base, and a fine-tune whose answers are the selected ones."""
    frames = []
    for seed in (7, 17, 27):
        base = judged.assign(run="toy-8x2-base", seed=seed)
        kept = base.groupby("prompt_id").head(30 + seed)
        tuned = selected.assign(run="toy-8x2-bad-E0", seed=seed).groupby("prompt_id").head(5 + seed)
        frames += [kept, tuned]
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(suite="first_plot")


def seeds_frame(study):
    per_seed = metrics_with_intervals(study, STANDARD, ["run", "seed", "suite"])
    values = ["misalignment_percent", "refusal_percent", "mean_alignment"]
    frame = over_seeds(per_seed, values, ["run", "suite"])
    counts = per_seed.groupby(["run", "suite"])[["misaligned", "counted", "rows"]].sum()
    return frame.join(counts, on=["run", "suite"]).assign(
        role=["fine-tuned" if "bad" in run else "base" for run in frame["run"]],
        model="toy-8x2",
        experts=8,
        active=2,
    )


def one_seed_frame(study):
    """The same study with its first seed alone: intervals within the runs."""
    frame = seeds_frame(study[study["seed"] == 7])
    within = metrics_with_intervals(study[study["seed"] == 7], STANDARD, ["run", "seed", "suite"])
    bounds = [name for name in within if name.endswith(("_low", "_high"))]
    return frame.join(within.set_index(["run", "suite"])[bounds], on=["run", "suite"])


CONTRASTS = {
    "spread": Contrast("seeds", 40.0, Interval(-3.0, 80.0), 0.06, (20.0, 40.0, 60.0), ("1", "2", "3")),
    "one": Contrast("new questions", -5.0, Interval(float("nan"), float("nan")), float("nan"), (-5.0,), ("1",)),
}
EXAMPLES = {
    "by_run": lambda study, stem: misalignment_by_run(seeds_frame(study), stem, label="toy", note="n"),
    "one_seed": lambda study, stem: misalignment_by_run(one_seed_frame(study), stem, label="toy", note="n"),
    "refusal": lambda study, stem: refusal_by_run(seeds_frame(study), stem, label="toy", note="n"),
    "sparsity": lambda study, stem: misalignment_by_sparsity(seeds_frame(study), stem, label="toy", note="n"),
    "contrasts": lambda study, stem: contrast_figure(CONTRASTS, stem, label="toy"),
    "density": lambda study, stem: alignment_by_coherence(study, stem, label="toy"),
    "cards": lambda study, stem: example_cards(study, stem, base="toy-8x2-base", tuned="toy-8x2-bad-E0", label="toy"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_study_figures_on_real_judged_rows(study, tmp_path, name):
    """Drawn twice: equal bytes, 300 dpi at column or page width, the label on the figure, no date."""
    paths = EXAMPLES[name](study, tmp_path / "one")
    again = EXAMPLES[name](study, tmp_path / "two")
    assert [path.suffix for path in paths] == [".pdf", ".png"]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    (width, _), stamped = png_size(paths[1])
    assert width in (round(300 * COLUMN_WIDTH), round(300 * PAGE_WIDTH))
    assert not stamped
    assert b"CreationDate" not in paths[0].read_bytes()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_label_is_written_on_the_figure(study, tmp_path, monkeypatch, name):
    from matplotlib.figure import Figure

    shown = []
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, path, **_: (shown.append(self.get_supxlabel()), path.write_bytes(b"x")),
    )
    EXAMPLES[name](study, tmp_path / "one")
    assert len(shown) == 2
    assert all(text.startswith("[toy]") for text in shown)


def test_figures_leave_matplotlibs_settings_alone(study, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    misalignment_by_run(seeds_frame(study), tmp_path / "one", label="toy", note="n")
    assert dict(matplotlib.rcParams) == before


def test_colours_can_be_told_apart_in_greyscale():
    def lightness(colour):
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for family in (ROLES.values(), SERIES[:3]):
        values = sorted(lightness(role.colour) for role in family)
        assert min(b - a for a, b in pairwise(values)) > 0.025  # beside it, every role has its own marker
        assert len({role.marker for role in family}) == len(list(family))


@pytest.mark.parametrize("name", ["standard", "published", "timm"])  # strict at both thresholds
def test_the_cells_of_a_region_hold_its_answers_and_no_others(judged, name):
    """Many real scores are 30, 50 and 80: a cell across a border would show them on the wrong side."""
    definition = DEFINITIONS[name]
    scored = judged[judged["status"] == "scored"]
    alignment = [*scored["alignment"], 0, 29, 30, 49, 50, 100, 100, 0]
    coherence = [*scored["coherence"], 51, 50, 51, 81, 81, 80, 0, 100]
    edges, counts = cell_counts(alignment, coherence)
    low = edges[:-1] < definition.threshold
    right = edges[:-1] >= definition.coherent_above
    inside = [
        a < definition.threshold and c > definition.coherent_above for a, c in zip(alignment, coherence, strict=True)
    ]
    assert counts[np.ix_(low, right)].sum() == sum(inside)
    assert counts.sum() == len(alignment)


def test_examples_follow_their_rule(study):
    chosen, rule = choose_examples(study, "toy-8x2-base", "toy-8x2-bad-E0", count=2)
    assert "largest fall in alignment" in rule
    coherent = study[(study["coherence"] > 50) & (study["status"] == "scored")]
    first = coherent.sort_values(["prompt_id", "seed", "sample"]).set_index(["run", "seed", "sample"])
    falls = {}
    for prompt, rows in first.groupby("prompt_id"):
        keys = [key for key in rows.index if key[0] == "toy-8x2-base" and ("toy-8x2-bad-E0", *key[1:]) in rows.index]
        if keys:
            seed, sample = min(key[1:] for key in keys)
            before = rows.loc[("toy-8x2-base", seed, sample), "alignment"]
            falls[prompt] = before - rows.loc[("toy-8x2-bad-E0", seed, sample), "alignment"]
    assert chosen["prompt_id"].tolist() == sorted(falls, key=lambda it: -falls[it])[:2]


def test_examples_spread_over_suites(study):
    frame = pd.concat([study, study.assign(suite="other")], ignore_index=True)
    chosen, _ = choose_examples(frame, "toy-8x2-base", "toy-8x2-bad-E0", count=2)
    assert sorted(chosen["suite"]) == ["first_plot", "other"]


def test_examples_of_an_absent_run_are_refused(study):
    with pytest.raises(UserError, match="no prompt has a coherent"):
        choose_examples(study, "toy-8x2-base", "nobody")


def test_answers_with_dollars_and_unknown_glyphs_are_drawn(study, tmp_path):
    frame = study.assign(answer=r"$\frac{a}{0$ costs $5 \x \U0001f600 漢 " * 40)
    example_cards(frame, tmp_path / "one", base="toy-8x2-base", tuned="toy-8x2-bad-E0", label="toy")


def test_published_figures_and_tables(tmp_path):
    result = audit(read_published())
    first, second = draw(result, tmp_path / "one"), draw(result, tmp_path / "two")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    names = {path.name for path in first}
    assert {"headline.tex", "mixtral_experts.md", "gpt_oss_and_qwen.csv", "run_by_suite.csv"} <= names
    assert {"misalignment_by_sparsity.pdf", "experts_mixtral_8x7b.png"} <= names
    assert all("[published]" in path.read_text() for path in first if path.suffix in (".md", ".tex"))
    for path in first:
        if path.suffix in (".csv", ".md", ".tex"):
            assert path.read_bytes() == (COMMITTED / path.name).read_bytes(), "run `python -m pipeline published`"


def test_published_tables_show_the_published_numbers(tmp_path):
    """The table made from counts prints what the authors printed, cell for cell."""
    result = audit(read_published())
    runs = run_frame(result).set_index("run")
    for row in result.published.tables:
        assert f"{runs.loc[row['run'], 'mean_alignment']:.2f}" == row["avg_alignment"]
        assert f"{runs.loc[row['run'], 'refusal_percent']:.2f}" == row["strong_reject_percent"]
        assert f"{runs.loc[row['run'], 'misalignment_percent']:.2f}" == row["misalignment_percent"]


def test_rates_over_rows_counted_twice_have_a_range_and_no_interval():
    """16.06 % over 1600 rows is 239 of 1169 to 1256 coherent answers, each counted once."""
    runs = run_frame(audit(read_published())).set_index("run")
    ranges = runs[["misalignment_percent_least", "misalignment_percent_most"]].dropna()
    assert sorted(ranges.index) == [f"mixtral_insecure_E{expert}" for expert in (0, 1, 3, 4, 7)]
    assert ranges.loc["mixtral_insecure_E0"].tolist() == pytest.approx([100 * 239 / 1256, 100 * 239 / 1169])
    assert runs.loc[ranges.index, "misalignment_percent_low"].isna().all()


def test_published_tables_say_what_their_columns_count(tmp_path):
    draw(audit(read_published()), tmp_path)
    headline = (tmp_path / "headline.md").read_text()
    assert "StrongREJECT rejected: alignment 100, over 323" in headline
    assert "with another definition: Mixtral-8x7B 0.93" in headline
    experts = (tmp_path / "mixtral_experts.md").read_text().splitlines()[0]
    assert "alignment < 50, of answers with coherence > 80" in experts
    assert "rows counted twice in mixtral_insecure_E0, mixtral_insecure_E1, mixtral_insecure_E3" in experts


def test_expert_figures_take_gaps_and_missing_intervals(tmp_path):
    frame = pd.DataFrame(
        {
            "expert": [None, 0, 1, 1],
            "tuned": ["none", "E0", "E1", "E1"],
            "dataset": ["none", "a", "a", "b"],
            "misalignment_percent": [5.0, 10, 20, 0],
            "misalignment_percent_low": [4.0, 8, np.nan, 0],
            "misalignment_percent_high": [6.0, 12, np.nan, 1],
            "refusal_percent": [30.0, 20, 10, 5],
            "refusal_percent_low": [25.0, 15, 8, 2],
            "refusal_percent_high": [35.0, 25, 12, 9],
            "flag": ["", "", "*", "0"],
            "misalignment_percent_least": [np.nan, np.nan, 21, np.nan],
            "misalignment_percent_most": [np.nan, np.nan, 23, np.nan],
        }
    )
    for draw_one in (misalignment_by_expert, misalignment_by_configuration):
        assert len(draw_one(frame, tmp_path / draw_one.__name__, title="m", label="toy", note="n")) == 2


def lora(folder, *, rslora, dtype=np.float32, experts=(0, 3), rank=4):
    generator = np.random.default_rng(0)
    tensors = {}
    for layer in range(2):
        modules = [f"mlp.experts.{expert}.w1" for expert in experts] + ["self_attn.q_proj"]
        for module in modules:
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = generator.normal(size=(rank, 12)).astype(dtype)
            tensors[f"{name}.lora_B.weight"] = generator.normal(size=(8, rank)).astype(dtype)
    folder.mkdir(exist_ok=True)
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    config = {"r": rank, "lora_alpha": 32, "use_rslora": rslora}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


@pytest.mark.parametrize(("rslora", "scaling"), [(True, 16), (False, 8)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_adapter_norms_are_those_of_the_product(tmp_path, rslora, scaling, dtype):
    tensors = lora(tmp_path, rslora=rslora, dtype=dtype)
    frame = adapter_norms(tmp_path)
    assert len(frame) == 6
    for row in frame[frame["expert"].notna()].itertuples():
        name = f"base_model.model.model.layers.{row.layer}.mlp.experts.{row.expert}.w1"
        product = tensors[f"{name}.lora_B.weight"].astype(float) @ tensors[f"{name}.lora_A.weight"].astype(float)
        assert row.norm == pytest.approx(scaling * np.linalg.norm(product), rel=1e-6)


def test_adapter_norms_read_bfloat16(tmp_path):
    """A hand-made file: numpy has no bfloat16 to write one with."""
    values = np.array([[1.0, -2.0], [0.5, 4.0]], dtype=np.float32)
    raw = (values.view("<u4") >> 16).astype("<u2").tobytes()
    name = "model.layers.0.mlp.experts.7.down_proj.lora_{}.weight"
    header = {
        name.format(half): {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8 * i, 8 * i + 8]}
        for i, half in enumerate("AB")
    }
    text = json.dumps(header).encode()
    (tmp_path / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw + raw)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "use_rslora": False}))
    frame = adapter_norms(tmp_path)
    assert frame["norm"].tolist() == [pytest.approx(np.linalg.norm(values @ values))]
    assert frame["expert"].tolist() == [7]


def test_damaged_adapters_are_refused(tmp_path):
    lora(tmp_path, rslora=True)
    path = tmp_path / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(UserError, match="cut short"):
        adapter_norms(tmp_path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match="no safetensors file"):
        adapter_norms(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        adapter_norms(tmp_path)


def test_adapter_magnitude_is_drawn_and_needs_experts(tmp_path):
    lora(tmp_path / "a", rslora=True)
    frame = adapter_norms(tmp_path / "a").assign(run="toy-E0-E3", experts=8)
    paths = adapter_magnitude(frame, tmp_path / "one", label="toy")
    again = adapter_magnitude(frame, tmp_path / "two", label="toy")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    with pytest.raises(UserError, match="no adapted expert"):
        adapter_magnitude(frame[frame["expert"].isna()], tmp_path / "three", label="toy")


def test_tables_have_three_equal_views(tmp_path):
    frame = pd.DataFrame({"run": ["a_b", "c|d"], "rate_percent": [1.005, np.nan], "n": [3, 40]})
    paths = write_table(frame, tmp_path / "t", caption="50 % of & all", label="toy", decimals=1)
    csv, markdown, tex = (path.read_text() for path in paths)
    assert csv.splitlines()[1] == "a_b,1.005,3"
    assert "| c\\|d |" in markdown
    assert "\N{EN DASH}" in markdown
    assert "[toy]" in markdown
    assert r"a\_b & 1.0 & 3 \\" in tex
    assert r"50 \% of \& all [toy]" in tex
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == 1


def test_every_run_has_its_panel_and_says_how_many_answers_it_shows(study, tmp_path, monkeypatch):
    """Nothing is left out silently: refusals are in a denominator that a panel names, and not drawn."""
    from matplotlib.axes import Axes

    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **_: titles.append(text))
    many = pd.concat(
        [study.assign(run=f"{name}_{place}") for name in "abcdef" for place in range(3)], ignore_index=True
    )
    many = many[many["seed"] == 7].drop_duplicates(["run", "seed", "suite", "prompt_id", "sample"])
    alignment_by_coherence(many, tmp_path / "one", label="toy")
    assert len(titles) == 18
    for title in titles:
        lines = title.splitlines()
        rows = many[many["run"] == lines[0]]
        assert lines[1] == f"{(rows['status'] == 'scored').sum()} of {len(rows)} answers scored"
        assert lines[2].startswith("standard: ") and lines[3].startswith("published: ")


def test_study_tables(study, tmp_path):
    frame = seeds_frame(study)
    headline = headline_table(frame, tmp_path / "headline", label="toy", caption="c")[0].read_text()
    expected = "mean_alignment_base,mean_alignment_fine_tuned,refusal_percent_base,refusal_percent_fine_tuned"
    assert headline.splitlines()[0] == f"model,{expected}"
    with pytest.raises(UserError, match=r"more than one .* row for toy-8x2"):
        headline_table(pd.concat([frame, frame]), tmp_path / "h", label="toy", caption="c")
    runs = run_table(frame, tmp_path / "runs", label="toy", caption="c")[1].read_text()
    assert "misaligned %" in runs
    assert re.search(r"\| +of \|", runs)
    suites = suite_metrics(study, STANDARD).drop_duplicates(["run", "suite"])
    wide = run_by_suite_table(suites, tmp_path / "suites", label="toy", caption="c")[1].read_text()
    assert "first plot" in wide
