"""A model hub on loopback for the tests: redirects to a store as the real one does, answers ranges, and misbehaves on request.

    python tests/hub.py NAME=FOLDER [NAME=FOLDER …]     serves folders under hub names and prints the address for HF_ENDPOINT
"""
import hashlib
import http.server
import re
import sys
import threading
from pathlib import Path

class Hub:
    """models: {hub name: folder}. cut: bytes after which each reply breaks off; wrong: tell a wrong sha256; ranges: answer them; piece: bytes that
    a reply to a range holds at most, though it is whole; early: bytes that it begins before what was asked for; barred: the store lets nobody in."""

    def __init__(self, models, cut=0, wrong=False, ranges=True, piece=2**40, early=0, barred=False):
        self.models, self.cut, self.wrong, self.ranges, self.piece, self.early, self.barred = models, cut, wrong, ranges, piece, early, barred
        self.asked = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                hub.asked.append((self.path, self.headers.get("Range")))
                found = re.fullmatch(r"/(store/)?(.+)/resolve/main/([\w.-]+)", self.path)
                path = found and hub.models.get(found[2]) and Path(hub.models[found[2]]) / found[3]
                if not path or not path.is_file():
                    self.send_error(404 if found and found[2] in hub.models else 401)
                    return
                data = path.read_bytes()
                if not found[1]:  # the hub itself: name the checksum, and send the client on
                    digest = hashlib.sha256(data + (b"?" if hub.wrong else b"")).hexdigest()
                    self.send_response(302)
                    self.send_header("X-Linked-Etag", f'"{digest}"')
                    self.send_header("Location", f"/store{self.path}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if hub.barred:
                    self.send_error(403)
                    return
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "") if hub.ranges else None
                start = int(asked[1]) - hub.early if asked else 0
                if start >= len(data) and asked:
                    self.send_error(416)
                    return
                end = min(start + hub.piece, len(data)) if asked else len(data)
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(end - start))
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
                self.end_headers()
                self.wfile.write(data[start : min(end, start + (hub.cut or end))])

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


if __name__ == "__main__":
    hub = Hub(dict(arg.split("=", 1) for arg in sys.argv[1:]))
    print(hub.url, flush=True)
    hub.server.serve_forever()
