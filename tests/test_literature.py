"""Published cells: well-formed, sourced, equal to what their sources say, and beside ours where both match."""

from __future__ import annotations

import math
import re

import pytest

from dstbench.reports import boards, literature
from dstbench.reports.load import frame
from dstbench.suite import registry
from records import make

# Methods of the literature that this suite has not, on purpose.
UNKNOWN = {
    "bi_mask", "bregman", "compression_by_optimisation", "dense_ensemble", "dnw", "dns", "east", "gap", "ham:str",
    "han2015", "l_obs", "neurotrails", "obd", "optg", "pilot", "random", "saliency", "soft_weight_sharing",
    "targeted_dropout", "variational_dropout", "zo_sam:mest", "zo_sam:rigl",
}  # fmt: skip
# Tasks of this suite that have published cells, and tasks of the literature that it has not.
OURS = {
    "cifar10/resnet18", "cifar10/resnet32", "cifar10/resnet50", "cifar10/resnet56", "cifar10/set_mlp", "cifar10/vgg16",
    "cifar10/vgg19", "cifar10/wrn22_2", "cifar10/wrn28_10", "cifar100/resnet32", "cifar100/resnet50", "cifar100/vgg19",
    "fashion_mnist/cnn2022", "imagenet/deit_small",
    "imagenet/deit_tiny", "imagenet/resnet50", "imagenet/vit_base", "mnist/lenet300", "mnist/lenet5", "mnist/mlp2022",
    "text/gpt_small", "text/gpt_tiny",
}  # fmt: skip
OTHERS = {
    "asdiv_a/graph2tree", "asdiv_a/gts", "c4/llama_350m", "c4/t5_base", "cifar10/airbench", "cifar10/resnet34",
    "cifar10/wrn28_2", "fashion_mnist/set_tutorial",
    "imagenet/deit_base", "imagenet/dinov2_vit_large", "imagenet/mobilenet_v1", "imagenet/resnet18",
    "mawps/graph2tree", "mawps/gts", "mnist1d/cnn", "mnist1d/gru", "mnist1d/logistic", "mnist1d/mlp",
    "svamp/graph2tree", "svamp/gts", "text/sparselab_gpt", "text/sparselab_gpt_40m", "wmt14_en_de/transformer",
}  # fmt: skip
RANGES = {"accuracy": (0, 1), "loss": (0, 10), "perplexity": (1, 1000), "bleu": (0, 100)}


def test_every_cell_is_well_formed_and_sourced():
    table = literature.published()
    assert len(table) >= 500 and tuple(table.columns) == literature.COLUMNS
    for row in table.itertuples(index=False):
        low, high = RANGES[row.metric]
        assert low <= row.mean <= high and (math.isnan(row.spread) or 0 <= row.spread < 0.2 * (high - low)), row
        assert math.isnan(row.sparsity) or 0 <= row.sparsity < 1, row
        assert (row.sparsity == 0) == (row.method.startswith("dense") or row.variant.startswith("lam 0,")), row
        assert len(row.source) > 10 and not any(text != text.strip() for text in row if isinstance(text, str)), row
        how = literature.protocol(row.protocol)
        assert all(how[name].isdecimal() for name in how.keys() & {"epochs", "steps", "batch", "train", "seeds"}), row
        assert how.get("judged", "valid") == "valid" and how.get("selection", "last") in ("last", "test", "valid")
    assert not table.duplicated(["task", "method", "variant", "sparsity", "metric", "source"]).any()


def test_names_are_this_suites_or_known_to_be_missing():
    table = literature.published()
    assert set(table["method"]) - registry.methods().keys() == UNKNOWN
    assert set(table["task"]) == OURS | OTHERS


