"""bench.py: its count of products against the network's own, its clocks and its memory against what is known, and the command."""
import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import bench
from data import DataError
from model import SIZES, T5, CheckpointError, T5Config, weights_digest

ROOT = pathlib.Path(__file__).parent.parent
LINUX = pathlib.Path("/proc/self/clear_refs").exists()
SHAPES = [  # v1.0 and v1.1, heads that don't fill the width, uneven stacks
    dict(d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=3, vocab_size=40),
    dict(d_model=24, d_kv=8, d_ff=20, num_layers=3, num_decoder_layers=1, num_heads=4, vocab_size=50, feed_forward_proj="gated-gelu",
         tie_word_embeddings=False),
]


class Products(TorchFunctionMode):
    """Counts the multiply-adds of every product that a network asks of PyTorch; in attention only where the mask lets a query see."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.nn.functional.linear:
            x, weight = args[:2]
            self.total += x.numel() * weight.shape[0]
        elif function is torch.nn.functional.scaled_dot_product_attention:
            q, k = args[:2]
            mask = kwargs.get("attn_mask")
            seen = torch.ones(1, dtype=torch.bool) if mask is None else mask if mask.dtype == torch.bool else mask > -math.inf
            self.total += 2 * q.shape[-1] * int(seen.expand(*q.shape[:-1], k.shape[-2]).sum())
        elif function in (torch.matmul, torch.bmm, torch.mm, torch.einsum, torch.Tensor.__matmul__):
            raise AssertionError(f"{function} is not counted")
        return function(*args, **kwargs)


@pytest.mark.parametrize("shape", SHAPES, ids=["v1.0", "v1.1"])
def test_multiply_adds_are_those_that_the_network_does(shape):
    config = T5Config(**shape)
    net = T5(config).double().eval()  # float64 takes the plain products
    source, target = torch.randint(2, 40, (3, 11)), torch.randint(2, 40, (3, 7))
    with torch.no_grad(), Products() as products:
        net(source, target)
    assert products.total == sum(bench.multiply_adds(config, 11, 7, batch=3).values())
    with torch.no_grad(), Products() as products:
        net.encode(source)
    assert products.total == bench.multiply_adds(config, 11, 7, batch=3)["encoder"]


def test_multiply_adds_by_hand():
    config = T5Config(d_model=2, d_kv=3, d_ff=5, num_layers=1, num_heads=1, vocab_size=7)
    # a token: q, k, v, out 4 x 2 x 3 = 24, feed-forward 2 x 2 x 5 = 20; a query and a key 2 x 3 = 6
    # encoder, 4 tokens: 4 x 44 + 16 x 6; cross: 4 x 12; decoder, 2 tokens: 2 x (36 + 20) + (1 + 2) x 6 + 2 x 4 x 6; head 2 x 14
    want = {"encoder": 272, "cross": 48, "decoder": 178, "head": 28}
    assert bench.multiply_adds(config, 4, 2) == want
    beams = bench.multiply_adds(config, 4, 2, batch=10, num_beams=3)
    assert beams == {"encoder": 2720, "cross": 480, "decoder": 5340, "head": 840}


def test_parameters_are_those_of_flan_t5_and_a_tied_head_counts_once():
    assert sum(bench.parameters_by_part(SIZES["small"]).values()) == 76_961_152
    assert sum(bench.parameters_by_part(SIZES["base"]).values()) == 247_577_856
    parts = bench.parameters_by_part(T5Config(**SHAPES[0]))
    assert parts["head"] == 0 and parts["embedding"] == 40 * 16
    assert sum(parts.values()) == sum(p.numel() for p in T5(T5Config(**SHAPES[0])).parameters())


def test_programs_take_turns_and_their_times_are_true():
    order = []

    def sleeper(name, seconds):
        return lambda: (order.append(name), time.sleep(seconds))

    times = bench.in_turns({"a": sleeper("a", 0.004), "b": sleeper("b", 0.012)}, 0.1, "cpu")
    assert order == ["a", "b"] * len(times["a"]) and len(times["a"]) == len(times["b"]) >= 4
    assert min(times["a"]) >= 0.004 and min(times["b"]) >= 0.012 and min(times["a"]) < 0.012
    assert len(bench.in_turns({"a": sleeper("a", 0.01)}, 0, "cpu")["a"]) == 3


@pytest.mark.skipif(not LINUX, reason="memory is told on Linux")
def test_high_water_is_what_a_call_takes_for_itself():
    big = 120_000_000
    before, result, most = bench.high_water("cpu", lambda: torch.ones(big // 4).sum().item())
    assert result == big // 4 and 0.98 * big < most - before < 1.15 * big
    again, _, after = bench.high_water("cpu", lambda: None)
    assert after - again < 0.05 * big and abs(again - before) < 0.05 * big  # freed, and the mark began anew


def save(folder, **shape):
    torch.manual_seed(0)
    T5(T5Config(**shape)).save_pretrained(folder)
    return folder


@pytest.mark.skipif(not LINUX, reason="memory is told on Linux")
def test_memory_and_peak_grow_with_the_model_and_the_batch(tmp_path):
    points, found, sizes = [(16, 2, 1, 1), (64, 2, 64, 1)], [], []
    for width in (32, 512):
        folder = save(tmp_path / str(width), **{**SHAPES[1], "d_model": width, "vocab_size": 20_000})
        found.append(bench.measure(folder, "float32", "cpu", points, 0))
        sizes.append((folder / "model.safetensors").stat().st_size)
        assert found[-1]["memory_bytes"] > 0.9 * sizes[-1]
    grown = sizes[1] - sizes[0]  # about 80 MB; a copy of matrices that is laid out for speed may double it
    for key in ("memory_bytes", "loading_bytes"):
        assert 0.9 * grown < found[1][key] - found[0][key] < 2.3 * grown, key
    one, many = found[1]["points"]
    assert 0.9 * grown < one["peak_bytes"] - found[0]["points"][0]["peak_bytes"] < 2.3 * grown
    assert one["peak_bytes"] >= found[1]["memory_bytes"]
    assert many["extra_bytes"] - one["extra_bytes"] > 64 * 20_000 * 4  # a step's logits at the least


def test_exponents_are_of_the_upper_half_and_growth_is_laid_beside_the_mathematics(monkeypatch, tmp_path):
    xs = [1, 2, 4, 8, 16, 32, 64]
    assert bench.exponent(xs, [3 * x**1.7 for x in xs]) == pytest.approx(1.7)
    assert bench.exponent(xs, [10, 10, 10, *(x**2 for x in xs[3:])]) == pytest.approx(2)

    def fake(function, name, dtype, device, points, seconds):  # as fast as the mathematics, memory as its square root
        cost = [sum(bench.multiply_adds(SIZES[name], *point).values()) for point in points]
        return {"points": [{"seconds": [c, 3 * c, 2 * c], "extra_bytes": c**0.5} for c in cost]}

    monkeypatch.setattr(bench, "in_fresh_process", fake)
    monkeypatch.setattr(bench, "find", lambda name, work: (name, SIZES[name]))
    bench.main(["micro", "--growth", f"--out={tmp_path}"])
    result = json.loads((tmp_path / "growth.json").read_text())["growth"]
    assert list(result) == ["source tokens", "new tokens", "batch", "beams", "parameters"]
    for part in result.values():
        assert part["exponents"]["seconds"] == pytest.approx(part["exponents"]["multiply_adds"])
        assert part["exponents"]["extra_bytes"] == pytest.approx(part["exponents"]["multiply_adds"] / 2)
    assert result["batch"]["exponents"]["multiply_adds"] == pytest.approx(1)
    assert 1.2 < result["source tokens"]["exponents"]["multiply_adds"] < 2
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_measures_a_run_beside_its_teacher(tmp_path):
    run = save(tmp_path / "run", **SHAPES[1])
    teacher = save(tmp_path / "teacher", **{**SHAPES[1], "d_model": 96})
    (run / "run.json").write_text("{}")
    (run / "eval.json").write_text(json.dumps({"accuracy": 0.875, "reasons": {"rougeL": {"f": 0.5}}, "data": "x/toy.jsonl", "split": "test",
                                                "rows": 1000, "weights": weights_digest(run)}))
    (teacher / "eval.json").write_text(json.dumps({"accuracy": 0.9, "reasons": None, "data": "toy", "split": "all", "rows": 5}))
    shutil.copy(teacher / "eval.json", other := save(tmp_path / "other", **SHAPES[1]))
    assert bench.quality("other", other) == {"accuracy": 0.9, "rougeL": None, "scored_on": "5 rows of toy, all"}
    (other / "eval.json").write_text((run / "eval.json").read_text().replace('"weights": "', '"weights": "0'))
    assert bench.quality("other", other) == {"accuracy": None, "rougeL": None, "scored_on": "other weights"}
    command = [sys.executable, "bench.py", run, teacher, "--device=cpu", "--dtype=float32", "--seconds=0.02", f"--out={tmp_path / 'all'}", "--json"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads that wait for each other are slow where other tests run
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((run / "bench.json").read_text())
    assert {"name", "parameters", "disk_bytes", "memory_bytes", "multiply_adds", "latency_ms", "throughput", "peak_bytes", "load_seconds", "device",
            "machine", "versions", "raw"} <= found.keys()
    assert not (teacher / "bench.json").exists()  # no run of ours: nothing is written into it
    assert found["parameters"] == sum(p.numel() for p in T5(T5Config(**SHAPES[1])).parameters())
    assert found["disk_bytes"] == (run / "model.safetensors").stat().st_size
    assert found["device"] == "cpu" and found["versions"]["torch"] == torch.__version__
    raw = found["raw"]["float32"]["points"]
    assert found["latency_ms"]["float32"]["median"] == pytest.approx(1e3 * statistics.median(raw[0]["seconds"]))
    assert min(raw[0]["seconds"]) <= found["latency_ms"]["float32"]["p95"] / 1e3 <= max(raw[0]["seconds"])
    assert [(t["batch"], t["num_beams"]) for t in found["throughput"]] == [(1, 1), (1, 4), (16, 1), (16, 4)]
    assert found["throughput"][2]["tokens_per_second"] == pytest.approx(16 * 32 / statistics.median(raw[2]["seconds"]))
    whole = json.loads((tmp_path / "all" / "bench.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == whole
    scores = [(m["accuracy"], m["rougeL"], m["scored_on"]) for m in whole["models"]]
    assert scores == [(0.875, 0.5, "1,000 rows of toy, test"), (0.9, None, "5 rows of toy, all")]
    assert (tmp_path / "all" / "cost.png").read_bytes().startswith(b"\x89PNG")
    beside = done.stdout.split("How many times less")[1].splitlines()
    row = next(line.split() for line in beside if line.startswith(f"{run} float32"))
    assert float(row[2]) == pytest.approx(whole["models"][1]["parameters"] / whole["models"][0]["parameters"], rel=0.01)
    assert row[-7:] == ["87.5", "50.0", "1,000", "rows", "of", "toy,", "test"]


def test_the_peer_is_told_round_by_round():
    point = {"seconds": [1.0, 2.0, 4.0], "peer_seconds": [3.0, 4.0, 20.0], "peak_bytes": 0}
    found = {"float32": {"load_seconds": 1.0, "memory_bytes": 0, "points": [point] * len(bench.POINTS)}}
    row = bench.report("nano", pathlib.Path("/nowhere"), SIZES["nano"], found, "transformers")["throughput"][0]
    assert row["times_transformers"] == [2, 3, 5]  # lowest, median, highest of 3, 2, 5: not the ratio of the medians, which is 2
    assert np.isclose(row["tokens_per_second"], 16)


def test_a_gpu_stands_beside_the_processor(monkeypatch, tmp_path):
    """With a GPU that is only played: both devices, no 8 bits on the second, and memory as PyTorch's allocator tells it, in this order."""
    order = []

    def tell(name, value):
        return lambda *_: (order.append(name), value)[1]

    for name, value in (("reset_peak_memory_stats", None), ("memory_allocated", 100), ("max_memory_allocated", 300)):
        monkeypatch.setattr(torch.cuda, name, tell(name, value))
    assert bench.high_water("cuda", tell("call", "answer")) == (100, "answer", 300)
    assert order == ["reset_peak_memory_stats", "memory_allocated", "call", "max_memory_allocated"]

    def fake(function, folder, dtype, device, points, seconds, peer):
        order.append((device, dtype))
        took = 0.1 if device == "cpu" else 0.001
        return {"load_seconds": 1.0, "memory_bytes": 7, "points": [{"seconds": [took] * 3, "peak_bytes": 8, "extra_bytes": 1}] * len(points)}

    order.clear()
    monkeypatch.setattr(bench, "in_fresh_process", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    bench.main(["nano", f"--out={tmp_path}"])
    assert order == [("cpu", "float32"), ("cpu", "bfloat16"), ("cpu", "int8"), ("cuda", "float32"), ("cuda", "bfloat16")]
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["device"] == "cpu, cuda" and result["machine"]["gpu"] == "a GPU"
    latency = result["models"][0]["latency_ms"]
    assert latency["bfloat16"]["median"] == pytest.approx(100) and latency["bfloat16 on cuda"]["median"] == pytest.approx(1)
    with pytest.raises(DataError, match="bfloat16 on cuda"):
        bench.main(["nano", "--device=cuda", "--dtype=int8"])


@pytest.mark.parametrize("argv, says", [
    (["--speed=3"], "unknown .* speed"), (["no-such-run"], "no folder"), (["nano", "--device=tpu"], "tpu"), (["nano", "--dtype=int4"], "int4"),
    (["nano", "--seconds=-1"], "-1"), (["nano", "--against=keras"], "keras"), (["nano", "--against=ctranslate2"], "ctranslate2"),
    (["nano", "--growth=1"], "no value"), (["nano", "micro", "--growth"], "measures one model"), (["nano", "--out=run"], "is a run, with a bench.json")])
def test_bad_input_says_what_is_wrong(argv, says, tmp_path, monkeypatch):
    if "--out=run" in argv:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run.json").write_text("{}")
        monkeypatch.chdir(tmp_path)
    with pytest.raises((DataError, CheckpointError), match=says) as error:
        bench.main([*argv, *([] if "--" in argv[0] or "--out=run" in argv else [f"--out={tmp_path}"])])
    assert "\n" not in str(error.value)


def test_a_broken_eval_json_is_named(tmp_path):
    (tmp_path / "eval.json").write_text('{"accuracy": 1}')
    found = {"float32": {"load_seconds": 1.0, "memory_bytes": 1, "points": [{"seconds": [1.0], "peak_bytes": 1}] * 4}}
    with pytest.raises(DataError, match="eval.json is not what evaluate.py writes"):
        bench.report("run", tmp_path, SIZES["nano"], found)


def test_bytes_on_disk_are_those_of_the_files_that_are_read(tmp_path):
    found = {"float32": {"load_seconds": 1.0, "memory_bytes": 1, "points": [{"seconds": [1.0], "peak_bytes": 1}] * 4}}
    for size, name in enumerate(("pytorch_model-1.bin", "pytorch_model.bin", "model-1.safetensors", "model.safetensors"), start=1):  # the last first
        (tmp_path / name).write_bytes(bytes(size))
        assert bench.report("run", tmp_path, SIZES["nano"], found)["disk_bytes"] == size


def test_help_is_the_docstring(capsys):
    bench.main(["--help"])
    assert capsys.readouterr().out.strip() == bench.__doc__.strip()
