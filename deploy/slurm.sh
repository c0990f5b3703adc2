#!/usr/bin/env bash
# sbatch --nodes=4 deploy/slurm.sh --config configs/chameleon7b.yaml --rounds 1
#
# From the checkout, which all nodes see under one path, with .venv made by `make setup EXTRAS=`. The
# first node holds Ray's head and the driver, every node a Ray. Five minutes before its time is up, and
# when it is preempted, the job stops the driver and queues itself again: the same command resumes.
#SBATCH --job-name=dynamics
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=dynamics-%j.log
set -euo pipefail

cd "$SLURM_SUBMIT_DIR"
[ -x .venv/bin/ray ] || { echo "error: $PWD has no .venv; run make setup EXTRAS= there first" >&2; exit 2; }
export PATH="$PWD/.venv/bin:$PATH"
read -r address _ < <(hostname -I)
port=$((20000 + SLURM_JOB_ID % 10000))
# One secret for the nodes of this job: whoever has none may do nothing.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export HEAD="$address" PORT="$port"

# shellcheck disable=SC2016  # each node expands these
srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --no-kill --kill-on-bad-exit=0 --overlap \
  bash -c '
  if [ "$SLURM_PROCID" = 0 ]; then
    exec ray start --block --head --node-ip-address="$HEAD" --port="$PORT" --num-cpus="$SLURM_CPUS_ON_NODE"
  fi
  until ray health-check --address "$HEAD:$PORT" >/dev/null 2>&1; do sleep 2; done
  exec ray start --block --address="$HEAD:$PORT" --num-cpus="$SLURM_CPUS_ON_NODE"' &
nodes=$!
until ray health-check --address "$address:$port" >/dev/null 2>&1; do
  kill -0 "$nodes" 2>/dev/null || { echo "error: Ray has not started; see the lines above" >&2; exit 1; }
  sleep 2
done

again=no
RAY_ADDRESS="$address:$port" python ray_jobs/bootstrap.py "$@" &
driver=$!
trap 'again=yes; kill -TERM "$driver" 2>/dev/null || true' USR1
trap 'kill -TERM "$driver" 2>/dev/null || true' TERM
status=0
# A trap ends wait early; a wait for what has ended gives its status once more.
while kill -0 "$driver" 2>/dev/null; do wait "$driver" || true; done
wait "$driver" || status=$?
kill -TERM "$nodes" 2>/dev/null || true
wait "$nodes" || true
case "$again $status" in
  "yes 130" | "yes 143") scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$status"
