# shellcheck shell=bash
# What the launch scripts share. Each sources this file first; it leaves the shell in the project's folder with
# PYTHON set to an interpreter that has the packages.
#
# One process runs as it is (under DA_GROUP_OF_ONE=1 as several do); several run under torchrun, which starts them again
# after a crash; under sbatch, srun starts one torchrun on each node. What each process of a torchrun prints is kept in
# the run's folder, in logs/.
# SIGTERM, SIGINT and SIGUSR1 save the run and stop it, see `run_on`.

set -euo pipefail
for word in "$@"; do # --help prints the script's own header
  case $word in -h | --help) sed -n '2,${/^#SBATCH/d; /^#/!q; s/^# \{0,1\}//p;}' "$0" && exit ;; esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-1}}} # processes on each machine, one per GPU
GPUS=${GPUS##*:}                         # a100:4
if ! [[ $GPUS =~ ^[1-9][0-9]{0,3}$ ]]; then
  echo "error: GPUS=$GPUS: give the number of processes on each machine, such as 4" >&2
  exit 2
fi
NODES=1                                  # machines of this job
[ -z "${SLURM_JOB_ID:-}" ] || NODES=${SLURM_NNODES:-1}
RUNS=${RUNS:-runs}                       # folder of all runs
RESTARTS=${RESTARTS:-3}                  # how often torchrun starts crashed processes again
if ! [[ $RESTARTS =~ ^[0-9]{1,4}$ ]]; then
  echo "error: RESTARTS=$RESTARTS: give a number, such as 3" >&2
  exit 2
fi
DA_STARTED=$(date +%s)                   # run.time_limit counts from here
export DA_STARTED
# What Slurm's commands call this job: of one task of an array SLURM_JOB_ID may be the number of them all.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-${SLURM_JOB_ID:-}}

has_packages() { # does this interpreter import what training needs, and what the caller names in NEEDS?
  # shellcheck disable=SC2086  # NEEDS is a list
  "$1" - torch torchvision numpy scipy tensorboard yaml cv2 PIL pydantic tqdm ${NEEDS:-} <<'PY' >/dev/null 2>&1
import importlib.util, sys
assert all(importlib.util.find_spec(name) for name in sys.argv[1:])
PY
}

packages_named() { # pip's own lines are many; of them each package with its size as it is fetched
  awk '/^ *(Downloading|Using cached) / && !/metadata/ {sub(/^ *(Downloading|Using cached) /, ""); sub(/-(py[23]|cp3).*whl/, "")
      print "  " $0; fflush()}
    /^Installing collected packages/ {print "  unpacking them, one to three minutes ..."; fflush()}'
}

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    has_packages "$PYTHON" && return
    echo "error: PYTHON=$PYTHON is no Python that has the packages of requirements.txt; mend it or unset it" >&2
    exit 2
  fi
  for candidate in python3 python .venv/bin/python; do
    if has_packages "$candidate"; then
      PYTHON=$candidate
      return
    fi
  done
  local suits='import sys, pip; sys.exit(sys.version_info < (3, 11))'
  if [ -e .venv ] && ! .venv/bin/python -c "$suits" 2>/dev/null; then
    echo "error: $PWD/.venv: lacks pip, or its Python is older than 3.11; delete it and run again" >&2
    exit 2
  elif [ ! -e .venv ] && ! python3 -c "${suits/, pip/}" 2>/dev/null; then
    echo "error: requirements.txt needs Python 3.11 or newer, and python3 is not; put one first in PATH, or set PYTHON to" \
      "an interpreter that has the packages" >&2
    exit 2
  fi
  if ! mkdir .venv.lock 2>/dev/null; then
    echo "error: $PWD/.venv: another call is installing into it; wait for it (if there is none, delete .venv.lock)" >&2
    exit 2
  fi
  trap 'rmdir .venv.lock' EXIT
  echo "The active Python lacks the packages. Installing requirements.txt into $PWD/.venv: 6 GB on the disk, mostly torch;"
  echo "some minutes, as the network is:"
  if [ ! -e .venv ] && ! python3 -m venv .venv; then
    rm -rf .venv
    echo "error: python3 -m venv failed; on Debian install python3-venv" >&2
    exit 2
  fi
  .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -r requirements.txt | packages_named
  rmdir .venv.lock
  trap - EXIT
  PYTHON=.venv/bin/python
}

