"""Memory: byte counts against sums by hand, the kernel's peak against a known allocation, CUDA at its border."""

import json
import multiprocessing
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dstbench.suite.meters import memory
from dstbench.suite.meters.memory import MemoryMeter, model_bytes, training_state
from dstbench.suite.model import SparseModel

MB = 2**20
WEIGHTS, BIASES = 8 * 16 + 16 * 4, 16 + 4


def perceptron(kernel: str = "masked") -> SparseModel:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return SparseModel(net, torch.zeros(2, 8), kernel=kernel)


def backward(model: SparseModel) -> None:
    model(torch.ones(2, 8)).sum().backward()


def masks(model: SparseModel, density: float) -> int:
    """Give every Layer a first-entries mask; returns how many weights stay."""
    for layer in model.layers:
        keep = round(density * layer.numel)
        layer.activate((torch.arange(layer.numel) < keep).view(layer.shape))
    return sum(layer.nnz() for layer in model.layers)


def test_parameters_gradients_and_state_are_counted_as_they_come_alive():
    model = perceptron()
    optimizer = torch.optim.SGD(model.net.parameters(), lr=0.1, momentum=0.9)
    one = 4 * (WEIGHTS + BIASES)
    assert training_state(model, None) == training_state(model, optimizer) == one
    backward(model)
    assert training_state(model, optimizer) == 2 * one
    optimizer.step()
    assert training_state(model, optimizer) == 3 * one
    model.zero_grad()
    assert training_state(model, optimizer) == 2 * one


def test_adam_holds_two_moments_and_a_step_a_parameter():
    model = perceptron()
    optimizer = torch.optim.AdamW(model.net.parameters())
    backward(model)
    optimizer.step()
    assert training_state(model, optimizer) == 4 * 4 * (WEIGHTS + BIASES) + 4 * 4


def test_masks_are_one_byte_a_weight_and_a_shared_mask_counts_once():
    model = perceptron()
    before = training_state(model, None)
    masks(model, 0.5)
    assert training_state(model, None) == before + WEIGHTS
    for layer in model.layers:
        layer.grad_mask = layer.forward_mask.clone()
    assert training_state(model, None) == before + 2 * WEIGHTS


def test_compact_storage_counts_values_and_its_index():
    model = perceptron("compact")
    optimizer = torch.optim.SGD(model.net.parameters(), lr=0.1, momentum=0.9)
    model.attach(optimizer, {})
    active = masks(model, 0.25)
    backward(model)
    optimizer.step()
    values = 3 * 4 * (active + BIASES)  # parameter, gradient, momentum
    assert training_state(model, optimizer) == values + WEIGHTS + 8 * active


def test_what_a_method_keeps_off_the_support_is_counted():
    model = perceptron()
    before = training_state(model, None)
    model.layers[0].reserve["dual"] = torch.zeros(model.layers[0].shape)
    assert training_state(model, None) == before + 4 * 8 * 16


def test_a_dense_gradient_that_outlives_a_change_of_mask_is_counted():
    model = perceptron("compact")
    backward(model)
    active = masks(model, 0.25)
    held = 4 * (active + BIASES) + 4 * (active + BIASES) + WEIGHTS + 8 * active
    assert training_state(model, None) == held + 4 * WEIGHTS
    assert model.layers[0].grad.shape == model.layers[0].shape


def test_each_storage_counts_once():
    model = perceptron()
    before = training_state(model, None)
    whole = torch.zeros(100)
    model.layers[0].reserve.update(a=whole[:10], b=whole[50:].view(5, 10), c=whole)
    model.layers[1].reserve["weight"] = model.layers[1].parameter.detach()
    assert training_state(model, None) == before + 400


def test_tied_weights_count_once():
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    net[1].weight = net[0].weight
    model = SparseModel(net, torch.zeros(1, 8))
    assert training_state(model, None) == 4 * 64
    assert model_bytes(model) == (4 * 64, 4 * 64)


def test_raw_tensors_of_a_reparametrised_method_are_counted():
    model = perceptron()
    raw = nn.Parameter(torch.zeros(50))
    optimizer = torch.optim.SGD([raw], lr=0.1)
    assert training_state(model, optimizer) == 4 * (WEIGHTS + BIASES + 50)
    raw.grad = torch.zeros(50)
    assert training_state(model, optimizer) == 4 * (WEIGHTS + BIASES + 100)


@given(st.integers(1, 40), st.integers(1, 70), st.floats(0, 1), st.integers(0, 2**31))
def test_sparse_model_is_values_and_the_smaller_index(rows, columns, density, seed):
    model = SparseModel(nn.Linear(columns, rows), torch.zeros(1, columns))
    mask = np.random.default_rng(seed).random((rows, columns)) < density
    model.layers[0].activate(torch.from_numpy(mask))
    indices, pointers = np.nonzero(mask)[1].astype(np.int32), np.zeros(rows + 1, np.int32)
    index = min(indices.nbytes + pointers.nbytes, np.packbits(mask).nbytes)
    dense, sparse = model_bytes(model)
    assert dense == 4 * (rows * columns + rows)
    assert sparse == np.float32().nbytes * mask.sum() + index + 4 * rows


