#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Training by real processes under mpirun: the same bits for any number of ranks, and the end of a
job whose ranks are killed, hang, or lose their network.

usage: mpi_test.py MPIRUN FMP_RADIOML RADIOML_SYNTH [NAME of a test ...]

$FMP_RADIOML_SIMT: the program on the host runtime of tests/simt; without it nothing is tested on devices.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

MPIRUN, PROGRAM, SYNTH = (str(pathlib.Path(a).absolute()) for a in sys.argv[1:4])
SILENCE = 3  # seconds, in place of 15
DEADLINE = 30  # seconds in which a job must end
FLAGS = ("--data=synth:1 --synth-frames=fixed --classes=OOK,BPSK,FM --snr-min=24 --frames-per-block=40 --bits=4"
         " --filters=8,8,8 --dense=16 --batch=64 --epochs=3 --patience=2 --accuracy=0.9x"
         " --validation-fraction=0.2 --p=0.5 --p-threshold=0.3 --sparse-threshold=0.6").split()


def flags_with(*new):
    """FLAGS, some of them with another value."""
    names = [flag.split("=")[0] for flag in new]
    return [flag for flag in FLAGS if flag.split("=")[0] not in names] + list(new)


LONG = flags_with("--epochs=60000", "--patience=60000", "--accuracy=0.9999")
ENVIRONMENT = dict(os.environ, FMP_RANK_SILENCE=str(SILENCE), OMPI_ALLOW_RUN_AS_ROOT="1",
                   OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_hwloc_base_binding_policy="none")


def mpirun(ranks, *flags, before=()):
    return [*before, MPIRUN, "-n", str(ranks), PROGRAM, *flags]


def run(command, code=0, **options):
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == code, f"{' '.join(command)}: code {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def error_lines(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


def untimed(value):
    """What a record says but for times, which differ from run to run."""
    if isinstance(value, dict):
        return {key: untimed(v) for key, v in value.items() if "second" not in key}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def results(directory):
    files = [(directory / name).read_bytes() for name in ("result.fmp", "baseline.fmp", "model.onnx")]
    rounds = [untimed(json.loads(line)) for line in (directory / "rounds.jsonl").read_text().splitlines()]
    summary = json.loads((directory / "summary.json").read_text())
    return files, rounds, untimed([summary["result"], summary["baseline"]])