# choose_table TABLE ROOTS: prints TABLE, or `mini` (and on standard error why) when one of the data roots is not set.
choose_table() {
  local table=$1 roots=$2 root
  for root in $roots; do
    if [ -z "${!root:-}" ]; then
      echo "$root is not set, so this runs the miniature: small rendered streets, two CPU cores, some minutes." >&2
      echo "For the full experiment set: $roots" >&2
      table=mini
      break
    fi
  done
  echo "$table"
}

# refuse_settings KEYS HINT [section.key=value ...]: KEYS are those that a chain sets itself; HINT says what to do instead.
refuse_settings() {
  local word
  for word in "${@:3}"; do
    if [[ " $1 " == *" ${word%%=*} "* ]]; then
      echo "error: $word: the chain sets it; ${2}another chain is RUNS=another/folder" >&2
      exit 2
    fi
  done
}

# read_seed [section.key=value ...]: prints the seed that they give, or 0.
read_seed() {
  local word seed=0
  for word in "$@"; do
    case $word in seed=*) seed=${word#*=} ;; esac
  done
  echo "$seed"
}

# train_table TABLE ROOTS NAME [section.key=value ...]
# Trains NAME.yaml of experiments/TABLE, or of experiments/mini where a root is not set, and writes the page that compares
# the runs of that table. EXPERIMENT replaces NAME. Returns what `run_on` returns.
train_table() {
  local table
  table=$(choose_table "$1" "$2")
  train_file "experiments/$table/${EXPERIMENT:-$3}.yaml" "${@:4}" || return
  write_page "$table"
}

# write_page TABLE: of all its runs. Where it cannot be written, it says why, and what was trained is finished all the
# same. Returns what stopped it, as `run_on` does, else 0.
write_page() {
  local code=0
  run_alone report --table "$1" --runs "$RUNS" -o "$RUNS/report/$1" || code=$?
  case $code in 75 | 130 | 143) return "$code" ;; esac
}

# run_next COMMAND WHAT ...: what a person may run now.
run_next() {
  if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "next:"
    printf '  %-62s # %s\n' "$@"
  fi
}

# train_logged FOLDER FILE.yaml [section.key=value ...]
# One process, its run at RUNS/FOLDER, its output in RUNS/FOLDER.log; a line says how it ended. A finished run is left alone.
train_logged() {
  local folder=$RUNS/$1 log=$RUNS/$1.log
  [ ! -e "$folder/summary.json" ] || { echo "$folder is finished" && return; }
  mkdir -p "$(dirname "$log")"
  echo "$folder ... (log: $log)"
  if ! "$PYTHON" -m da train "$2" --runs "$RUNS" "${@:3}" >"$log" 2>&1; then
    echo "error: $folder: $(tail -n 1 "$log")" >&2
    return 1
  fi
  echo "$folder: $(grep -m 1 -E '^mIoU |held-out' "$log" | tr -s ' ')"
}

