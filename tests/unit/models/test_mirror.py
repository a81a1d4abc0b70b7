"""MIRROR by default: losses and layers against their definitions, invariances, pre-training, probes and few shots."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import models.train as train_module
from models.batch import Batch, Sizes
from models.checkpoint import read_checkpoint
from models.experiment import Experiment, check_sources
from models.folds import few_shots
from models.full_attention import FullAttention
from models.mirror import Mirror, MirrorConfig
from models.mirror_encoders import SliceAttention, SlideEncoder, cell_encoding, sequences
from models.mirror_losses import cluster_divergence, info_nce, masked_error, style_divergence
from models.mirror_pretraining import MirrorPretraining, PretrainingConfig, random_mask
from models.predict import predict_folds
from models.survival import Intervals
from models.train import train_folds
from pipeline.contracts.errors import InputError
from pipeline.contracts.files import read_table
from pipeline.contracts.predictions import read_predictions
from pipeline.contracts.tasks import PRETRAINING_TASK, read_labels
from tests.toy_cohort import GRADE, SURVIVAL, make_toy

SMALL = {"width": 48, "rna_mlp_ratio": 1.0}
STYLE = {"prototypes": 48, "style_hidden": 8, "style_width": 8, "latent": 4}
SIZES = Sizes(6, {"all": 5}, 3, "classification")
PRE = Experiment("pre", "mirror-pretraining", epochs=2, batch_size=3, lr=1e-3, params=SMALL | STYLE)
PROBE = Experiment("probe", "mirror", epochs=3, batch_size=4, init_from="pre", params=SMALL)


def pretraining(**changes) -> MirrorPretraining:
    torch.manual_seed(1)
    return MirrorPretraining(PretrainingConfig(**{**SMALL, **STYLE, **changes}), SIZES)


def case(rng: torch.Generator, tiles: tuple[int, ...], name: str = "a") -> Batch:
    """One case with slides of so many tiles, each on its own lattice, in a random order of tiles."""
    n = sum(tiles)
    side = 41
    cell, slide = [], []
    for number, count in enumerate(tiles):
        place = torch.randperm(side * side, generator=rng)[:count]
        cell.append(torch.stack([place % side, place // side], dim=1))
        slide += [number] * count
    yes, mask = torch.ones(1, dtype=torch.bool), torch.ones(1, n, dtype=torch.bool)
    features, genes = torch.randn(1, n, 6, generator=rng), torch.randn(1, 5, generator=rng)
    return Batch((name,), yes, yes, features, mask, torch.tensor([slide]), torch.cat(cell)[None], genes={"all": genes})


def side_by_side(cases: list[Batch], length: int) -> Batch:
    """Cases padded to `length` with features that nobody may read."""

    def padded(name: str, value: float) -> torch.Tensor:
        rows = [getattr(c, name)[0] for c in cases]
        blank = [row.new_full((length, *row.shape[1:]), value) for row in rows]
        for out, row in zip(blank, rows, strict=True):
            out[: len(row)] = row
        return torch.stack(blank)

    yes = torch.ones(len(cases), dtype=torch.bool)
    tiles = padded("features", 1e6), padded("mask", False), padded("slide", -1), padded("cell", 0)
    genes = torch.cat([c.genes["all"] for c in cases])
    return Batch(tuple(c.case_ids[0] for c in cases), yes, yes, *tiles, genes={"all": genes})


def in_double(batch: Batch) -> Batch:
    return replace(batch, features=batch.features.double(), genes={"all": batch.genes["all"].double()})


class TestLosses:
    def test_gradients_against_finite_differences(self):
        rng = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(*shape, generator=rng, dtype=torch.float64, requires_grad=True)

        scale = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(info_nce, (draw(4, 3), draw(4, 3), scale))
        mask = torch.tensor([[1.0, 0, 1], [0, 0, 1]], dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda a, b: masked_error(a, b, mask), (draw(2, 3, 4), draw(2, 3, 4)))
        assert torch.autograd.gradcheck(lambda a, b: masked_error(a, b, mask), (draw(2, 3), draw(2, 3)))
        assert torch.autograd.gradcheck(style_divergence, (draw(3, 2), draw(3, 2)))
        assert torch.autograd.gradcheck(cluster_divergence, (draw(3, 5), draw(3, 5)))

    def test_alignment_by_hand(self):
        scores = torch.tensor([[2.0, 1.0], [0.0, 3.0]])  # rows: slides; rna is the identity
        rows = [torch.log(torch.tensor(v).exp().sum()) for v in ([2.0, 1.0], [0.0, 3.0])]
        columns = [torch.log(torch.tensor(v).exp().sum()) for v in ([2.0, 0.0], [1.0, 3.0])]
        expected = (sum(rows) - 5) / 4 + (sum(columns) - 5) / 4
        torch.testing.assert_close(info_nce(scores, torch.eye(2), 1.0), expected)

    def test_a_batch_of_one_is_aligned_by_definition(self):
        first = torch.randn(1, 4, requires_grad=True)
        loss = info_nce(first, torch.randn(1, 4), 14.0)
        loss.backward()
        assert float(loss.detach()) == 0 and not first.grad.any()

    def test_style_and_clusters_are_zero_at_the_prior_and_at_agreement(self):
        assert float(style_divergence(torch.zeros(2, 3), torch.zeros(2, 3))) == 0
        scores = torch.randn(3, 5)
        assert float(cluster_divergence(scores, scores + 4)) == pytest.approx(0, abs=1e-6)

    def test_probabilities_that_underflow(self):
        first = torch.tensor([[400.0, 0.0]], requires_grad=True)
        loss = cluster_divergence(first, torch.tensor([[0.0, 400.0]]))
        loss.backward()
        assert float(loss.detach()) == pytest.approx(400) and torch.isfinite(first.grad).all()

    def test_nothing_masked(self):
        assert float(masked_error(torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))) == 0

    @pytest.mark.parametrize(
        ("count", "share", "masked"), [(2048, 0.75, 1536), (768, 0.75, 576), (1, 0.75, 1), (7, 0, 0)]
    )
    def test_masks(self, count, share, masked):
        torch.manual_seed(0)
        mask = random_mask((3, count), share, torch.device("cpu"))
        assert mask.sum(dim=1).tolist() == [masked] * 3
        assert not 0 < masked < count or not torch.equal(mask[0], mask[1])


class TestLayers:
    def test_full_attention_written_out(self):
        torch.manual_seed(2)
        layer = FullAttention(32, 0.0).double().eval()
        tokens = torch.randn(2, 9, 32, dtype=torch.float64)
        q, k, v = (tokens @ w.T for w in layer.qkv.weight.chunk(3))
        heads = []
        for h in range(8):
            mine = slice(4 * h, 4 * h + 4)
            scores = q[:, :, mine] @ k[:, :, mine].transpose(1, 2) / 2
            attended = scores.softmax(dim=2) @ v[:, :, mine]
            for t in range(9):
                for s in range(9):
                    attended[:, t] += layer.residual.weight[h, 0, s - t + 16, 0] * v[:, s, mine]
            heads.append(attended)
        torch.testing.assert_close(layer(tokens), layer.out(torch.cat(heads, dim=2)))

    def test_attention_of_slices_written_out(self):
        torch.manual_seed(3)
        layer = SliceAttention(48, 0.0).double().eval()
        vectors = torch.randn(2, 48, dtype=torch.float64)
        q, k, v = (part.reshape(2, 12, 4) for part in layer.qkv(vectors).chunk(3, dim=1))
        mixed = torch.zeros(2, 48, dtype=torch.float64)
        for h in range(12):
            weight = torch.stack([(q[:, h] * k[:, j]).sum(dim=1) / 2 for j in range(12)], dim=1).softmax(dim=1)
            for c in range(4):
                mixed[:, 12 * c + h] = (weight * v[:, :, c]).sum(dim=1)
        torch.testing.assert_close(layer(vectors), layer.proj(mixed))

    def test_every_cell_has_its_own_encoding(self):
        side = torch.arange(30)
        cells = torch.cartesian_prod(side, side + 5)
        code = cell_encoding(cells, 48)
        assert code.shape == (900, 48) and float(torch.pdist(code).min()) > 0.1
        torch.testing.assert_close(code[0], cell_encoding(torch.tensor([[0, 5]]), 48)[0])


class TestSequences:
    def test_tiles_are_ordered_by_slide_row_and_column(self):
        batch = case(torch.Generator().manual_seed(4), (5, 9))
        (read,) = sequences(batch, MirrorConfig(**SMALL), draw=False)
        lengths = [rows.stop - rows.start for rows, _ in read.places]
        assert lengths == [5, 9]
        for rows, cell in read.places:
            order = [(int(y), int(x)) for x, y in cell]
            assert order == sorted(order) and torch.equal(read.cell[rows], cell)
        known = {tuple(f.tolist()): tuple(c.tolist()) for f, c in zip(batch.features[0], batch.cell[0], strict=True)}
        for feature, cell in zip(read.features[0], read.cell, strict=True):
            assert known[tuple(feature.tolist())] == tuple(cell.tolist())

    def test_training_draws_and_evaluation_takes_all(self):
        batch = case(torch.Generator().manual_seed(5), (30, 20))
        config = MirrorConfig(**SMALL, tiles=12)
        torch.manual_seed(0)
        first, second = (sequences(batch, config, draw=True)[0] for _ in range(2))
        assert first.features.shape == (1, 12, 6) and not torch.equal(first.features, second.features)
        assert len({tuple(f.tolist()) for f in first.features[0]}) == 12
        assert sequences(batch, config, draw=False)[0].features.shape == (1, 50, 6)

    def test_a_fixed_length_is_shuffled_for_training_only(self):
        batch = case(torch.Generator().manual_seed(6), (16,))
        config = MirrorConfig(**SMALL, fixed_length=16, attention="nystrom")
        assert torch.equal(sequences(batch, config, draw=False)[0].features, batch.features)
        shuffled = sequences(batch, config, draw=True)[0].features
        assert not torch.equal(shuffled, batch.features)
        assert torch.equal(shuffled[0].sum(dim=1).sort().values, batch.features[0].sum(dim=1).sort().values)


class TestInvariance:
    @pytest.mark.parametrize("attention", ["full", "nystrom"])
    def test_padding_batching_and_order_of_tiles_change_nothing(self, attention):
        rng = torch.Generator().manual_seed(7)
        cases = [case(rng, tiles) for tiles in ((1,), (7,), (3, 5), (60,))]
        torch.manual_seed(8)
        model = Mirror(MirrorConfig(**SMALL, attention=attention), SIZES).eval()
        with torch.no_grad():
            together = model(side_by_side(cases, 64)).logits
            for number, one in enumerate(cases):
                torch.testing.assert_close(model(one).logits[0], together[number], rtol=1e-5, atol=1e-6)
                order = torch.randperm(one.mask.shape[1], generator=rng)
                parts = {name: getattr(one, name)[:, order] for name in ("features", "slide", "cell")}
                torch.testing.assert_close(
                    model(replace(one, **parts)).logits[0], together[number], rtol=1e-5, atol=1e-6
                )

    @pytest.mark.parametrize("attention", ["full", "nystrom"])
    def test_the_class_token_alone_is_the_same(self, attention):
        config = MirrorConfig(**SMALL, attention=attention)
        (read,) = sequences(case(torch.Generator().manual_seed(9), (30, 4)), config, draw=False)
        encoder = SlideEncoder(6, config).eval()
        with torch.no_grad():
            (alone, none), (first, tokens) = encoder(read, only_class=True), encoder(read)
        assert none.shape[1] == 0 and tokens.shape[1] == 34
        torch.testing.assert_close(alone, first, rtol=1e-5, atol=1e-6)

    def test_places_matter(self):
        one = case(torch.Generator().manual_seed(9), (40,))
        model = Mirror(MirrorConfig(**SMALL), SIZES).eval()
        moved = replace(one, cell=one.cell.flip(1))
        assert not torch.allclose(model(one).logits, model(moved).logits, atol=1e-6)

    @pytest.mark.parametrize("tiles", [1, 7, 1250])
    @pytest.mark.parametrize("attention", ["full", "nystrom"])
    def test_any_number_of_tiles_and_batches_of_one(self, tiles, attention):
        model = pretraining(attention=attention).train()
        outputs = model(case(torch.Generator().manual_seed(10), (tiles,)))
        assert outputs.logits.shape == (1, 0) and float(outputs.losses["align"].detach()) == 0
        sum(outputs.losses.values()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


class TestPretraining:
    def batch(self) -> Batch:
        rng = torch.Generator().manual_seed(11)
        return side_by_side([case(rng, (n,), str(n)) for n in (12, 9, 20)], 20)

    def gradient_of(self, model: MirrorPretraining, name: str, parameter: torch.Tensor) -> torch.Tensor | None:
        torch.manual_seed(0)
        loss = model.eval()(self.batch()).losses[name]
        return torch.autograd.grad(loss, parameter, allow_unused=True)[0]

    @pytest.mark.parametrize("name", ["retain_slide", "retain_rna"])
    def test_targets_are_fixed_by_default(self, name):
        found = []
        for detach in (True, False):
            model = pretraining(detach_targets=detach)
            last = model.slide.trunk.norm.weight if name == "retain_slide" else model.rna.norm.weight
            found.append(self.gradient_of(model, name, last))
        assert not torch.allclose(*found, rtol=1e-3)

    def test_no_backward_pass_through_targets_changes_no_gradient(self, monkeypatch):
        """Masked tiles' tokens are constants of the loss; what is left out of the backward pass was zero."""
        found = []
        for hint in (MirrorPretraining._unlearnt, lambda self, mask: None):
            monkeypatch.setattr(MirrorPretraining, "_unlearnt", hint)
            model = pretraining(dropout=0.0).train().double()
            torch.manual_seed(2)
            outputs = model(in_double(self.batch()))
            sum(outputs.losses.values()).backward()
            found.append([*outputs.losses.values(), *(p.grad for p in model.parameters())])
        for saved, whole in zip(*found, strict=True):
            torch.testing.assert_close(saved, whole, rtol=1e-9, atol=1e-12)

    def test_a_step_against_finite_differences(self):
        """The derivative of all losses together, along a random direction in all parameters."""
        model, rng = pretraining(dropout=0.0, detach_targets=False).eval().double(), torch.Generator().manual_seed(12)
        batch, parameters = in_double(self.batch()), list(model.parameters())

        def total() -> torch.Tensor:
            torch.manual_seed(3)  # the same masks and draws of the codes
            return sum(model(batch).losses.values())

        direction = [torch.randn(p.shape, generator=rng, dtype=torch.float64) for p in parameters]
        slope = sum((g * d).sum() for g, d in zip(torch.autograd.grad(total(), parameters), direction, strict=True))
        ends = []
        for step in (1e-7, -2e-7):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=step)
                ends.append(float(total()))
        assert (ends[0] - ends[1]) / 2e-7 == pytest.approx(float(slope), rel=1e-4)

    def test_hand_worked_retention_style_and_clusters(self):
        mask = torch.tensor([[1.0, 0.0]])
        prediction, target = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]]), torch.zeros(1, 2, 2)
        assert float(masked_error(prediction, target, mask)) == pytest.approx((1 + 9) / 2)
        assert float(masked_error(prediction[:, 0], target[:, 0], mask)) == pytest.approx(1)
        mean, log_variance = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, math.log(3)]])
        assert float(style_divergence(mean, log_variance)) == pytest.approx((4 + 3 - 1 - math.log(3)) / 2)
        p, q = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
        expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5) + 0.5 * math.log(1 / 1.5) + 0.5 * math.log(2)) / 2
        assert float(cluster_divergence(p, q)) == pytest.approx(expected)

    def test_renormalised_embeddings_are_cosines(self):
        slides, rna = torch.randn(2, 4, 48)
        for part in pretraining().aligned(slides, rna):
            torch.testing.assert_close(part.norm(dim=1), torch.ones(4))
        for part in pretraining(renormalise=False).aligned(slides, rna):
            assert not torch.allclose(part.norm(dim=1), torch.ones(4), atol=1e-2)

    def test_prototypes_are_normalised_and_the_scale_is_bounded(self):
        model = pretraining().train()
        with torch.no_grad():
            model.style.prototypes.weight.mul_(3)
            model.logit_scale.fill_(9.0)
        model(self.batch())
        torch.testing.assert_close(model.style.prototypes.weight.norm(dim=1), torch.ones(48))
        model.constrain()
        assert float(model.logit_scale.exp().detach()) == pytest.approx(100)

    def test_initial_weights(self):
        """Specification 7.9."""
        torch.manual_seed(4)
        model = MirrorPretraining(PretrainingConfig(**{**SMALL, **STYLE, "prototypes": 60}), SIZES)
        qkv, centres = model.slide.trunk.attentions[0].qkv.weight, model.style.prototypes.weight
        assert 0.95 < float(qkv.abs().max().detach()) / (6 / (48 + 144)) ** 0.5 <= 1
        assert not model.slide.project.bias.any() and not model.slide_alignment.bias.any()
        torch.testing.assert_close(centres.T @ centres, torch.eye(48), rtol=0, atol=1e-5)
        for linear in (model.rna_retention.layer.attn.proj, model.rna_retention.layer.mlp.fc2):
            assert 0.95 < float(linear.weight.abs().max().detach()) * 48**0.5 * 2**0.5 <= 1.0001
        assert 0.95 < float(model.rna.blocks[0].attn.proj.weight.abs().max().detach()) * 48**0.5 <= 1
        assert float(model.logit_scale.exp().detach()) == pytest.approx(1 / 0.07)
        assert 0.01 < float(model.slide.trunk.class_token.std().detach()) < 0.03

    def test_slide_retention_is_the_mean_over_all_masked_tiles(self):
        """Samples of unequal length weigh by their masked tiles."""
        model, batch = pretraining().eval(), self.batch()
        read = sequences(batch, model.config, draw=False)
        with torch.no_grad():
            encoded = [model.slide(r) for r in read]
            masks = [random_mask(tokens.shape[:2], 0.75, torch.device("cpu")) for _, tokens in encoded]
            found = model.slide_loss(read, encoded, masks)
            errors = []
            for sequence, (first, tokens), mask in zip(read, encoded, masks, strict=True):
                guess = model.slide_retention(first, tokens, mask, sequence.cell)
                errors += (guess - tokens).square().mean(dim=2)[mask.bool()].tolist()
        assert len(errors) == 9 + 7 + 15 and float(found) == pytest.approx(np.mean(errors), rel=1e-5)

    def test_masked_tokens_are_hidden_from_their_prediction(self):
        model = pretraining().eval()
        first, tokens = torch.randn(1, 48), torch.randn(1, 6, 48)
        mask = torch.tensor([[1.0, 0, 1, 0, 0, 1]])
        cell = torch.tensor([[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]])
        other = torch.where(mask.bool()[..., None], torch.randn(1, 6, 48), tokens)
        with torch.no_grad():
            a, b = (model.slide_retention(first, t, mask, cell) for t in (tokens, other))
            moved = model.slide_retention(first, tokens, mask, cell + 3)
        assert torch.equal(a, b) and not torch.allclose(a, moved, atol=1e-4)


