import re
import shutil

import numpy as np
import pandas as pd
import pytest

from kerasgan import plots
from kerasgan.compare import Arm, compare_arms
from kerasgan.crossval import read_scores
from kerasgan.films import save_films
from kerasgan.mixes import CORE_ARMS, Mix
from kerasgan.report import (
    banner,
    caution,
    check_tables,
    summary_table,
    write_evaluation,
    write_report,
    write_rows,
)
from kerasgan.runs import Run, write_text


@pytest.fixture(scope="module")
def run(films16, tmp_path_factory):
    from dataclasses import replace

    run = Run("a <b>", "smoke", "simulated", root=tmp_path_factory.mktemp("runs"))
    facts = {"name": "simulated", "note": "SIMULATED FILMS, not <patients>"}
    films = replace(films16, **facts, skipped=(("x.ini", "no image"),))
    save_films(films, run.path("films"))
    train, test = run.split()
    table = compare_arms([Arm("O1", "real")], train, test, epochs=2, batches=1, passes=2)
    run.save_table(table, "comparison")
    run.save_table(pd.DataFrame({"severity": ["serious"], "finding": ["a <leak>"]}), "audit")
    run.save_figure(plots.plot_counts(films), "counts")
    run.finish("01_data", 12)
    return run


def test_the_report_is_one_page_by_itself(run):
    page = write_report(run, ["01_data"]).read_text()
    assert page.count("data:image/png;base64,") == 1
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for text in ("not for diagnosis", "adults", "SIMULATED FILMS", "x.ini", "12 s", "O1"):
        assert text in page
    assert "<patients>" not in page and "<leak>" not in page and "&lt;leak&gt;" in page


def test_other_peoples_films_do_not_carry_the_studys_confound(films16):
    assert "ask the audit" in caution(films16) and "adults" not in caution(films16)


def test_the_report_warns_where_films_are_told_without_their_lungs(run, films16, tmp_path):
    def page(arm_gain):
        other = Run("b", "smoke", "simulated", root=tmp_path / str(arm_gain))
        save_films(films16, other.path("films"))
        table = pd.read_csv(run.folder / "comparison.csv")
        table["value"] = arm_gain
        other.save_table(table, "comparison")
        return write_report(other).read_text()

    assert "without seeing a lung" in page(0.4)
    assert "histogram only: macro sensitivity" not in page(5.0)


def test_the_summary_has_an_interval_for_each_arm(run):
    table = summary_table(run)
    assert table["arm"].tolist() == ["O1"]
    low, high = map(float, table["95 % interval"][0].split(" to "))
    assert low <= float(table["accuracy"][0]) <= high


def test_a_table_that_lacks_a_column_is_named(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "a")
    other = Run("a", None, root=tmp_path)
    table = pd.read_csv(other.folder / "comparison.csv")
    other.save_table(table.drop(columns="evaluation"), "comparison")
    with pytest.raises(ValueError, match="lacks the columns evaluation: run notebook 04"):
        summary_table(other)


def test_the_banner_warns(run):
    page = banner(run.films()).data
    assert "not for diagnosis" in page and "&lt;patients&gt;" in page and "48 films" in page


def test_no_comparison_yet(tmp_path):
    with pytest.raises(FileNotFoundError, match="04_comparison"):
        summary_table(Run("a", "smoke", root=tmp_path))


