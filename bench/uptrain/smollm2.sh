#!/bin/sh
# Validation loss of SmolLM2-135M-Instruct: as it is, after conversion into each layout, and after uptraining of the best
# two starts as recursive and as Mixture-of-Recursions models. Every part that is done is skipped, so the script can be
# killed and started again.
#
#   bench/uptrain/smollm2.sh GGUF OUT TEXT...
#
# GGUF is the model's file, TEXT are files or folders to train and validate on. LATHE names the program (default: lathe),
# RECURSIONS (3), STEPS (200), WINDOWS (64), LENGTH (256)
# and STARTS (all five) change the size.
set -eu
gguf=$1 out=$2
shift 2
lathe=${LATHE:-lathe} recursions=${RECURSIONS:-3} steps=${STEPS:-200} windows=${WINDOWS:-64} length=${LENGTH:-256}
starts=${STARTS:-stepwise average lower upper random}
recipes=$(cd "$(dirname "$0")/../../recipes/uptrain" && pwd)
mkdir -p "$out"

[ -d "$out/original" ] || "$lathe" import "$gguf" --out "$out/original"
[ -f "$out/data/manifest.json" ] ||
    "$lathe" data build --input "$@" --tokenizer "$out/original/tokenizer.json" --out "$out/data" --valid-per-mille 50

score() { # NAME CHECKPOINT
    [ -s "$out/$1.json" ] || {
        "$lathe" eval "$2" --data "$out/data" --windows "$windows" --sequence-length "$length" --json > "$out/$1.tmp"
        mv "$out/$1.tmp" "$out/$1.json"
    }
}

score original "$out/original"
for sharing in cycle sequence middle_cycle middle_sequence; do
    for start in $starts; do
        name=$sharing-$start
        [ -s "$out/$name.json" ] && continue
        rm -rf "$out/$name"
        "$lathe" convert "$out/original" --out "$out/$name" --sharing "$sharing" --recursions "$recursions" \
            --init "$start" --json > "$out/$name.report"
        score "$name" "$out/$name"
        rm -rf "$out/$name"
    done
done

# Only layouts with a repeated block can have a router: the best two of these go on.
nll() { sed -n 's/.*"nll": *\([0-9.]*\).*/\1/p' "$out/$1.json" | head -1; }
best=$(for start in $starts; do
    for sharing in cycle middle_cycle; do echo "$(nll "$sharing-$start") $sharing $start"; done
done | sort -g | head -2 | cut -d' ' -f2,3 | tr ' ' -)
for name in $best; do
    sharing=${name%-*} start=${name##*-}
    for kind in rec mor; do
        router=fixed
        [ $kind = mor ] && router=expert_choice
        from=$out/start-$kind-$name
        [ -d "$from" ] || "$lathe" convert "$out/original" --out "$from" --sharing "$sharing" \
            --recursions "$recursions" --init "$start" --router "$router"
        # Gates and capacities reach their ends half way.
        half=$((steps / 2)) released=
        [ $kind = mor ] && released="--set model.router.gate_release_steps=$half \
            --set model.router.capacity_warmup_steps=$half"
        "$lathe" train "$recipes/$kind.toml" --out "$out/run-$kind-$name" --set "start.checkpoint=$from" \
            --set "distill.checkpoint=$out/original" --set "data.dir=$out/data" --set "train.steps=$steps" \
            --set "data.sequence_length=$length" $released
        score "uptrained-$kind-$name" "$out/run-$kind-$name"
    done
done

for file in "$out"/*.json; do
    name=$(basename "$file" .json)
    echo "$(nll "$name") $name"
done | sort -g
