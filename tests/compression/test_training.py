"""Training by a recipe: what is pruned stays pruned, what is tied stays tied, what is saved goes on."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lite_transformer.cli.main import main
from lite_transformer.compression import apply, pruning
from lite_transformer.compression.recipes import Pruning, Quantization, Recipe
from lite_transformer.compression.training import Compressor, Plan, Ties
from lite_transformer.errors import CheckpointError, ConfigError
from lite_transformer.models.cuda_graphs import BucketPass, TrainingGraphs
from lite_transformer.models.safe_load import load_checkpoint
from lite_transformer.scoring import decoding
from lite_transformer.tasks.compressed import CompressedTraining, _inner
from tests.models import graph_cases

PLAN = Plan(prune_until=8, prune_interval=2, quantize_from=10, tie_from=12)
KMEANS = Recipe(
    "k", "", Quantization("kmeans", 3), Quantization("kmeans_rows", 4), Pruning(sparsity=0.5), min_elements=40
)
LINEAR = Recipe("l", "", Quantization("linear", 4), Quantization("linear", 4), Pruning(sparsity=0.5), min_elements=40)


class Model(nn.Module):
    """An embedding shared with the output, two matrices, biases."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(12, 8)
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 8)
        self.output_projection = nn.Linear(8, 12, bias=False)
        self.output_projection.weight = self.embed_tokens.weight

    def forward(self, tokens):
        return self.output_projection(self.second(torch.relu(self.first(self.embed_tokens(tokens)))))


def run(model, compressor, optimizer, updates, seen=None):
    """Trains for these updates on batches that depend on the update alone; two batches an update."""
    for update in updates:
        optimizer.zero_grad()
        for part in range(2):
            generator = torch.Generator().manual_seed(2 * update + part)
            tokens = torch.randint(0, 12, (32,), generator=generator)
            with compressor.quantized(model, update):
                if seen is not None:
                    seen.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
                nn.functional.cross_entropy(model(tokens), (tokens * 5 + 1) % 12).backward()
            compressor.project_gradients(model)
        optimizer.step()
        compressor.hold(model)


def adam(model):
    # momentum and decay both move what has no gradient
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)


def zeros(weight) -> float:
    return float((weight == 0).float().mean())


def test_pruning_grows_and_is_held_through_every_step():
    model, compressor = Model(), Compressor(KMEANS, PLAN)
    optimizer = adam(model)
    matrices = (model.first.weight, model.second.weight)
    parts, gone = [], [torch.zeros_like(weight, dtype=torch.bool) for weight in matrices]
    for update in range(30):
        run(model, compressor, optimizer, [update])
        for weight, before in zip(matrices, gone, strict=True):
            assert not weight[before].any(), "a weight that was left out came back"
            before |= weight == 0
        parts.append(sum(int((weight == 0).sum()) for weight in matrices) / 256)
    assert parts[0] == 0 and parts[2] == pytest.approx(0.5 * (1 - 0.75**3), abs=0.01) and parts[3] == parts[2]
    assert parts[8:] == [0.5] * 22
    assert model.embed_tokens.weight.all() and model.first.bias.all()


def test_thresholds_are_measured_in_the_dense_weights():
    model, compressor = Model(), Compressor(KMEANS, PLAN)
    dense = pruning.units(
        {name: weight for name, weight in model.named_parameters() if "st.weight" in name or "nd.weight" in name}
    )
    run(model, compressor, torch.optim.SGD(model.parameters(), lr=0), range(10))
    assert compressor.state_dict()["units"] == {name: dense[name] for name in compressor.state_dict()["units"]}
    assert float(model.first.weight.std(unbiased=False)) != pytest.approx(dense["first.weight"], rel=0.01)


def test_levels_are_trained_and_weights_stay_on_them():
    model, compressor = Model(), Compressor(KMEANS, PLAN)
    optimizer = adam(model)
    run(model, compressor, optimizer, range(13))
    levels = [weight.unique() for weight in (model.first.weight, model.second.weight)]
    assert all(len(found) == 8 for found in levels)
    codes = [weight.detach()[..., None].eq(found).int().argmax(-1) for weight, found in
             zip((model.first.weight, model.second.weight), levels, strict=True)]  # fmt: skip
    run(model, compressor, optimizer, range(13, 40))
    for weight, before, code in zip((model.first.weight, model.second.weight), levels, codes, strict=True):
        assert len(weight.unique()) == 8 and zeros(weight) == zeros(before[code])
        moved = torch.stack([weight[code == number][0] for number in range(8)]).detach()
        assert torch.equal(moved[code], weight) and (moved - before).abs().max() > 0.02
    assert len(model.embed_tokens.weight.unique()) == 96


