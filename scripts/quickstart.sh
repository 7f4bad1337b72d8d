#!/usr/bin/env bash
# From a fresh machine to translations: installs, prepares a corpus, trains a small Lite Transformer, scores it.
set -euo pipefail

usage() {
    cat <<'END'
Usage: bash scripts/quickstart.sh [options] [KEY=VALUE ...]

Installs the package (into .venv unless a virtual environment is active), prepares a corpus, trains a small Lite
Transformer, translates the held-out test set, prints sacreBLEU, and translates a few typed sentences. Run again, it
goes on where it stopped.

  --corpus NAME    embedded (default, needs no files), multi30k, or parallel (your own text)
  --source DIR     folder of the corpus's files (multi30k, parallel)
  --pair SRC-TGT   languages (default de-en)
  --config NAME    experiment in configs/ (default: one for the corpus)
  --updates N      length of training (default: the experiment's)
  --out DIR        where everything goes (default runs/quickstart for embedded, runs/quickstart-CORPUS-PAIR otherwise)
  KEY=VALUE        any option of training, for example optimization.lr=[0.002]
END
}

quiet() { LOGLEVEL="${LOGLEVEL:-WARNING}" "$@"; } # progress bars and results are enough

corpus=embedded source='' pair=de-en config='' updates='' out='' overrides=()
while (($#)); do
    case "$1" in
        --help | -h) usage; exit 0 ;;
        --corpus | --source | --pair | --config | --updates | --out)
            if (($# < 2)); then
                echo "quickstart.sh: $1 needs a value. See: bash scripts/quickstart.sh --help" >&2
                exit 2
            fi
            declare "${1#--}=$2"
            shift 2
            ;;
        *=*) overrides+=("$1"); shift ;;
        *)
            echo "quickstart.sh: unknown option '$1'. See: bash scripts/quickstart.sh --help" >&2
            exit 2
            ;;
    esac
done
[[ -z "$source" ]] || source="$(cd "$source" 2>/dev/null && pwd || echo "$source")" # relative to the caller's folder
cd "$(dirname "${BASH_SOURCE[0]}")/.."

small='' # the experiments for two CPU cores; any other keeps its own batch and threads
if [[ -z "$config" ]]; then
    small=yes
    [[ "$corpus" == embedded ]] && config=embedded_de_en || config=small_cpu
fi
if [[ -z "$out" ]]; then
    out=runs/quickstart
    [[ "$corpus-$pair" == embedded-de-en ]] || out="runs/quickstart-$corpus-$pair"
fi
overrides+=("task.source_lang=${pair%-*}" "task.target_lang=${pair#*-}")
[[ -z "$updates" ]] || overrides+=("optimization.max_update=$updates")

export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}"      # fairseq uses much that newer versions of torch call old
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # threads that wait leave the core to others
processes=()
if [[ -n "$small" ]]; then # too small a model for threads: two processes of one thread each are twice as fast
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    (($(getconf _NPROCESSORS_ONLN) < 2)) || processes=(--processes 2 --cpu)
fi

echo "1/6 Environment"
source scripts/_environment.sh
set_up_environment

echo "2/6 Corpus $corpus ($pair)"
quiet lite-transformer prepare "$corpus" --dest "$out/data" --pair "$pair" ${source:+--source "$source"}

echo "3/6 Training"
lite-transformer train "$config" --data "$out/data/bin" --save-dir "$out/checkpoints" ${processes[@]+"${processes[@]}"} "${overrides[@]}"

echo "4/6 Test set"
checkpoint="$out/checkpoints/checkpoint_best.pt"
quiet lite-transformer evaluate --checkpoint "$checkpoint" --data "$out/data/bin" --beam 4 \
    --output "$out/translations.${pair#*-}" | tee "$out/scores.txt"

echo "5/6 Typed sentences"
case "${pair%-*}" in
    de) sentences=(
        "Der Zug fährt am 3. Oktober 2025 um 14:35 ab."
        "Die Rechnung über 1.249,50 € ist am 15.03.2024 fällig."
        "Verfügbare Sprachen: Deutsch, Englisch und Französisch."
        "dreihundertfünfundvierzig") ;;
    fr) sentences=(
        "Le train part le 3 octobre 2025 à 14:35."
        "La facture de 1 249,50 € est à payer le 15/03/2024."
        "Langues disponibles : allemand, anglais et français.") ;;
    *) sentences=(
        "The train leaves on October 3, 2025 at 2:35 PM."
        "The invoice for €1,249.50 is due on 3/15/24."
        "Available languages: German, English, and French.") ;;
esac
case "$corpus-${pair%-*}" in
    embedded-*) ;;
    *-de) sentences=("Ein Mann fährt mit dem Fahrrad durch die Stadt." "Zwei Kinder spielen im Park mit einem Ball.") ;;
    *-fr) sentences=("Un homme fait du vélo dans la ville." "Deux enfants jouent avec un ballon dans le parc.") ;;
    *) sentences=("A man rides a bicycle through the city." "Two children play with a ball in the park.") ;;
esac
paste -d '\n' <(printf '   %s\n' "${sentences[@]}") \
    <(printf '%s\n' "${sentences[@]}" |
        quiet lite-transformer translate --checkpoint "$checkpoint" --data "$out/data/bin" --beam 4 | sed 's/^/-> /')

echo "6/6 A released model of this repository, 3 MB"
sentence="Klicken Sie auf die Schaltfläche, um das Dialogfeld zu schließen."
printf '   %s\n-> %s\n' "$sentence" "$(quiet lite-transformer translate --model libreoffice_help_de_en <<<"$sentence")"

cat <<END

Text and data:  $out/data
Checkpoints:    $out/checkpoints
Scores:         $out/scores.txt
Translations:   $out/translations.${pair#*-}
Type your own:  lite-transformer translate --checkpoint $checkpoint --data $out/data/bin
END
[[ -n "${VIRTUAL_ENV_PROMPT:-}" && "${VIRTUAL_ENV:-}" != "$PWD/.venv" ]] || echo "Environment:    source .venv/bin/activate"
