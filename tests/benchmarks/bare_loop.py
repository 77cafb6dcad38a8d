"""What a script would do at best: threads decode, one process captions, nothing is written. Prints seconds as JSON.

python tests/benchmarks/bare_loop.py FOLDER --search greedy
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from captionlib.captioners.zoo import open_captioner
from captionlib.config import SearchConfig
from jobs.benchmarking.measure import loop_seconds
from jobs.cluster.resources import num_cpus
from jobs.inputs.listing import list_files

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder")
parser.add_argument("--model", default="default")
parser.add_argument("--search", choices=["greedy", "beam"], default="greedy")
parser.add_argument("--batch-size", type=int, default=32)
arguments = parser.parse_args()

opened = open_captioner(arguments.model, SearchConfig(method=arguments.search))
captioner = opened.load(batch_size=arguments.batch_size, num_threads=num_cpus())
images = list(list_files(arguments.folder))
print(json.dumps(loop_seconds(captioner, images, opened.transform, arguments.batch_size)))
