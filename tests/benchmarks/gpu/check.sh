#!/usr/bin/env bash
# Checks and measures the project on a machine with a GPU and no network; a step is named by its line at the end:
#   bash tests/benchmarks/gpu/check.sh decode stages training small caption compiled beam extract train workers images frozen resume float32 evaluate
# `train` needs `extract`; `workers`, `resume`, `float32` and `evaluate` need both. `.gpu/` holds Ray for that machine (site.tar.xz) and photos/.
# Each step is bounded in time; what it printed, and for training what Ray logged, lies in $OUT/log.txt and comes back.
# The commands can be tried on a CPU: GPU= MANY=300 FEW=60 DEV=12 PYTHON=.venv/bin/python WORK=/tmp/try bash tests/benchmarks/gpu/check.sh extract train
root=$PWD; export WORK=${WORK:-/tmp} OUT=${OUT:-${WORK:-/tmp}/out} MANY=${MANY:-60000} FEW=${FEW:-4200} DEV=${DEV:-200}; mkdir -p "$OUT"; log=$OUT/log.txt; : >"$log"
python=${PYTHON:-python3}; gpu=${GPU---use-gpu}
say() { echo "== $(date +%T) $*" | tee -a "$log"; }
site=/opt/extra; if [ -f .gpu/site.tar.xz ] && [ ! -d $site/ray ]; then mkdir -p $site && tar xJf .gpu/site.tar.xz -C $site; fi
export PYTHONPATH=$site:$root PATH=$site/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>&1 | tee -a "$log"; nproc | tee -a "$log"
if [ ! -d "$WORK/many" ]; then $python - <<'Q'
import glob, os, shutil
work, dev = os.environ['WORK'], int(os.environ['DEV'])
sources = sorted(glob.glob('.gpu/photos/*.jpg')) or sorted(glob.glob('tests/photos/*.jpg')); base = []
os.makedirs(work, exist_ok=True)
for path in sources:
    base.append(f'{work}/base_' + os.path.basename(path)); shutil.copy(path, base[-1])
few = int(os.environ['FEW'])
for folder, count in (('many', int(os.environ['MANY'])), ('few', few), ('thousand', min(few, 1000))):
    os.makedirs(f'{work}/{folder}')
    for i in range(count): os.link(base[i % len(base)], f'{work}/{folder}/{i:06d}.jpg')
words = 'red blue old small large wet young tall'.split()
with open(f'{work}/captions.csv', 'w') as out:
    out.write('path,caption,split\n')
    for i in range(few):
        for k in range(5): out.write(f'{i:06d}.jpg,a {words[i % len(base) % 8]} thing number {"one two three four five".split()[k]} stands near the {words[(i + k) % 8]} house,{"train" if i < few - dev else "dev"}\n')