def test_gradient_of_a_level_is_the_mean_of_its_weights():
    ties = Ties({"a": torch.tensor([[0, 1], [1, 2]]), "b": torch.tensor([0, 0, 1])}, {"a": 2, "b": None})
    held = {"a": torch.tensor([[1.0, 2.0], [4.0, 9.0]]), "b": torch.tensor([1.0, 3.0, 5.0])}
    ties.average(held)
    assert held["a"].tolist() == [[1, 3], [3, 9]] and held["b"].tolist() == [2, 2, 5]


def test_half_precision_is_held_as_well():
    ties = Ties({"a": torch.tensor([0, 1, 1]), "b": torch.tensor([1, 1])}, {"a": 0, "b": None})
    held = {"a": torch.tensor([5.0, 1, 2]).half(), "b": torch.tensor([3.0, 5]).bfloat16()}
    ties.average(held)
    assert held["a"].tolist() == [5, 1.5, 1.5] and held["b"].tolist() == [4, 4]
    assert held["a"].dtype == torch.float16 and held["b"].dtype == torch.bfloat16


def test_the_model_is_found_inside_its_wrappers():
    model = Model()
    wrapped = nn.DataParallel(nn.DataParallel(model))
    assert _inner(wrapped) is model and _inner(model) is model


def test_task_takes_gradients_of_what_is_held():
    class Plain:
        def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
            nn.functional.cross_entropy(model(sample), sample).backward()
            return update_num

    class Task(CompressedTraining, Plain):
        pass

    task, model = Task(), Model()
    task._compressor = Compressor(KMEANS, Plan(0, 1, 0, 0))
    assert task.train_step(torch.arange(12), model, None, None, 5) == 5
    weight = model.first.weight
    assert zeros(weight) > 0.3 and not weight.grad[weight == 0].any()
    levels = weight.detach().unique()
    assert all(len(weight.grad[weight == level].unique()) == 1 for level in levels)


def test_straight_through_shows_the_quantized_weights_and_trains_the_others():
    model, compressor, seen = Model(), Compressor(LINEAR, PLAN), []
    optimizer = adam(model)
    run(model, compressor, optimizer, range(12), seen)
    assert all(len(weights["second.weight"].unique()) > 40 for weights in seen)
    seen.clear()
    run(model, compressor, optimizer, range(12, 30), seen)
    assert all(len(row.unique()) <= 15 for weights in seen for row in weights["second.weight"])
    assert all(len(row.unique()) <= 15 for weights in seen for row in weights["embed_tokens.weight"])
    assert not torch.equal(seen[0]["second.weight"], seen[-1]["second.weight"])
    assert torch.equal(seen[0]["second.weight"], seen[1]["second.weight"]), "both batches of an update see the same"
    assert len(model.second.weight.unique()) > 40 and zeros(model.second.weight) > 0.3


def test_codebooks_are_seen_before_weights_are_tied_to_them():
    model, compressor, seen = Model(), Compressor(KMEANS, PLAN), []
    run(model, compressor, adam(model), range(12), seen)
    assert len(seen[19]["second.weight"].unique()) > 40  # update 9
    for weights in seen[20:]:
        assert len(weights["second.weight"].unique()) <= 8 and zeros(weights["second.weight"]) > 0.3
        assert ((weights["second.weight"] == 0) == (model.second.weight == 0)).all()
    assert len(model.second.weight.unique()) > 40
    assert not torch.equal(seen[20]["second.weight"], seen[-1]["second.weight"]), "and trained meanwhile"


def test_loss_falls_although_weights_are_held():
    model, compressor = Model(), Compressor(KMEANS, PLAN)
    tokens = torch.arange(12)

    def loss():
        with compressor.as_packed(model):
            return float(nn.functional.cross_entropy(model(tokens), (tokens * 5 + 1) % 12))

    optimizer = adam(model)
    run(model, compressor, optimizer, range(13))
    before = loss()
    run(model, compressor, optimizer, range(13, 150))
    assert loss() < 0.5 * before


