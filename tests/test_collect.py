"""Tests of collecting labels and reasons from a large language model, against a chat server on loopback that misbehaves in every way."""

import http.server
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import apprentice
import data
from data import DataError, read_examples
from model import T5, T5Config

HERE = Path(__file__).resolve().parent


GOOD = "Reason: a spaniel is a dog.\nLabel: entailment"


@pytest.mark.parametrize("text, reason, expected", [
    (GOOD, "stop", ("entailment", "a spaniel is a dog.", "")),
    ("**Label:** Neutral.\n**Reason:** It may\n be asleep.", "stop", ("neutral", "It may be asleep.", "")),
    ('{"explanation": "cats are no dogs", "answer": "CONTRADICTION"}', "stop", ("contradiction", "cats are no dogs", "")),
    ("The dog moves, so this is an entailment.", "stop", ("entailment", "The dog moves, so this is an entailment.", "")),
    ("It runs, so it moves.\nAnswer: entailment", "stop", ("entailment", "It runs, so it moves.", "")),
    ("Reason: not neutral, it follows.\nLabel: entailment", "stop", ("entailment", "not neutral, it follows.", "")),
    ("I can not tell.", "stop", (None, "I can not tell.", "no label")),
    ("", "stop", (None, "", "no label")),
    ("Entailment or neutral.", "stop", (None, "Entailment or neutral.", "two labels")),
    ("Reason: x\nLabel: entailment / neutral", "stop", (None, "x", "two labels")),
    ("Label: neutral", "stop", ("neutral", "", "empty reason")),
    ("Neutral.", "stop", ("neutral", "Neutral.", "empty reason")),
    (GOOD, "length", ("entailment", "a spaniel is a dog.", "cut off")),
    ("Label: not entailment\nReason: a.", "stop", (None, "a.", "no label")),
    ("This isn't a contradiction.", "stop", (None, "This isn't a contradiction.", "no label")),
    ("Reason: so this is no entailment.\nLabel:", "stop", (None, "so this is no entailment.", "no label")),
    (f"{GOOD}\n\nPremise: b\nReason: c\nLabel: neutral", "stop", (None, "a spaniel is a dog.", "two labels")),
    ('```json\n{"confidence": 0.9, "reason": "a \\"pet\\"\\u2019s", "label": "neutral"}\n```', "stop", ("neutral", "a \"pet\"\u2019s", "")),
    ('{"reason": null, "label": "neutral"}', "stop", ("neutral", "", "empty reason")),
    ("Reason: The label: entailment would need more, as the answer = 4.\nLabel - neutral", "stop",
     ("neutral", "The label: entailment would need more, as the answer = 4.", "")),
    (f"<think>Reason: it may be neutral.\nLabel: neutral</think>\n{GOOD}", "stop", ("entailment", "a spaniel is a dog.", "")),
    ("### Reason\na spaniel is a dog.\n\n### Label\nEntailment", "stop", ("entailment", "a spaniel is a dog.", "")),
    ("Reasoning\uff1aa spaniel is a dog.\nLabel\uff1aentailment", "stop", ("entailment", "a spaniel is a dog.", "")),
    ("Reason \u2014 the set {a}: {} is a dog.\nLabel \u2013 entailment", "stop", ("entailment", "the set {a}: {} is a dog.", "")),
    ("This isn\u2019t an entailment or a contradiction.", "stop", (None, "This isn\u2019t an entailment or a contradiction.", "no label")),
    ("There is no direct contradiction.", "stop", (None, "There is no direct contradiction.", "no label")),
    *((reply, "stop", (None, reply.strip("`"), "no label")) for reply in (
        "This is not `entailment`.", "The answer is not neutral.", "It cannot be entailment", "It is neither neutral nor contradiction.",
        "There is no contradiction or entailment, it is open.", "not *an* entailment", "nonneutral")),
    *((f"Reason: a b.\nLabel: {said}", "stop", (label, "a b.", "")) for said, label in (
        ("not `entailment`, neutral", "neutral"), ("not  entailment; neutral", "neutral"), ("No (contradiction)", "contradiction"),
        ("No - contradiction.", "contradiction"), ("neither \u2192 neutral", "neutral"), ("certainly not \u2014 contradiction", "contradiction"),
        ("not_entailment, neutral", "neutral"),
        ("not \u2018neutral\u2019 but entailment", "entailment"), ("not _neutral_ but entailment", "entailment"), ("nonneutral entailment", "entailment"),
        ("not only neutral", "neutral"), ("Neutral, not entailment or contradiction", "neutral"))),
    ("It is unclear whether it is his or not\n\nNeutral", "stop", ("neutral", "It is unclear whether it is his or not Neutral", "")),
    ("The sets {} overlap, so entailment.", "stop", ("entailment", "The sets {} overlap, so entailment.", "")),
    ('{"Final label": "neutral", "the reason": "x is y"}', "stop", ("neutral", "x is y", "")),
    ('{"thought": "a dog.", "verdict": "entailment"}', "stop", (None, "", "no label")),
    ('{"result": {"reason": "a dog.", "label": "neutral"}}', "stop", (None, "", "no label")),
    ('{}\nReason: a {"x": 1} b.\nLabel: neutral', "stop", ("neutral", 'a {"x": 1} b.', "")),
    ("Reason: a \ufffd.\nLabel: neutral", "stop", ("neutral", "a \ufffd.", "broken characters")),
    ("1. The reason: a spaniel is a dog.\n2. Final label: entailment", "stop", ("entailment", "a spaniel is a dog.", "")),
    ("### 1. Reason\na dog.\n\n### 2. Final Answer\nentailment", "stop", ("entailment", "a dog.", "")),
    ("<thinking>Label: neutral</thinking><reason>a dog.</reason>\n<label>entailment</label>", "stop", ("entailment", "a dog.", "")),
    ('Reason: "Running" is a form of "moving"\nLabel: entailment', "stop", ("entailment", '"Running" is a form of "moving"', "")),
    ("Reason: the sign says 'Closed.'\nLabel: neutral", "stop", ("neutral", "the sign says 'Closed.'", "")),
    ("Reason: \"the dogs' owner sleeps, it's 'open'\"\nLabel: 'neutral'", "stop", ("neutral", "the dogs' owner sleeps, it's 'open'", "")),
    ("Reason: 'it's so'\nLabel\u2014neutral", "stop", ("neutral", "it's so", "")),
    ('Reason: "\nLabel: neutral', "stop", ("neutral", "", "empty reason")),
    ('"a dog is a pet, answer\u2013response. Label: neutral"', "stop", ("neutral", "a dog is a pet, answer\u2013response.", "")),
    ("Reason: \"a dog.\"\nLabel: \"neutral\"", "stop", ("neutral", "a dog.", "")),
    ("Reason: the jar is plain, label-free.\nLabel: no -- neutral", "stop", ("neutral", "the jar is plain, label-free.", "")),
    ("Neutral.\n\nReason: it may be.", "stop", ("neutral", "it may be.", "")),
    ('{"reason": ["a dog."], "label": "neutral"}', "stop", ("neutral", "", "empty reason")),
])
def test_replies_are_read_kindly_and_counted_strictly(text, reason, expected):
    assert apprentice.read_reply(text, reason) == expected


