"""Experiments: defaults written out, everything unknown refused by name."""

from __future__ import annotations

import pytest

from models.experiment import Experiment, Inputs
from models.registry import entry, needs
from pipeline.contracts.errors import InputError


def test_resolving_fills_in_the_models_defaults():
    made = Experiment("a", "subspace", lr=0.5).resolved("survival")
    assert (made.epochs, made.batch_size, made.lr, made.weight_decay) == (20, 8, 0.5, 0.1)
    assert Experiment("a", "subspace").resolved("classification").weight_decay == 0.01
    assert made.params["coordination"] == "projection" and made.params["fixed_length"] is None
    reference = Experiment("a", "subspace", reference=True, params={"gecon": "none"}).resolved("survival")
    assert reference.params["coordination"] == "reflection" and reference.params["gecon"] == "none"
    assert reference.resolved("survival") == reference


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "subspce"}, "unknown model 'subspce'; did you mean 'subspace'"),
        ({"epochs": 0}, "epochs of 'a' is 0"),
        ({"batch_size": 2.5}, "a whole number"),
        ({"lr": "fast"}, "lr of 'a' is 'fast'"),
        ({"precision": "float16"}, "use float32 or bfloat16"),
        ({"name": "a b"}, "experiment name 'a b' is not allowed"),
    ],
)
def test_refusals(change, words):
    with pytest.raises(InputError, match=words):
        Experiment(**{"name": "a", "model": "snn", **change})


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        ({"model": "snn", "params": {"droput": 0.1}}, "no hyper-parameter 'droput'; did you mean 'dropout'"),
        ({"model": "snn", "params": {"dropout": 1.5}}, "dropout is 1.5"),
        ({"model": "subspace", "params": {"gecon": "definitoin"}}, "did you mean 'definition'"),
        ({"model": "linear", "reference": True}, "model 'linear' has no reference mode"),
    ],
)
def test_hyper_parameters_are_checked_when_resolved(experiment, words):
    with pytest.raises(InputError, match=words):
        Experiment(name="a", **experiment).resolved("survival")


def test_registry_needs():
    assert needs("linear") == {"genes"} and needs("abmil") == {"slides"} and needs("concat") == {"slides", "genes"}
    with pytest.raises(InputError, match="did you mean 'concat'"):
        entry("conact")


def test_inputs_are_checked_against_needs():
    with pytest.raises(InputError, match="needs slides"):
        Inputs("s", "c").check(Experiment("a", "abmil"))
    with pytest.raises(InputError, match="needs genes"):
        Inputs("s", "c", features_index="i").check(Experiment("a", "concat"))
    Inputs("s", "c", features_index="i").check(Experiment("a", "abmil"))


def test_inputs_from_named():
    made = Inputs.from_named({"splits": "s.tsv", "genes": ["r/genes/t/fold0.json", "r/genes/t/fold1.json"]}, "c.tsv")
    assert str(made.genes_path(3)) == "r/genes/t/fold3.json" and made.features_index is None
    assert Inputs.from_named({"splits": "s.tsv"}, "c.tsv").genes_dir is None