# train_file FILE.yaml [section.key=value ...]
# Returns what `run_on` returns.
train_file() {
  local id logs
  id=$(basename "$1" .yaml)-${SLURM_JOB_ID:-$(date +%Y%m%d-%H%M%S)-$$}
  local command=("$PYTHON" -m da train "$1" --runs "$RUNS" "${@:2}")
  unset DA_STOP_FILE
  if [ "$((NODES * GPUS))" -gt 1 ] || [ -n "${SLURM_JOB_ID:-}" ] || [ -n "${DA_GROUP_OF_ONE:-}" ]; then
    logs=$("${command[@]}" --check --processes "$((NODES * GPUS))")/logs || return
    # shellcheck disable=SC2016  # torchrun fills in the rank
    export DA_STOP_FILE="$logs/$id.stop" TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE='[${rank}] '
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600            # seconds that processes have to save, once torchrun gets SIGTERM
    export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGHUP,SIGQUIT # its settings; SIGINT goes straight to its processes
    # Else torchrun keeps one store over its restarts, and gloo looks for processes that are dead.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    if ! { mkdir -p "$logs" && true >"$DA_STOP_FILE" && rm -f "$DA_STOP_FILE"*; } 2>/dev/null; then
      echo "error: $logs: cannot be written; free space, or set RUNS to a folder that can" >&2
      return 2
    fi
    local agent=("$PYTHON" launch/torchrun.py "--nnodes=$NODES" "--nproc-per-node=$GPUS" "--rdzv-id=$id"
      "--rdzv-backend=c10d" "--rdzv-endpoint=$(first_node):$(free_port)" "--max-restarts=$RESTARTS"
      "--log-dir=$logs" --tee=3)
    command=("${agent[@]}" "${command[@]:1}")
  fi
  run_on "$NODES" "${command[@]}"
}

# run_alone COMMAND ...
# Runs `python -m da COMMAND ...` in one process. Returns what `run_on` returns.
run_alone() {
  unset DA_STOP_FILE
  run_on 1 "$PYTHON" -m da "$@"
}

# run_on NODES COMMAND ...
# Runs the command, under Slurm once on each node. Returns 0: finished; 2: a mistake to mend; 75: stopped by SIGUSR1 or
# run.time_limit; 130, 143: stopped by SIGINT, SIGTERM. What was stopped is saved: the same command goes on. Slurm queues
# the job again after 75, and after 143 where another job took its place.
run_on() {
  local nodes=$1 code=0
  shift
  # shellcheck disable=SC2016  # for the shell on each node
  local command=(bash -c "$(declare -f on_node node_address)"'; on_node "$@"' bash "$nodes" "$@")
  if [ -n "${SLURM_JOB_ID:-}" ]; then
    # Inside another step (`srun --pty bash`) it would wait for ever for what that one holds. --gpus counts those of all
    # nodes of the job: too many for one, and srun --overlap shares them out unevenly. Where one node's torchrun is
    # killed, the others would wait for it for minutes. `sbatch --export` is not for what is set here.
    command=(env -u SLURM_GPUS -u SLURM_TRES_PER_TASK srun --export=ALL --wait=30 ${SLURM_STEP_ID:+--overlap}
      "--nodes=$nodes" "--ntasks=$nodes" --ntasks-per-node=1 "--cpus-per-task=$(processors)"
      ${SLURM_GPUS_ON_NODE:+"--gpus-per-node=$SLURM_GPUS_ON_NODE"} "${command[@]}")
  fi
  launch "${command[@]}" || code=$?
  case $code in # it came before anyone listened
    "$((128 + $(kill -l USR1)))") code=75 ;;
    "$((128 + $(kill -l USR2)))") code=130 ;;
  esac
  if [ -s "${DA_STOP_FILE:-}" ]; then
    code=$(<"$DA_STOP_FILE")
  fi
  if [ -n "${DA_STOP_FILE:-}" ]; then
    case $code in
      0 | 75 | 130 | 143) ;;
      *) # what the processes say of a full disk goes through files on it
        if ! { head -c 65536 /dev/zero >"$DA_STOP_FILE"; } 2>/dev/null; then
          echo "error: $RUNS: no space left; what was saved before is kept: free space and run again" >&2
          code=2
        fi ;;
    esac
    rm -f "$DA_STOP_FILE"*
  fi
  queue_again "$code"
  return "$code"
}