def processes_of(job, program):
    """Process ids and environments of what a job consists of."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environ = (entry / "environ").read_bytes().split(b"\0")
            name = (entry / "comm").read_text().strip()
        except OSError:
            continue
        if name.startswith(program) and f"FMP_TEST_JOB={job}".encode() in environ:
            found.append((int(entry.name), environ))
    return found


def ranks_of(job):
    """Process ids by rank."""
    found = {}
    for process, environ in processes_of(job, "fmp_radioml"):
        rank = [v for v in environ if v.startswith(b"OMPI_COMM_WORLD_RANK=")]
        found[int(rank[0].split(b"=")[1])] = process
    return found


class Job:
    """A long run, past its first checkpoint."""

    def __init__(self, directory, ranks, command=None):
        self.directory, self.id = directory, f"{os.getpid()}-{directory.name}"
        self.out = directory.with_suffix(".err")
        with self.out.open("w") as err:
            self.process = subprocess.Popen(command or mpirun(ranks, *LONG, f"--out={directory}"),
                                            env=dict(ENVIRONMENT, FMP_TEST_JOB=self.id), stdout=subprocess.DEVNULL, stderr=err)
        until = time.monotonic() + 60
        while not (directory / "checkpoint.fmp").exists():
            assert self.process.poll() is None, self.out.read_text()
            assert time.monotonic() < until, "no epoch was completed"
            time.sleep(0.05)

    def end(self):
        """Waits for the end. Returns the errors that the program printed, and seconds."""
        began = time.monotonic()
        while ranks_of(self.id):
            assert time.monotonic() - began < DEADLINE, f"ranks go on: {ranks_of(self.id)}"
            time.sleep(0.05)
        seconds = time.monotonic() - began
        assert self.process.wait(timeout=DEADLINE) != 0
        self.output = self.out.read_text()
        halves = [f.name for f in self.directory.iterdir() if "tmp" in f.name or "unverified" in f.name]
        assert not halves, halves
        return error_lines(self.output), seconds


def test_same_bits(scratch):
    run([PROGRAM, *FLAGS, "--threads=1", f"--out={scratch / 'alone'}"])
    alone = results(scratch / "alone")
    for ranks, threads in ((1, 2), (2, 1), (3, 2), (4, 1)):
        name = scratch / f"{ranks}x{threads}"
        done = run(mpirun(ranks, *FLAGS, f"--threads={threads}", f"--out={name}"))
        assert results(name) == alone, f"{ranks} ranks x {threads} threads differ"
        assert done.stdout.count("Pareto" if "Pareto" in done.stdout else "results   ") == 1, done.stdout
        assert f"{ranks} ranks" in done.stdout or ranks == 1, done.stdout


def test_devices(scratch):
    """Ranks with a device of the host runtime each: whole runs, and a rank that is killed."""
    program = os.environ.get("FMP_RADIOML_SIMT")
    if not program:
        print("devices: skipped, there is no program on the host runtime")
        return
    environment = dict(ENVIRONMENT, SIMT_DEVICES="2")
    # A step takes the host runtime seconds.
    short = flags_with("--filters=3,3", "--dense=5", "--classes=OOK,BPSK", "--snr-min=30", "--frames-per-block=22",
                       "--device=cuda", "--sparse-threshold=0")
    flags = [*(f for f in short if not f.startswith("--epochs")), "--epochs=1", "--time-limit=0.01"]

    def start(ranks, *more):
        return subprocess.Popen([MPIRUN, "-n", str(ranks), program, *more], env=dict(environment, FMP_TEST_JOB="devices"),
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    alone = start(1, *flags, f"--out={scratch / 'alone'}")
    both = start(2, *flags, f"--out={scratch / 'both'}")
    outputs = [job.communicate(timeout=100) for job in (alone, both)]
    assert alone.returncode == 0 and both.returncode == 0, outputs
    assert "2 ranks: CUDA" in outputs[1][0], outputs[1]
    assert results(scratch / "alone") == results(scratch / "both"), "2 devices differ"
    many = start(3, *flags, f"--out={scratch / 'many'}")
    lines = error_lines(many.communicate(timeout=60)[1])
    assert many.returncode == 2 and len(lines) == 1 and "3 ranks here, but 2 CUDA devices" in lines[0], lines
    lost = start(2, *(f for f in short if not f.startswith(("--epochs", "--patience"))), "--epochs=60000",
                 "--patience=60000", f"--out={scratch / 'lost'}")
    while not (scratch / "lost" / "checkpoint.fmp").exists():
        assert lost.poll() is None, lost.communicate()
        time.sleep(0.05)
    os.kill(ranks_of("devices")[1], signal.SIGKILL)
    began = time.monotonic()
    lines = error_lines(lost.communicate(timeout=60)[1])
    assert lines == [f"error: lost rank 1 on {os.uname().nodename}: it was killed, or crashed"], lines
    assert time.monotonic() - began < DEADLINE


def test_bad_flags(scratch):
    for flags, what in ((["--batch=0", f"--out={scratch / 'no'}"], "--batch"), (["--device=cuda", f"--out={scratch / 'no'}"], "--device cuda")):
        done = run(mpirun(2, *flags_with(*flags)), code=2)
        lines = error_lines(done.stderr)
        assert len(lines) == 1 and what in lines[0], done.stderr
    assert "usage" in run(mpirun(2, "--help")).stdout.lower()
    alone = dict(ENVIRONMENT, SLURM_STEP_NUM_TASKS="4")  # a launcher that MPI does not know
    done = subprocess.run([PROGRAM, *FLAGS], env=alone, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "4 processes were started" in done.stderr, done.stderr


def test_killed_rank(scratch):
    """...and the run goes on with another number of ranks, to the same bits."""
    job = Job(scratch / "killed", 3)
    os.kill(ranks_of(job.id)[1], signal.SIGKILL)
    lines, seconds = job.end()
    host = os.uname().nodename
    assert lines == [f"error: lost rank 1 on {host}: it was killed, or crashed"], job.output
    assert seconds < DEADLINE


def test_resumed_by_other_ranks(scratch):
    flags = [*FLAGS, "--augment=rotate,shift,swap"]
    run([PROGRAM, *flags, f"--out={scratch / 'whole'}"])
    directory = scratch / "parts"
    run(mpirun(2, *flags, "--time-limit=0.01", f"--out={directory}"))  # an epoch
    run(mpirun(3, f"--resume={directory}", "--time-limit=0.01"))
    run(mpirun(4, f"--resume={directory}", "--time-limit=0.01"))
    run([PROGRAM, f"--resume={directory}", "--time-limit=0"])
    whole, parts = results(scratch / "whole"), results(directory)
    assert whole[0] == parts[0] and whole[1] == parts[1]


def test_rank_that_hangs(scratch):
    job = Job(scratch / "hangs", 2)
    os.kill(ranks_of(job.id)[1], signal.SIGSTOP)
    lines, seconds = job.end()
    assert len(lines) == 1 and re.match(
        rf"error: lost rank 1 on .*: no sign of life for {SILENCE} s; it hangs, or the network is down", lines[0]), lines
    assert seconds < DEADLINE


def test_first_rank_killed(scratch):
    job = Job(scratch / "first", 3)
    os.kill(ranks_of(job.id)[0], signal.SIGKILL)
    lines, _ = job.end()
    assert lines == [f"error: lost rank 0 on {os.uname().nodename}: it was killed, or crashed"], job.output


def test_interrupt(scratch):
    job = Job(scratch / "interrupted", 2)
    os.kill(ranks_of(job.id)[1], signal.SIGTERM)  # any rank
    lines, _ = job.end()
    assert not lines and job.output.count("interrupted; continue with: ") == 1, job.output


def test_other_data_on_a_host(scratch):
    for name, seed in (("a", 1), ("b", 2)):
        (scratch / name).mkdir()
        run([SYNTH, f"--out={scratch / name / 'x.h5'}", "--frames-per-block=8", f"--seed={seed}",
             "--snr=20:20:2", "--classes=OOK,BPSK,FM"])
    flags = flags_with("--data=x.h5", f"--out={scratch / 'run'}")
    flags = [flag for flag in flags if not flag.startswith(("--snr", "--frames-per-block", "--synth"))]
    done = run([MPIRUN, "-n", "1", "-wdir", scratch / "a", PROGRAM, *flags, ":",
                "-n", "1", "-wdir", scratch / "b", PROGRAM, *flags], code=1)
    lines = error_lines(done.stderr)
    assert len(lines) == 1 and "rank 0 on " in lines[0] and "rank 1 on " in lines[0], done.stderr
    assert "first frame" in lines[0], done.stderr
    assert not (scratch / "run").exists()
    same = run(mpirun(2, *flags, "--time-limit=0.01"), cwd=scratch / "a")
    assert not error_lines(same.stderr)


def test_srun(scratch):
    """The same main job by Slurm, in the cluster of one node that sweep_test.py starts."""
    given, sys.argv = sys.argv, ["sweep_test.py"]  # which looks for a program there
    from sweep_test import SlurmTest, why_no_slurm
    sys.argv = given
    if why_no_slurm():
        print(f"srun: skipped, {why_no_slurm()}")
        return
    SlurmTest.setUpClass()
    try:
        launcher = ["srun", "--mpi=pmix", "-n", "3", "--overcommit"]
        done = subprocess.run([*launcher, PROGRAM, *FLAGS, f"--out={scratch / 'by3'}"], capture_output=True,
                              text=True, timeout=60)
        assert done.returncode == 0 and "3 ranks" in done.stdout, done.stderr
        lost = subprocess.run(["srun", "--mpi=none", "-n", "2", "--overcommit", PROGRAM, "--version"],
                              capture_output=True, text=True, timeout=60)
        assert lost.returncode != 0, "two processes that do not know of each other must not run"
    finally:
        SlurmTest.tearDownClass()
    run([PROGRAM, *FLAGS, f"--out={scratch / 'alone'}"])
    assert results(scratch / "by3") == results(scratch / "alone")


def test_cut_network(scratch):
    """Two hosts in network namespaces of their own, joined by a cable that is cut."""
    if subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True).returncode != 0 or not shutil.which("ip"):
        print("cut_network: skipped, network namespaces are not permitted here")
        return
    hosts = []
    try:
        for name in ("fmpa", "fmpb"):
            hosts.append(subprocess.Popen(["unshare", "--net", "--uts", "sh", "-c", f"hostname {name}; echo; exec sleep 100"],
                                          stdout=subprocess.PIPE))
            hosts[-1].stdout.readline()
        inside = [["nsenter", "-t", str(host.pid), "-n", "-u"] for host in hosts]
        run([*inside[0], "ip", "link", "add", "fmp0", "type", "veth", "peer", "name", "fmp1", "netns", str(hosts[1].pid)])
        for i in range(2):
            run([*inside[i], "ip", "link", "set", "lo", "up"])
            run([*inside[i], "ip", "addr", "add", f"10.77.0.{i + 1}/24", "dev", f"fmp{i}"])
            run([*inside[i], "ip", "link", "set", f"fmp{i}", "up"])
        agent = scratch / "agent"  # in place of ssh
        agent.write_text(f"#!/bin/sh\nshift\nexec {' '.join(inside[1])} sh -c \"$*\" >/dev/null 2>&1\n")
        agent.chmod(0o755)
        command = [*inside[0], MPIRUN, "--mca", "plm_rsh_agent", str(agent), "--mca", "btl", "tcp,self",
                   "--mca", "btl_tcp_if_include", "10.77.0.0/24", "--mca", "oob_tcp_if_include", "10.77.0.0/24",
                   # How soon mpirun itself finds that its daemon over there is lost: after the ranks.
                   "--mca", "oob_tcp_keepalive_time", "1", "--mca", "oob_tcp_keepalive_intvl", "2",
                   "--mca", "oob_tcp_keepalive_probes", "3", "-x", "FMP_RANK_SILENCE", "-x", "FMP_TEST_JOB", "--host", "10.77.0.1,10.77.0.2", "-n", "2",
                   PROGRAM, *LONG, f"--out={scratch / 'cut'}"]
        job = Job(scratch / "cut", 2, command)
        run([*inside[0], "ip", "link", "set", "fmp0", "down"])
        lines, _ = job.end()
        told = [line for line in lines if "lost rank 1 on fmpb: no sign of life" in line]
        assert len(told) == 1, job.output
    finally:
        for process, _ in processes_of(f"{os.getpid()}-cut", "orted"):
            os.kill(process, signal.SIGKILL)  # the daemon that is cut off
        for host in hosts:
            host.kill()
            host.wait()


def run_test(name, test):
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        test(pathlib.Path(scratch))
    print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)


def main():
    tests = {name[5:]: test for name, test in globals().items() if name.startswith("test_")}
    chosen = sys.argv[4:] or tests
    with concurrent.futures.ThreadPoolExecutor(3) as pool:  # they wait, most of the time
        for done in [pool.submit(run_test, name, tests[name]) for name in chosen]:
            done.result()


if __name__ == "__main__":
    main()