Q
fi
nvidia-smi dmon -s um -d 1 -o T >"$OUT/dmon.txt" 2>&1 & dmon=$!
figures() { # folder of an output
  $python -c "import json,sys; r=json.load(open(sys.argv[1]))['runs'][-1]; print({k: r.get(k) for k in ('images','seconds','start_up_seconds','images_per_second','seconds_by_phase','seconds_by_step')})" "$1/run.json" >>"$log" 2>&1
}
caption() { # name, flags
  name=$1; shift; say "caption $name: $*"
  timeout 110 $python -m jobs.caption "$WORK/many" "$WORK/out_$name" --no-report "$@" >"$OUT/$name.txt" 2>&1; echo "rc $?" >>"$log"; tail -3 "$OUT/$name.txt" >>"$log"; figures "$WORK/out_$name"
}
common=(--data.kind csv --data.captions-file "$WORK/captions.csv" --data.root "$WORK/few" --training.min-count 1 --training.images-per-step 64)
train() { # name, flags
  name=$1; shift; say "train $name"
  timeout 150 $python -m jobs.train "$@" "${common[@]}" --training.epochs 2 >"$OUT/train_$name.txt" 2>&1; echo "rc $?" >>"$log"
  tail -8 "$OUT/train_$name.txt" >>"$log"; cat "$WORK/run_$name/metrics.csv" >>"$log" 2>/dev/null
  grep -rhE -B2 -A25 'Traceback|Error|SIG|Fatal' /tmp/ray/session_latest/logs --include='*.err' --include='*.out' --include='*train*' 2>/dev/null | tail -80 >"$OUT/ray_$name.txt"; tail -40 "$OUT/ray_$name.txt" >>"$log"
}
features=(--encoder.checkpoint default)
images=(--from-images --start-from default --decoder.projection-dim 384 --decoder.attention-dim 256)
for step in "${@:-caption}"; do case $step in
  decode) say decode; timeout 90 $python tests/benchmarks/decoding.py .gpu/photos >>"$log" 2>&1; echo "rc $?" >>"$log" ;;
  stages) say stages; timeout 200 $python tests/benchmarks/gpu/stages.py >>"$log" 2>&1; echo "rc $?" >>"$log" ;; # greedy and beam 8, pixels to captions
  training) say training # the bare loop, then with captions as long as those of `train`
    timeout 120 $python tests/benchmarks/gpu/training.py --profile >"$OUT/training.txt" 2>&1; echo "rc $?" >>"$log"; head -5 "$OUT/training.txt" >>"$log"
    timeout 60 $python tests/benchmarks/gpu/training.py --num-words 34 --lengths 10 11 >"$OUT/training_short.txt" 2>&1; echo "rc $?" >>"$log"; head -5 "$OUT/training_short.txt" >>"$log" ;;
  small) say small; s=$(date +%s.%N) # from the command to its end; the first captions come after start_up_seconds
    timeout 100 $python -m jobs.caption "$WORK/thousand" "$WORK/out_small" --no-report >"$OUT/small.txt" 2>&1; echo "rc $?, $($python -c "import time; print(round(time.time() - $s, 1))") s" >>"$log"; tail -3 "$OUT/small.txt" >>"$log"; figures "$WORK/out_small" ;;
  caption) caption greedy --search.method greedy ;;
  compiled) caption compiled --search.method greedy --engine compiled ;;
  beam) caption beam --search.method beam --search.beam-width 8 ;;
  extract) say extract; timeout 90 $python -m jobs.extract_features "$WORK/few" "$WORK/features" --encoder.checkpoint default >"$OUT/extract.txt" 2>&1; echo "rc $?" >>"$log"; tail -2 "$OUT/extract.txt" >>"$log"; figures "$WORK/features" ;;
  train) train features "$WORK/features" "$WORK/run_features" "${features[@]}" $gpu ;;
  workers) num=${WORKERS:-$(nvidia-smi -L | wc -l)}; if [ "$num" -gt 1 ]; then train workers "$WORK/features" "$WORK/run_workers" "${features[@]}" $gpu --num-workers "$num"; else say "workers: not run, there is one GPU"; fi ;;
  images) train images "$WORK/few" "$WORK/run_images" "${images[@]}" --encoder.train-from blocks.11 $gpu ;;
  frozen) train frozen "$WORK/few" "$WORK/run_frozen" "${images[@]}" $gpu ;;
  float32) train float32 "$WORK/features" "$WORK/run_float32" "${features[@]}" # on the CPU, to compare the dev scores of bfloat16
    for name in features float32; do echo "$name: $(tail -1 "$WORK/run_$name/metrics.csv")" >>"$log"; done ;;
  resume) say resume; resumed=($python -m jobs.train "$WORK/features" "$WORK/run_resume" "${features[@]}" "${common[@]}" $gpu --training.epochs 4)
    "${resumed[@]}" >"$OUT/resume_1.txt" 2>&1 & first=$!
    for _ in $(seq 90); do grep -q '^epoch 2/4  train' "$OUT/resume_1.txt" && break; sleep 0.5; done; kill -9 $first; wait $first; echo "killed: rc $?" >>"$log"; sleep 5
    timeout 120 "${resumed[@]}" >"$OUT/resume_2.txt" 2>&1; echo "rc $?" >>"$log"; grep 'going on after' "$OUT/resume_2.txt" >>"$log"; tail -8 "$OUT/resume_2.txt" >>"$log" ;;
  evaluate) say evaluate # captions by the model that `train` made, and their scores
    timeout 100 $python -m jobs.caption "$WORK/few" "$WORK/out_trained" --no-report --model "$WORK/run_features/best" >"$OUT/trained.txt" 2>&1; echo "rc $?" >>"$log"
    timeout 60 $python -m jobs.evaluate "$WORK/out_trained" "$WORK/captions.csv" --kind csv --split dev --no-java --no-report >"$OUT/evaluate.txt" 2>&1; echo "rc $?" >>"$log"; tail -12 "$OUT/evaluate.txt" >>"$log" ;;
  *) say "there is no step $step" ;;
esac; done
kill $dmon 2>/dev/null; say end; awk '$3 ~ /^[0-9]+$/ && $3 > 0 {n++; s += $3} END {if (n) print "GPU busy while busy at all: " s / n " %"}' "$OUT/dmon.txt" | tee -a "$log"
tail -c 9000 "$log"
