#!/usr/bin/env bash
# Fine-tuning: a trained segmenter or encoder goes on with the labels of other data, perhaps in other classes.
#
#   bash launch/finetune.sh INIT DATA [section.key=value ...]
#   sbatch --gpus-per-node=4 launch/finetune.sh INIT DATA [section.key=value ...]     from the project folder; also -N 2
#
#   INIT   a run, a checkpoint, or one that third_party.convert made: its network is taken. Else weights of an encoder, as
#          model.weights names them: then give model.backbone=... as well
#   DATA   NAME.yaml, which `python -m da data describe FOLDER` wrote, or the name of a file in da/data/sets; an experiment,
#          such as experiments/finetune/voc_pspnet50.yaml; or miniature, 20 labels of its target
#   GPUS=4      processes, one per GPU
#   RUNS=runs   folder of all runs; of described data it is RUNS/finetune/NAME-seed0
#SBATCH --job-name=finetune
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120 --requeue
#SBATCH --output=slurm-%x-%j.log --open-mode=append

for here in "$(dirname "$0")" launch "${SLURM_SUBMIT_DIR:-.}/launch"; do # Slurm runs a copy of this script
  [ ! -e "$here/lib.sh" ] || break
done
[ -e "$here/lib.sh" ] || { echo "error: no launch/lib.sh in $PWD; submit from the project folder" >&2; exit 2; }
source "$here/lib.sh"

refuse() { echo "error: $*" >&2; exit 2; }
[ $# -ge 2 ] || refuse "name what to start from and the data, for example: bash launch/finetune.sh RUN FOLDER"
init=$1 data=$2
shift 2
[[ $init != */* || $init == timm/* || -e $init ]] || refuse "$init: no such run, checkpoint or file of weights"
[[ $init != *=* && $data != *=* ]] || refuse "what to start from and the data come before all settings"

file=experiments/mini/finetune.yaml settings=() dataset=""
case $data in
  miniature) settings=(experiment=finetune name=miniature) ;;
  *.yaml)
    [ -e "$data" ] || refuse "$data: no such file; python -m da data describe FOLDER writes one"
    if grep -qE '^(base|trainer):' "$data"; then file=$data; else dataset=$data; fi ;;
  *)
    [ -e "da/data/sets/$data.yaml" ] || refuse "$data: no file in da/data/sets; what else DATA may be: launch/finetune.sh --help"
    dataset=$data ;;
esac
if [ -n "$dataset" ]; then
  settings=(experiment=finetune "name=$(basename "$dataset" .yaml)" data.source.labels=null
    "data.source.dataset=$dataset" data.source.split=train "data.val.dataset=$dataset" data.val.split=val)
  classes=${dataset%.yaml}_classes.yaml
  [ ! -e "$classes" ] || settings+=("data.classes=$classes")
fi

start=$("$PYTHON" - "$init" <<'PY'
import json, sys
from pathlib import Path
from da.config import UserError, parse_yaml
from da.engine import checkpoint
from da.run import checkpoint_path

init = Path(sys.argv[1])
try:
    path = checkpoint_path(init, "last") if init.exists() else init
    state = checkpoint.load(path) if path.exists() else {}
except checkpoint.Broken:
    state = {}  # another project's file
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
if state.get("modules", {}).keys() & {"segmenter", "encoder"} and "config" in state:
    model = parse_yaml(state["config"], str(path))["model"] | {"weights": "none"}
    print(f"init={init}", f"model={json.dumps(model)}", sep="\n")
else:
    print("init=null", f"model.weights={init}", sep="\n")
PY
)
while IFS= read -r word; do settings+=("$word"); done <<<"$start"

train_file "$file" "${settings[@]}" "$@"
