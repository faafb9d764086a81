#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs tools/gpu_check on a machine without a GPU, and on one that seems to have one: the programs it
calls are stand-ins, the tests those of the host runtime.

usage: gpu_check_test.py DIRECTORY_OF_THE_SIMT_BINARIES
"""
import json
import os
import stat
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.dont_write_bytecode = True
import roofline  # noqa: E402, what gpu_check compares with

SIMT = os.path.abspath(sys.argv.pop()) if len(sys.argv) > 1 else ""


def script(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write("#!/bin/sh\n" + text + "\n")
    os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)


def gpu_check(*arguments, path):
    return subprocess.run([sys.executable, os.path.join(ROOT, "tools", "gpu_check"), *arguments],
                          capture_output=True, text=True, check=False,
                          env=dict(os.environ, PATH=path))


def bench_lines():
    """What cuda_bench prints (its own test runs it), with times that all differ."""
    lines = []
    for row in roofline.estimate(1.0, 32)["rows"]:
        if row["pass"] == "update":
            continue
        kernels = ("",) if "activation" in row["pass"] else ("dense", "sparse", "cublas", "cusparse")
        for kernel in kernels:
            lines.append(json.dumps({"layer": row["layer"], "pass": row["pass"], "kernel": kernel,
                                     "seconds": 1e-6 * (7 * len(lines) % 101 + 1)}) + "\n")
    return "".join(lines)


BENCH = """echo '{"train_frames_per_s": 5}'"""
# In earnest, on a network small enough for the host: at one density, as it takes seconds.
REAL_BENCH = f'''case "$*" in *"--density 0.5 "*)
exec {SIMT}/fmp_bench_simt "$@" --length 128 --channels 4 --sparse-threshold 0.6 --steps 1 --warm-up 1;;
esac
{BENCH}'''


class GpuCheckTest(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def at(self, *parts):
        return os.path.join(self.directory.name, *parts)

    def machine(self, device_test, fmp_bench=BENCH):
        """A machine with a GPU, a build and a compute-sanitizer that runs what it is given."""
        script(self.at("bin", "nvidia-smi"), "echo 'Test GPU, 1.0, 1 MiB, 9.0'")
        script(self.at("bin", "compute-sanitizer"), 'shift 4; exec "$@"')
        script(self.at("build", "tools", "cuda_bench"), "cat <<'LINES'\n" + bench_lines() + "LINES")
        script(self.at("build", "tools", "fmp_bench"), fmp_bench)
        script(self.at("build", "tests", "cuda_device_test"), device_test)
        return self.at("bin") + os.pathsep + os.environ["PATH"]

    def check(self, path, *arguments):
        out = self.at("result.json")
        run = gpu_check("--build", self.at("build"), "--out", out, "--batch", "32", *arguments,
                        path=path)
        with open(out, encoding="utf-8") as file:
            return run, json.load(file)

    def test_says_in_one_line_that_there_is_no_gpu(self):
        run = gpu_check(path=self.at("bin"))
        self.assertEqual(run.returncode, 1)
        self.assertEqual(run.stderr.count("\n"), 1, run.stderr)
        self.assertIn("there is no GPU on this machine", run.stderr)
        self.assertEqual(run.stdout, "")

    def test_measures_every_pass_and_runs_tests_and_sanitizers(self):
        run, result = self.check(self.machine(f'exec {SIMT}/cuda_prune_test "$@"', REAL_BENCH))
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertTrue(result["passed"])
        self.assertEqual(result["device"]["name"], "Test GPU")
        self.assertGreater(result["tests"]["run"], 0)
        self.assertEqual(result["tests"]["failed"], [])
        self.assertEqual({name: r["passed"] for name, r in result["sanitizers"].items()},
                         {"memcheck": True, "racecheck": True, "synccheck": True})
        self.assertEqual([e["passes"]["density"] for e in result["densities"]],
                         [1.0, 0.5, 0.2, 0.1, 0.05, 0.02])
        for entry in result["densities"]:
            if entry["passes"]["density"] == 0.5:
                self.check_whole_steps(entry["steps"])
            else:
                self.assertEqual(entry["steps"], {"train_frames_per_s": 5})
            rows = entry["passes"]["rows"]
            self.assertEqual({r["layer"] for r in rows},
                             {f"conv{i}" for i in range(1, 8)} | {"dense1", "dense2", "output"})
            forward = next(r for r in rows if (r["layer"], r["pass"]) == ("conv2", "forward"))
            self.assertEqual(set(forward["all"]), {"dense", "sparse", "cublas", "cusparse"})
            self.assertEqual(forward["seconds"], min(forward["all"].values()))
            self.assertAlmostEqual(forward["of_bound"],
                                   forward["least_seconds"] / forward["seconds"])

    def check_whole_steps(self, steps):
        self.assertEqual(steps["device"], "CUDA, host runtime of the tests")
        self.assertEqual((steps["batch"], steps["density"]), (32, 0.5))
        for name in ("train_frames_per_s", "eval_frames_per_s", "peak_device_mb"):
            self.assertGreater(steps[name], 0, name)
        self.assertEqual(len(steps["plan"]), 10)
        for layer in steps["plan"]:
            self.assertEqual(layer["forward"], "sparse" if layer["density"] < 0.6 else "dense")
        self.assertFalse({"target", "threads", "train_share"} & set(steps), "what is the CPU's")

    def test_fails_when_a_test_or_a_sanitizer_fails(self):
        path = self.machine(f'{SIMT}/cuda_prune_test "$@"; exit 1')
        run, result = self.check(path, "--quick")
        self.assertEqual(run.returncode, 1)
        self.assertFalse(result["passed"])
        self.assertNotIn("sanitizers", result)
        script(self.at("build", "tests", "cuda_device_test"), f'exec {SIMT}/cuda_prune_test "$@"')
        script(self.at("bin", "compute-sanitizer"),
               'case "$2" in racecheck) echo "Race reported"; exit 86;; esac; exit 0')
        run, result = self.check(path)
        self.assertEqual(run.returncode, 1)
        self.assertEqual(result["sanitizers"]["memcheck"], {"passed": True})
        self.assertEqual(result["sanitizers"]["racecheck"],
                         {"passed": False, "output": "Race reported"})


if __name__ == "__main__":
    unittest.main()