@pytest.fixture
def model():
    """A chat server on this machine. .script: {premise: what it does at each try}, else it answers GOOD; .asked: the bodies it got."""
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize, timeout = -1, 5  # a reply is one packet; idle connections end

        def setup(self):
            super().setup()
            httpd.connections += 1

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            premise = re.search("Premise: (.*)", body["messages"][-1]["content"])[1]
            with lock:
                httpd.asked.append(body)
                httpd.keys.add(self.headers["Authorization"])
                script = httpd.script.get(premise, [])
                act = script.pop(0) if script else httpd.default
            time.sleep(httpd.delay)
            if act == "slow":
                httpd.stop.wait(3)
            if act == "hang up":
                return self.connection.shutdown(2)
            if act == "hints":
                self.send_response_only(103)
                self.end_headers()
            status, text = (act, "no") if isinstance(act, int) else (200, act)
            end = "length" if text.startswith("CUT") else "stop"
            reply = {"choices": [{"message": {"content": text}, "finish_reason": end}], "usage": {"total_tokens": 10}}
            content = b"<html>" if act == "html" else b"{}" if act == "empty" else json.dumps(reply).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", httpd.later)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    lock = threading.Lock()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads, httpd.handle_error = True, lambda *_: None
    httpd.script, httpd.asked, httpd.keys, httpd.default, httpd.delay, httpd.stop = {}, [], set(), GOOD, 0, threading.Event()
    httpd.connections, httpd.later = 0, "7"
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield httpd
    httpd.stop.set()
    httpd.shutdown()
    httpd.server_close()


