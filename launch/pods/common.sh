# What the scripts of this folder share: the job's file, its checks, and running or only showing.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153  # set by a job's file, used by the scripts

# What can be ordered where (cloud.google.com/tpu/docs/regions-zones, November 2026).
declare -rA ZONES=(
  [v5e]="us-central1-a us-south1-a us-west1-c us-west4-a europe-west4-b"
  [v6e]="us-central1-b us-east1-d us-east5-a us-east5-b europe-west4-a asia-northeast1-b southamerica-west1-a"
  [v5p]="us-central1-a us-east5-a europe-west4-b"
)
declare -rA LAYOUTS=(
  [v5e]="1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
  [v6e]="1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
  [v5p]="1x1x1 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8"
)
declare -rA RUNTIMES=([v5e]=v2-alpha-tpuv5-lite [v6e]=v2-alpha-tpuv6e [v5p]=v2-alpha-tpuv5)
declare -rA MACHINES=([v5e]=ct5lp-hightpu [v6e]=ct6e-standard [v5p]=ct5p-hightpu)
declare -rA ACCELERATORS=(
  [v5e]=tpu-v5-lite-podslice [v6e]=tpu-v6e-slice [v5p]=tpu-v5p-slice
)
DRY_RUN=${DRY_RUN:-}

fail() {
  echo "error: $*" >&2
  exit 2
}

# read_words SCRIPT WORD...: the job's file and a command; sets COMMAND and what load_job sets.
read_words() {
  local script=$1 words=() word
  shift
  for word in "$@"; do
    case $word in
      --dry-run) DRY_RUN=1 ;;
      -h | --help) usage "$script" && exit ;;
      *) words+=("$word") ;;
    esac
  done
  [ ${#words[@]} = 2 ] || { usage "$script" >&2; exit 2; }
  COMMAND=${words[1]}
  load_job "${words[0]}"
}

# The comment at a script's head.
usage() {
  sed -n '2,/^set /s/^# \{0,1\}//p' "$1"
}

# load_job FILE: reads and checks it; sets CHIP, LAYOUT, CHIPS, HOSTS (of a slice), TYPE.
load_job() {
  [ -f "$1" ] || fail "$1: no such file; copy launch/pods/example.conf"
  SLICES=1 CAPACITY=on-demand SETTINGS="" CLUSTER="" IMAGE=""
  # shellcheck disable=SC1090
  source "$1"
  local name
  for name in NAME PROJECT ZONE TOPOLOGY BUCKET CONFIG; do
    [ -n "${!name:-}" ] || fail "$1: $name is missing"
  done
  [[ $NAME =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    fail "NAME=$NAME: lower case letters, digits and dashes, 40 at most"
  [[ $PROJECT =~ ^[a-z][a-z0-9-]{4,28}[a-z0-9]$ ]] ||
    fail "PROJECT=$PROJECT is no project id (6 to 30 of a-z, 0-9, -); yours: gcloud projects list"
  [[ $BUCKET =~ ^gs://[a-z0-9][a-z0-9._-]+$ ]] || fail "BUCKET=$BUCKET: gs:// and a bucket's name"
  local setting
  for setting in $CONFIG $SETTINGS; do  # they go through two shells and a manifest
    [[ $setting =~ ^[A-Za-z0-9_./=,:@+-]+$ ]] || fail "'$setting': put it into a config file of yours"
  done
  [[ $SLICES =~ ^[1-9][0-9]?$ ]] || fail "SLICES=$SLICES: 1 to 99"
  CHIP=${TOPOLOGY%%:*} LAYOUT=${TOPOLOGY#*:}
  [ -n "${ZONES[$CHIP]:-}" ] || fail "TOPOLOGY=$TOPOLOGY: chips are v5e v6e v5p"
  one_of "$LAYOUT" "${LAYOUTS[$CHIP]}" || fail "TOPOLOGY=$TOPOLOGY: layouts of $CHIP are ${LAYOUTS[$CHIP]}"
  one_of "$ZONE" "${ZONES[$CHIP]}" || fail "ZONE=$ZONE has no $CHIP; zones are ${ZONES[$CHIP]}"
  one_of "$CAPACITY" "spot flex on-demand" || fail "CAPACITY=$CAPACITY: spot, flex or on-demand"
  CHIPS=$((${LAYOUT//x/*}))
  # A host has 4 chips; a slice that one host holds has 1, 4 or (v5e, v6e) 8.
  CHIPS_A_HOST=4
  if [ "$CHIPS" -lt 4 ] || { [ "$CHIPS" = 8 ] && [ "$CHIP" != v5p ]; }; then CHIPS_A_HOST=$CHIPS; fi
  HOSTS=$((CHIPS / CHIPS_A_HOST))
  case $CHIP in
    v5e) TYPE=v5litepod-$CHIPS ;;
    v6e) TYPE=v6e-$CHIPS ;;
    v5p) TYPE=v5p-$((2 * CHIPS)) ;;  # named by cores
  esac
}

one_of() {
  local word
  for word in $2; do [ "$1" = "$word" ] && return; done
  return 1
}

# The training command, with WORKDIR and settings; the same on every host. What was compiled is kept
# too: started again after a preemption, hosts read their programs.
train_command() {
  local setting command="env JAX_COMPILATION_CACHE_DIR=/bucket/$NAME/compiled"
  command+=" python -m latentomni_jax train --pod --config $CONFIG --workdir /bucket/$NAME"
  if [ "$SLICES" -gt 1 ]; then command+=" --set mesh.data=$SLICES"; fi
  for setting in $SETTINGS; do command+=" --set $setting"; done
  echo "$command"
}

# run WORD...: runs it, or shows it with --dry-run, so that it can be pasted into a shell.
run() {
  if [ -n "$DRY_RUN" ]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}
