#!/usr/bin/env bash
# A job on TPU VMs: queued resources, ssh to all workers, one or more slices.
#
#   bash launch/pods/tpu_vm.sh JOB.conf up        ask for chips, wait for them, start the training
#   bash launch/pods/tpu_vm.sh JOB.conf watch     the same, and again after every preemption
#   bash launch/pods/tpu_vm.sh JOB.conf status | logs | stop | down
#
# --dry-run prints what would run and runs nothing. Every command can be given again: what is there
# is left as it is. The training goes on from its last checkpoint in BUCKET/NAME. `stop` ends the
# training, which saves first; `down` gives the chips back, and what is in the bucket stays.
# Needs gcloud, signed in, and a bucket in the zone's region.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/pods/common.sh
source launch/pods/common.sh

main() {
  read_words launch/pods/tpu_vm.sh "$@"
  COMMON=(--project "$PROJECT" --zone "$ZONE")
  case $COMMAND in
    up) up ;;
    watch) watch ;;
    status) run gcloud compute tpus queued-resources describe "$NAME" "${COMMON[@]}" ;;
    logs) run gcloud storage cat "$BUCKET/$NAME/logs/*.log" ;;
    stop) on_workers "pkill -TERM -f 'latentomni_jax train' || true" ;;
    down) run gcloud compute tpus queued-resources delete "$NAME" "${COMMON[@]}" --force --quiet ;;
    *) fail "no command '$COMMAND'; there are up, watch, status, logs, stop, down" ;;
  esac
}

# The state of the request: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED (preempted) ...; "" if absent.
state() {
  gcloud compute tpus queued-resources describe "$NAME" "${COMMON[@]}" \
    --format 'value(state.state)' 2>/dev/null || true
}

up() {
  local now=""
  [ -n "$DRY_RUN" ] || now=$(state)
  case $now in
    SUSPENDED | SUSPENDING | FAILED)
      echo "the request is $now: asking anew" >&2
      run gcloud compute tpus queued-resources delete "$NAME" "${COMMON[@]}" --force --quiet
      now=""
      ;;
  esac
  if [ -z "$now" ]; then create; fi
  [ -n "$DRY_RUN" ] || wait_until_active
  share_code
  on_workers "$(worker_script)"
}

create() {
  local words=(
    gcloud compute tpus queued-resources create "$NAME" "${COMMON[@]}"
    --accelerator-type "$TYPE" --runtime-version "${RUNTIMES[$CHIP]}"
  )
  if [ "$SLICES" = 1 ]; then
    words+=(--node-id "$NAME")
  else
    words+=(--node-prefix "$NAME" --node-count "$SLICES")
  fi
  case $CAPACITY in
    spot) words+=(--spot) ;;
    flex) words+=(--provisioning-model flex-start --max-run-duration 7d) ;;
  esac
  run "${words[@]}"
}

wait_until_active() {
  local now before=""
  while true; do
    now=$(state)
    [ "$now" = "$before" ] || echo "$(date +%H:%M:%S) $NAME: ${now:-unknown}" >&2
    before=$now
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDED) fail "the request is $now; see: tpu_vm.sh ... status" ;;
    esac
    sleep 30
  done
}

# What is committed here, for all workers.
share_code() {
  run git archive --format tar.gz --output "/tmp/$NAME.tar.gz" HEAD
  run gcloud storage cp "/tmp/$NAME.tar.gz" "$BUCKET/$NAME/code.tar.gz"
}

# Each worker: the bucket mounted, the code installed, the training started unless it runs.
worker_script() {
  cat <<EOF
set -eu
sudo mkdir -p /bucket && sudo chown "\$USER" /bucket
command -v gcsfuse >/dev/null || {
  echo 'deb https://packages.cloud.google.com/apt gcsfuse-jammy main' | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /etc/apt/trusted.gpg.d/gcsfuse.asc >/dev/null
  sudo apt-get update -q && sudo apt-get install -qy gcsfuse
}
mountpoint -q /bucket || gcsfuse --implicit-dirs ${BUCKET#gs://} /bucket
mkdir -p ~/latentomni /bucket/$NAME/logs && cd ~/latentomni
tar xzf /bucket/$NAME/code.tar.gz
source launch/environment.sh
prepare_environment tpu data
pgrep -f 'latentomni_jax train' >/dev/null && { echo 'it runs already'; exit 0; }
nohup $(train_command) >>"/bucket/$NAME/logs/\$(hostname).log" 2>&1 </dev/null &
echo "started on \$(hostname)"
EOF
}

# on_workers SCRIPT: on every host of every slice.
on_workers() {
  local number nodes=("$NAME")
  if [ "$SLICES" -gt 1 ]; then
    nodes=()
    for ((number = 0; number < SLICES; number++)); do nodes+=("$NAME-$number"); done
  fi
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm ssh "$node" "${COMMON[@]}" --worker all --command "$1"
  done
}

# Until the trained model is in the bucket; chips that were taken away are asked for again.
watch() {
  up
  [ -z "$DRY_RUN" ] || return 0
  until gcloud storage ls "$BUCKET/$NAME/model/config.json" >/dev/null 2>&1; do
    sleep 60
    up
  done
  echo "done: $BUCKET/$NAME/model" >&2
}

main "$@"