def test_an_evaluation_becomes_tables_and_figures(films16, tmp_path):
    rng = np.random.default_rng(0)
    for fold, (_, test) in enumerate(films16.folds(2)):
        for arm in (*CORE_ARMS, Mix("HOG + SVM", "baseline")):
            chances = rng.dirichlet([0.3] * 4, len(test))
            chances[np.arange(len(test)), test.labels] += 0.5
            table = pd.DataFrame(chances / 1.5, columns=[f"p_{name}" for name in test.classes])
            table = table.assign(filename=test.index["filename"], patient=test.patients, seed=0)
            table["class"] = test.index["class"]
            network = "scikit-learn" if arm.kind == "baseline" else "resnet"
            table = table.assign(arm=arm.name, kind=arm.kind, classifier=network, repeat=0)
            path = tmp_path / "cells" / f"repeat0-fold{fold}" / f"{arm.name}.csv"
            write_text(path, table.assign(fold=fold).to_csv(index=False))
    write_evaluation(films16, tmp_path / "cells", tmp_path / "out", 2, ["resnet"])
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert list(table) == [
        *("arm", "kind", "classifier", "repeat", "fold", "seed", "class", "metric", "value"),
        "data_hash",
    ]
    assert set(table["kind"]) == {"real", "classic", "duplicated", "synthetic", "baseline"}
    statistics = pd.read_csv(tmp_path / "out" / "statistics.csv")
    assert list(statistics) == [
        *("arm", "kind", "control", "classifier", "metric", "difference", "low", "high", "p"),
        *("p_adjusted", "n", "primary"),
    ]
    assert statistics["primary"].sum() == 1
    assert set(statistics["n"]) == {2, len(films16)}
    names = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert names == {f"comparison-resnet-{n}" for n in ("differences", "confusion", "reliability")}

    shutil.copytree(tmp_path / "out", tmp_path / "again")
    for name in "comparison", "statistics", "levels":  # an ensemble of that repeat
        own = pd.read_csv(path := tmp_path / "again" / f"{name}.csv")
        own = [own, own[own["classifier"] == "resnet"].assign(classifier="resnet + transfer")]
        pd.concat(own).to_csv(path, index=False)
    for path in (tmp_path / "cells").glob("*/*.csv"):  # a further repeat, of another folder
        if path.stem not in ("synthetic only", "HOG + SVM"):
            own = pd.read_csv(path).assign(fold=int(path.parent.name[-1]), repeat=1)
            write_text(tmp_path / "later" / f"repeat1-{path.parent.name}" / path.name, own.to_csv())
    options = {"n_splits": 2, "classifiers": ["resnet"], "go_on": True}
    scores, tests = write_evaluation(films16, tmp_path / "later", tmp_path / "again", **options)
    once = table["arm"].isin(["synthetic only", "HOG + SVM"]).sum()
    assert set(scores["repeat"]) == {0, 1} and len(scores) == 2 * len(table) - once
    folds = tests[tests["metric"] == "specificity"].set_index("arm")["n"]
    assert folds["synthetic only"] == 2 and folds["classic + synthetic"] == 4
    for name in "comparison", "statistics", "levels":
        stored = pd.read_csv(tmp_path / "again" / f"{name}.csv")
        assert "resnet + transfer" in set(stored["classifier"]), "goes on without the ensemble"
        assert "HOG + SVM" in set(stored["arm"]), "goes on without the baselines"
    stored = pd.read_csv(tmp_path / "again" / "statistics.csv").query("classifier == 'resnet'")
    assert "synthetic only" in set(stored[stored["n"] == len(films16)]["arm"])
    assert not stored.duplicated(["arm", "metric", "classifier"]).any()
    pooled = stored["metric"].isin(["sensitivity_bootstrap", "accuracy_mcnemar"])
    kept = statistics["metric"].isin(["sensitivity_bootstrap", "accuracy_mcnemar"])
    columns = ["arm", "metric", "difference", "low", "high", "p"]
    was = statistics[kept][columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(stored[pooled][columns].reset_index(drop=True), was)
    first, later = (pd.read_csv(tmp_path / f / "levels.csv") for f in ("out", "again"))
    later = later.query("classifier != 'resnet + transfer'")
    pooled = (x[x["metric"].str.endswith("_bootstrap")] for x in (first, later))
    pd.testing.assert_frame_equal(*(x.reset_index(drop=True) for x in pooled))
    assert first.query("metric == 'sensitivity'")["n"].eq(2).all()
    assert later.query("metric == 'sensitivity' and arm == 'real'")["n"].item() == 4
    with pytest.raises(ValueError, match="of other films"):
        later = scores[scores["repeat"] == 1].assign(data_hash="other")
        write_rows(tmp_path / "again", "comparison", later, go_on=True)

    for path in (tmp_path / "cells").glob("*/*.csv"):  # another classifier, of another folder
        own = pd.read_csv(path).assign(fold=int(path.parent.name[-1]))
        own["classifier"] = own["classifier"].replace("resnet", "cnn")
        write_text(path, own.to_csv(index=False))
    write_evaluation(films16, tmp_path / "cells", tmp_path / "out", 2, ["cnn"])
    for name, before in {"comparison": table, "statistics": statistics}.items():
        both = pd.read_csv(tmp_path / "out" / f"{name}.csv")
        kept = both[both["classifier"] == "resnet"].reset_index(drop=True)
        was = before[before["classifier"] == "resnet"].reset_index(drop=True)
        pd.testing.assert_frame_equal(kept, was)
        assert {"cnn", "resnet"} <= set(both["classifier"])
        assert both.duplicated().sum() == 0
    other = films16.take(np.arange(1, len(films16)))
    with pytest.raises(ValueError, match="of other films"):
        write_rows(tmp_path / "out", "comparison", read_scores(tmp_path / "cells", other))
    with pytest.raises(ValueError, match="of other films"):
        check_tables(tmp_path / "out", other, 2, "cnn")
    missing = pd.read_csv(tmp_path / "again" / "comparison.csv")
    assert "synthetic only" not in set(missing.query("repeat == 1")["arm"])
    check_tables(tmp_path / "again", films16, 2, "resnet", first_repeat=2)
    with pytest.raises(ValueError, match="does not say what the rows of resnet were made with"):
        check_tables(tmp_path / "again", films16, 2, "resnet", 2, {"steps": 300})
    write_evaluation(films16, tmp_path / "later", tmp_path / "again", **options, made={"steps": 2})
    check_tables(tmp_path / "again", films16, 2, "resnet", 2, {"steps": 2, "encoder": "hog"})
    with pytest.raises(ValueError, match="made with steps=2: .* Received: 300"):
        check_tables(tmp_path / "again", films16, 2, "resnet", 2, {"steps": 300})
    half = missing.query("arm != 'real' or fold == 0")
    write_text(tmp_path / "half" / "comparison.csv", half.to_csv(index=False))
    for name in "statistics", "levels":
        shutil.copy(tmp_path / "again" / f"{name}.csv", tmp_path / "half")
    with pytest.raises(ValueError, match="folds 0 of repeat 0 of resnet, real, not 2"):
        check_tables(tmp_path / "half", films16, 2, "resnet", first_repeat=2)
    with pytest.raises(ValueError, match="more than 1 folds"):
        check_tables(tmp_path / "again", films16, 1, "resnet")
    with pytest.raises(ValueError, match="folds 0, 1 of repeat 0 of resnet, .*, not 3"):
        check_tables(tmp_path / "again", films16, 3, "resnet", first_repeat=1)
    with pytest.raises(FileNotFoundError, match="to go on from"):
        check_tables(tmp_path / "new", films16, 2, "resnet", first_repeat=1)
    (tmp_path / "out" / "comparison.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no table of this kind: move comparison.csv away"):
        write_evaluation(films16, tmp_path / "cells", tmp_path / "out", 2, ["cnn"])


def test_baselines_of_a_fold_stand_once_and_tell_other_folds(tmp_path):
    columns = ["arm", "kind", "classifier", "repeat", "fold", "seed", "class", "metric", "value"]

    def rows(classifier, folds, value):
        own = [("real", "real", classifier, 0, fold, 0, "macro", "f1", 0.5) for fold in folds]
        hog = ("HOG + SVM", "baseline", "scikit-learn", 0)
        own += [(*hog, fold, 0, "macro", "f1", value + fold) for fold in folds]
        return pd.DataFrame(own, columns=columns).assign(data_hash="x")

    def written(table):
        write_rows(tmp_path, "comparison", table)
        return pd.read_csv(tmp_path / "comparison.csv")

    written(rows("resnet", (0, 1, 2), 1 / 3))
    both = written(rows("transfer", (0,), 1 / 3 + 1e-7))  # on another processor
    assert both["classifier"].value_counts().to_dict() == {
        **{"resnet": 3, "scikit-learn": 3, "transfer": 1}
    }
    ensemble = written(rows("cnn + transfer", (0,), 1 / 3))
    assert set(ensemble["classifier"]) == {"resnet", "scikit-learn", "cnn + transfer"}
    with pytest.raises(ValueError, match="of other films or folds"):
        written(rows("cnn", (0, 1), 0.4))
