"""Reference mode of the disentangled teacher and student against golden values of the released code.

``golden_disentangled.json`` holds the released code's outputs with tolerances and, for each tensor (name, number and
scale of its fill), the norm of its gradient in float64 and the tolerance in float32, in the order of `gradient_keys`.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.batch import Batch, Sizes, Targets
from models.coordination import INTERVAL, confidences, coordinated
from models.density_peaks import density_peaks
from models.disentangled_student import DisentangledStudent, StudentConfig
from models.disentangled_teacher import MAGNIFICATIONS, SUBSPACES, DisentangledTeacher, TeacherConfig
from models.distillation import feature_distance, softened_divergence
from models.losses import cross_entropy, interval_likelihood
from models.magnification_pair import combined, released_consistency, released_similarity
from models.slides import unpadded
from models.survival import risk_of_survival, survival_of_hazards

GOLDEN = json.loads(Path(__file__).with_name("golden_disentangled.json").read_text())
CLASS_WEIGHTS = torch.tensor([1.0, 4.15, 2.93, 2.43])
LABEL, INTERVALS, EVENT = torch.tensor([1, 3]), torch.tensor([1, 2]), torch.tensor([1, 0])
MAGS = dict(zip(("10x", "20x"), MAGNIFICATIONS, strict=True))
LETTERS = dict(zip("te", SUBSPACES, strict=True))
ATTENTION = [
    *("query", "offset_window.weight", "offset_window.bias", "offset_point.weight", "key", "value"),
    *(f"position_bias.{k}.{part}" for k in (0, 2, 4) for part in ("weight", "bias")),
    *("output.weight", "output.bias"),
]


def both(*layers: str) -> list[str]:
    return [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


def injection(subspace: str) -> list[str]:
    start = f"injection.{subspace}"
    own = [f"{start}.attention.in_proj_weight", f"{start}.attention.in_proj_bias"]
    return [*own, *both(f"{start}.attention.out_proj", f"{start}.pool")]


def teacher_names() -> tuple[list[str], list[str]]:
    """Tensors and layer norms in the order of the golden file."""
    genes = [name for u in SUBSPACES for k in range(4) for name in both(f"genes.{u}.embed.{3 * k}")]
    encoder = [*both("project"), *(f"attention.{u}.{name}" for u in SUBSPACES for name in ATTENTION), *both("fusion")]
    encoder += [*injection("tumour"), *injection("tme"), *both("pool.tumour", "pool.tme", "head")]
    norms = ["norm_tokens", "injection.tumour.norm", "injection.tme.norm", "norm_branch"]
    return [*genes, *with_magnification(encoder)], with_magnification(norms)


def student_names() -> tuple[list[str], list[str]]:
    encoder = [*both("project"), *(f"attention.{name}" for name in ATTENTION), *both("merging.score", "head")]
    return with_magnification(encoder), with_magnification(["norm_tokens", "merging.norm"])


def with_magnification(names: list[str]) -> list[str]:
    return [f"{m}.{name}" for m in MAGNIFICATIONS for name in names]


def wave(number: int, shape: torch.Size, scale: float, dtype: torch.dtype) -> Tensor:
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * torch.sin(1 + 0.618 * number + 0.37 * i)).to(dtype).reshape(shape)


def filled(model, golden: dict, names: list[str], norms: list[str], filled_norms: bool, dtype: torch.dtype):
    """The golden tensors; named parameters must be these and the layer norms, no others."""
    model = model.to(dtype)
    parameters = dict(model.named_parameters())
    assert set(parameters) == {*names, *both(*norms)} and len(norms) == len(golden["layer_norms"])
    with torch.no_grad():
        for name, (_, number, scale, _) in zip(names, golden["tensors"], strict=True):
            parameters[name].copy_(wave(number, parameters[name].shape, scale, dtype))
        for j, norm in enumerate(norms if filled_norms else ()):
            parameters[f"{norm}.weight"].copy_(1 + wave(200 + 2 * j, (128,), 0.1, torch.float64))
            parameters[f"{norm}.bias"].copy_(wave(201 + 2 * j, (128,), 0.05, torch.float64))
    return model.train()  # all dropout is 0


def teacher(tiles: int, filled_norms: bool, dtype: torch.dtype) -> DisentangledTeacher:
    params = {**DisentangledTeacher.reference_params, "fixed_length": tiles, "dropout": 0.0, "attention_dropout": 0.0}
    sizes = Sizes(1024, {"tumour": 59, "tme": 361}, 4, "classification")
    model = DisentangledTeacher(TeacherConfig(**params), sizes)
    return filled(model, GOLDEN["teacher"], *teacher_names(), filled_norms, dtype)


def student(filled_norms: bool, dtype: torch.dtype) -> DisentangledStudent:
    params = {**DisentangledStudent.reference_params, "fixed_length": 144, "attention_dropout": 0.0}
    params |= DisentangledStudent.presets["similar-attention"]
    model = DisentangledStudent(StudentConfig(**params), Sizes(1024, {}, 4, "classification"))
    return filled(model, GOLDEN["student"], *student_names(), filled_norms, dtype)


def batch_of(coarse: Tensor, fine: Tensor, dtype: torch.dtype) -> Batch:
    samples, tiles = fine.shape[:2]
    yes, mask = torch.ones(samples, dtype=torch.bool), torch.ones(samples, tiles, dtype=torch.bool)
    blank = torch.zeros(samples, tiles, 2, dtype=torch.int64)
    b = torch.arange(samples, dtype=torch.float64)[:, None]
    genes = {
        "tumour": (1 + torch.sin(0.3 * torch.arange(59, dtype=torch.float64) + 0.5 * b)).to(dtype),
        "tme": (1 + torch.cos(0.2 * torch.arange(361, dtype=torch.float64) + 0.5 * b)).to(dtype),
    }
    common = {"mask": mask, "slide": blank[..., 0], "cell": blank, "coords": blank}
    coarser = Batch(("a", "b")[:samples], yes, yes, coarse.to(dtype), **common)
    parent = blank[..., 0] - 1
    return Batch(coarser.case_ids, yes, yes, fine.to(dtype), genes=genes, coarser=coarser, parent=parent, **common)


def teacher_batch(samples: int, dtype: torch.dtype) -> Batch:
    b = torch.arange(samples, dtype=torch.float64)[:, None, None]
    n, c = torch.arange(324, dtype=torch.float64)[:, None], torch.arange(1024, dtype=torch.float64)
    coarse = torch.sin(0.11 * n + 0.07 * c + b).abs()
    return batch_of(coarse, torch.sin(0.13 * n + 0.05 * c + b + 0.5).abs(), dtype)


def student_batch(samples: int, dtype: torch.dtype) -> Batch:
    k = torch.arange(144, dtype=torch.float64)
    theta = torch.where(k < 82, 0.03 * (k - 40), math.pi + 0.04 * (k - 113.5))
    theta[82], theta[83] = 0.015, -0.015
    b = torch.arange(samples, dtype=torch.float64)[:, None, None]
    c = torch.arange(1024, dtype=torch.float64)

    def bag(p: int, q: int, omega: float) -> Tensor:
        angle = theta[(p * torch.arange(144) + q) % 144]
        return torch.sin(0.185 * c + 0.5 * angle[:, None] + omega + 0.7 * b).abs()

    return batch_of(bag(55, 0, 0.0), bag(65, 7, 0.4), dtype)


def survival(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    lasting = survival_of_hazards(logits)
    return logits.sigmoid(), lasting, risk_of_survival(lasting)


def teacher_values(samples: int, filled_norms: bool, dtype: torch.dtype):
    """Everything that the golden file lists for the teacher, in its words; and the model with its outputs."""
    model, batch = teacher(324, filled_norms, dtype), teacher_batch(samples, dtype)
    genes = {u: model.genes[u](batch.genes[u]) for u in SUBSPACES}
    got = {f"o_{u}": genes[LETTERS[u]][:, 0] for u in "te"}
    outputs = model(batch)
    pair = {}
    for mag, name in MAGS.items():
        slides = unpadded(batch.coarser if name == "coarse" else batch, 324)
        branch = pair[name] = getattr(model, name)(slides, genes, True)
        torch.testing.assert_close(branch.logits, outputs.branches[name == "fine"])
        got |= {f"{mag} logits": branch.logits, f"{mag} risk": survival(branch.logits)[2]}
        got[f"{mag} CE"] = task_loss(branch.logits, "classification")
        got[f"{mag} NLL"] = task_loss(branch.logits, "survival")
        sources = getattr(model, name).norm_tokens(torch.relu(getattr(model, name).project(slides.features)))
        for u, group in LETTERS.items():
            got[f"{mag} f_{u}"] = branch.features[group]
            maps = branch.maps[group].unflatten(1, (8, 324, 16))
            got[f"{mag} M_{u} b0 h0 query 0"], got[f"{mag} M_{u} b0 h7 query 323"] = maps[0, 0, 0], maps[0, 7, 323]
            got[f"{mag} M_{u} sum of squares per sample"] = maps.square().sum(dim=(1, 2, 3))
            query = getattr(model, name).norm_tokens(genes[group][:, 0][slides.sample])
            _, points = slides.attended(getattr(model, name).attention[group], query, sources)
            offsets = torch.stack([p.offset for p in points])
            got[f"{mag} offsets_{u} sum per sample"] = offsets.sum(dim=(1, 2, 3, 4))
            got[f"{mag} offsets_{u} b0 g0"] = offsets[0, 0]
    for how in ("max_confidence", "average", "softmax_average"):
        got[f"combined logits ({how})"] = combined(*outputs.branches, how, "classification")
    torch.testing.assert_close(outputs.logits, got["combined logits (max_confidence)"])
    got["combined hazards"], got["combined S"], got["combined risk"] = survival(outputs.logits)
    for u, group in LETTERS.items():
        product = pair["coarse"].maps[group] @ pair["fine"].maps[group].T
        got[f"consistency normalised S_{u}"] = product / product.norm(dim=1, keepdim=True)
        got[f"consistency L_{u}"] = outputs.losses[f"consistency_{group}"]
    got["consistency loss"] = got["consistency L_t"] + got["consistency L_e"]
    got["total loss classification"] = got["10x CE"] + got["20x CE"] + got["consistency loss"]
    got["total loss survival"] = got["10x NLL"] + got["20x NLL"] + got["consistency loss"]
    return {place(key): value.detach() for key, value in got.items()}, (model, outputs)


def task_loss(logits: Tensor, kind: str) -> Tensor:
    if kind == "classification":
        total, weight = cross_entropy(logits, LABEL[: len(logits)], CLASS_WEIGHTS.to(logits))
    else:
        total, weight = interval_likelihood(logits, INTERVALS[: len(logits)], EVENT[: len(logits)])
    return total / weight


def compare(expected: dict, start: str, got: dict[str, Tensor], exact: bool) -> int:
    """Compare every golden value whose key begins with the batch and variant; return how many there were.

    `exact` compares scalars with the float64 values, to what eight printed digits allow.
    """
    others = [s for s in ("B1 ", "B2 filled-LN ", "B2 ") if s.startswith(start) and s != start]
    found = 0
    for key, entry in expected.items():
        if not key.startswith(start) or any(key.startswith(s) for s in others):
            continue
        value = got[key.removeprefix(start)].double().flatten()
        found += 1
        sharp = exact and "f64" in entry
        target = torch.tensor(entry["f64"] if sharp else entry["values"], dtype=torch.float64).flatten()
        bound = 1e-7 * target.abs() + 1e-10 if sharp else entry["tol"]
        assert ((value - target).abs() <= bound).all(), (key, value, target)
    return found


FORMS = [
    pytest.param(start, filled_norms, dtype, id=f"{dtype}, {'filled' if filled_norms else 'unit'} norms")
    for start, filled_norms in (("B2 ", False), ("B2 filled-LN ", True))
    for dtype in (torch.float32, torch.float64)
]


def gradient_norms(model, loss: Tensor, names: list[str]) -> list[float]:
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, [parameters[n] for n in names], retain_graph=True, allow_unused=True)
    return [0.0 if g is None else float(g.double().norm()) for g in grads]


def compare_gradients(golden: dict, key: str, norms: list[float], exact: bool) -> None:
    at = golden["gradient_keys"].index(key)
    rows = [(name, *values[at]) for name, _, _, values in golden["tensors"]]
    largest = max(norm for _, norm, _ in rows)
    for (name, norm, tolerance), got in zip(rows, norms, strict=True):
        bound = 1e-6 * norm + 1e-11 * largest + 1e-14 if exact else tolerance
        assert abs(got - norm) <= bound, (key, name, got, norm)


class TestTeacher:
    def test_parameter_count_of_the_released_code(self):
        model = teacher(324, False, torch.float32)
        count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
        spared = 2 * (128 * 4 + 4 + 2)  # heads and constants without a loss, which are not built
        assert count == {"genes": 13_270 + 32_598 - spared, "coarse": 552_134, "fine": 552_134}

    @pytest.mark.parametrize(("start", "filled_norms", "dtype"), FORMS)
    def test_every_value_and_the_gradient_of_every_tensor(self, start, filled_norms, dtype):
        got, (model, outputs) = teacher_values(2, filled_norms, dtype)
        exact = dtype == torch.float64
        assert compare(GOLDEN["teacher"]["expected"], start, got, exact) == 47
        task, death = (sum(task_loss(x, k) for x in outputs.branches) for k in ("classification", "survival"))
        consistency = sum(outputs.losses.values())
        losses = {
            "classification task": task, "survival task": death, "consistency": consistency,
            "classification total": task + consistency,
        }  # fmt: skip
        for name, loss in losses.items():
            norms = gradient_norms(model, loss, teacher_names()[0])
            compare_gradients(GOLDEN["teacher"], start + name, norms, exact)

    def test_one_sample_is_the_first_of_two(self):
        got, _ = teacher_values(1, False, torch.float32)
        assert compare(GOLDEN["teacher"]["expected"], "B1 ", got, exact=False) == 9
        assert got["consistency loss"] == 0  # the released code: no number

    def test_one_key_makes_attention_a_constant(self):
        """The query is the same at every tile, interior offsets are equal, and a single key has weight 1."""
        model, batch = teacher(324, False, torch.float32), teacher_batch(2, torch.float32)
        outputs = model(batch)
        sum(task_loss(x, "classification") for x in outputs.branches).backward()
        for u in SUBSPACES:
            grad = model.coarse.injection[u].attention.in_proj_weight.grad
            assert grad[:256].abs().max() < 1e-9 < grad[256:].abs().max()
        slides = unpadded(batch, 324)
        query = model.genes["tumour"](batch.genes["tumour"])[:, 0][slides.sample]
        offset = slides.attended(model.fine.attention["tumour"], query, query)[1][0].offset[:, :, 1:, 1:]
        torch.testing.assert_close(offset, offset[..., :1, :1].expand_as(offset), rtol=0, atol=1e-5)


CASES = {
    "classification": Targets(label=LABEL),
    "classification y=(0,2)": Targets(label=torch.tensor([0, 2])),
    "classification y=(3,0)": Targets(label=torch.tensor([3, 0])),
    "survival": Targets(interval=INTERVALS, event=EVENT),
}


@pytest.fixture(scope="module")
def judged():
    model = teacher(324, False, torch.float32)
    return model, model(teacher_batch(2, torch.float32))


@pytest.mark.parametrize("case", CASES)
def test_coordination_of_the_released_teacher(judged, case):
    targets, checked = CASES[case], 0
    model, outputs = judged
    if targets.label is not None:
        losses = [cross_entropy(x, targets.label, CLASS_WEIGHTS) for x in outputs.branches]
    else:
        losses = [interval_likelihood(x, INTERVALS, EVENT) for x in outputs.branches]
    heads = {name: getattr(model, name).head for name in MAGNIFICATIONS}
    loss = sum(total / weight for total, weight in losses)
    grads = torch.autograd.grad(loss, [head.weight for head in heads.values()], retain_graph=True)
    for head, grad in zip(heads.values(), grads, strict=True):
        head.weight.grad = grad.clone()
    for (mag, name), raw in zip(MAGS.items(), grads, strict=True):
        head = heads[name]
        features = [outputs.hidden[f"{name}_{u}"].detach() for u in SUBSPACES]
        sure = confidences(head.weight.detach(), head.bias.detach(), *features, targets, INTERVAL)
        got = {"s_t": torch.tensor(sure[0]), "s_e": torch.tensor(sure[1])}
        halves = raw.unflatten(1, (2, 128))
        got["row cosine"] = torch.nn.functional.cosine_similarity(halves[:, 0], halves[:, 1], eps=1e-30)
        edited = {mode: coordinated(raw, *sure, mode) for mode in ("projection", "reflection")}
        for mode, gradient in {"raw": raw, **edited}.items():
            halves = gradient.unflatten(1, (2, 128))
            got[f"{mode} gradient first five of each half [class, half, 5]"] = halves[..., :5]
            got[f"{mode} half norms"] = halves.norm(dim=2)
        for key, value in got.items():
            entry = GOLDEN["coordination"]["expected"][f"{case} {mag} {key}"]
            numbers = [float("nan") if v is None else v for v in torch.utils._pytree.tree_flatten(entry["values"])[0]]
            target = torch.tensor(numbers, dtype=torch.float64)
            defined = ~target.isnan()
            assert ((value.double().flatten() - target).abs() <= entry["tol"])[defined].all(), (mag, key)
            checked += 1
    assert checked == 18
    model.edit_gradients(outputs, targets)  # the whole model does the last of these: reflection
    assert torch.equal(model.fine.head.weight.grad, edited["reflection"])


def student_values(samples: int, filled_norms: bool, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the golden file lists for the student, and the losses whose gradients it lists."""
    model, batch = student(filled_norms, dtype), student_batch(samples, dtype)
    instructor = teacher(144, filled_norms, dtype)
    with torch.no_grad():
        lesson = instructor.lesson(batch)
    outputs = model(replace(batch, lesson=lesson, taught=torch.ones(samples, dtype=torch.bool)))
    got, maps = {}, {}
    for mag, name in MAGS.items():
        slides = unpadded(batch.coarser if name == "coarse" else batch, 144)
        encoder = getattr(model, name)
        branch = encoder(slides, True)
        tokens = encoder.merging.norm(branch.tokens).detach()
        found = [density_peaks(part, 2) for part in tokens.split(144)]
        got |= {f"{mag} token_{k}": branch.features[:, 128 * k : 128 * (k + 1)] for k in (0, 1)}
        got |= {f"{mag} logits": branch.logits, f"{mag} risk": survival(branch.logits)[2]}
        got[f"{mag} cluster index"] = torch.stack([f.of for f in found])
        got[f"{mag} cluster sizes"] = torch.stack([torch.bincount(f.of, minlength=2) for f in found])
        got[f"{mag} centres"] = torch.stack([f.centres for f in found])
        got[f"{mag} centre scores"] = torch.stack([f.scores for f in found])
        got[f"{mag} X-prime b0 token 0"], got[f"{mag} X-prime b0 token 143"] = tokens[0], tokens[143]
        maps[name] = branch.maps
        got[f"{mag} M b0 h0 query 0"] = branch.maps.unflatten(2, (144, 9))[0, 0, 0]
        got[f"{mag} M sum of squares per sample"] = branch.maps.square().sum(dim=(1, 2))
        logits, features = (lesson[f"{name}_{what}"] for what in ("logits", "features"))
        for k, u in enumerate("te"):
            got[f"teacher on the student bags {mag} f_{u}"] = features[:, 128 * k : 128 * (k + 1)]
        got[f"teacher on the student bags {mag} logits"] = logits
        got[f"{mag} KL"] = softened_divergence(branch.logits, logits)
        got[f"{mag} KL, both logits multiplied by 50"] = softened_divergence(50 * branch.logits, 50 * logits)
        got[f"{mag} MSE"] = feature_distance(branch.features, features)
        got[f"{mag} CE"], got[f"{mag} NLL"] = (task_loss(branch.logits, k) for k in ("classification", "survival"))
    got["attention similarity loss (1000x)"] = outputs.losses["consistency"]
    torch.testing.assert_close(outputs.losses["consistency"], released_similarity(maps["coarse"], maps["fine"]))
    got["combined logits (max_confidence)"], got["combined risk"] = outputs.logits, survival(outputs.logits)[2]
    task = got["10x CE"] + got["20x CE"]
    own = {name: loss for name, loss in outputs.losses.items() if name.startswith("distil_")}
    got["total distillation loss classification"] = task + sum(own.values())
    weighed = {name: loss / 0.01 for name, loss in own.items()}
    losses = {
        "classification task": task, "distillation total": got["total distillation loss classification"],
        "KL + MSE unweighted": sum(weighed.values()),
    }  # fmt: skip
    values = {place(key): torch.as_tensor(value).detach() for key, value in got.items()}
    return values, {"model": model, **losses}


