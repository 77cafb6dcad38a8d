"""How many requests a caption job sends to an object store, by image and by chunk.

    python tests/benchmarks/store_requests.py                       2,000 photos in chunks of 20, about two minutes

A real S3 server behind a proxy that counts. The limits are 3 requests for each image, and 10 for each chunk of rows.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.faults.harness import Output, Place, run_job
from tests.faults.inputs import make_checkpoint, upload_photos
from tests.faults.proxy import fault_proxy
from tests.faults.servers import OWNER, object_store

MOST_PER_IMAGE, MOST_PER_CHUNK = 3, 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2_000)
    parser.add_argument("--images-per-chunk", type=int, default=20)
    given = parser.parse_args()
    passed = True
    with tempfile.TemporaryDirectory() as name, object_store(Path(name) / "store") as store:
        folder = Path(name)
        upload_photos(store.client(), "photos", "all", given.photos)
        model, place = make_checkpoint(folder / "model"), Place.make(folder / "place")
        output = Output(store.client(), "captions", "out")
        flags = ("--images-per-chunk", str(given.images_per_chunk), "--no-report", "--address", "local")
        with fault_proxy(store.address) as proxy:
            for run in ("first run", "nothing to do"):
                proxy.requests.clear()
                code, log = run_job(place, OWNER.env(proxy.url), "s3://photos/all", output.url, model, *flags)
                if code:
                    print(log)
                    return code
                chunks = -(-given.photos // given.images_per_chunk)
                images, rows = count(proxy.requests, "/photos"), count(proxy.requests, "/captions")
                passed &= report(run, "image", images, given.photos, MOST_PER_IMAGE)
                passed &= report(run, "chunk", rows, chunks, MOST_PER_CHUNK)
    return 0 if passed else 1


def count(requests: Counter[tuple[str, str]], bucket: str) -> Counter[str]:
    """Requests to a bucket by method and kind of object."""
    found: Counter[str] = Counter()
    for (method, path), times in requests.items():
        if path == bucket or path.startswith(f"{bucket}/"):
            rest = path[len(bucket) :].strip("/")
            kind = re.sub(r"[\d-]+", "…", rest.rpartition("/")[2]) if bucket == "/captions" else "image"
            found[f"{method} {kind if rest else 'listing'}"] += times
    return found


def report(run: str, what: str, requests: Counter[str], number: int, limit: int) -> bool:
    """Print the requests of a bucket; return whether they are within the limit."""
    each = sum(requests.values()) / number
    kinds = ", ".join(f"{times:,} {kind}" for kind, times in requests.most_common(12))
    print(f"{run}: {each:.2f} requests a {what}, at most {limit}; {kinds}", flush=True)
    return each <= limit


if __name__ == "__main__":
    sys.exit(main())
