"""What dead links cost the caption job: a list of URLs three tenths of which are dead, beside the same without these.

    python tests/benchmarks/dead_links.py                          20,000 URLs, about ten minutes on 2 cores
    python tests/benchmarks/dead_links.py --urls 5000

A server on this machine answers for fifty hosts (addresses of 127.0.0.0/8). Of the dead links, one half are refused
connections, the other unknown names, on a few hundred hosts each. Both commands must end with exit code 0.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pandas

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.photo_mill import make_images

IMAGES = 200
HOSTS = 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", type=int, default=20_000)
    parser.add_argument("--dead", type=float, default=0.3, help="share of dead links")
    parser.add_argument("--side", type=int, default=224, help="longer side of the images, in pixels")
    parser.add_argument("flags", nargs="*", help="for jobs.caption, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "photos", ROOT / "tests" / "photos", IMAGES, arguments.side)
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve, args=(folder / "photos", theirs), daemon=True)
        server.start()
        port = ours.recv()
        links = [link(i, arguments.dead, port) for i in range(arguments.urls)]
        good = [url for url in links if f":{port}/" in url]
        rates = {"without dead links": measure(folder / "good", good, arguments.flags)}
        rates["with dead links"] = measure(folder / "all", links, arguments.flags)
        server.terminate()
    share = rates["with dead links"] / rates["without dead links"]
    for case, rate in rates.items():
        print(f"{case}: {rate:.1f} captioned images/s, from the command's start to its end")
    print(f"share: {share:.2f}")
    return 0 if share >= 0.8 else 1


def link(i: int, dead: float, port: int) -> str:
    """The i-th URL: dead ones lie evenly among the others."""
    if int((i + 1) * dead) == int(i * dead):
        return f"http://127.0.0.{i % HOSTS + 1}:{port}/{i}.jpg"
    return (
        f"http://gone-{i % 397}.invalid/{i}.jpg"
        if int(i * dead) % 2
        else f"http://127.1.{i % 7}.{i % 61 + 1}:9/{i}.jpg"
    )


def measure(folder: Path, links: list[str], flags: list[str]) -> float:
    """Captioned images per second of a whole command."""
    folder.mkdir()
    (folder / "list.txt").write_text("\n".join(links))
    command = [sys.executable, "-m", "jobs.caption", folder / "list.txt", folder / "out", "--search.method", "greedy"]
    started = time.monotonic()
    subprocess.run([*map(str, command), *flags], check=True, cwd=ROOT)
    seconds = time.monotonic() - started
    rows = pandas.read_parquet(folder / "out" / "captions")
    assert len(rows) == len(links)
    print(rows.error.dropna().str.split(":").str[0].value_counts().to_dict(), flush=True)
    return int(rows.error.isna().sum()) / seconds


def serve(photos: Path, pipe: Connection) -> None:
    """Answers each request for `/<number>.jpg` on all addresses of this machine."""
    bodies = [path.read_bytes() for path in sorted(photos.iterdir())]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                number = int(request.split(b" ", 2)[1].strip(b"/").partition(b".")[0])
                body = bodies[number % len(bodies)]
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "0.0.0.0", 0, backlog=512)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