def run(made: Experiment, task, inputs, models: Path):
    inputs = replace(inputs, sources={name: models / name for name in made.init_from or ()})
    return train_folds(made, task, inputs, models / made.name, models / made.name / "index.tsv", device="cpu")


def artefacts(models: Path, name: str, fold: int = 0) -> list[bytes]:
    return [(models / name / f"fold{fold}" / part).read_bytes() for part in ("checkpoint.pt", "history.tsv")]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A toy cohort and both folds of a pre-training on it; tests only add to it."""
    folder = tmp_path_factory.mktemp("mirror")
    inputs = make_toy(folds=2).write(folder / "data")
    rows = run(PRE, PRETRAINING_TASK, inputs, folder / "models")
    assert [row.status for row in rows] == ["ok", "ok"]
    return inputs, folder / "models"


@pytest.fixture
def models(pretrained, tmp_path) -> Path:
    return Path(shutil.copytree(pretrained[1], tmp_path / "models"))


def test_history_of_pretraining(pretrained):
    for row in read_table(pretrained[1] / "pre/fold0/history.tsv"):
        parts = ["retain_slide", "retain_rna", "align", "style", "cluster"]
        assert float(row["loss"]) == pytest.approx(sum(float(row[p]) for p in parts), rel=1e-5)
        assert float(row["style_mean_square"]) > 0 and 1 <= float(row["prototypes_used"]) <= 6
        assert "task_loss" not in row and float(row["val_loss"]) > 0


def test_validation_repeats_itself_and_leaves_the_random_state_alone(pretrained, monkeypatch):
    inputs, models = pretrained
    real, seen = train_module.validate_pretraining, []

    def twice(model, objective, data):
        before = torch.get_rng_state()
        results = [real(model, objective, data)]
        unchanged = torch.equal(before, torch.get_rng_state())
        torch.rand(7)
        results.append(real(model, objective, data))
        torch.set_rng_state(before)
        seen.append((results[0] == results[1], unchanged))
        return results[0]

    monkeypatch.setattr(train_module, "validate_pretraining", twice)
    run(replace(PRE, name="again"), PRETRAINING_TASK, inputs, models)
    assert len(seen) == 4 and all(all(pair) for pair in seen)
    assert artefacts(models, "again")[1] == artefacts(models, "pre")[1]


@pytest.mark.parametrize("task", [GRADE, SURVIVAL], ids=lambda t: t.name)
@pytest.mark.parametrize("mode", ["linear_probe", "fine_tune"])
def test_what_starts_from_pretraining(pretrained, models, monkeypatch, tmp_path, task, mode):
    """A probe encodes each case once and learns the head alone; fine-tuning changes everything."""
    inputs, calls = pretrained[0], []
    real = SlideEncoder.forward
    monkeypatch.setattr(
        SlideEncoder, "forward", lambda self, *a, **k: calls.append(self.training) or real(self, *a, **k)
    )
    made = replace(PROBE, params=SMALL | {"mode": mode})
    rows = run(made, task, inputs, models)
    assert [row.status for row in rows] == ["ok", "ok"]
    if mode == "linear_probe":
        assert calls == [False] * sum(row.n_train + row.n_val for row in rows)
    for fold in (0, 1):
        source, probe = (read_checkpoint(models / name / f"fold{fold}/checkpoint.pt") for name in ("pre", "probe"))
        shared = [name for name in source.state if name.startswith(("slide.", "rna."))]
        assert len(shared) == len(probe.state) - 2
        kept = [torch.equal(source.state[name], probe.state[name]) for name in shared]
        assert all(kept) if mode == "linear_probe" else not any(kept)
        assert probe.experiment.lr == {"fine_tune": 2e-5}.get(mode, 3e-3 if task is SURVIVAL else 2e-3)
    assert not predict_folds(made, task, inputs, models / "probe", tmp_path / "p.tsv", device="cpu")
    assert len(read_predictions(tmp_path / "p.tsv").rows) == 24


class Killed(BaseException):
    """Stands in for a signal."""


@pytest.mark.parametrize("made", [PRE, PROBE], ids=lambda made: made.name)
def test_a_killed_run_goes_on_to_the_same_bytes(pretrained, models, monkeypatch, made):
    inputs, task = pretrained[0], PRETRAINING_TASK if made is PRE else GRADE
    if made is not PRE:
        run(made, task, inputs, models)
    whole = artefacts(models, made.name)
    shutil.rmtree(models / made.name)
    real = train_module.write_bytes

    def dying(path, content):
        real(path, content)
        monkeypatch.setattr(train_module, "write_bytes", real)
        raise Killed

    monkeypatch.setattr(train_module, "write_bytes", dying)
    with pytest.raises(Killed):
        run(made, task, inputs, models)
    state = torch.load(models / made.name / "fold0/last.pt", weights_only=True)
    assert made is PRE or set(state["model"]) == {"head.weight", "head.bias"}
    torch.manual_seed(99)
    run(made, task, inputs, models)
    assert artefacts(models, made.name) == whole


def test_held_out_cases_leave_no_trace_in_pretraining(tmp_path):
    toy = make_toy(n=12, folds=2)
    run(PRE, PRETRAINING_TASK, toy.write(tmp_path / "a"), tmp_path / "before")
    rng = np.random.default_rng(5)
    held_out = {row.case_id for row in toy.splits if row.fold == 0 and row.role == "test"}
    for case_id in toy.cases:
        toy.rows[case_id]["grade"] = "G2"  # labels are not looked at, of any case
        if case_id in held_out:
            toy.rna[case_id] = rng.normal(50, 9, size=len(toy.rna[case_id]))
    for slide, (case_id, features, cell) in list(toy.slides.items()):
        if case_id in held_out:
            toy.slides[slide] = (case_id, rng.normal(20, 5, size=features.shape), cell[::-1] + 4)
    run(PRE, PRETRAINING_TASK, toy.write(tmp_path / "b"), tmp_path / "after")
    assert artefacts(tmp_path / "before", "pre", 0) == artefacts(tmp_path / "after", "pre", 0)
    assert artefacts(tmp_path / "before", "pre", 1) != artefacts(tmp_path / "after", "pre", 1)


def test_reference_mode_pretrains_and_is_probed(tmp_path):
    inputs = make_toy(n=12, folds=2).write(tmp_path / "data")
    params = SMALL | {"fixed_length": 10}
    for made, task in ((PRE, PRETRAINING_TASK), (PROBE, SURVIVAL)):
        own = params | (STYLE if made is PRE else {})
        changed = replace(made, reference=True, epochs=1, params=own)
        assert [row.status for row in run(changed, task, inputs, tmp_path / "models")] == ["ok", "ok"]
    state = read_checkpoint(tmp_path / "models/pre/fold0/checkpoint.pt").state
    assert state["slide_retention.position"].shape == (1, 11, 48)


class TestFewShots:
    def test_drawn_without_replacement_by_fold_and_seed(self, tmp_path):
        inputs = make_toy(n=24).write(tmp_path)
        labels = read_labels(inputs.cases, GRADE)
        cases = sorted(labels.label)
        drawn = [few_shots(cases, labels, labels.classes, 4, fold, seed) for fold in (0, 1) for seed in (0, 1)]
        for one in drawn:
            counts = {name: sum(labels.label[c] == name for c in one) for name in labels.classes}
            assert len(set(one)) == 12 and set(counts.values()) == {4} and one == sorted(one)
        assert len({tuple(one) for one in drawn}) == 4
        assert drawn[0] == few_shots(cases[::-1], labels, labels.classes, 4, 0, 0)

    def test_by_survival_interval(self, tmp_path):
        labels = read_labels(make_toy(n=24).write(tmp_path).cases, SURVIVAL)
        middle = float(np.median(list(labels.time.values())))
        intervals = Intervals((middle,), max(labels.time.values()))
        drawn = few_shots(sorted(labels.time), labels, intervals, 3, 0, 0)
        assert [sum((labels.time[c] < middle) == early for c in drawn) for early in (True, False)] == [3, 3]

    def test_too_few_is_an_error(self, tmp_path):
        labels = read_labels(make_toy(n=24).write(tmp_path).cases, GRADE)
        with pytest.raises(InputError, match="class 'G2' has 8 training cases, fewer than the 9 shots"):
            few_shots(sorted(labels.label), labels, labels.classes, 9, 0, 0)

    def test_a_few_shot_probe(self, pretrained, models):
        inputs = pretrained[0]
        row = run(replace(PROBE, params=SMALL | {"shots": 2}), GRADE, inputs, models)[0]
        assert row.status == "ok" and row.n_train == 6 and "2 shots: 6 of 8 training cases" in row.reason
        again = run(replace(PROBE, params=SMALL | {"shots": 2}, seed=3), GRADE, inputs, models)[0]
        assert again.digest != row.digest
        row = run(replace(PROBE, params=SMALL | {"shots": 9}), GRADE, inputs, models)[0]
        assert row.status == "failed" and "fewer than the 9 shots" in row.reason


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"width": 96, "rna_mlp_ratio": 1.0}, "width is 96, but 48 in 'pre'"),
        (SMALL | {"attention": "nystrom"}, "attention is nystrom, but full in 'pre'"),
        (SMALL | {"fixed_length": 9}, "fixed_length is 9, but None in 'pre'"),
    ],
)
def test_encoders_that_do_not_fit(pretrained, models, params, words):
    row = run(replace(PROBE, params=params), GRADE, pretrained[0], models)[0]
    assert row.status == "failed" and words in row.reason


def test_genes_must_be_those_of_pretraining(models, tmp_path):
    toy = make_toy(folds=2)
    for values in toy.rna.values():
        values[0] *= 1.1
    row = run(PROBE, GRADE, toy.write(tmp_path / "other"), models)[0]
    assert row.status == "failed" and "genes and their scaling" in row.reason


@pytest.mark.parametrize("task", [GRADE, SURVIVAL], ids=lambda t: t.name)
def test_labels_are_smoothed_in_training_only(pretrained, models, task):
    losses = []
    for share in (0.1, 0.0):
        run(replace(PROBE, epochs=1, lr=1e-9, params=SMALL | {"label_smoothing": share}), task, pretrained[0], models)
        losses.append(read_table(models / "probe/fold0/history.tsv")[0])
    assert float(losses[0]["val_loss"]) == pytest.approx(float(losses[1]["val_loss"]), rel=1e-6)
    assert (losses[0]["task_loss"] == losses[1]["task_loss"]) == (task is SURVIVAL)
    assert Mirror.Config().label_smoothing == 0.1


def test_what_is_refused():
    with pytest.raises(InputError, match=r"needs trained encoders.*experiment of mirror-pretraining, or params"):
        Experiment("m", "mirror")
    assert Experiment("m", "mirror", params={"mode": "fine_tune"}).resolved("survival").lr == 2e-5
    with pytest.raises(InputError, match="width is 100"):
        MirrorConfig(width=100)
    with pytest.raises(InputError, match="did you mean 'linear_probe'"):
        MirrorConfig(mode="linear-probe")
    with pytest.raises(InputError, match="a 'mirror' can do nothing with 'x', a 'abmil'"):
        check_sources([replace(PROBE, init_from="x"), Experiment("x", "abmil")], ["grade"])
    check_sources([PROBE, replace(PRE, tasks=["_pretrain"])], ["grade"])
