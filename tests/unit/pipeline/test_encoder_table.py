"""Known encoders: what a config entry takes from the table, and that timm builds what the table says."""

from __future__ import annotations

import pytest

from pipeline.contracts.errors import InputError
from pipeline.encoder_table import KNOWN, completed, departures
from pipeline.encoders import EncoderSpec
from pipeline.torchvision_ops import ensure_torchvision

LOADABLE = [key for key, known in KNOWN.items() if not known.obstacle]


@pytest.mark.parametrize(
    "entry", [{"preset": "uni"}, {"slug": "uni"}, {"slug": "mine", "name": "hf_hub:mahmoodlab/uni"}]
)
def test_a_known_encoder_is_named_in_three_ways(entry):
    found = completed(entry)
    assert found["slug"] == entry.get("slug", "uni") and found["preset"] == "uni"
    assert found["name"].lower().endswith("mahmoodlab/uni") and found["mean"] == [0.485, 0.456, 0.406]
    assert found["args"]["init_values"] == 1e-5 and found["input_px"] == 224
    assert EncoderSpec(**found).hub_id.lower() == "mahmoodlab/uni"


def test_what_an_entry_says_itself_stays():
    entry = {"slug": "u", "preset": "virchow2", "pooling": "class", "input_px": 448, "args": {"reg_tokens": 8}}
    found = completed(entry)
    assert (found["pooling"], found["input_px"], found["slug"]) == ("class", 448, "u")
    assert found["args"] == {**KNOWN["virchow2"].args, "reg_tokens": 8}
    assert KNOWN["virchow2"].args["reg_tokens"] == 4


def test_an_entry_that_is_not_known_stays_as_it_is():
    entry = {"slug": "resnet50", "name": "resnet50.tv_in1k", "weights": "pretrained"}
    assert completed(entry) == entry


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"preset": "uni2h"}, "unknown preset 'uni2h'; did you mean 'uni2-h'"),
        ({"slug": "mine"}, "neither name nor preset is given. Fix: presets are resnet50, papers-resnet50-l3, uni,"),
        ({"name": "resnet18"}, "slug is missing"),
        ({"preset": "conch"}, "conch cannot be loaded: .*its own package.*huggingface.co/MahmoodLab/CONCH"),
        ({"slug": "p", "name": "hf-hub:owkin/phikon"}, "transformers library"),
    ],
)
def test_entries_that_name_nothing_that_can_be_loaded(entry, message):
    with pytest.raises(InputError, match=message):
        completed(entry)


def test_tiles_that_an_encoder_is_not_meant_for():
    uni = completed({"preset": "uni"})
    assert departures(uni, 224, [20]) == departures(uni, 256, [20]) == []
    (one,) = departures(uni, 224, [20, 10])
    assert one.startswith("encoder 'uni' sees 1 um/px at 10x (tiles of 224 px), and is meant for 0.5 (https://")
    assert "sees 1.14 um/px at 20x (tiles of 512 px)" in departures(uni, 512, [20])[0]
    assert departures({"slug": "x", "preset": None}, 512, [5]) == []


def test_every_fact_has_a_source_and_a_licence():
    for key, known in KNOWN.items():
        assert known.sources and all(source.startswith("https://") for source in known.sources), key
        assert known.licence and known.width > 0, key
        assert (known.mean is None) == (known.std is None), key


@pytest.mark.parametrize("key", LOADABLE)
def test_timm_builds_what_the_table_says(key):
    """Without memory or weights, at the size and with the arguments of the table."""
    import torch

    ensure_torchvision()
    import timm

    from pipeline.encoder_network import build_network

    known = KNOWN[key]
    with torch.device("meta"):
        network = build_network(known.architecture or known.name, dict(known.args))
    if known.layer:
        width = next(entry["num_chs"] for entry in network.feature_info if entry["module"] == known.layer)
    else:
        width = network.num_features * (2 if known.pooling == "class_mean" else 1)
    assert width == known.width
    assert timm.is_model((known.architecture or known.name).split(".")[0])
