"""What a model costs, and what a smaller one saves: the compression analysis.

    python bench.py                                    the built-in sizes nano, micro and small on random weights    (90 seconds, 2 cores)
    python bench.py out/tiny out/tiny_teacher          trained runs side by side, with what evaluate.py found
    python bench.py google/flan-t5-small base          checkpoint folders, hub names and sizes mix
    python bench.py small --against=transformers       the same tokens asked of transformers, in turns in one process; or of
                                                       ctranslate2, which wants a checkpoint with its vocabulary
    python bench.py small --growth                     how time and memory of one model (the first device and dtype) grow with each
                                                       length, and how they should (90 seconds)

An answer is 32 greedy tokens from 64 of a source, neither more nor fewer, so that models compare; batch x beams is 1 x 1 for latency,
also 1 x 4, 16 x 1 and 16 x 4 for tokens a second. --device=cpu,cuda (both where there is a GPU) and --dtype=float32,bfloat16,int8 (int8
on a CPU only) choose; --seconds=1 is given to each figure, a median of three rounds at least. Each model and dtype has a process of
its own, is warmed up, and a GPU is waited for. What else the machine does shows in the times: let it rest meanwhile.

multiply-adds  of an answer, from the shapes: all products of matrices; no norms, softmaxes or look-ups
memory, peak   bytes that the process holds after an answer, and at most while it writes one, at 1 x 1: less what it held before it
               loaded the model (Linux: VmRSS and VmHWM, so the libraries' buffers count; GPU: what torch allocates)
load           seconds from folder to model, Python and torch already there; the system may hold the file in its cache

Results, with every raw time: RUN/bench.json for run folders; for all, bench.json and cost.png (growth.json and growth.png) in out/bench
or --out=FOLDER. With --json the last line of the output is that JSON.
"""

import ctypes
import json
import os
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from tqdm import tqdm

from apprentice import generate, options, print_table
from data import DataError, run_main
from model import CPU, SIZES, T5, CheckpointError, T5Config, fetch, replace_file, weights_digest

# --- on paper ---------------------------------------------------------------------------------------------------------

def parameters_by_part(config):
    """{"embedding": n, "encoder": n, "decoder": n, "head": n}; the head of a v1.0 is its embedding and counts there."""
    with torch.device("meta"):
        model = T5(config)
    parts = {"embedding": model.shared, "encoder": model.encoder, "decoder": model.decoder, "head": model.lm_head}
    return {name: sum(p.numel() for p in part.parameters()) if part else 0 for name, part in parts.items()}