def place(key: str) -> str:
    """The golden file's word order: "KL 10x, both logits multiplied by 50"."""
    mag, _, rest = key.partition(" ")
    loss, comma, more = rest.partition(",")
    return f"{loss} {mag}{comma}{more}" if loss in ("CE", "NLL", "KL", "MSE") else key


class TestStudent:
    def test_parameter_count_of_the_released_code(self):
        spared = 128 * 128 + 128 + 256  # a pooling layer and a norm without gradient, which are not built
        assert sum(p.numel() for p in student(False, torch.float32).parameters()) == 2 * (243_558 - spared)

    @pytest.mark.parametrize(("start", "filled_norms", "dtype"), FORMS)
    def test_every_value_and_gradient(self, start, filled_norms, dtype):
        got, losses = student_values(2, filled_norms, dtype)
        exact = dtype == torch.float64
        assert compare(GOLDEN["student"]["expected"], start, got, exact) == 44
        model, names = losses.pop("model"), student_names()[0]
        for name, loss in losses.items():
            compare_gradients(GOLDEN["student"], start + name, gradient_norms(model, loss, names), exact)

    def test_one_sample_is_the_first_of_two(self):
        got, _ = student_values(1, False, torch.float32)
        assert compare(GOLDEN["student"]["expected"], "B1 ", got, exact=False) == 9


def test_consistency_vector_of_the_specification():
    coarse = torch.tensor([[1.0, 2, 0, 1], [0, 1, 3, 1], [2, 0, 1, 1]])
    fine = torch.tensor([[2.0, 1, 0, 1], [1, 1, 1, 1], [0, 3, 1, 0]])
    assert float(released_consistency(coarse, fine) / 1e4) == pytest.approx(0.0653687, abs=5e-8)
    assert float(2 * released_consistency(coarse, fine)) == pytest.approx(1307.374, abs=5e-4)


def test_distillation_vector_of_the_specification():
    scores = torch.tensor([[1.0, 2, 3]])
    assert float(softened_divergence(scores, scores.flip(1))) == pytest.approx(1.2806269, abs=1e-6)
