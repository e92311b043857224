"""LitServe's own way. BENCH_BATCH: rows a batch may have; 1 is no batching."""

import os
import sys

import joblib
import litserve
import numpy as np


class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = joblib.load(os.environ["BENCH_MODEL"])

    def decode_request(self, request):
        return np.array(request["rows"])

    def predict(self, rows):
        if isinstance(rows, list):  # a batch: one array a request
            labels = self.model.predict(np.concatenate(rows))
            return np.split(labels, np.cumsum([len(r) for r in rows])[:-1])
        return self.model.predict(rows)

    def batch(self, inputs):
        return inputs

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"labels": output.tolist()}


if __name__ == "__main__":
    size = int(os.environ["BENCH_BATCH"])
    api = Api(max_batch_size=size, batch_timeout=0.0 if size == 1 else 0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