def multiply_adds(config, source_tokens, new_tokens, batch=1, num_beams=1):
    """{"encoder": n, "cross": n, "decoder": n, "head": n} for a batch of answers: the least that the mathematics asks.

    A product (a, b) x (b, c) is a*b*c of them, attention to n keys 2*n*H*k a query (scores, then the weighted sum). The decoder's t-th
    token sees t tokens. The source's keys and values ("cross") are made once, however many the beams."""
    S, T, d, inner = source_tokens, new_tokens, config.d_model, config.num_heads * config.d_kv
    ff = d * config.d_ff * (3 if config.feed_forward_proj == "gated-gelu" else 2)
    step = 6 * d * inner + ff  # q, k, v and out of self-attention; q and out of cross-attention
    return {"encoder": batch * config.num_layers * (S * (4 * d * inner + ff) + 2 * S * S * inner),
            "cross": batch * config.num_decoder_layers * S * 2 * d * inner,
            "decoder": batch * num_beams * config.num_decoder_layers * (T * step + 2 * inner * (T * (T + 1) // 2 + T * S)),
            "head": batch * num_beams * T * d * config.vocab_size}

# --- measured, in a process of its own --------------------------------------------------------------------------------

def in_fresh_process(function, *args):
    """function(*args) as a new Python process finds it: nothing that ran before holds its memory or has warmed its caches."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool:
            raise DataError(f"the system ended the process that measured {args[0]} in {args[1]}, most likely for want of memory") from None

def high_water(device, call):
    """-> (bytes that this process holds before call(), what it returned, bytes that it held at most); 0 where the system does not tell"""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated(), call(), torch.cuda.max_memory_allocated()  # worked out from left to right
    if not Path("/proc/self/clear_refs").exists():
        return 0, call(), 0
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system, so that using it again shows
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew

    def status(key):
        return 1024 * int(Path("/proc/self/status").read_text().split(key)[1].split()[0])

    return status("VmRSS:"), call(), status("VmHWM:")

def in_turns(calls, seconds, device):
    """{name: function} -> {name: [seconds, …]}, called in turns so that a slow moment of the machine strikes all alike: three rounds,
    and more until the time is spent."""
    times, begin = {name: [] for name in calls}, time.perf_counter()
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    while min(map(len, times.values())) < 3 or time.perf_counter() - begin < seconds:
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            times[name].append(time.perf_counter() - start)
    return times

def peer_program(peer, folder, dtype, device):
    """What users would use instead -> a function (source (B, S), new tokens, beams) that writes as many tokens."""
    if peer == "transformers":
        from transformers import T5ForConditionalGeneration, logging

        logging.set_verbosity_error()
        model = T5ForConditionalGeneration.from_pretrained(folder, dtype="float32" if dtype == "int8" else dtype).eval().to(device)
        return lambda x, T, beams: model.generate(input_ids=x, attention_mask=torch.ones_like(x), do_sample=False, num_beams=beams,
                                                  min_new_tokens=T, max_new_tokens=T)
    from ctranslate2 import Translator, get_supported_compute_types
    from ctranslate2.converters import TransformersConverter

    kind = "int8_float32" if dtype == "int8" else dtype if dtype in get_supported_compute_types(device) else "float32"
    with tempfile.TemporaryDirectory() as work:
        made = TransformersConverter(str(folder)).convert(f"{work}/model", quantization=kind)
        model = Translator(made, device=device, compute_type=kind, intra_threads=torch.get_num_threads())
    return lambda x, T, beams: model.translate_batch([["▁the"] * x.shape[1]] * len(x), beam_size=beams, min_decoding_length=T, max_decoding_length=T)

def measure(folder, dtype, device, points, seconds, peer=""):
    """One model in one dtype at each point (source tokens, new tokens, batch, beams) -> {"load_seconds", "loading_bytes": at most meanwhile,
    "memory_bytes", "points": [{"seconds": raw, "peer_seconds": the peer's if one is named, "peak_bytes", "extra_bytes": its part above memory_bytes}]}"""

    def programs(S, T, batch, beams):
        x = torch.randint(3, model.config.vocab_size, (batch, S), generator=torch.Generator().manual_seed(0)).to(device)
        mask = torch.ones_like(x, dtype=torch.bool)
        yield "seconds", lambda: generate(model, x, mask, num_beams=beams, min_new_tokens=T, max_new_tokens=T)
        if theirs:
            yield "peer_seconds", lambda: theirs(x, T, beams)

    # This brings the libraries in, those of the dtype too, which are no part of the model's figures.
    first = T5(SIZES["nano"]).eval().to(device, torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    if dtype == "int8":
        first.pack(quantize=True)
    for beams in (1, 2):
        generate(first, torch.full((1, 64), 5, device=device), max_new_tokens=8, num_beams=beams)
    del first
    theirs, start = None, time.perf_counter()
    empty, model, most = high_water(device, lambda: T5.from_pretrained(folder, dtype=dtype, device=device))
    result = {"load_seconds": time.perf_counter() - start, "loading_bytes": most - empty, "points": []}
    high_water(device, dict(programs(*points[0]))["seconds"])
    result["memory_bytes"] = high_water(device, lambda: None)[0] - empty
    if peer:
        theirs = peer_program(peer, folder, dtype, device)
    for point in points:
        calls = dict(programs(*point))
        rest, most = [high_water(device, call)[::2] for call in calls.values()][0]  # the first call of each also warms it up
        for call in list(calls.values()) * 2 * (device == "cuda"):  # where the second one records what later ones replay
            call()
        result["points"].append({**in_turns(calls, seconds, device), "peak_bytes": result["memory_bytes"] + most - rest, "extra_bytes": most - rest})
    return result

# --- side by side -----------------------------------------------------------------------------------------------------

POINTS = [(64, 32, batch, beams) for batch in (1, 16) for beams in (1, 4)]  # source tokens, new tokens; the first gives the latency

def machine():
    """What the figures are measured on, as bench.json tells it."""
    names = [line.split(": ")[1] for line in CPU.splitlines() if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"system": platform.platform(), "processor": (names or [platform.machine()])[0], "gpu": gpu, "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}

def find(name, work):
    """A size, run folder, checkpoint folder or hub name -> (its folder, its T5Config). A size gets random weights, in the folder `work`."""
    folder = Path(work) / name if name in SIZES else fetch(name)
    if not folder.is_dir():
        torch.manual_seed(0)
        T5(SIZES[name]).save_pretrained(folder)
    return folder, T5Config.from_file(folder / "config.json")

def report(name, folder, config, measured, against=""):
    """All about one model, as bench.json holds it. measured: {"float32", "bfloat16 on cuda", …: what `measure` gives for POINTS}"""
    parts, products = parameters_by_part(config), multiply_adds(config, *POINTS[0])
    kinds = map(folder.glob, ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin"))
    weights = next(filter(None, ([p.stat().st_size for p in files] for files in kinds)), [])  # of several kinds the first is read
    result = {"name": name, "parameters": sum(parts.values()), "parts": parts, "disk_bytes": sum(weights), "memory_bytes": {},
              "multiply_adds": sum(products.values()), "multiply_adds_of": products, "latency_ms": {}, "throughput": [], "peak_bytes": {},
              "load_seconds": next(iter(measured.values()))["load_seconds"], **quality(name, folder), "raw": measured}
    for dtype, found in measured.items():
        alone = found["points"][0]
        median, p95 = 1e3 * np.quantile(alone["seconds"], (0.5, 0.95))
        result["latency_ms"][dtype] = {"median": median, "p95": p95}
        result["memory_bytes"][dtype], result["peak_bytes"][dtype] = found["memory_bytes"], alone["peak_bytes"]
        for (_, T, batch, beams), point in zip(POINTS, found["points"], strict=True):
            row = {"dtype": dtype, "batch": batch, "num_beams": beams, "tokens_per_second": batch * T / np.median(point["seconds"])}
            if against:
                row[f"times_{against}"] = list(np.quantile(np.divide(point["peer_seconds"], point["seconds"]), (0, 0.5, 1)))
            result["throughput"].append(row)
    return result

def quality(name, folder):
    """What evaluate.py found of these very weights, if it was asked -> {"accuracy", "rougeL", "scored_on"}"""
    score = {"accuracy": None, "rougeL": None, "scored_on": None}
    if not (folder / "eval.json").is_file():
        return score
    try:
        found = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
        if found.get("weights", made := weights_digest(folder)) != made:
            return score | {"scored_on": "other weights"}
        return {"accuracy": found["accuracy"], "rougeL": found["reasons"]["rougeL"]["f"] if found["reasons"] else None,
                "scored_on": f"{found['rows']:,} rows of {Path(found['data']).stem}, {found['split']}"}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{folder / 'eval.json'} is not what evaluate.py writes: python evaluate.py {name} makes it anew") from None

def print_numbers(title, rows):
    """Print {name: {column: number, text or None}} under a title, numbers with three digits and k, M, G or T for thousands."""

    def text(cell):
        if cell is None or isinstance(cell, str) or isinstance(cell, int) and cell < 1000:
            return cell  # print_table tells these as they are
        cell = float(f"{cell:.3g}")  # 999.7 is 1.00 k
        power = min((len(str(int(cell))) - 1) // 3, 4)
        return f"{cell / 1000**power:#.3g}".rstrip(".") + ("", " k", " M", " G", " T")[power]

    print(f"\n{title}")
    print_table({name: {column: text(cell) for column, cell in row.items()} for name, row in rows.items()})

def print_report(results, against):
    """Each model's parts; what it costs in each dtype; how many times less than the largest; how many times as fast as the peer."""
    print_numbers("Parameters", {r["name"]: {**r["parts"], "all": r["parameters"]} for r in results})
    rows, beside, times = {}, {}, {}
    for r, dtype in [(one, d) for one in sorted(results, key=lambda one: -one["parameters"]) for d in one["latency_ms"]]:
        rates = {f"{t['batch']} x {t['num_beams']}": t for t in r["throughput"] if t["dtype"] == dtype}
        row = {"parameters": r["parameters"], "disk": r["disk_bytes"], "memory": r["memory_bytes"][dtype] or None, "peak": r["peak_bytes"][dtype] or None,
               "load s": r["raw"][dtype]["load_seconds"], "multiply-adds": r["multiply_adds"], "ms": r["latency_ms"][dtype]["median"],
               "p95": r["latency_ms"][dtype]["p95"], **{cell: t["tokens_per_second"] for cell, t in rates.items()}}
        rows[name := f"{r['name']} {dtype}"] = row
        first, most = next(iter(rows.items()))
        beside[name] = {k: v and most[k] and (v / most[k] if k in rates else most[k] / v) for k, v in row.items()}
        beside[name] |= {shown: None if r[k] is None else f"{100 * r[k]:.1f}" for shown, k in (("accuracy", "accuracy"), ("ROUGE-L", "rougeL"))}
        beside[name]["of"] = r["scored_on"]
        times[name] = {k: "{1:.2f} ({0:.2f} to {2:.2f})".format(*t[f"times_{against}"]) for k, t in rates.items() if against}
    print_numbers("Bytes, seconds to load, ms an answer alone, and new tokens a second at batch x beams", rows)
    print_numbers(f"How many times less than {first} (tokens a second: more); accuracy and ROUGE-L, of float32, in %", beside)
    if against:
        like = {"transformers": "its float32 beside our int8", "ctranslate2": "its float32 beside our bfloat16 where it has none"}[against]
        print_numbers(f"Times as fast as {against} ({like}): median of the rounds, lowest to highest", times)

def picture_of_cost(results, path):
    """Accuracy against latency where accuracies are known, else parameters against latency; areas are bytes of memory."""
    known = [r for r in results if r["accuracy"] is not None]
    shown, largest = known or results, max(max(r["memory_bytes"].values()) for r in known or results) or 1
    markers = dict(zip(dict.fromkeys(dtype for r in shown for dtype in r["latency_ms"]), "os^Dv", strict=False))
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    for i, r in enumerate(shown):
        times, y = [ms["median"] for ms in r["latency_ms"].values()], 100 * r["accuracy"] if known else r["parameters"]
        axes.plot(times, [y] * len(times), color=f"C{i}", linewidth=1, label=r["name"])
        for x, (dtype, memory) in zip(times, r["memory_bytes"].items(), strict=True):
            axes.scatter(x, y, 3000 * memory / largest, color=f"C{i}", alpha=0.2, linewidth=0)
            axes.plot(x, y, markers[dtype], color=f"C{i}", markersize=5)
    for dtype, marker in markers.items():
        axes.plot([], [], marker, color="grey", markersize=5, label=dtype)
    axes.set(xlabel="ms an answer at batch 1", ylabel="accuracy, % (evaluate.py's, in float32)" if known else "parameters",
             title="area: bytes in memory", xscale="log", yscale="linear" if known else "log", xmargin=0.15, ymargin=0.15)
    axes.xaxis.set(major_formatter=LogFormatter(), minor_formatter=LogFormatter(minor_thresholds=(1, 0.7)))  # 20, not 2 x 10^1
    axes.grid(alpha=0.2, which="both")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path)

# --- how cost grows ---------------------------------------------------------------------------------------------------

AXES = {  # what varies -> points (source tokens, new tokens, batch, beams); one new token shows the encoder, a short source the decoder
    "source tokens": [(n, 1, 1, 1) for n in (16, 32, 64, 128, 256, 512, 1024)],
    "new tokens": [(16, n, 1, 1) for n in (4, 8, 16, 32, 64, 128, 256)],
    "batch": [(64, 8, n, 1) for n in (1, 2, 4, 8, 16, 32, 64)],
    "beams": [(16, 16, 1, n) for n in (1, 2, 4, 8, 16)],
}
GROWING = ("nano", "micro", "small", "base")

def exponent(xs, ys):
    """The slope of log y over log x by least squares over the upper half, where costs that stay the same hide it least; 0: not told."""
    xs, ys = xs[len(xs) // 2 :], ys[len(ys) // 2 :]
    return np.polyfit(np.log(xs), np.log(ys), 1)[0] if min(ys) > 0 else 0.0

def grow(name, dtype, device, seconds, work):
    """Time and memory along AXES, and over sizes -> {axis: {"values", "seconds", "extra_bytes", "multiply_adds", "raw", "exponents"}}"""
    jobs = [(axis, [find(name, work)], points, [p[i] for p in points]) for i, (axis, points) in enumerate(AXES.items())]
    sizes = [find(size, work) for size in GROWING]
    jobs.append(("parameters", sizes, [(64, 8, 1, 1)], [sum(parameters_by_part(config).values()) for _, config in sizes]))
    found = {}
    for axis, models, points, values in tqdm(jobs, desc="growth", unit="axis"):
        raw = [row for folder, _ in models for row in in_fresh_process(measure, folder, dtype, device, points, seconds)["points"]]
        part = {"seconds": [np.median(row["seconds"]) for row in raw], "extra_bytes": [row["extra_bytes"] for row in raw],
                "multiply_adds": [sum(multiply_adds(config, *point).values()) for _, config in models for point in points]}
        found[axis] = {"values": values, **part, "raw": raw, "exponents": {key: exponent(values, ys) for key, ys in part.items()}}
    return found

def picture_of_growth(found, about, path):
    """Time above, memory below, an axis a column, all logarithmic; dashed: the multiply-adds, laid through the last point."""
    figure = Figure(figsize=(3.2 * len(found), 6), dpi=130, layout="constrained")
    figure.suptitle(about)
    for (axis, part), (top, bottom) in zip(found.items(), figure.subplots(2, len(found), sharex="col").T, strict=True):
        slope, asked = part["exponents"], np.array(part["multiply_adds"])
        top.plot(part["values"], part["seconds"], "o-", label=f"seconds: exponent {slope['seconds']:.2f}")
        top.plot(part["values"], asked * (part["seconds"][-1] / asked[-1]), "--", color="grey", label=f"multiply-adds: exponent {slope['multiply_adds']:.2f}")
        bottom.plot(part["values"], np.array(part["extra_bytes"]) / 1e6, "oC1-", label=f"MB above the model: exponent {slope['extra_bytes']:.2f}")
        bottom.set_xlabel(axis)
        for one in (top, bottom):
            one.set(xscale="log", yscale="log", ymargin=0.3)
            one.grid(alpha=0.2)
            one.legend(fontsize=8, loc="upper left")
    figure.savefig(path)

# --- python bench.py --------------------------------------------------------------------------------------------------

def read_options(argv):
    """Command line -> (names, options); --device and --dtype become lists."""
    names, opt = options(argv, device="", dtype="", seconds=1.0, out="out/bench", against="", growth=False, json=False)
    legal = {"device": ("cpu", "cuda")[: 1 + torch.cuda.is_available()], "dtype": ("float32", "bfloat16", "int8")}
    for key, values in legal.items():
        opt[key] = list(dict.fromkeys(opt[key].split(","))) if opt[key] else list(values)
        if wrong := set(opt[key]) - set(values):
            raise DataError(f"--{key}={min(wrong)}: here it can be {', '.join(values)}")
        if opt["growth"]:
            opt[key] = opt[key][:1]
    wanted = {"": (), "transformers": ("transformers",), "ctranslate2": ("ctranslate2", "transformers")}.get(opt["against"])  # which reads the checkpoint
    if wanted is None or not all(map(find_spec, wanted)):
        raise DataError(f"--against={opt['against']}: it can be transformers or ctranslate2, where they are installed (pip install transformers ctranslate2)")
    if not 0 <= opt["seconds"] < 1e6:
        raise DataError(f"--seconds={opt['seconds']} is below 0 or no number of seconds")
    if opt["growth"] and (len(names) > 1 or opt["against"]):
        raise DataError("--growth measures one model, and no other program")
    if (Path(opt["out"]) / "run.json").is_file():
        raise DataError(f"--out={opt['out']} is a run, with a bench.json of its own: name another folder")
    if (opt["device"], opt["dtype"]) == (["cuda"], ["int8"]):
        raise DataError("--dtype=int8 is for --device=cpu; use bfloat16 on cuda")
    return list(dict.fromkeys(names)) or (["small"] if opt["growth"] else ["nano", "micro", "small"]), opt

def compare(names, opt, work):
    """Measure every model in every dtype on every device -> the list of their reports."""
    places = {name: find(name, work) for name in names}
    for name, (folder, _) in places.items():
        quality(name, folder)  # what is broken shows before anything is measured
        if opt["against"] == "ctranslate2" and not (folder / "spiece.model").is_file():
            raise DataError(f"--against=ctranslate2 needs a vocabulary, which {name} has not: name a run, a hub name or a folder with spiece.model")
    measured = {name: {} for name in names}
    kinds = [(device, dtype) for device in opt["device"] for dtype in opt["dtype"] if (device, dtype) != ("cuda", "int8")]
    for name, (device, dtype) in (bar := tqdm([(name, kind) for name in places for kind in kinds], unit="model")):
        bar.set_description(f"{name} {dtype}")
        found = in_fresh_process(measure, places[name][0], dtype, device, POINTS, opt["seconds"], opt["against"])
        measured[name][dtype if device == "cpu" else f"{dtype} on {device}"] = found
    return [report(name, *places[name], found, opt["against"]) for name, found in measured.items()]

def main(argv):
    """`python bench.py [RUN or SIZE ...] [--device=cpu] [--json] ...`"""
    if "-h" in argv or "--help" in argv:
        return print(__doc__)
    names, opt = read_options(argv)
    about = {"device": ", ".join(opt["device"]), "machine": machine(), "options": opt,
             "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", opt["against"]) if p}}}
    out, processor = Path(opt["out"]), about["machine"]["gpu" if opt["device"] == ["cuda"] else "processor"]
    on = f"{about['device']} ({processor}, {torch.get_num_threads()} threads)"
    if about["machine"]["load"] > 1:
        print(f"this machine is at work already (load {about['machine']['load']:.1f}): times will be too long and far apart")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        if opt["growth"]:
            picture, title = out / "growth.png", f"{names[0]} in {opt['dtype'][0]} on {on}"
            print(f"How the cost of {title} grows with {', '.join(AXES)} and parameters")
            result = {**about, "name": names[0], "growth": grow(names[0], opt["dtype"][0], opt["device"][0], opt["seconds"], work)}
            print_numbers("Exponents over the upper half of each axis: twice as much of it costs 2^exponent times as much", {
                axis: {"from": part["values"][0], "to": part["values"][-1], **part["exponents"]} for axis, part in result["growth"].items()})
            picture_of_growth(result["growth"], title, picture)
            files = {out / "growth.json": result}
        else:
            picture = out / "cost.png"
            print(f"{', '.join(names)} in {', '.join(opt['dtype'])} on {on}")
            result = {**about, "models": compare(names, opt, work)}
            print_report(result["models"], opt["against"])
            picture_of_cost(result["models"], picture)
            runs = [r for r in result["models"] if r["name"] not in SIZES and Path(r["name"], "run.json").is_file()]
            files = {**{Path(r["name"], "bench.json"): {**r, **about} for r in runs}, out / "bench.json": result}
    for place, content in files.items():
        replace_file(place, (json.dumps(content, indent=1) + "\n").encode())
    print("\nwrote", *files, picture)
    if opt["json"]:
        print(json.dumps(result))

if __name__ == "__main__":
    run_main(main, CheckpointError)