def pairs(path, count, label="neutral"):
    rows = [{"id": f"r{i}", "premise": f"p{i}", "hypothesis": "h", "label": label, "rationale": "why"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_collect_bears_a_server_that_misbehaves(model, tmp_path, monkeypatch, capsys):
    slept = []
    monkeypatch.setattr(data.time, "sleep", slept.append)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    model.script = {"p0": [429, 429], "p1": [500, 503], "p2": ["hang up"], "p3": ["slow"], "p4": ["html", "empty"], "p5": ["I can not say."],
                    "p6": ["Label: neutral or entailment"], "p7": ["CUT Reason: a Label: neutral"], "p8": ["Label: neutral"], "p9": [400], "p10": [500] * 99}
    out = tmp_path / "new" / "r.jsonl"
    rows = apprentice.collect(pairs(tmp_path / "in.jsonl", 40), out=out, url=model.url, model="big", split=None, timeout=0.5, shots=0)
    assert {json.dumps(row) for row in rows} == set(map(json.dumps, map(json.loads, out.read_text().splitlines())))
    found = {row["id"]: row for row in rows}
    assert len(rows) == len(found) == 38 and "r9" not in found and "r10" not in found, "a request that failed is no finished row"
    assert all(found[f"r{i}"]["label"] == "entailment" and not found[f"r{i}"]["faults"] for i in range(5))
    assert [(found[f"r{i}"]["label"], found[f"r{i}"]["faults"]) for i in (5, 6, 7, 8)] == [
        (None, ["no label"]), (None, ["two labels"]), (None, ["cut off"]), (None, ["empty reason"])]
    assert slept.count(7) == 2, "Retry-After is honoured"
    told = capsys.readouterr().out
    assert "38 of 40 rows" in told and "HTTP Error 400" in told and "HTTP Error 500" in told and "two labels" in told and "380 tokens" in told
    assert model.keys == {"Bearer sk-secret"} and "sk-secret" not in told + out.read_text()
    teacher = read_examples(out)
    assert len(teacher) == 38 and teacher[-1].premise.startswith("p") and sum(e.label is None for e in teacher) == 4

    model.script, model.later, before = {"p9": [429]}, time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 90)), len(model.asked)
    with open(out, "a") as file:
        file.write('{"id": "r9", "premise": "cut o')                         # killed while it wrote
    rows = apprentice.collect(tmp_path / "in.jsonl", out=out, url=model.url, model="big", split=None, shots=0)
    assert 80 < max(slept) <= 90, "Retry-After may be a date"
    assert len(model.asked) == before + 3 and len(rows) == len(out.read_text().splitlines()) == 40, "only what is missing is asked"
    model.script, model.later = {"p9": [429], "p10": [429]}, "Fri, 31 Dec 99999 00:00:00 GMT"  # a year that there is not; either may come last
    whole = out.read_bytes().splitlines(True)
    for cut in (1, 4, 9, whole[-1].index(b"}") + 1 if b"}" in whole[-1][:-2] else 20, len(whole[-1]) - 2):  # wherever the kill cut it
        out.write_bytes(b"".join(whole[:-1]) + whole[-1][:cut])
        apprentice.collect(tmp_path / "in.jsonl", out=out, url=model.url, model="big", split=None, shots=0)
        assert len(out.read_bytes().splitlines()) == 40
    assert len(model.asked) == before + 3 + 5 + 1


