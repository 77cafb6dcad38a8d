#!/usr/bin/env bash
# Checks and measures the project on a machine with a GPU and no network: bash tests/benchmarks/gpu/check.sh [decode] [stages] [training]
# [small] [caption] [beam] [compiled] [extract] [train] [images] [resume]. `.gpu/` holds Ray for that machine (site.tar.xz) and photos/.
# Each step is bounded in time; what it printed, and for training what Ray logged, lies in $OUT/log.txt and comes back.
root=$PWD; export OUT=${OUT:-/tmp/out}; mkdir -p "$OUT"; log=$OUT/log.txt; : >"$log"
say() { echo "== $(date +%T) $*" | tee -a "$log"; }
site=/opt/extra; [ -d $site/ray ] || { mkdir -p $site && tar xJf .gpu/site.tar.xz -C $site; }
export PYTHONPATH=$site:$root PATH=$site/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader | tee -a "$log"; nproc | tee -a "$log"
if [ ! -d /tmp/many ]; then python3 - <<'Q'
import glob, os, shutil
sources = sorted(glob.glob('.gpu/photos/*.jpg')); base = []
for path in sources:
    base.append('/tmp/base_' + os.path.basename(path)); shutil.copy(path, base[-1])
for folder, count in (('/tmp/many', 60_000), ('/tmp/few', 4_200)):
    os.makedirs(folder)
    for i in range(count): os.link(base[i % len(base)], f'{folder}/{i:06d}.jpg')
words = 'red blue old small large wet young tall'.split()
with open('/tmp/captions.csv', 'w') as out:
    out.write('path,caption,split\n')
    for i in range(4_200):
        for k in range(5): out.write(f'{i:06d}.jpg,a {words[i % len(base) % 8]} thing number {"one two three four five".split()[k]} stands near the {words[(i + k) % 8]} house,{"train" if i < 4000 else "dev"}\n')
Q
fi
nvidia-smi dmon -s um -d 1 -o T >"$OUT/dmon.txt" 2>&1 & dmon=$!
caption() { # name, flags
  name=$1; shift; say "caption $name: $*"
  timeout 110 python3 -m jobs.caption /tmp/many "/tmp/out_$name" --no-report "$@" >"$OUT/$name.txt" 2>&1; echo "rc $?" >>"$log"; tail -3 "$OUT/$name.txt" >>"$log"
  python3 -c "import json,sys; r=json.load(open(sys.argv[1]))['runs'][-1]; print({k: r.get(k) for k in ('images','seconds','start_up_seconds','images_per_second','seconds_by_phase','seconds_by_step')})" "/tmp/out_$name/run.json" >>"$log" 2>&1
}
train() { # name, flags
  name=$1; shift; say "train $name"
  timeout 150 python3 -m jobs.train "$@" --use-gpu --data.kind csv --data.captions-file /tmp/captions.csv --data.root /tmp/few --training.epochs 2 --training.min-count 1 >"$OUT/train_$name.txt" 2>&1; echo "rc $?" >>"$log"
  tail -8 "$OUT/train_$name.txt" >>"$log"; cat "/tmp/run_$name/metrics.csv" >>"$log" 2>/dev/null
  grep -rhE -B2 -A25 'Traceback|Error|SIG|Fatal' /tmp/ray/session_latest/logs --include='*.err' --include='*.out' --include='*train*' 2>/dev/null | tail -80 >"$OUT/ray_$name.txt"; tail -40 "$OUT/ray_$name.txt" >>"$log"
}
for step in "${@:-caption}"; do case $step in
  decode) say decode; timeout 90 python3 tests/benchmarks/decoding.py .gpu/photos >>"$log" 2>&1; echo "rc $?" >>"$log" ;;
  stages) say stages; timeout 200 python3 tests/benchmarks/gpu/stages.py >>"$log" 2>&1; echo "rc $?" >>"$log" ;;
  training) say training; timeout 90 python3 tests/benchmarks/gpu/training.py --profile >"$OUT/training.txt" 2>&1; echo "rc $?" >>"$log"; head -5 "$OUT/training.txt" >>"$log" ;;
  small) say small; mkdir -p /tmp/thousand; for i in $(seq -f %06g 0 999); do ln -f /tmp/few/$i.jpg /tmp/thousand/; done; s=$(date +%s.%N)
    timeout 100 python3 -m jobs.caption /tmp/thousand /tmp/out_small --no-report >"$OUT/small.txt" 2>&1; echo "rc $?, $(echo "$(date +%s.%N) - $s" | bc 2>/dev/null || python3 -c "import time,sys; print(time.time()-$s)") s" >>"$log"; tail -3 "$OUT/small.txt" >>"$log"
    python3 -c "import json; r=json.load(open('/tmp/out_small/run.json'))['runs'][-1]; print({k: r.get(k) for k in ('images','seconds','start_up_seconds','seconds_by_phase','seconds_by_step')})" >>"$log" 2>&1 ;;
  caption) caption greedy --search.method greedy ;;
  compiled) caption compiled --search.method greedy --engine compiled ;;
  beam) caption beam ;;
  extract) say extract; timeout 90 python3 -m jobs.extract_features /tmp/few /tmp/features --encoder.checkpoint default >"$OUT/extract.txt" 2>&1; echo "rc $?" >>"$log"; tail -2 "$OUT/extract.txt" >>"$log" ;;
  train) train features /tmp/features /tmp/run_features --encoder.checkpoint default --training.images-per-step 64 ;;
  images) train images /tmp/few /tmp/run_images --from-images --start-from default --decoder.projection-dim 384 --decoder.attention-dim 256 --encoder.train-from blocks.11 --training.images-per-step 64 ;;
  resume) say resume; timeout 40 python3 -m jobs.train /tmp/features /tmp/run_resume --encoder.checkpoint default --training.images-per-step 64 --use-gpu --data.kind csv --data.captions-file /tmp/captions.csv --data.root /tmp/few --training.epochs 4 --training.min-count 1 --checkpoint-minutes 0.05 >"$OUT/resume_1.txt" 2>&1; echo "killed: rc $?" >>"$log"; sleep 3
    timeout 120 python3 -m jobs.train /tmp/features /tmp/run_resume --encoder.checkpoint default --training.images-per-step 64 --use-gpu --data.kind csv --data.captions-file /tmp/captions.csv --data.root /tmp/few --training.epochs 4 --training.min-count 1 --checkpoint-minutes 0.05 >"$OUT/resume_2.txt" 2>&1; echo "rc $?" >>"$log"; tail -8 "$OUT/resume_2.txt" >>"$log" ;;
esac; done
kill $dmon; say end; awk '$3 ~ /^[0-9]+$/ && $3 > 0 {n++; s += $3} END {if (n) print "GPU busy while busy at all: " s / n " %"}' "$OUT/dmon.txt" | tee -a "$log"
tail -c 9000 "$log"
