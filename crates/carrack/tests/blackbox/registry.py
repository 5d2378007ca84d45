"""A small OCI registry for tests: one image of busybox under several names, each with its own manners.

registry.py PORT: open/app needs nothing, basic/app needs ship:cargo, bearer/app a token that basic credentials earn,
broken/app serves a layer that is not what its digest says, hang/app never answers.
"""
import base64, gzip, hashlib, http.server, io, json, socketserver, sys, tarfile, threading

CREDENTIALS = "Basic " + base64.b64encode(b"ship:cargo").decode()
port = int(sys.argv[1])


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer():
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for folder in ("bin", "tmp", "etc"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add("/usr/bin/busybox", "bin/busybox")
        for name in ("sh", "sleep", "cat", "echo"):
            entry = tarfile.TarInfo("bin/" + name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return raw.getvalue()


plain = layer()
packed = gzip.compress(plain, 1, mtime=0)
config = json.dumps({
    "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(plain)]},
    "config": {"Cmd": ["sh", "-c", "echo from the registry; sleep 100000"], "Env": ["PATH=/bin"]},
}).encode()
OCI = "application/vnd.oci.image."
manifest = json.dumps({
    "schemaVersion": 2, "mediaType": OCI + "manifest.v1+json",
    "config": {"mediaType": OCI + "config.v1+json", "digest": digest(config), "size": len(config)},
    "layers": [{"mediaType": OCI + "layer.v1.tar+gzip", "digest": digest(packed), "size": len(packed)}],
}).encode()
other = {"mediaType": OCI + "manifest.v1+json", "digest": digest(b"other"), "size": 5, "platform": {"architecture": "s390x", "os": "linux"}}
own = {"mediaType": OCI + "manifest.v1+json", "digest": digest(manifest), "size": len(manifest), "platform": {"architecture": "amd64", "os": "linux"}}
index = json.dumps({"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": [other, own]}).encode()
documents = {digest(manifest): (OCI + "manifest.v1+json", manifest), digest(index): (OCI + "index.v1+json", index),
             "1": (OCI + "index.v1+json", index), "latest": (OCI + "index.v1+json", index)}
blobs = {digest(config): config, digest(packed): packed}


class Registry(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, body=b"", kind="application/json", **headers):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        given = self.headers.get("Authorization", "")
        if path == "/token":
            return self.answer(200, b'{"token": "open-sesame"}') if given == CREDENTIALS else self.answer(401)
        if path == "/v2/":
            return self.answer(200, b"{}")
        _, _, manners, name, what, reference = path.split("/", 5)
        if manners == "hang":
            threading.Event().wait()
        if manners == "basic" and given != CREDENTIALS:
            return self.answer(401, WWW_Authenticate='Basic realm="test"')
        if manners == "bearer" and given != "Bearer open-sesame":
            realm = f'Bearer realm="http://127.0.0.1:{port}/token",service="test",scope="repository:bearer/app:pull"'
            return self.answer(401, WWW_Authenticate=realm)
        if what == "manifests" and reference in documents:
            kind, body = documents[reference]
            return self.answer(200, body, kind, Docker_Content_Digest=digest(body))
        if what == "blobs" and reference in blobs:
            body = blobs[reference]
            if manners == "broken" and body is packed:
                body = bytes(len(body))
            return self.answer(200, body, "application/octet-stream")
        self.answer(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no such manifest"}]}')

    do_HEAD = do_GET


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


server = Server(("127.0.0.1", port), Registry)
print(digest(manifest), flush=True)
server.serve_forever()