@pytest.mark.parametrize(
    ("task", "method", "variant", "sparsity", "source", "mean", "spread"),
    [
        ("imagenet/resnet50", "rigl", "ERK", 0.9, "tables 2 and 4", 0.730, 0.0004),
        ("imagenet/resnet50", "ham:acdc", "", 0.95, "HAM", 0.7545, None),
        ("imagenet/resnet50", "str", "", 0.9805, "STR", 0.6146, None),
        ("cifar10/wrn22_2", "set", "uniform, 2x", 0.9, "reproducibility", 0.833, 0.1533),
        ("cifar100/resnet50", "rigl", "ERK", 0.9, "reproducibility", 0.726, 0.0037),
        ("cifar10/wrn22_2", "static", "ERK", 0.95, "issue 8", 0.890, None),
        ("cifar10/resnet50", "magnitude", "", 0.95, "GraNet", 0.9452, 0.0008),
        ("cifar10/resnet34", "east", "", 0.9999, "EAST", 0.6212, None),
        ("mnist/lenet300", "set", "", 0.99, "MNIST_sparse_summary", 0.9580, None),
        ("mnist/lenet300", "snfs", "", 0.99, "compression", 0.9764, None),
        ("mnist/mlp2022", "linbreg", "lam 0.1, first run", 0.9194, "July 2021", 0.9747, None),
        ("imagenet/vit_base", "ste", "ERK, 300 epochs", 0.8, "JaxPruner", 0.7613, None),
        ("c4/t5_base", "magnitude", "global", 0.8, "JaxPruner", 5.440, None),
    ],
)
def test_cells_equal_the_text_that_they_were_read_in(task, method, variant, sparsity, source, mean, spread):
    table = literature.published()
    same = (table["task"] == task) & (table["method"] == method) & (table["variant"] == variant)
    same &= (table["sparsity"] - sparsity).abs() < 1e-9
    (row,) = table[same & table["source"].str.contains(source, regex=False)].itertuples(index=False)
    assert row.mean == pytest.approx(mean) and (math.isnan(row.spread) if spread is None else row.spread == spread)


def test_a_protocol_is_read_with_its_note_and_no_other_field():
    assert literature.protocol("epochs=30; batch=128; note=a=1; b") == {
        "epochs": "30",
        "batch": "128",
        "note": "a=1; b",
    }
    assert literature.protocol("") == {}
    with pytest.raises(ValueError, match="'epoch' is no field; expected epochs"):
        literature.protocol("epoch=30")


def shown(records):
    runs = frame(records)
    return literature.board(runs, boards.cells(runs), records)


def lenet(method, sparsity, seed, test, steps=54000, **method_params):
    params = {"recipe": {"steps": steps, "batch": 100}, "method": method_params}
    return make(method, sparsity, seed, test, task="mnist/lenet300", params=params)


def test_our_cells_stand_beside_the_published_ones_that_match():
    records = [lenet("dense", None, s, 0.98) for s in range(2)]
    records += [lenet("snfs", level, s, 0.97 + 0.002 * s) for level in (0.95, 0.5) for s in range(2)]
    found = shown(records)
    assert list(found["method"]) == ["dense", "snfs", "snfs"] and list(found["published"]) == [0.9869, 0.9853, 0.9847]
    row = found.iloc[1]
    assert (row["sparsity"], row["n"], row["mean"]) == (0.95, 2, pytest.approx(0.971))
    assert row["difference"] == pytest.approx(0.971 - 0.9853)
    assert "trained on 54,000 images" in row["differs"] and "ours 100" not in row["differs"]
    table = literature.table(found)
    texts = [cell.text for cell in table.rows[1]]
    assert texts[:6] == ["mnist/lenet300", "95 %", "snfs", "97.10 ± 1.27", "98.53", "-1.43 ± 1.27"]
    assert texts[-1].endswith("MNIST_sparse_summary.csv")