@pytest.mark.parametrize("recipe", [KMEANS, LINEAR], ids=["kmeans", "linear"])
@pytest.mark.parametrize("stop", [3, 9, 21])
def test_checkpoint_goes_on_as_if_never_stopped(recipe, stop):
    model, compressor = Model(), Compressor(recipe, PLAN)
    optimizer = adam(model)
    run(model, compressor, optimizer, range(stop))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), compressor.state_dict()))
    run(model, compressor, optimizer, range(stop, 28))
    again, resumed = Model(), Compressor(recipe, PLAN)
    continued = adam(again)
    again.load_state_dict(saved[0])
    continued.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2], again)
    run(again, resumed, continued, range(stop, 28))
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_foreign_checkpoints_are_refused():
    compressor = Compressor(KMEANS, PLAN)
    run(model := Model(), compressor, adam(model), range(14))
    state = compressor.state_dict()
    with pytest.raises(CheckpointError, match=r"another recipe than task.compression_recipe"):
        Compressor(LINEAR, PLAN).load_state_dict(state, model)
    model.first = nn.Linear(8, 17)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        Compressor(KMEANS, PLAN).load_state_dict(state, model)


@pytest.mark.parametrize("recipe", [KMEANS, LINEAR], ids=["kmeans", "linear"])
@pytest.mark.parametrize("updates", [0, 5, 20])
def test_validation_sees_what_a_file_would_hold(recipe, updates):
    model, compressor = Model(), Compressor(recipe, PLAN)
    optimizer = adam(model)
    run(model, compressor, optimizer, range(updates))
    before = copy.deepcopy(model.state_dict())
    packed = apply.dense(apply.compress(model.state_dict(), recipe))
    with compressor.as_packed(model):
        for name, weight in model.state_dict().items():
            if weight.dim() > 1:
                assert torch.equal(weight, packed[name]), name
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    run(model, compressor, optimizer, range(updates, updates + 1))
    with compressor.as_packed(model):
        assert not torch.equal(model.second.weight, packed["second.weight"]), "packed anew after an update"


def test_trained_levels_are_packed_without_loss():
    model, compressor = Model(), Compressor(KMEANS, PLAN)
    run(model, compressor, adam(model), range(30))
    packed = apply.dense(apply.compress(model.state_dict(), KMEANS))
    # levels go into half precision, nothing else changes
    assert torch.equal(packed["first.weight"], model.first.weight.half().float())


def test_zeros_of_an_earlier_pruning_are_held():
    recipe = Recipe("k", "", Quantization("kmeans", 3), Quantization("none"), min_elements=40)
    model, compressor = Model(), Compressor(recipe, Plan(0, 1, 2, 2))
    with torch.no_grad():
        model.first.weight[:4] = 0
    run(model, compressor, adam(model), range(2))
    with torch.no_grad():
        model.first.weight[:4] = 0
    run(model, compressor, adam(model), range(2, 10))
    assert not model.first.weight[:4].any() and model.second.weight.all()