def test_buffers_and_unmasked_layers_are_dense_and_both_kernels_agree(images):
    sizes = []
    for kernel in ("masked", "compact"):
        model = SparseModel(images.build(0), images.example(), kernel=kernel)
        tensors = [*images.build(0).parameters(), *images.build(0).buffers()]
        dense = sum(t.numel() * t.element_size() for t in tensors)
        assert model_bytes(model) == (dense, dense)
        model.layers[0].activate(torch.zeros(model.layers[0].shape, dtype=torch.bool))
        bitmap = -(-model.layers[0].numel // 8)
        csr = 4 * (model.layers[0].shape[0] + 1)
        assert model_bytes(model) == (dense, dense - 4 * model.layers[0].numel + min(bitmap, csr))
        masks(model, 0.1)
        sizes.append(model_bytes(model))
    assert sizes[0] == sizes[1]


def test_meter_keeps_the_maximum_and_carries_it_over_a_resume():
    model, meter = perceptron(), MemoryMeter()
    meter.start()
    backward(model)
    meter.observe(model, None)
    high = training_state(model, None)
    model.zero_grad()
    meter.observe(model, None)
    saved = json.loads(json.dumps(meter.state()))
    assert saved["training_state"] == high
    later = MemoryMeter()
    later.start()
    later.load({**saved, "peak_over_start": 2**50, "cuda_reserved": None})
    later.observe(model, None)
    block = later.block()
    assert (block["training_state"], block["peak_over_start"], block["cuda_reserved"]) == (high, 2**50, None)


def test_block_has_every_field_of_the_record():
    model, meter = perceptron(), MemoryMeter("cpu")
    meter.start()
    backward(model)
    meter.observe(model, None)
    block = meter.block()
    fields = "training_state peak_over_start peak_resident cuda_allocated cuda_reserved model_dense model_sparse"
    assert list(block) == [*fields.split(), "start_method"]
    assert block["cuda_allocated"] is None
    assert (block["model_dense"], block["model_sparse"]) == model_bytes(model)
    assert block["peak_resident"] > 50 * MB  # torch alone is more


def test_misuse_is_an_error():
    meter = MemoryMeter()
    with pytest.raises(RuntimeError, match="call start"):
        meter.state()
    meter.start()
    with pytest.raises(RuntimeError, match="call observe"):
        meter.block()


PEAK = """
import json
from dstbench.suite.meters.memory import MemoryMeter
early = bytearray(200 * 2**20)
del early
meter = MemoryMeter()
meter.start()
before = meter.state()["peak_over_start"]
block = bytearray(b"x") * (64 * 2**20)
del block
print(json.dumps([before, meter.state()["peak_over_start"]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_kernel_peak_sees_what_was_freed_and_forgets_what_was_before():
    out = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, after = json.loads(out.stdout)
    assert before < 20 * MB
    assert 50 * MB <= after < 100 * MB


def test_without_reset_the_peak_is_known_only_if_training_moved_it(monkeypatch):
    resident = SimpleNamespace(peak=500 * MB)
    monkeypatch.setattr(memory, "reset_peak", lambda: False)
    monkeypatch.setattr(memory, "max_resident", lambda: resident.peak)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=300 * MB))
    monkeypatch.setattr(memory.psutil, "Process", lambda: process)
    meter = MemoryMeter()
    meter.start()
    assert meter.state()["peak_over_start"] is None
    assert meter.state()["peak_resident"] == 500 * MB
    resident.peak = 620 * MB
    assert meter.state()["peak_over_start"] == 320 * MB


def test_reset_writes_five_and_fails_softly(tmp_path):
    assert not memory.reset_peak(tmp_path / "none")
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t  9000 kB\nVmHWM:\t  1234 kB\n")
    assert memory.reset_peak(tmp_path)
    assert (tmp_path / "clear_refs").read_text() == "5"
    assert memory.peak_resident(tmp_path) == 1234 * 1024
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert not memory.reset_peak(tmp_path)


def test_units_of_ru_maxrss(monkeypatch):
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=1000))
    monkeypatch.setattr(memory.sys, "platform", "linux")
    assert memory.max_resident() == 1000 * 1024
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.max_resident() == 1000


def test_cuda_peaks_are_reset_and_read(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 111)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 222)
    meter = MemoryMeter("cuda:0")
    meter.start()
    assert calls == [torch.device("cuda:0")]
    state = meter.state()
    assert (state["cuda_allocated"], state["cuda_reserved"]) == (111, 222)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_start_method_is_known_in_the_child(method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(memory.start_method) == method
    assert memory.start_method() == "main"