def test_what_differs_in_protocol_is_said():
    said = literature.differences(
        "ERK, 2x",
        {"epochs": "100", "train": "54000", "batch": "100", "selection": "test", "seeds": "3", "note": "decay 5e-4"},
        {"recipe": {"steps": 5400, "batch": 50}, "method": {"allocation": "uniform_rigl"}},
        0.1,
    )
    assert said == [
        "100 epochs of 54,000 images, ours 5", "batch 100, ours 50", "trained on 54,000 images", "ours at budget 0.1",
        "ERK, ours uniform_rigl", "step chosen on test, ours the last", "3 seeds", "decay 5e-4",
    ]  # fmt: skip
    assert literature.differences("", {"steps": "2000"}, {"recipe": {"steps": 2000, "batch": 12}}, 1.0) == []
    assert literature.differences("", {"epochs": "9", "batch": "2"}, {"recipe": [], "method": None}, 1.0) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [(0.9, 0.9023, True), (0.9, 0.91, False), (0.0, 0.0, True), (0.0, 0.04, False), (0.9, math.nan, False)],
)
def test_levels_match_by_density(ours, theirs, same):
    assert literature.near(ours, theirs) is same


def test_where_lambda_makes_the_level_lambda_is_what_matches():
    params = {"recipe": {"steps": 13360, "batch": 128}, "method": {"control": "fixed", "lam": 0.1}}
    how = {"task": "mnist/mlp2022", "params": params, "status": "off_target"}
    records = [make("linbreg", 0.9, s, 0.96, score={"valid": 0.964 + 0.002 * s}, **how) for s in range(2)]
    for record in records:
        record["sparsity"]["achieved"] = 0.943
    records.append(make("linbreg", 0.95, 0, 0.9, task="mnist/mlp2022"))  # lambda is not fixed
    found = shown(records)
    assert list(found["variant"]) == ["lam 0.1, first run", "lam 0.1, second run"]
    assert found["mean"].iloc[0] == pytest.approx(0.965) and found["sparsity"].iloc[0] == pytest.approx(0.943)
    assert "both on valid" in found["differs"].iloc[0]
    assert literature.table(found).rows[0][1].text == "94.3 % (91.94 %)"


def test_all_runs_of_a_lambda_are_one_cell_whether_on_target_or_not():
    params = {"recipe": {"steps": 13360, "batch": 128}, "method": {"control": "fixed", "lam": 0.1}}
    how = {"task": "mnist/mlp2022", "params": params}
    valid = {0: 0.96, 1: 0.97, 2: 0.98}
    ends = {0: "ok", 1: "off_target", 2: "off_target"}
    records = [make("linbreg", 0.9, s, 0.9, score={"valid": v}, status=ends[s], **how) for s, v in valid.items()]
    found = shown(records)
    assert list(found["n"]) == [3, 3] and found["mean"].iloc[0] == pytest.approx(0.97)


def test_what_a_user_defines_or_changes_is_told_from_the_published():
    defined = make("snfs", 0.95, 0, 0.9, task="mnist/lenet300", id={"definition": {"name": "mnist/lenet300"}})
    assert shown([defined]).empty
    record = lenet("snfs", 0.95, 0, 0.9)
    record["id"]["recipe"] = {"lr.sgd": 5.0}
    assert "ours with lr.sgd 5.0" in shown([record])["differs"].iloc[0]
    said = literature.differences("m 99, uniform", {}, {"method": {"m": 9, "allocation": "uniform"}}, 1.0)
    assert said == ["m 99, ours 9"]
    assert literature.differences("m 99", {}, {"method": {"m": 99}}, 1.0) == []


def test_where_nothing_matches_nothing_is_shown():
    assert shown([make("dense", None), make("rigl", 0.9)]).empty and shown([]).empty
    other = make("rigl", 0.9, task="mnist/lenet300", score={"metric": "loss"})
    assert shown([other, lenet("dsr", 0.5, 0, 0.9)]).empty


def test_losses_stand_without_per_cent():
    score = {"metric": "loss", "higher_is_better": False, "chance": math.log(65)}
    values = [(s, 1.9 + 0.02 * s) for s in range(2)]
    records = [make("dense", None, s, 9.0, task="text/gpt_tiny", score=score | {"valid": v}) for s, v in values]
    table = literature.table(shown(records))
    assert [cell.text for cell in table.rows[0][:6]] == ["text/gpt_tiny loss ↓", "0 %", "dense", "1.91 ± 0.13", "1.88",
                                                         "+0.03 ± 0.127"]  # fmt: skip
    assert table.notes[-1] == "↓: lower is better." and not re.search("%", table.rows[0][5].text)