def test_collect_keeps_what_it_did_not_write(model, tmp_path):
    source, out = pairs(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    how = dict(url=model.url, model="big", split=None, shots=0)
    for text in ('{"important": 1}', "a letter", '{"id": "r0", "rationale": null}\n', '{"id": "r0", "tokens": "five"}\n'):
        out.write_text(text)
        with pytest.raises(DataError, match="out.jsonl: cannot be gone on with"):
            apprentice.collect(source, out=out, **how)
        assert out.read_text() == text and not model.asked
    with pytest.raises(DataError, match="it is what --in names"):
        apprentice.collect(source, out=source, **how)
    out.write_text('{ "id": "r1", "label": "neutral", "rationale": "by hand"}')  # and without an end of line
    assert [row["rationale"] for row in apprentice.collect(source, out=out, **how)][0] == "by hand"
    assert len(out.read_text().splitlines()) == 3 and len(model.asked) == 2
    more = pairs(tmp_path / "more.jsonl", 3)
    more.write_text(more.read_text().replace('"h"', '"other"'))
    for change, says in ((dict(model="other"), "its row r. is by big, not given the label"), (dict(given=True), "its row r. is by big, not given the label"),
                         (dict(source=more), "its row r. is of another pair")):
        with pytest.raises(DataError, match=says):
            apprentice.collect(**{"source": source, "out": out, **how, **change})
    assert len(model.asked) == 2


@pytest.mark.parametrize("later", ["3600", "9" * 25])
def test_a_server_that_wants_to_be_left_alone_is_told(model, tmp_path, later, monkeypatch):
    slept, model.default, model.later = [], 429, later
    monkeypatch.setattr(data.time, "sleep", slept.append)
    with pytest.raises(DataError, match="3 rows in turn failed .the server asks to wait for"):
        apprentice.collect(pairs(tmp_path / "in.jsonl", 3), out=tmp_path / "out.jsonl", url=model.url, model="big", split=None, shots=0)
    assert not any(slept)


def test_without_a_progress_bar_it_goes_on_all_the_same(model, tmp_path):
    command = [sys.executable, "data.py", "collect", f"--in={pairs(tmp_path / 'in.jsonl', 9)}", f"--out={tmp_path / 'out.jsonl'}", f"--url={model.url}",
               "--model=x"]
    done = subprocess.run(command, cwd=HERE.parent, env={**os.environ, "TQDM_DISABLE": "1"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and re.search(r": (\d+) of \1 rows", done.stdout), done.stderr


def test_ctrl_c_waits_for_no_reply(model, tmp_path):
    model.delay = 20
    source, out = pairs(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    command = [sys.executable, "data.py", "collect", f"--in={source}", f"--out={out}", f"--url={model.url}?v=1", "--model=x"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=HERE.parent, text=True)
    while not model.asked:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    start = time.perf_counter()
    assert process.communicate()[1].endswith("interrupted\n") and process.returncode == 130 and time.perf_counter() - start < 10


def test_collect_gives_no_row_the_answer_to_another(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data.time, "sleep", lambda seconds: None)
    model.script = {"p0": ["hints"], "p1": ["Reason: one.\nLabel: neutral"], "p2": [403], "p3": ["Reason: three.\nLabel: contradiction"]}
    source, out = pairs(tmp_path / "in.jsonl", 5), tmp_path / "out.jsonl"
    out.write_text('{"id": "r4", "label": "neutral", "rationale": "by hand"}\n'.replace('"r4"', "4"))
    source.write_text(source.read_text().replace('"r4"', "4"))
    rows = apprentice.collect(source, out=out, url=f"{model.url}//?next=http://127.0.0.2/x", model="big", split=None, shots=0, concurrency=1)
    assert {row["id"]: row["rationale"] for row in rows} == {"4": "by hand", "r1": "one.", "r3": "three."} and len(model.asked) == 4
    told = capsys.readouterr().out
    assert "HTTP Error 103" in told and "HTTP Error 403" in told, "a filter's 403 is of one row"
    model.default, model.script = 403, {f"p{i}": [GOOD] for i in range(9)}                              # a key that ends
    with pytest.raises(DataError, match=r"rows in turn failed \(HTTP Error 403: Forbidden\); check --url, --model and OPENAI_API_KEY"):
        apprentice.collect(pairs(source, 99), out=tmp_path / "b.jsonl", url=model.url, model="big", split=None, shots=0, concurrency=2)
    assert len(model.asked) < 30 and len((tmp_path / "b.jsonl").read_text().splitlines()) == 9


def test_collect_votes_shows_and_tells(model, tmp_path, capsys):
    model.script = {"p0": ["Reason: a\nLabel: neutral", "Reason: b\nLabel: entailment", "Reason: c\nLabel: entailment", "none"]}
    source = pairs(tmp_path / "in.jsonl", 9)
    row, = apprentice.collect(source, out=tmp_path / "a.jsonl", url=model.url, model="big", split=None, limit=1, samples=4, seed=5, concurrency=1)
    assert (row["label"], row["rationale"], row["agreement"], row["tokens"]) == ("entailment", "b", 0.5, 40)
    assert [body["seed"] for body in model.asked] == [5, 6, 7, 8] and len(model.asked[0]["messages"]) == 1, "a pair is no example of itself"
    model.default = "Reason: because.\nLabel: contradiction"
    rows = apprentice.collect(source, out=tmp_path / "other.jsonl", url=model.url, model="big", split=None, given=True, limit=2, shots=0)
    assert [(row["label"], row["faults"]) for row in rows] == [(None, ["another label"])] * 2, "a reason for another label is none for that one"
    assert apprentice.read_reply("Reason: because.\nLabel: not neutral", given="neutral") == ("neutral", "because.", "another label")
    assert apprentice.read_reply("Label: entailed\nReason: so.", given="entailment") == ("entailment", "so.", "")
    assert apprentice.read_reply("Label: contradictory\nReason: so.", given="neutral") == ("neutral", "so.", "another label")
    for label, text in (("entailment", "yes, he signs a contract"), ("entailment", "entailed, it does not contradict"),
                        ("neutral", "unknown, not entailed"), ("contradiction", "false (not entailed)")):
        assert apprentice.read_reply(f"Label: {text}\nReason: so.", given=label) == (label, "so.", "")
    assert apprentice.read_reply("Reason: so.\nLabel: __Entailment__", given="neutral")[2] == "another label"
    assert apprentice.read_reply("Label: neutral\nReason: he is a", "content_filter") == ("neutral", "he is a", "cut off")
    model.default = "Reason: because."
    rows = apprentice.collect(source, out=tmp_path / "b.jsonl", url=model.url, model="big", split=None, given=True, shots=2, concurrency=1)
    assert {(row["label"], row["rationale"]) for row in rows} == {("neutral", "because.")}, "the label that was told stands"
    (tmp_path / "deaf.txt").write_text("{premise} {hypothesis}")
    with pytest.raises(DataError, match="deaf.txt: holds no {label}"):
        apprentice.collect(source, out=tmp_path / "e.jsonl", url=model.url, model="big", prompt=tmp_path / "deaf.txt", given=True)
    shown = model.asked[-1]["messages"]
    assert [turn["role"] for turn in shown] == ["user", "assistant"] * (len(shown) // 2) + ["user"] and len(shown) in (3, 5)
    assert "It is: neutral." in shown[-1]["content"]
    assert shown[1]["content"] == "Reason: why\nLabel: neutral"
    before = len(model.asked)
    apprentice.collect(source, out=tmp_path / "c.jsonl", url=model.url, model="big", split=None, max_requests=4, samples=2, shots=0)
    assert len(model.asked) == before + 4
    with pytest.raises(DataError, match="max_requests is 1, and one row takes 2"):
        apprentice.collect(source, out=tmp_path / "f.jsonl", url=model.url, model="big", split=None, max_requests=1, samples=2)
    apprentice.collect(source, out=tmp_path / "d.jsonl", url=model.url, model="big", split=None, max_tokens=15, concurrency=1, shots=0)
    assert len(model.asked) - before - 4 <= 4, "at most the rows in flight are more than the budget"
    prompt = tmp_path / "prompt.txt"
    prompt.write_text('Premise: {premise}\n{hypothesis} JSON as {"label": 1}')
    apprentice.collect(source, out=tmp_path / "f.jsonl", url=model.url, model="big", split=None, prompt=prompt, limit=1, shots=0)
    assert model.asked[-1]["messages"][0]["content"] == 'Premise: p0\nh JSON as {"label": 1}'
    (tmp_path / "bare").write_text("Premise: {premise}")
    with pytest.raises(DataError, match="bare: holds no {hypothesis}"):
        apprentice.collect(source, out=tmp_path / "g.jsonl", url=model.url, split=None, prompt=tmp_path / "bare")
    for wrong in ({"prompt": tmp_path / "absent"}, {"out": prompt}):
        with pytest.raises(DataError, match="cannot be gone on with"):
            apprentice.collect(source, **{"out": tmp_path / "g.jsonl", "url": model.url, "split": None, **wrong})
    with open(source, "a") as file:
        file.write(source.read_text().splitlines()[0] + "\n")
    apprentice.collect(source, out=tmp_path / "b.jsonl", url=model.url, model="big", split=None, given=True)
    assert "failures: not asked: another row has the same id 1\n" in capsys.readouterr().out
    model.default = 401
    with pytest.raises(DataError, match="401; check --url, --model and OPENAI_API_KEY"):
        apprentice.collect(source, out=tmp_path / "e.jsonl", url=model.url, model="big", split=None)


def test_collecting_survives_a_kill_and_keeps_the_line_busy(model, tmp_path):
    model.delay, source, out = 0.05, pairs(tmp_path / "in.jsonl", 400), tmp_path / "out.jsonl"
    command = [sys.executable, str(HERE.parent / "data.py"), "collect", f"--in={source}", f"--out={out}", f"--url={model.url}", "--model=big", "--shots=0"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"APPRENTICE_CACHE": str(tmp_path)})
    while not out.exists() or len(out.read_bytes()) < 2000:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = [json.loads(line)["id"] for line in out.read_bytes().splitlines(True) if line.endswith(b"\n")]
    asked, start = len(model.asked), time.perf_counter()
    assert kept and asked - len(kept) <= 16, "what is lost was in flight"
    rows = apprentice.collect(source, out=out, url=model.url, model="big", split="train", shots=0)
    seconds, count = time.perf_counter() - start, len(model.asked) - asked
    assert count == len(rows) - len(kept) and len({row["id"] for row in rows}) == len(rows)
    assert model.connections <= 16, "a worker keeps its connection"
    rate = count / seconds / (8 / 0.05)
    print(f"{rate:.1%} of concurrency / latency")
    assert rate > 0.3, "0.9 and more on a machine that does nothing else"


def test_a_certificate_that_is_not_trusted_is_told_at_once(tmp_path, monkeypatch):
    asked = []

    class Line:
        def __init__(self, host, timeout):
            self.host = host

        def request(self, *args):
            asked.append(self.host)
            raise ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")

    monkeypatch.setattr(apprentice, "HTTPSConnection", Line)
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DataError, match=r"https://model:8443/v1: its certificate is not trusted .*self-signed"):
        apprentice.collect(pairs(tmp_path / "in.jsonl", 9), out=tmp_path / "a.jsonl", url="https://model:8443/v1", model="big", split=None, concurrency=1)
    assert {*asked} == {"model:8443"} and len(asked) <= 2


def test_a_server_that_is_not_there_is_told_soon_and_a_proxy_is_used(model, tmp_path, monkeypatch):
    monkeypatch.setattr(data.time, "sleep", lambda seconds: None)
    source = pairs(tmp_path / "in.jsonl", 100)
    with pytest.raises(DataError, match="[4-9] rows in turn failed .*[Rr]efused"):
        apprentice.collect(source, out=tmp_path / "a.jsonl", url="http://127.0.0.1:9/v1", model="big", split=None, concurrency=2)
    calls = []

    def proxy(listener):
        client = listener.accept()[0]
        calls.append(client.recv(9999).decode().splitlines()[0])
        server = socket.create_connection(model.server_address)
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for a, b in ((client, server), (server, client)):
            threading.Thread(target=lambda a=a, b=b: [b.sendall(part) for part in iter(lambda: a.recv(9999), b"")], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=proxy, args=(listener,), daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}/")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        rows = apprentice.collect(source, out=tmp_path / "b.jsonl", url="http://far.away:80/v1", model="big", split=None, limit=3, concurrency=1, shots=0)
    assert len(rows) == 3 and len(calls) == 1 and calls[0].startswith("CONNECT far.away:80 ")


def test_a_run_can_be_the_labeller(tmp_path, capsys):
    torch.manual_seed(0)
    texts = [text for e in data.toy_examples(200) for text in data.FORMATS["rationale_then_label"].render(e)]
    data.train_vocabulary(texts, tmp_path / "run" / "spiece.model", 300)
    vocabulary = data.Tokenizer(tmp_path / "run" / "spiece.model").vocab_size
    T5(T5Config(vocabulary, 16, 8, 16, 1, 0, 2, feed_forward_proj="gated-gelu", tie_word_embeddings=False)).save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"settings": {"format": "rationale_then_label", "max_source": 64, "max_target": 8}}))
    out = tmp_path / "r.jsonl"
    apprentice.main(["collect", "--in=toy", f"--model={tmp_path / 'run'}", "--split=test", "--limit=6", f"--out={out}"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    answers = apprentice.Apprentice.load(tmp_path / "run").answer([(row["premise"], row["hypothesis"]) for row in rows])
    assert len(rows) == 6 and [row["label"] for row in rows] == [a.label for a in answers] and "6 of 6 rows" in capsys.readouterr().out
    with pytest.raises(DataError, match="is a run, which can't be told the label"):
        apprentice.main(["collect", "--given", f"--model={tmp_path / 'run'}", f"--out={tmp_path / 's.jsonl'}"])
    for wrong in ([], ["--model=x", "--url=here:80"], ["--model=x", "--samples=0"], ["--model=x", "--shots=-1"], ["--model=x", "in.jsonl"]):
        with pytest.raises(DataError, match="collect needs --model=NAME"):
            apprentice.main(["collect", "--in=toy", *wrong])


def test_collect_tells_its_options(capsys):
    apprentice.main(["collect", "--help"])
    told = capsys.readouterr().out
    assert apprentice.collect.__doc__ in told and "\n    --given\n" in told
    assert all(f"\n    --{name}=" in told for name in ("in", *apprentice.collect.__kwdefaults__) if name != "given")
