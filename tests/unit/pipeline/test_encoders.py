"""Encoders: what is built is what was asked for, weights are known by digest, and every refusal explains itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)  # fmt: skip

from pipeline.contracts.encoders import EncoderFacts, read_facts, write_facts
from pipeline.contracts.errors import FormatError, InputError
from pipeline.device import Device
from pipeline.encoder_network import Encoder, weights_digest
from pipeline.encoder_network import load_encoder as load_fetched
from pipeline.encoder_weights import described, fetched
from pipeline.encoders import EncoderSpec, fetch_weights
from pipeline.torchvision_ops import ensure_torchvision

ensure_torchvision()
import timm  # noqa: E402

TINY = "test_resnet.r160_in1k"
RANDOM = EncoderSpec("tiny", TINY, weights="random")


def some_tiles(n: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng().integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def load_encoder(spec: EncoderSpec, precision: str = "float32") -> Encoder:
    """The encoder as it is when its weights are fetched."""
    network, args = fetched(spec)
    return Encoder(network, described(spec, network, args), precision=precision)


def fetch(spec: EncoderSpec, folder: Path) -> tuple[EncoderFacts, Path]:
    return fetch_weights(spec, folder / "e.json", folder / "e.safetensors"), folder / "e.safetensors"


def test_torchvision_can_be_imported_twice() -> None:
    assert ensure_torchvision() == ensure_torchvision() in ("native", "python-only")


def test_naming_an_encoder_does_not_import_torch() -> None:
    code = (
        "import sys; from pipeline.encoders import EncoderSpec; EncoderSpec('a', 'b'); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_random_weights_are_those_of_the_seed_and_say_so() -> None:
    torch.manual_seed(np.random.default_rng().integers(1 << 30))  # the state outside must not matter, nor be touched
    before = torch.random.get_rng_state()
    one, same, other = (load_encoder(replace(RANDOM, seed=seed)).facts for seed in (3, 3, 4))
    assert one == same
    assert one.weights_digest != other.weights_digest
    assert one.weights == "random" and "RANDOM weights, seed 3" in one.title
    assert torch.equal(before, torch.random.get_rng_state())


def test_features_are_the_networks_own() -> None:
    """Reference: the plain timm call, normalised by hand in the order that its documentation gives."""
    encoder = load_encoder(RANDOM)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(TINY, pretrained=False, num_classes=0).eval()
    tiles = some_tiles(5)
    data = timm.data.resolve_model_data_config(network)
    images = (tiles / 255 - np.array(data["mean"])) / np.array(data["std"])
    with torch.no_grad():
        wanted = network(torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
    found = encoder.encode(tiles)
    assert found.dtype == np.float32 and found.shape == (5, encoder.facts.width) == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_features_of_a_tile_do_not_depend_on_its_neighbours() -> None:
    encoder, tiles = load_encoder(RANDOM), some_tiles(4)
    np.testing.assert_allclose(encoder.encode(tiles)[2], encoder.encode(tiles[2:3])[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(encoder.encode(tiles), encoder.encode(tiles))


def test_a_layer_is_cut_and_averaged() -> None:
    encoder = load_encoder(replace(RANDOM, layer="layer3"))
    tiles, seen = some_tiles(2), []
    encoder._network.layer3.register_forward_hook(lambda _, __, out: seen.append(out))
    found = encoder.encode(tiles)
    np.testing.assert_allclose(found, seen[0].mean(dim=(2, 3)).numpy(), rtol=1e-4, atol=1e-6)
    assert encoder.facts.layer == "layer3" and encoder.facts.width == found.shape[1] == 192


def test_layer3_of_resnet50_has_1024_features() -> None:
    facts = load_encoder(EncoderSpec("r", "resnet50.tv_in1k", weights="random", layer="layer3")).facts
    assert facts.width == 1024 and facts.input_px is None and facts.mean == (0.485, 0.456, 0.406)


def test_only_networks_of_a_fixed_size_resize_by_themselves() -> None:
    transformer = load_encoder(EncoderSpec("v", "test_vit", weights="random"))
    assert load_encoder(RANDOM).facts.input_px is None
    assert transformer.facts.input_px == 160 and transformer.encode(some_tiles(2, 224)).shape == (2, 64)
    smaller = load_encoder(EncoderSpec("v", "vit_tiny_patch16_224", weights="random", input_px=96))
    assert smaller.facts.input_px == 96 and smaller.encode(some_tiles(2, 224)).shape == (2, 192)


def test_tokens_are_pooled_without_the_registers() -> None:
    """Class token, then the mean of the patches: what Virchow's features are."""
    args = {
        "reg_tokens": 4,
        "init_values": 1e-5,
        "dynamic_img_size": True,
        "mlp_layer": "SwiGLUPacked",
        "act_layer": "SiLU",
    }
    spec = EncoderSpec("v", "test_vit", weights="random", pooling="class_mean", args=args)
    encoder, tiles = load_encoder(spec), some_tiles(2, 160)
    network = encoder._network
    assert type(network.blocks[0].mlp).__name__ == "GluMlp" and network.num_prefix_tokens == 5
    seen = []
    network.norm.register_forward_hook(lambda _, __, out: seen.append(out))
    found = encoder.encode(tiles)
    tokens = seen[0].numpy()
    assert found.shape == (2, 128) and tokens.shape == (2, 5 + 100, 64) and encoder.facts.width == 128
    np.testing.assert_allclose(found[:, :64], tokens[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found[:, 64:], tokens[:, 5:].mean(axis=1), rtol=1e-4, atol=1e-6)
    for pooling, part in (("class", found[:, :64]), ("mean", found[:, 64:])):
        np.testing.assert_allclose(
            load_encoder(replace(spec, pooling=pooling)).encode(tiles), part, rtol=1e-4, atol=1e-6
        )
    with pytest.raises(InputError, match="needs a transformer"):
        load_encoder(replace(RANDOM, pooling="mean"))


def test_mean_and_std_of_the_entry_replace_the_networks_own() -> None:
    mean, std = (0.7, 0.6, 0.7), (0.2, 0.25, 0.2)
    plain, other = load_encoder(RANDOM), load_encoder(replace(RANDOM, mean=mean, std=std))
    assert other.facts.mean == mean and other.facts.std == std and plain.facts.mean != mean
    assert not np.allclose(plain.encode(some_tiles(1)), other.encode(some_tiles(1)))


def test_what_a_page_says_goes_with_the_weights(tmp_path: Path) -> None:
    """As from the hub: a folder with a config, whose arguments and pooling the compute jobs must know without it."""
    from safetensors.torch import save_file

    page = tmp_path / "page"
    page.mkdir()
    args = {"img_size": 96, "init_values": 0.1, "global_pool": "avg"}
    torch.manual_seed(1)
    network = timm.create_model("test_vit", num_classes=0, **args).eval()
    save_file(network.state_dict(), page / "model.safetensors")
    cfg = {"mean": [0.7, 0.6, 0.7], "std": [0.2, 0.2, 0.2], "input_size": [3, 96, 96], "fixed_input_size": True}
    cfg |= {"num_classes": 0, "classifier": "head", "first_conv": "patch_embed.proj"}
    content = {
        "architecture": "test_vit",
        "num_classes": 0,
        "global_pool": "avg",
        "model_args": args,
        "pretrained_cfg": cfg,
    }
    (page / "config.json").write_text(json.dumps(content))
    spec = EncoderSpec("v", f"local-dir:{page}")
    facts, weights = fetch(spec, tmp_path)
    assert facts.architecture == "test_vit" and facts.input_px == 96 and facts.mean == (0.7, 0.6, 0.7)
    shutil.rmtree(page)
    tiles = some_tiles(2, 96)
    images = torch.tensor((tiles / 255 - facts.mean) / facts.std, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = network(images).numpy()
    np.testing.assert_allclose(load_fetched(facts, weights).encode(tiles), wanted, rtol=1e-4, atol=1e-5)


def test_input_px_resizes() -> None:
    plain, resized = load_encoder(RANDOM), load_encoder(replace(RANDOM, input_px=64))
    flat = np.full((1, 128, 128, 3), (200, 90, 160), np.uint8)
    np.testing.assert_allclose(resized.encode(flat), plain.encode(flat[:, :64, :64]), rtol=1e-3, atol=1e-4)
    sized = some_tiles(1, 64)
    np.testing.assert_array_equal(resized.encode(sized), plain.encode(sized))


def test_a_device_of_its_own_buffers_gives_the_same_features() -> None:
    encoder, device, tiles = load_encoder(RANDOM), Device("cpu", stages_tiles=True), some_tiles(3)
    arriving = [device.fetch(encoder(device.send(some))) for some in (tiles, tiles[:1], tiles[1:])]
    np.testing.assert_array_equal(arriving[0].array(), encoder.encode(tiles))
    np.testing.assert_allclose(arriving[2].array(), encoder.encode(tiles)[1:], rtol=1e-4, atol=1e-6)


def test_bfloat16_is_close_to_single_precision() -> None:
    tiles = some_tiles(3)
    exact, rough = load_encoder(RANDOM).encode(tiles), load_encoder(RANDOM, precision="bfloat16").encode(tiles)
    assert rough.dtype == np.float32 and not np.array_equal(exact, rough)
    assert np.abs(exact - rough).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("form", ["plain", "nested", "parallel", "teacher", "lightning", "safetensors"])
def test_weights_of_a_file(tmp_path: Path, form: str) -> None:
    """A state dict with its classifier, as people save it."""
    torch.manual_seed(np.random.default_rng().integers(1 << 30))
    network = timm.create_model(TINY, pretrained=False)
    state = network.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        parallel = {f"module.{key}": value for key, value in state.items()}
        backbone = {f"module.backbone.{key}": value for key, value in state.items()}
        forms = {
            "plain": state, "nested": {"state_dict": state}, "parallel": parallel,
            "teacher": {
                "student": {key: value + 1 for key, value in backbone.items()},
                "teacher": {**backbone, "module.head.mlp.weight": torch.ones(2)}, "epoch": 3,
            },
            "lightning": {"state_dict": {**{f"model.{k}": v for k, v in state.items()}, "loss.scale": torch.ones(1)}},
        }  # fmt: skip
        torch.save(forms[form], path)
    encoder = load_encoder(EncoderSpec("tiny", TINY, weights="file", path=str(path)))
    network.reset_classifier(0)
    assert encoder.facts.weights_digest == weights_digest(network)
    assert len(encoder.facts.file_digest) == 64 and "RANDOM" not in encoder.facts.title


def test_digest_of_weights_sees_one_changed_number() -> None:
    network = timm.create_model(TINY, pretrained=False, num_classes=0)
    before = weights_digest(network)
    assert weights_digest(network) == before
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-6
    assert weights_digest(network) != before


class RunsCode:
    """A pickle of this makes a file when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_files_that_are_no_state_dict_of_the_network(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    spec = EncoderSpec("tiny", TINY, weights="file", path=str(path))
    with pytest.raises(InputError, match="does not exist"):
        load_encoder(spec)
    path.write_bytes(b"not torch")
    with pytest.raises(InputError, match="not a plain state dict"):
        load_encoder(spec)
    network = timm.create_model(TINY, pretrained=False, num_classes=0)
    torch.save(network, path)
    with pytest.raises(InputError, match="whole pickled models are not loaded"):
        load_encoder(spec)
    torch.save({"state_dict": network.state_dict(), "extra": RunsCode(tmp_path / "ran")}, path)
    with pytest.raises(InputError, match="whole pickled models are not loaded"):
        load_encoder(spec)
    assert not (tmp_path / "ran").exists()
    state = network.state_dict()
    state.pop(next(iter(state)))
    torch.save(state, path)
    with pytest.raises(InputError, match=r"does not fit the network.*Missing key"):
        load_encoder(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (EncoderSpec("a", "test_resnt", weights="random"), "timm knows no model 'test_resnt'; did you mean"),
        (EncoderSpec("a", "resnet50.tv_in2k", weights="random"), "no such weights; known: .*resnet50.tv_in1k"),
        (replace(RANDOM, layer="layer9"), "layer 'layer9' is none of: .*layer4"),
    ],
)
def test_names_that_do_not_exist(spec: EncoderSpec, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_encoder(spec)


def test_pretrained_without_a_network_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(InputError, match=r"resnet50.tv_in1k.*Name or service not known.*snakemake.*weights: file"):
        load_encoder(EncoderSpec("r", "resnet50.tv_in1k"))


def response(status: int) -> SimpleNamespace:
    """As much of an answer of the hub as its errors look at."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("403", response=response(403)), r"licence or a login.*huggingface.co/MahmoodLab/UNI.*HF_TOKEN"),
        (
            RepositoryNotFoundError("401", response=response(401)),
            r"licence or a login.*no model of this name.*HF_TOKEN",
        ),
        (HfHubHTTPError("Forbidden", response=response(403)), r"accept its conditions.*settings/tokens.*HF_TOKEN"),
        (LocalEntryNotFoundError("no cache"), r"no network here.*snakemake --cores 1 weights.*weights: file"),
        (OfflineModeIsEnabled("offline"), r"no network here"),
        (ConnectionRefusedError("unreachable"), r"no network here"),
        (
            TypeError("got an unexpected keyword 'init_value'"),
            r"TypeError: got an unexpected.*check its name and `args`",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_why_weights_cannot_be_had(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("cannot be loaded") from error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError, match=message):
        load_encoder(EncoderSpec("u", "hf-hub:MahmoodLab/UNI"))


def test_compute_jobs_load_what_was_fetched_and_nothing_else(tmp_path: Path) -> None:
    facts, weights = fetch(RANDOM, tmp_path)
    tiles = some_tiles(2)
    np.testing.assert_array_equal(load_fetched(facts, weights).encode(tiles), load_encoder(RANDOM).encode(tiles))
    with pytest.raises(InputError, match="not those that were fetched"):
        load_fetched(replace(facts, weights_digest="other"), weights)
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"are damaged.*fetched anew"):
        load_fetched(facts, weights)
    weights.unlink()
    with pytest.raises(InputError, match="snakemake weights"):
        load_fetched(facts, weights)


def test_facts_round_trip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = fetch_weights(RANDOM, tmp_path / "a.json", tmp_path / "a.safetensors")
    assert "RANDOM weights" in caplog.text
    assert read_facts(tmp_path / "a.json") == facts
    write_facts(tmp_path / "b.json", facts)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert isinstance(facts, EncoderFacts)
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace('"width"', '"wdth"'))
    with pytest.raises(FormatError, match="width"):
        read_facts(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "pretraned"}, "did you mean 'pretrained'"),
        ({"weights": "file"}, "path and weights: file go together"),
        ({"weights": "random", "path": "x.pt"}, "path and weights: file go together"),
        ({"slug": "a b"}, "slug 'a b' is not allowed"),
        ({"input_px": 8}, "below 16"),
        ({"pooling": "clas"}, "did you mean 'class'"),
        ({"pooling": "class", "layer": "layer3"}, "a layer's map is always averaged"),
    ],
)
def test_entries_are_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EncoderSpec(**{"slug": "a", "name": TINY, **fields})
