"""A pod's hosts as processes of this machine: the real training command, N times, joined.

    bash launch/simulate_pod.sh --hosts 4 --devices-per-host 2 -- \\
      --config configs/tiny.py --workdir runs/pod --set optimizer.steps=40

Behind `--` stand arguments of `latentomni train`. Each process has its own simulated devices and
its own rows, and they talk over loopback. Where one dies, the others are ended and all are started
again, as a launcher of a real pod would, at most --restarts times.

    --kill-one 20      kills one of them (SIGKILL) 20 seconds after the first step
    --stop-one 20      stops one (SIGSTOP), so that it hangs: the others name it and end
    --preempt-one 20   tells one to end (SIGTERM), as a platform does that wants its machine back:
                       all save a checkpoint at the same step, and end

Logs are in WORKDIR/hosts/N.log; process 0's is shown.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time

_GRACE = 20  # seconds that the others have to end by themselves, once one has


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=4, help="processes (%(default)s)")
    parser.add_argument("--devices-per-host", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--restarts", type=int, default=1, help="of all, at most (%(default)s)")
    parser.add_argument("--kill-one", type=float, metavar="SECONDS")
    parser.add_argument("--stop-one", type=float, metavar="SECONDS")
    parser.add_argument("--preempt-one", type=float, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0, help="of whom it befalls (%(default)s)")
    parser.add_argument("train", nargs=argparse.REMAINDER, help="-- arguments of latentomni train")
    args = parser.parse_args()
    given = args.train[1:] if args.train[:1] == ["--"] else args.train
    if "--workdir" not in given:
        parser.error("name a work directory behind --: -- --config FILE --workdir DIR")
    if args.hosts < 1 or args.devices_per_host < 1:
        parser.error("there is at least one host, with at least one device")
    workdir = pathlib.Path(given[given.index("--workdir") + 1])
    chosen = random.Random(args.seed).randrange(args.hosts)
    harm = [
        (args.kill_one, signal.SIGKILL),
        (args.stop_one, signal.SIGSTOP),
        (args.preempt_one, signal.SIGTERM),
    ]
    for attempt in range(args.restarts + 1):
        plans = [(after, number) for after, number in harm if after is not None and not attempt]
        codes = run_once(args.hosts, args.devices_per_host, workdir, given, plans, chosen)
        print(f"hosts ended with {codes}", file=sys.stderr)
        if not any(codes):
            return 0
        if attempt < args.restarts:
            print(f"starting all again ({attempt + 1} of {args.restarts})", file=sys.stderr)
    return 1


def run_once(
    hosts: int,
    devices: int,
    workdir: pathlib.Path,
    given: list[str],
    harm: list[tuple[float, int]],
    chosen: int,
) -> list[int]:
    """Runs all hosts to their end. Returns their exit codes."""
    logs = workdir / "hosts"
    logs.mkdir(parents=True, exist_ok=True)
    for path in logs.glob("*.json"):
        path.unlink()  # of the run before: not signs of life
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Threads to wait in: devices wait in two collectives at a time, and XLA has as many as this.
    waiting = max(4 * devices, os.cpu_count() or 1)
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
        "NPROC": str(waiting),
    }
    command = [sys.executable, "-m", "latentomni_jax", "train", *given]
    command += ["--coordinator", f"127.0.0.1:{port}", "--processes", str(hosts), "--process"]
    running = []
    for host in range(hosts):
        with (logs / f"{host}.log").open("ab") as log:
            shown = subprocess.PIPE if host == 0 else log
            running.append(
                subprocess.Popen(
                    [*command, str(host)], env=environment, stdout=shown, stderr=subprocess.STDOUT
                )
            )
    show = threading.Thread(target=_tee, args=(running[0], logs / "0.log"), daemon=True)
    show.start()
    for after, number in harm:
        threading.Thread(
            target=_harm, args=(running[chosen], chosen, number, after, workdir), daemon=True
        ).start()
    _wait(running)
    show.join()
    return [process.returncode for process in running]


def _tee(process: subprocess.Popen, path: pathlib.Path) -> None:
    assert process.stdout is not None
    with path.open("ab") as log:
        for line in process.stdout:
            log.write(line)
            sys.stderr.buffer.write(line)
            sys.stderr.flush()


def _harm(process, host: int, number: int, after: float, workdir: pathlib.Path) -> None:
    """Sends a signal so many seconds after the run's first step."""
    metrics = workdir / "metrics.jsonl"
    begun = metrics.stat().st_size if metrics.is_file() else 0
    while process.poll() is None:
        if metrics.is_file() and metrics.stat().st_size > begun:
            time.sleep(after)
            print(f"host {host} gets {signal.Signals(number).name}", file=sys.stderr)
            process.send_signal(number)
            return
        time.sleep(0.1)


def _wait(running: list[subprocess.Popen]) -> None:
    """Until all have ended; once one has failed, the others have a little while left."""
    failed_at = None
    while any(process.poll() is None for process in running):
        if failed_at is None and any(process.returncode for process in running):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > _GRACE:
            for process in running:
                process.kill()  # a stopped one, too
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