class Waits(TorchDispatchMode):
    """Counts what makes the program wait for its device: values that Python asks for, sizes that depend on values."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "unique", "bincount"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("embeddings", ["linear", "kmeans_rows"])
@pytest.mark.parametrize("core", ["linear", "kmeans"])
def test_an_update_hardly_waits_for_the_device(core, embeddings):
    recipe = Recipe("w", "", Quantization(core, 4), Quantization(embeddings, 4), Pruning(), min_elements=40)
    model, compressor = Model(), Compressor(recipe, PLAN)
    run(model, compressor, adam(model), range(15))
    with Waits() as waits:
        with compressor.quantized(model, 15):
            pass
        compressor.project_gradients(model)
        compressor.hold(model)
    assert waits.count == 0


@pytest.mark.parametrize("recipe", [KMEANS, LINEAR], ids=["kmeans", "linear"])
def test_training_through_graphs_is_the_same(recipe, monkeypatch):
    made = []

    class Pass(BucketPass):
        def prepare(self, shared, warm_ups):
            super().prepare(shared, warm_ups)
            made.append(self)

    monkeypatch.setattr(TrainingGraphs, "_on_device", staticmethod(lambda tokens: True))
    monkeypatch.setattr(TrainingGraphs.__init__, "__defaults__", (True, 256, Pass))
    trained = []
    for cuda_graphs in ("auto", "off"):
        model = graph_cases.build("shared", cuda_graphs=cuda_graphs)
        addresses = [weight.data_ptr() for weight in model.parameters()]
        compressor, optimizer = Compressor(recipe, Plan(4, 1, 5, 6)), torch.optim.SGD(model.parameters(), lr=1e-3)
        for update in range(9):
            optimizer.zero_grad()
            with compressor.quantized(model, update):
                graph_cases.loss_of(model, *graph_cases.sample((3, 6, 5), update)).backward()
            compressor.project_gradients(model)
            optimizer.step()
            compressor.hold(model)
        assert [weight.data_ptr() for weight in model.parameters()] == addresses
        trained.append(model)
    assert len(made) == 1, "captured once, and never anew"
    for weight, plain in zip(*(model.parameters() for model in trained), strict=True):
        torch.testing.assert_close(weight, plain, rtol=0, atol=1e-5)


def test_weights_are_put_back_after_an_error():
    recipe = Recipe("l", "", Quantization("linear", 4), Quantization("linear", 4), min_elements=40)
    model, compressor = Model(), Compressor(recipe, Plan(0, 1, 0, 0))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError), compressor.quantized(model, 0):
        assert not torch.equal(model.first.weight, before["first.weight"])
        raise RuntimeError
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((0, 0.4, 50, 0.6, 0.8), r"needs optimization.max_update"),
        ((100, 1.2, 50, 1.3, 1), r"task.prune_until is 1.2"),
        ((100, 0.4, 50, -1, 0.8), r"task.quantize_from is -1"),
        ((100, 0.4, 50, 0.4, 1.01), r"task.tie_from is 1.01"),
        ((100, 0.6, 50, 0.4, 0.8), r"task.quantize_from 0.4 is before task.prune_until 0.6"),
        ((100, 0.4, 50, 0.6, 0.5), r"task.tie_from 0.5 is before task.quantize_from 0.6"),
        ((100, 0.4, 0, 0.6, 0.8), r"task.prune_interval is 0"),
    ],
)
def test_schedules_that_cannot_be_are_named(options, reason):
    with pytest.raises(ConfigError, match=reason):
        Plan.of(*options)
    assert Plan.of(1000, 0.4, 50, 0.6, 0.8) == Plan(400, 50, 600, 800)


# --- within fairseq ------------------------------------------------------------------------------------------------

MODEL = [
    "model.encoder_embed_dim=16", "model.encoder_layers=2", "model.decoder_layers=2", "model.dropout=0.0",
    "model.weight_dropout=0.0",
]  # fmt: skip


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(
        "description: for tests\nprune: {sparsity: 0.6}\ncore: {method: kmeans, bits: 4}\n"
        "embeddings: {method: linear, bits: 8}\nmin_elements: 60\n"
    )
    return path


def train(data, folder, recipe_file, tiny_checkpoint, *more) -> int:
    words = ["train", "iwslt14_de_en_lite_160", "--data", data, "--save-dir", folder, "--cpu", *MODEL]
    words += [
        "task._name=compressed_translation",
        f"task.compression_recipe={recipe_file}",
        "task.prune_interval=1",
        "task.prune_until=0.5",
        "task.quantize_from=0.6",
        "task.tie_from=0.7",
    ]
    words += [
        f"checkpoint.finetune_from_model={tiny_checkpoint}",
        "optimization.max_update=6",
        "optimization.lr=[0.01]",
    ]
    words += ["optimization.update_freq=[1]", "dataset.max_tokens=128", "dataset.num_workers=0"]
    words += [
        "lr_scheduler.warmup_updates=1",
        "checkpoint.save_interval_updates=1",
        "checkpoint.keep_interval_updates=-1",
        *more,
    ]
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def finetuned(tiny_data, tiny_checkpoint, recipe_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuned")
    assert train(tiny_data, folder, recipe_file, tiny_checkpoint) == 0
    return folder


def test_fairseq_trains_by_the_recipe(finetuned, recipe_file, tiny_data, tmp_path, capsys):
    state = load_checkpoint(finetuned / "checkpoint_last.pt")
    chosen = {
        name: weight for name, weight in state["model"].items()
        if weight.dim() > 1 and weight.numel() >= 60 and not apply.is_embedding(name)
    }  # fmt: skip
    elements = sum(weight.numel() for weight in chosen.values())
    assert sum(int((weight == 0).sum()) for weight in chosen.values()) == round(0.6 * elements)
    assert all(len(weight.unique()) <= 16 for weight in chosen.values())
    path = tmp_path / "model.ltpack"
    words = ["compress", finetuned / "checkpoint_last.pt", "--recipe", recipe_file, "--data", tiny_data, "--out", path]
    assert main(list(map(str, words))) == 0
    config = load_checkpoint(path)["cfg"]["task"]
    assert config["_name"] == "translation" and "compression_recipe" not in config and "prune_until" not in config
    packed = load_checkpoint(path)["model"]
    assert all(torch.equal(packed[name], weight.half().float()) for name, weight in chosen.items())
    # the checkpoint of the training itself is one like others, too
    words = ["evaluate", "--checkpoint", str(finetuned / "checkpoint_last.pt"), "--data", str(tiny_data), "--cpu"]
    assert main(words) == 0


def test_interrupted_fine_tuning_goes_on_with_its_masks(
    finetuned, tiny_data, tiny_checkpoint, recipe_file, tmp_path, capsys
):
    for stop in ("2", "5"):  # while pruning, and after weights were tied; all six updates are of one epoch
        folder = tmp_path / stop
        folder.mkdir()
        number = next(finetuned.glob(f"checkpoint_*_{stop}.pt"))
        shutil.copy(number, folder / "checkpoint_last.pt")
        assert train(tiny_data, folder, recipe_file, tiny_checkpoint) == 0
        expected = load_checkpoint(finetuned / "checkpoint_last.pt")["model"]
        found = load_checkpoint(folder / "checkpoint_last.pt")["model"]
        assert all(torch.equal(found[name], weight) for name, weight in expected.items()), stop


def test_validation_is_of_the_packed_model(finetuned, recipe_file, tiny_data, tmp_path):
    state = load_checkpoint(finetuned / "checkpoint_last.pt")
    path = tmp_path / "model.ltpack"
    words = ["compress", finetuned / "checkpoint_last.pt", "--recipe", recipe_file, "--out", path]
    assert main(list(map(str, words))) == 0
    losses = []
    for file in (path, finetuned / "checkpoint_last.pt"):
        loaded = decoding.load([file], tiny_data, cpu=True)
        loaded.task.load_dataset("valid")
        dataset = loaded.task.dataset("valid")
        batch = dataset.collater([dataset[index] for index in range(len(dataset))])
        criterion = label_smoothed(loaded)
        with torch.no_grad():
            loss, size, _ = criterion(loaded.models[0], batch)
        losses.append(float(loss) / size / 0.6931471805599453)
    assert state["extra_state"]["val_loss"] == pytest.approx(losses[0], abs=6e-4)
    assert losses[0] != losses[1]


def label_smoothed(loaded):
    from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion

    return LabelSmoothedCrossEntropyCriterion(loaded.task, sentence_avg=False, label_smoothing=0.1)


def test_wrong_options_are_one_line(tiny_data, tiny_checkpoint, recipe_file, tmp_path, capsys):
    for option, reason in (
        ("task.compression_recipe=odd", "unknown recipe 'odd'"),
        ("task.quantize_from=0.1", "is before task.prune_until"),
        ("task.prune_untill=0.1", "unknown option 'task.prune_untill'"),
        ("common.bf16=true", "a compressed_ task trains in fp32"),
    ):
        assert train(tiny_data, tmp_path / "x", recipe_file, tiny_checkpoint, option) == 2
        err = capsys.readouterr().err
        assert reason in err
    assert not (tmp_path / "x" / "checkpoint_last.pt").exists()


def test_first_weights_that_cannot_be_read_are_one_line(tiny_data, tiny_checkpoint, recipe_file, tmp_path, capsys):
    path = tmp_path / "model.ltpack"
    assert main(["compress", str(tiny_checkpoint), "--out", str(path)]) == 0
    (tmp_path / "text.pt").write_text("text")
    capsys.readouterr()
    for first, reason in (
        (path, f"is a packed file, from which fairseq cannot go on. Run: lite-transformer decompress {path} --out "),
        (tmp_path / "none.pt", "none.pt does not exist"),
        (tmp_path / "text.pt", "text.pt is not a checkpoint"),
    ):
        assert train(tiny_data, tmp_path / "x", recipe_file, first) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and reason in err, err
    assert not (tmp_path / "x").exists()