# queue_again CODE: what `run_on` says of Slurm.
queue_again() {
  if [ -n "${SLURM_JOB_ID:-}" ] && { [ "$1" = 75 ] || { [ "$1" = 143 ] && preempted; }; }; then
    trap '' USR1 TERM # Slurm may send one for what comes now
    echo "stopped in time; queueing job $JOB again"
    scontrol requeue "$JOB" || echo "Slurm refused; submit the same script again to go on" >&2
  fi
}

leave() { # CODE
  queue_again "$1"
  exit "$1"
}

# While nothing trains, there is nothing to save: the same codes, as soon as the program that runs has ended.
catch_signals() {
  trap 'leave 75' USR1
  trap 'leave 143' TERM
}

on_node() { # NODES COMMAND ...
  local nodes=$1 address interface
  shift
  # The first node hosts the meeting of several; torchrun's own guesses fail where a node's name is not its address.
  export PET_RDZV_CONF=is_host=$((${SLURM_NODEID:-0} == 0))
  if [ "$nodes" -gt 1 ]; then
    address=$(node_address "$SLURMD_NODENAME")
    interface=$(ip -o addr 2>/dev/null | awk -v "address=$address/" 'index($4, address) == 1 {print $2; exit}')
    export PET_LOCAL_ADDR=$address
    [ -z "$interface" ] || export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$interface}"
  fi
  exec "$@"
}

processors() { # of the node that has given this job the fewest; srun takes no --cpus-per-task over from sbatch
  tr , '\n' <<<"${SLURM_JOB_CPUS_PER_NODE:-${SLURM_CPUS_PER_TASK:-1}}" | sed 's/(.*//' | sort -n | head -n 1
}

node_address() { # NAME
  scontrol show node "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p'
}

preempted() { # has Slurm asked this job to make room? It queues such a job again only if it must be killed
  scontrol show job "$JOB" | grep -q 'PreemptTime=[0-9]'
}

first_node() { # the address at which processes meet
  [ "$NODES" -gt 1 ] || { echo localhost && return; }
  node_address "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
}

free_port() {
  "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

# launch COMMAND ...
# Runs it, handing on the signals that this shell gets; returns its exit code.
launch() {
  local code=0 interrupts=0 child asked=
  trap 'asked=USR1' USR1
  trap 'asked=TERM' TERM
  trap 'asked=INT' INT
  "$@" &
  child=$!
  trap 'hand_on USR1 "$child"' USR1
  trap 'hand_on TERM "$child"' TERM
  trap 'hand_on INT "$child"' INT
  [ -z "$asked" ] || hand_on "$asked" "$child"
  wait "$child" || code=$?
  while [ "$code" -gt 128 ] && kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the child
    code=0
    wait "$child" || code=$?
  done
  if [ "$code" -gt 128 ]; then # the child may have ended at that same moment
    code=0
    wait "$child" || code=$?
  fi
  trap - INT
  catch_signals
  return "$code"
}

hand_on() { # SIGNAL CHILD
  local signal=$1
  if [ "$1" = INT ]; then
    signal=USR2 # the same to the training, which may have had a Ctrl-C as well: see da/engine/interrupt.py
    interrupts=$((interrupts + 1))
  fi
  if [ -n "${SLURM_JOB_ID:-}" ]; then # the child is srun, which hands it on to the processes on all nodes
    # Slurm sends SIGTERM to all processes of a job itself, and srun would kill them for it.
    [ "$1" = TERM ] || kill "-$signal" "$2" || true
  elif [ -z "${DA_STOP_FILE:-}" ] || [ "$interrupts" -lt 2 ]; then # one process, or torchrun, which hands it on
    kill "-$signal" "$2" || true
  else
    echo 130 >"$DA_STOP_FILE"
    echo "interrupted; the same command continues from what was saved" >&2
    # shellcheck disable=SC2046  # a list
    kill -KILL "$2" $(trap '' INT; pgrep -P "$2") || true
  fi
}

catch_signals
find_python
