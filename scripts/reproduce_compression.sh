#!/usr/bin/env bash
# Trains a model on by recipes, all at once on one device; then bench_compression.py packs and scores every file.
#   bash scripts/reproduce_compression.sh EXPERIMENT CHECKPOINT DATA/bin OUT [SEED] [options of bench_compression.py]
# The best checkpoint on valid is one of the second half, where weights are pruned and quantized as they will be packed.
# RECIPES="paper tiny" (names or files), UPDATES=6000 and LR=0.001 change the training, TRAIN="--cpu" adds options.
set -euo pipefail

experiment=$1 checkpoint=$2 data=$3 out=$4 seed=${5:-1}
read -ra recipes <<<"${RECIPES:-int8+prune50 paper tiny}"
read -ra more <<<"${TRAIN:-}"
updates=${UPDATES:-6000} jobs=() trained=()
trap 'kill "${jobs[@]}" 2>/dev/null || true' EXIT  # none goes on when one has failed
for recipe in "${recipes[@]}"; do
    run=$out/$(basename "$recipe" .yaml)
    trained+=("$recipe=$run/checkpoint_best.pt")
    mkdir -p "$run"
    lite-transformer train "$experiment" --data "$data" --save-dir "$run" --seed "$seed" "${more[@]}" \
        task._name=compressed_translation "task.compression_recipe=$recipe" \
        "checkpoint.finetune_from_model=$checkpoint" checkpoint.no_epoch_checkpoints=true \
        "optimization.max_update=$updates" "optimization.lr=[${LR:-0.001}]" lr_scheduler=polynomial_decay \
        "lr_scheduler.total_num_update=$updates" "lr_scheduler.warmup_updates=$((updates / 30))" \
        "dataset.validate_after_updates=$((updates / 2))" \
        common.log_interval=100 >"$run/output.txt" 2>&1 &
    jobs+=("$!")
done
for number in "${!jobs[@]}"; do
    wait "${jobs[number]}" || { tail -n 3 "$out/$(basename "${recipes[number]}" .yaml)/output.txt" >&2; exit 1; }
done
exec python "$(dirname "$0")/bench_compression.py" "$checkpoint" --data "$data" --trained "${trained[@]}" "${@:6}"
