#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs tools/sweep with the real fmp_radioml, on this machine and in a Slurm of one node that the test
starts and stops. Where Slurm or munge is not installed, or this is not root, those tests are skipped.

usage: sweep_test.py FMP_RADIOML [TESTS]
"""
import csv
import html.parser
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SWEEP = os.path.join(ROOT, "tools", "sweep")
PROGRAM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else ""

# A network of 400 weights on some hundred frames: a run takes a fraction of a second.
FLAGS = """[flags]
data = "synth:1"
classes = ["BPSK", "FM"]
snr-min = 20
frames-per-block = 8
validation-fraction = 0.3
filters = [3, 3]
dense = 4
lr = 0.05
batch = 16
accuracy = "0.5x"
p-threshold = 0.4
"""
GRID = """epochs = 2
augment = ["rotate", "shift"]
[grid]
p = [0.5, 0.6]
seed = [1, 2]
"""
# Some seconds of epochs, for a run that is interrupted. No network reaches what it asks for, so that it
# ends with its baseline.
LONG = FLAGS.replace("block = 8", "block = 60").replace("0.5x", "1").replace(
    '"FM"', '"8PSK", "16PSK", "32PSK"') + """epochs = 40
patience = 40
p = 0.5
[grid]
seed = [1]
"""


class Links(html.parser.HTMLParser):
    """Where a page points to, and its marks by class."""

    def __init__(self):
        super().__init__()
        self.links, self.loaded, self.marks = [], [], {}

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "a":
            self.links.append(values["href"])
        if "src" in values or tag in ("link", "script"):
            self.loaded.append(tag)
        if "class" in values and tag in ("circle", "path"):
            self.marks[values["class"]] = self.marks.get(values["class"], 0) + 1


class SweepTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.environment = dict(os.environ)

    def at(self, *parts):
        return os.path.join(self.directory, *parts)

    def spec(self, text, name="spec.toml", program=PROGRAM):
        with open(self.at(name), "w", encoding="utf-8") as file:
            file.write(f'out = "runs"\nprogram = "{program}"\n{text}')
        return self.at(name)

    def start(self, *arguments):
        return subprocess.Popen([sys.executable, SWEEP, *arguments], env=self.environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def sweep(self, *arguments, status=0):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, status, out + err)
        return out if status != 2 else err

    def read(self, *parts):
        with open(self.at(*parts), encoding="utf-8") as file:
            return file.read()

    def states(self, table):
        """The state of each run in the table that --status prints."""
        lines = table[table.index("\nrun ") if "\nrun " in table else 0:].strip().splitlines()
        return {line.split("  ")[0]: line.split("  ")[1].strip() for line in lines[1:-1]}

    def wait_for(self, condition):
        deadline = time.monotonic() + 60
        while not condition():
            self.assertLess(time.monotonic(), deadline, "it takes too long")
            time.sleep(0.05)

    def check_results(self):
        with open(self.at("runs", "sweep.csv"), encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        rounds = 0
        for p in ("0.5", "0.6"):
            for seed in ("1", "2"):
                records = [json.loads(line) for line in
                           self.read("runs", f"p-{p}_seed-{seed}", "rounds.jsonl").splitlines()]
                own = [row for row in rows if (row["p"], row["seed"]) == (p, seed)
                       or row["run"] == f"p-{p}_seed-{seed}"]
                self.assertEqual([float(row["cost"]) for row in own],
                                 [record["network"]["cost"] for record in records])
                self.assertEqual([row["accepted"] for row in own],
                                 [str(record["accepted"]).lower() for record in records])
                rounds += len(records)
        self.assertEqual(len(rows), rounds)
        # On the front is what no other round beats in one respect and equals in the other.
        values = [(float(row["criterion_accuracy"]), float(row["cost"])) for row in rows]
        front = {v for v in values if not any(
            (o[0] >= v[0] and o[1] < v[1]) or (o[0] > v[0] and o[1] <= v[1]) for o in values)}
        self.assertEqual({v for v, row in zip(values, rows) if row["pareto"] == "true"}, front)
        self.assertGreaterEqual(len(front), 2)

        page = Links()
        page.feed(self.read("runs", "sweep.html"))
        self.assertEqual(page.loaded, [], "it needs nothing beside it")
        self.assertEqual(page.marks.pop("published"), 5)
        self.assertEqual(page.marks["front"], sum(cost > 0 for _, cost in front))
        self.assertEqual(sum(page.marks.values()), sum(cost > 0 for _, cost in values))
        for link in page.links:
            self.assertTrue(os.path.exists(self.at("runs", link)), link)
        self.assertEqual(len(set(page.links)), 4)
        for cost in ("1", "0.0425", "0.0419", "0.0162", "0.0157"):
            self.assertIn(f"<td>{cost}</td>", self.read("runs", "sweep.html"))

    def test_runs_a_grid_and_nothing_twice(self):
        spec = self.spec(FLAGS + GRID)
        out = self.sweep(spec, "--jobs", "2")
        self.assertEqual(set(self.states(out).values()), {"done"}, out)
        self.check_results()
        arguments = json.loads(self.read("runs", "p-0.6_seed-2", "run.json"))["arguments"]
        for argument in ("--p=0.6", "--seed=2", "--classes=BPSK,FM", "--epochs=2", "--augment=rotate,shift"):
            self.assertIn(argument, arguments)
        before = os.stat(self.at("runs", "p-0.5_seed-1", "summary.json")).st_mtime_ns
        self.assertIn("4 settings, 0 to run", self.sweep(spec))
        self.assertEqual(os.stat(self.at("runs", "p-0.5_seed-1", "summary.json")).st_mtime_ns, before)
        # A larger grid goes on from there, other flags do not.
        self.assertIn("6 settings, 2 to run", self.sweep(self.spec(
            FLAGS + GRID.replace("[1, 2]", "[1, 2, 3]"))))
        self.assertIn("epochs = 2, now it is 3", self.sweep(self.spec(
            FLAGS + GRID.replace("epochs = 2", "epochs = 3")), status=2))

    def interrupted(self, start):
        """Runs LONG, lets `start` interrupt it after an epoch, and compares with a whole run."""
        spec = self.spec(LONG)
        start(spec)
        out = self.sweep(spec, "--status")
        self.assertEqual(self.states(out), {"seed-1": "interrupted"}, out)
        self.assertRegex(out, r"round 0 epoch \d+/40")
        return spec

    def compare_with_a_whole_run(self):
        self.assertIn("--resume=", self.read("runs", "seed-1", "log.txt"))
        os.rename(self.at("runs"), self.at("resumed"))
        self.sweep(self.at("spec.toml"))
        for name in ("baseline.fmp", "result.fmp"):
            with open(self.at("runs", "seed-1", name), "rb") as a, \
                    open(self.at("resumed", "seed-1", name), "rb") as b:
                self.assertEqual(a.read(), b.read(), name)

    def test_goes_on_after_an_interruption(self):
        def start(spec):
            process = self.start(spec)
            self.wait_for(lambda: os.path.exists(self.at("runs", "seed-1", "checkpoint.fmp")))
            self.assertEqual(self.states(self.sweep(spec, "--status")), {"seed-1": "running"})
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 130, out)
        self.assertEqual(self.states(self.sweep(self.interrupted(start)))["seed-1"],
                         "no baseline")
        self.compare_with_a_whole_run()

    def test_two_at_once_share_the_runs(self):
        spec = self.spec(LONG.replace("seed = [1]", "seed = [1, 2, 3]"))
        sweeps = [self.start(spec, "--jobs", "2"), self.start(spec, "--jobs", "2")]
        for process in sweeps:
            out, err = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 0, out + err)
        self.assertEqual(set(self.states(self.sweep(spec, "--status")).values()), {"no baseline"})
        for seed in "123":
            self.assertEqual(self.read("runs", f"seed-{seed}", "rounds.jsonl").count("\n"), 1)
            self.assertNotIn("--resume", self.read("runs", f"seed-{seed}", "log.txt"))

    def test_a_run_that_fails_stops_no_other(self):
        program = self.at("program")
        with open(program, "w", encoding="utf-8") as file:
            file.write('#!/bin/sh\ncase "$*" in *--seed=1*) [ -e fixed ] || { echo no disk; exit 3; };; esac\n'
                       f'exec {PROGRAM} "$@"\n')
        os.chmod(program, os.stat(program).st_mode | stat.S_IXUSR)
        spec = self.spec(FLAGS + GRID.replace("[0.5, 0.6]", "[0.5]"), program=program)
        out = self.sweep(spec, status=1)
        self.assertEqual(self.states(out), {"p-0.5_seed-1": "failed", "p-0.5_seed-2": "done"})
        self.assertIn("exit status 3: no disk", out)
        with open(self.at("fixed"), "w", encoding="utf-8"):
            pass
        self.assertEqual(set(self.states(self.sweep(spec)).values()), {"done"})

    def test_wrong_specs_are_refused_in_one_line(self):
        for text, message in (
                ("[grid]\nseed = []\n", "seed: expected a list of values"),
                ("[grid]\nseed = 3\n", "seed: expected a list of values"),
                ("[flags]\nseed = 1\n[grid]\nseed = [1]\n", "seed is in flags and in grid"),
                ("[grid]\nseed = [1, 1]\n", "two settings are the same: seed-1"),
                ("[flags]\nout = 'x'\n", "out is no flag that a sweep can set"),
                ("[flags]\n'--bits' = 4\n", "--bits is no flag"),
                ("[flags]\nbits = { a = 1 }\n", "bits: expected a number, a text or a list"),
                ("[gird]\nseed = [1]\n", "gird is none of"),
                ("[grid\n", "Expected")):
            error = self.sweep(self.spec(text), status=2)
            self.assertIn(message, error)
            self.assertEqual(error.count("\n"), 1, error)
        self.assertIn("No such file", self.sweep(self.at("none.toml"), status=2))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def why_no_slurm():
    for program in ("munged", "slurmctld", "slurmd", "sbatch"):
        if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin"):
            return f"{program} is not installed (Debian: slurm-wlm, munge)"
    return "slurmd wants root" if os.geteuid() != 0 else ""


@unittest.skipIf(why_no_slurm(), why_no_slurm())
class SlurmTest(SweepTest):
    """Tests of SweepTest's kind, by Slurm."""

    CONFIGURATION = """ClusterName=test
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=1
MinJobAge=600
NodeName={node} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=small Nodes=ALL MaxTime=INFINITE State=UP
"""

    @classmethod
    def setUpClass(cls):
        cls.cluster = tempfile.TemporaryDirectory()
        directory = cls.cluster.name
        os.environ["PATH"] += ":/usr/sbin"
        for name in ("state", "spool"):
            os.mkdir(os.path.join(directory, name))
        key = os.path.join(directory, "munge.key")
        with open(key, "wb") as file:
            file.write(os.urandom(128))
        os.chmod(key, 0o600)
        node = socket.gethostname().split(".")[0]
        conf = os.path.join(directory, "slurm.conf")
        with open(conf, "w", encoding="utf-8") as file:
            file.write(cls.CONFIGURATION.format(directory=directory, node=node, port=free_port(),
                                                node_port=free_port()))
        os.environ["SLURM_CONF"] = conf
        cls.daemons = []
        for command in (
                ["munged", "--foreground", "--force", f"--socket={directory}/munge.socket",
                 f"--key-file={key}", f"--pid-file={directory}/munged.pid",
                 f"--log-file={directory}/munged.log", f"--seed-file={directory}/munged.seed"],
                ["slurmctld", "-D", "-f", conf], ["slurmd", "-D", "-f", conf, "-N", node]):
            with open(os.path.join(directory, f"{command[0]}.out"), "wb") as log:
                cls.daemons.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                                    stderr=subprocess.STDOUT))
            time.sleep(0.5)
        deadline = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo", "--noheader", "--format=%t"], text=True,
                                           capture_output=True, check=False).stdout:
            if time.monotonic() > deadline:
                logs = ""
                for daemon in ("munged", "slurmctld", "slurmd"):
                    with open(os.path.join(directory, f"{daemon}.out"), encoding="utf-8") as file:
                        logs += file.read()
                cls.tearDownClass()
                raise RuntimeError(f"Slurm does not start:\n{logs}")
            time.sleep(0.2)

    @classmethod
    def tearDownClass(cls):
        for daemon in reversed(cls.daemons):
            daemon.terminate()
            daemon.wait()
        cls.cluster.cleanup()

    def test_runs_a_grid_and_nothing_twice(self):
        spec = self.spec(FLAGS + GRID)
        out = self.sweep(spec, "--slurm", "--wait", "--partition", "small", "--time", "5",
                         "--at-once", "2", "--sbatch=--cpus-per-task=1")
        self.assertIn("4 tasks", out)
        self.assertEqual(set(self.states(out).values()), {"done"}, out)
        self.check_results()
        job = json.loads(self.read("runs", "slurm", "jobs.json"))[0]["job"]
        told = subprocess.run(["scontrol", "show", "job", f"{job}_0"], capture_output=True, text=True,
                              check=True).stdout
        self.assertRegex(told, "Partition=small")
        self.assertRegex(told, "TimeLimit=00:05:00")
        self.assertRegex(told, "ArrayTaskThrottle=2")
        # The job behind the array writes the files when nobody waits.
        os.remove(self.at("runs", "sweep.html"))
        subprocess.run(["sbatch", "--wait", f"--dependency=afterany:{job + 1}", "--output=/dev/null",
                        "--wrap", "true"], check=True, capture_output=True)
        self.assertIn("0 to queue", self.sweep(spec, "--slurm"))

    def test_goes_on_after_an_interruption(self):
        def start(spec):
            self.sweep(spec, "--slurm")
            self.wait_for(lambda: os.path.exists(self.at("runs", "seed-1", "checkpoint.fmp")))
            out = self.sweep(spec, "--slurm")
            self.assertIn("1 queued before, 0 to queue", out)
            self.assertEqual(self.states(out), {"seed-1": "running"})
            job = json.loads(self.read("runs", "slurm", "jobs.json"))[0]["job"]
            subprocess.run(["scancel", str(job)], check=True)
            self.wait_for(lambda: self.states(self.sweep(spec, "--status")) != {"seed-1": "running"})
        spec = self.interrupted(start)
        self.assertEqual(self.states(self.sweep(spec, "--slurm", "--wait"))["seed-1"],
                         "no baseline")
        self.compare_with_a_whole_run()

    def test_a_run_that_fails_stops_no_other(self):
        spec = self.spec(FLAGS + "unknown-flag = 3\n" + GRID.replace("[1, 2]", "[1]"))
        out = self.sweep(spec, "--slurm", "--wait", status=1)
        self.assertEqual(set(self.states(out).values()), {"failed"})
        self.assertIn("unknown-flag", out)

    def test_wrong_specs_are_refused_in_one_line(self):
        error = self.sweep(self.spec(FLAGS + GRID), "--slurm", "--partition", "none", status=2)
        self.assertIn("invalid partition", error)
        self.assertEqual(self.read("runs", "slurm", "tasks-0.json").count('"seed-'), 0)


if __name__ == "__main__":
    if why_no_slurm():
        print(f"tests with Slurm are skipped: {why_no_slurm()}", file=sys.stderr)
    unittest.main()
