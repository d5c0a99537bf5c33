#!/usr/bin/env bash
# A job on GKE: a JobSet of one Job a slice, by kubectl or through XPK.
#
#   bash launch/pods/gke.sh JOB.conf image       build launch/pods/Dockerfile and push it to IMAGE
#   bash launch/pods/gke.sh JOB.conf manifest    print the JobSet
#   bash launch/pods/gke.sh JOB.conf up          apply it (kubectl; the cluster has JobSet)
#   bash launch/pods/gke.sh JOB.conf xpk         start it through XPK instead
#   bash launch/pods/gke.sh JOB.conf status | logs | down
#
# --dry-run prints what would run and runs nothing. A slice that is preempted or fails makes the
# JobSet start all anew, at most 100 times; the training goes on from its last checkpoint in
# BUCKET/NAME, which pods see as /bucket (the cluster has the Cloud Storage FUSE driver, and the
# service account "default" may write to the bucket).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=launch/pods/common.sh
source launch/pods/common.sh

main() {
  read_words launch/pods/gke.sh "$@"
  [ -n "$IMAGE" ] || fail "IMAGE is missing"
  case $COMMAND in
    image)
      run docker build --file launch/pods/Dockerfile --tag "$IMAGE" .
      run docker push "$IMAGE"
      ;;
    manifest) manifest ;;
    up)
      if [ -n "$DRY_RUN" ]; then
        echo "kubectl apply --filename - <<'END'"
        manifest
        echo END
      else
        manifest | kubectl apply --filename -
      fi
      ;;
    xpk) by_xpk ;;
    status) run kubectl get jobset,pods --selector "jobset.sigs.k8s.io/jobset-name=$NAME" ;;
    logs) run kubectl logs --follow "job/$NAME-slice-0" --container train ;;
    down) run kubectl delete jobset "$NAME" --ignore-not-found ;;
    *) fail "no command '$COMMAND'; there are image, manifest, up, xpk, status, logs, down" ;;
  esac
}

by_xpk() {
  [ -n "$CLUSTER" ] || fail "CLUSTER is missing"
  local words=(
    xpk workload create --project "$PROJECT" --zone "$ZONE" --cluster "$CLUSTER"
    --workload "$NAME" --tpu-type "$TYPE" --num-slices "$SLICES" --max-restarts 100
    --docker-image "$IMAGE" --command "$(train_command)"
  )
  if [ "$CAPACITY" = spot ]; then words+=(--spot); fi
  run "${words[@]}"
}

manifest() {
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 100
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          parallelism: $HOSTS
          completions: $HOSTS
          backoffLimit: 0
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: ${ACCELERATORS[$CHIP]}
                cloud.google.com/gke-tpu-topology: $LAYOUT
                node.kubernetes.io/instance-type: ${MACHINES[$CHIP]}-${CHIPS_A_HOST}t
$([ "$CAPACITY" != spot ] || echo '                cloud.google.com/gke-spot: "true"')
              containers:
                - name: train
                  image: $IMAGE
                  command: ["bash", "-c"]
                  args: ["exec $(train_command)"]
                  ports:
                    - containerPort: 8471
                    - containerPort: 8080
                  resources:
                    limits:
                      google.com/tpu: $CHIPS_A_HOST
                  volumeMounts:
                    - name: bucket
                      mountPath: /bucket
              volumes:
                - name: bucket
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: ${BUCKET#gs://}
                      mountOptions: implicit-dirs
EOF
}

main "$@"
