"""llama.cpp's own server, as the package xllamacpp carries it, with a real and very small model."""

import importlib
import pathlib
import signal
import sys

xllamacpp = importlib.import_module("xllamacpp")

params = xllamacpp.CommonParams()
params.model.path = str(sorted(pathlib.Path("/opt/gbo/models").glob("*.gguf"))[0])
params.hostnames = ["0.0.0.0"]
params.port = int(sys.argv[1])
params.n_ctx = 1024
params.cpuparams.n_threads = 2
server = xllamacpp.Server(params)
print(f"listening on port {params.port}", flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.pause()
