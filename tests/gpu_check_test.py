#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs tools/gpu_check on machines without a GPU, with one, with a faulty program, a library that
refuses, too little time, and programs that do not start. A GPU and NVIDIA's tools are stand-ins; the
programs are those of the host runtime where a test says so.

usage: gpu_check_test.py DIRECTORY_OF_THE_SIMT_BINARIES [TESTS]
"""
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.dont_write_bytecode = True
import roofline  # noqa: E402, what gpu_check compares with

SIMT = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else ""
DENSITIES = (1, 0.1, 0.02)
STAGES = ["device", "tests", "steps", "kernels", "sanitizers", "counters", "training", "runs",
          "pytorch"]


def script(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write("#!/bin/sh\n" + text + "\n")
    os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)


def bench_lines(kernels, refuse=None):
    """What cuda_bench prints (its own test runs it), with times that all differ."""
    lines = []
    for density in DENSITIES:
        for row in roofline.estimate(1.0, 32)["rows"]:
            if row["pass"] == "update":
                continue
            for kernel in ("",) if "activation" in row["pass"] else kernels:
                line = {"density": density, "layer": row["layer"], "pass": row["pass"],
                        "kernel": kernel}
                if (kernel, row["pass"]) == refuse:
                    line["failed"] = "cusparseSpMM: CUSPARSE_STATUS_NOT_SUPPORTED"
                else:
                    line["seconds"] = 1e-6 * (7 * len(lines) % 101 + 1)
                lines.append(json.dumps(line))
    return "\n".join(lines)


def cuda_bench(refuse=None):
    return f"""case "$*" in
*--help) exit 2 ;;
*--copy*) echo '{{"copy_bytes_per_s": 1.5e12}}' ;;
*dense,sparse*) cat <<'LINES'
{bench_lines(("dense", "sparse"), refuse)}
LINES
;;
*) cat <<'LINES'
{bench_lines(("cublas", "cusparse"), refuse)}
LINES
;;
esac"""


def fmp_radioml(on_device, on_cpu):
    """A training whose rounds are written as fmp_radioml does, with these accuracies."""
    return f"""[ "$1" != --help ] || exit 0
case "$*" in *"--device cuda"*) accuracy={on_device} ;; *) accuracy={on_cpu} ;; esac
while [ "$1" != --out ]; do shift; done
mkdir -p "$2"
cat >"$2/rounds.jsonl" <<LINE
{{"p": null, "accepted": true, "criterion_accuracy": 0, "history": [{{"criterion_accuracy": $accuracy}}], \
"timing": {{"frames_per_second": 7}}, "network": {{"nonzeros": 9}}}}
LINE"""


FMP_BENCH = """echo '{"train_frames_per_s": 5, "batch": 32, "density": 1}'"""

# Two suites, of which tests of the second do as `second` says.
def device_test(second='echo "[       OK ] B.Two (0 ms)"'):
    return f"""case "$*" in
--help) exit 0 ;;
*--gtest_list_tests*)
printf 'A.\\n  One\\n  FramesArePacked\\n  WithCublas\\nB.\\n  One\\n  Two  # GetParam() = 3\\n  Three\\n'
printf 'C.\\n  EpochsAreThoseOfTheCpu\\n'
exit 0 ;;
esac
for name in $(echo "$1" | sed 's/.*=//; s/:/ /g'); do
  echo "[ RUN      ] $name"
  case $name in
  B.Two) {second} ;;
  *) echo "[       OK ] $name (0 ms)" ;;
  esac
done
echo "[  FAILED  ] 1 test, listed below:"
echo "[  SKIPPED ] 2 tests, listed below:"
echo "[  SKIPPED ] B.One"
echo "[  SKIPPED ] B.Three\""""


NCU = """while [ "$1" != --page ]; do shift; done
cat <<'TABLE'
==PROF== Connected
"ID","Process ID","Kernel Name","Block Size","Grid Size","dram__bytes_read.sum","dram__bytes_write.sum","gpu__time_duration.sum"
"","","","","","byte","byte","ns"
"0","7","conv_tensor","(128, 1, 1)","(8, 1, 1)","1,000","500","1000"
"1","7","conv_tensor","(128, 1, 1)","(9, 1, 1)","4000","2000","2000"
"2","7","quantize_pool","(128, 1, 1)","(9, 1, 1)","10","n/a","5"
TABLE"""


class GpuCheckTest(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def at(self, *parts):
        return os.path.join(self.directory.name, *parts)

    def machine(self, **programs):
        """A machine with a GPU and a packed build."""
        script(self.at("bin", "nvidia-smi"), "echo 'Test GPU, 1.0, 1 MiB, 9.0'")
        script(self.at("bin", "compute-sanitizer"), 'shift 6; [ "$1" != --report-api-errors ] || '
               'shift 2; exec "$@"')
        script(self.at("bin", "ncu"), NCU)
        script(self.at("bin", "cmake"), "echo 'nothing can be built here'; exit 1")
        script(self.at("pack", "run"), 'if [ "$1" = --libraries ]; then echo "libcublas.so.13: /x"; '
               'exit; fi; exec "$@"')
        defaults = {"cuda_bench": cuda_bench(), "fmp_bench": FMP_BENCH,
                    "cuda_device_test": device_test(), "fmp_radioml": fmp_radioml(0.5, 0.48)}
        for name, text in {**defaults, **programs}.items():
            script(self.at("pack", "bin", name), text)

    def start(self, *arguments, build="pack"):
        environment = dict(os.environ, PATH=self.at("bin") + os.pathsep + os.environ["PATH"])
        return subprocess.Popen(
            [sys.executable, os.path.join(ROOT, "tools", "gpu_check"), "--build", self.at(build),
             "--out", self.at("result.json"), "--batch", "32", "--batches", "32", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def result(self):
        with open(self.at("result.json"), encoding="utf-8") as file:
            return json.load(file)

    def check(self, *arguments, build="pack"):
        process = self.start(*arguments, build=build)
        out, err = process.communicate()
        self.assertEqual(err, "")
        return process.returncode, out, self.result()

    def test_says_of_every_stage_that_there_is_no_gpu(self):
        self.machine()
        os.remove(self.at("bin", "nvidia-smi"))
        status, out, result = self.check()
        self.assertEqual(status, 1)
        self.assertEqual(list(result["stages"]), STAGES)
        for stage in result["stages"].values():
            self.assertEqual(stage["status"], "not run")
            self.assertIn("no device: ", stage["why"])
        self.assertEqual(result["stages"]["device"]["programs"], "start")
        self.assertEqual(len(out.splitlines()), len(STAGES) + 1, out)
        self.assertTrue(result["complete"])
        self.assertFalse(result["passed"])

    def test_runs_every_stage(self):
        self.machine()
        stages_here = [name for name in STAGES if name != "pytorch"]  # which takes what is installed
        status, out, result = self.check("--stages", ",".join(stages_here))
        self.assertEqual((status, result["passed"]), (0, True), out)
        self.assertEqual(result["device"]["name"], "Test GPU")
        stages = result["stages"]
        self.assertEqual(list(stages), stages_here)
        self.assertEqual(stages["device"]["libraries"], ["libcublas.so.13: /x"])
        self.assertEqual(stages["tests"]["results"],
                         {"A": {"OK": 2}, "B": {"OK": 3}, "libraries": {"OK": 1}})
        self.assertEqual(len(stages["steps"]["figures"]), 4)
        self.assertIn("--density 0.05 --sparse-threshold 1", stages["steps"]["figures"][1]["command"])
        self.check_kernels(stages["kernels"])
        self.assertEqual({tool: r["status"] for tool, r in stages["sanitizers"]["results"].items()},
                         {"memcheck": "passed", "racecheck": "passed", "synccheck": "passed"})
        self.assertEqual(stages["runs"]["results"], {"C.EpochsAreThoseOfTheCpu": "OK"})
        self.assertAlmostEqual(stages["training"]["largest_difference"], 0.02)
        conv = stages["counters"]["kernels"]["conv_tensor"]
        self.assertEqual((conv["read"], conv["written"], conv["ns"]), (4000, 2000, 2000))
        self.assertAlmostEqual(conv["bytes_per_s"], 3e9, places=0)
        self.assertEqual(conv["grid"], "(9, 1, 1)")

    def check_kernels(self, stage):
        self.assertEqual([e["density"] for e in stage["densities"]], list(DENSITIES))
        for entry in stage["densities"]:
            rows = entry["rows"]
            self.assertEqual({r["layer"] for r in rows},
                             {f"conv{i}" for i in range(1, 8)} | {"dense1", "dense2", "output"})
            forward = next(r for r in rows if (r["layer"], r["pass"]) == ("conv2", "forward"))
            self.assertEqual(set(forward["all"]), {"dense", "sparse", "cublas", "cusparse"})
            self.assertEqual(forward["seconds"], min(forward["all"].values()))
            # The bound is that of a machine that copies half of what an H100 does.
            self.assertAlmostEqual(forward["least_seconds"], (64 + 4 * 64) * 512 / 1.5e12)
            self.assertAlmostEqual(forward["of_bound"],
                                   forward["least_seconds"] / forward["seconds"])

    def test_whole_steps_of_the_host_runtime(self):
        self.machine(fmp_bench=f"""case "$*" in *"--density 0.05 --sparse-threshold 1 "*)
exec {SIMT}/fmp_bench_simt "$@" --length 128 --channels 4 --steps 1 --warm-up 1;;
esac
{FMP_BENCH}""")
        _, out, result = self.check("--stages", "steps")
        steps = result["stages"]["steps"]["figures"][1]
        self.assertEqual(steps.get("device"), "CUDA, host runtime of the tests", out)
        self.assertEqual((steps["batch"], steps["density"]), (32, 0.05))
        for name in ("train_frames_per_s", "eval_frames_per_s", "peak_device_mb"):
            self.assertGreater(steps[name], 0, name)
        self.assertEqual({layer["forward"] for layer in steps["plan"]}, {"sparse"})

    def test_tests_of_the_host_runtime(self):
        self.machine(cuda_device_test=f'exec {SIMT}/cuda_prune_test "$@"')
        status, out, result = self.check("--stages", "tests")
        tests = result["stages"]["tests"]
        self.assertEqual((status, tests["status"]), (0, "passed"), out)
        self.assertEqual(tests["results"], {"CudaPruneTest": {"OK": tests["of"]}})
        self.assertGreaterEqual(tests["of"], 6)

    def test_trains_on_both_and_compares(self):
        # The same on a network and a set that take the CPU no time, which computes both.
        self.machine(fmp_radioml=f"""[ "$1" != --help ] || exit 0
exec {SIMT}/fmp_radioml_simt $(echo "$@" | sed 's/--epochs 5/--epochs 2/; s/0.97x/1/; s/--device cuda/--device cpu/') \\
  --filters 3,3 --dense 4 --classes BPSK,QPSK --snr-min 24 --threads 1""")
        status, out, result = self.check("--stages", "training", "--frames-per-block", "4")
        stage = result["stages"]["training"]
        self.assertEqual((status, stage["status"]), (0, "passed"), out)
        self.assertEqual(len(stage["cpu"]["accuracies"]), 2)
        self.assertEqual(len(stage["cpu"]["rounds"]), 1)
        self.assertEqual(len(stage["cuda"]["accuracies"]), 2)
        self.assertEqual(stage["largest_difference"], 0)
        self.assertIn("--device cuda", stage["cuda"]["command"])
        self.machine(fmp_radioml=fmp_radioml(0.3, 0.5))
        status, out, result = self.check("--stages", "training")
        self.assertEqual((status, result["stages"]["training"]["status"]), (1, "failed"), out)
        self.assertIn("0.300/0.500", out)

    def test_the_names_of_tests_that_it_asks_for_are_there(self):
        for program, stage in (("cuda_ops_test", "sanitizers"), ("cuda_engine_test", "runs")):
            names = self.at(program)
            # They pass without being run.
            self.machine(cuda_device_test=f"""case "$1" in
--gtest_list_tests) exec {SIMT}/{program} --gtest_list_tests ;;
esac
echo "$1" >>{names}
for name in $(echo "$1" | sed 's/.*=//; s/:/ /g'); do echo "[       OK ] $name (0 ms)"; done""")
            _, out, result = self.check("--stages", stage)
            self.assertEqual(result["stages"][stage]["status"], "passed", out)
        with open(self.at("cuda_ops_test"), encoding="utf-8") as file:
            asked = file.read()
        for name in ("FirstLayer", "ManyChannels", "PercentileNearOne", "DenseBehindConvolution",
                     ".FramesArePacked", ".SoftmaxCrossEntropy"):
            self.assertIn(name, asked)
        self.assertNotIn("OutOfMemory", asked)
        with open(self.at("cuda_engine_test"), encoding="utf-8") as file:
            self.assertIn("MasksAndAccuraciesAreThoseOfTheCpu", file.read())

    def test_a_program_that_dies_stops_neither_its_tests_nor_the_stages(self):
        self.machine(cuda_device_test=device_test("kill -SEGV $$"))
        status, out, result = self.check("--stages", "tests,kernels")
        tests = result["stages"]["tests"]
        self.assertEqual((status, tests["status"]), (1, "failed"), out)
        self.assertEqual(tests["failures"], ["B.Two"])
        self.assertIn("died of signal 11", tests["output"]["B.Two"])
        self.assertEqual(tests["results"]["B"], {"FAILED": 1, "OK": 2}, "the third ran as well")
        self.assertEqual(result["stages"]["kernels"]["status"], "passed")

    def test_tests_that_fail_after_another_run_once_more_alone(self):
        # After B.Two every test of its process fails.
        text = device_test('echo "fault"; echo "[  FAILED  ] B.Two (0 ms)"; bad=1').replace(
            '*) echo "[       OK ]', '*) [ -z "$bad" ] || { echo "[  FAILED  ] $name (0 ms)"; continue; }\n'
            'echo "[       OK ]')
        self.machine(cuda_device_test=text)
        _, out, result = self.check("--stages", "tests")
        tests = result["stages"]["tests"]
        self.assertEqual(tests["failures"], ["B.Two"], out)
        self.assertEqual(tests["results"]["B"],
                         {"FAILED": 1, "OK": 1, "OK after a fault of another test": 1})
        self.assertEqual(tests["output"]["B.Two"], "fault")

    def test_what_a_library_refuses_is_listed_and_is_no_failure(self):
        self.machine(cuda_bench=cuda_bench(("cusparse", "backward data")))
        status, out, result = self.check("--stages", "kernels")
        stage = result["stages"]["kernels"]
        self.assertEqual((status, stage["status"]), (0, "passed"), out)
        self.assertEqual(len(stage["refused"]), 9 * len(DENSITIES))
        self.assertIn("NOT_SUPPORTED", stage["refused"][0]["failed"])
        self.machine(cuda_bench=cuda_bench(("sparse", "forward")))
        status, out, result = self.check("--stages", "kernels")
        self.assertEqual((status, result["stages"]["kernels"]["status"]), (1, "failed"), out)

    def test_sanitizers_find_and_refuse(self):
        self.machine()
        script(self.at("bin", "compute-sanitizer"),
               'case "$2" in racecheck) echo "Race reported"; exit 86;; esac; exit 0')
        status, _, result = self.check("--stages", "sanitizers")
        results = result["stages"]["sanitizers"]["results"]
        self.assertEqual(status, 1)
        self.assertEqual(results["memcheck"]["status"], "passed")
        self.assertEqual(results["racecheck"], {"status": "failed", "output": "Race reported\n"})
        script(self.at("bin", "compute-sanitizer"), "echo 'Device not supported'; exit 1")
        status, _, result = self.check("--stages", "sanitizers")
        self.assertEqual((status, result["stages"]["sanitizers"]["status"]), (0, "not run"))

    def test_a_budget_that_runs_out_cuts_one_stage_and_leaves_out_the_rest(self):
        self.machine(fmp_bench='[ "$1" = --help ] || sleep 60')
        began = time.monotonic()
        status, out, result = self.check("--budget", "8")
        self.assertLess(time.monotonic() - began, 20)
        stages = result["stages"]
        self.assertEqual(stages["tests"]["status"], "passed", out)
        self.assertEqual(stages["steps"]["status"], "cut short")
        for name in STAGES[3:]:
            self.assertEqual((stages[name]["status"], stages[name]["why"]),
                             ("not run", "the budget is used up"))
        self.assertTrue(result["complete"])

    def test_killed_half_way_it_leaves_what_it_had(self):
        self.machine(fmp_bench=f'[ "$1" = --help ] || {{ echo $$ >{self.at("pid")}; sleep 60; }}')
        for how in (signal.SIGTERM, signal.SIGKILL):
            process = self.start()
            while not os.path.exists(self.at("pid")):
                time.sleep(0.05)
            process.send_signal(how)
            process.communicate()
            result = self.result()
            self.assertFalse(result["complete"])
            self.assertEqual(result["stages"]["tests"]["status"], "passed")
            self.assertEqual(result["stages"]["steps"]["status"], "running")
            with open(self.at("pid"), encoding="utf-8") as file:
                child = int(file.read())
            os.remove(self.at("pid"))
            if how == signal.SIGTERM:
                self.assertRaises(ProcessLookupError, os.kill, child, 0)
            else:
                os.killpg(child, signal.SIGKILL)  # nobody else can

    def test_builds_from_source_when_the_programs_do_not_start(self):
        self.machine(cuda_device_test="echo 'version GLIBC_2.99 not found' >&2; exit 1")
        status, out, result = self.check()
        self.assertEqual(status, 1, out)
        for name in STAGES:
            self.assertEqual(result["stages"][name]["status"], "not run")
            self.assertIn("nothing can be built here", result["stages"][name]["why"])
        # What a source tree with a build would be: cmake is a stand-in that makes cuda_bench.
        tree = self.at("tree")
        shutil.copytree(os.path.join(ROOT, "tools"), os.path.join(tree, "tools"))
        script(self.at("bench"), cuda_bench())
        script(self.at("bin", "cmake"), f"""echo "$@" >>{self.at("cmake.log")}
[ "$1" != --build ] || {{ mkdir -p $2/tools; cp {self.at("bench")} $2/tools/cuda_bench; }}""")
        environment = dict(os.environ, PATH=self.at("bin") + os.pathsep + os.environ["PATH"])
        run = subprocess.run(
            [sys.executable, os.path.join(tree, "tools", "gpu_check"), "--build", self.at("pack"),
             "--out", self.at("result.json"), "--batch", "32"],
            capture_output=True, text=True, check=False, env=environment)
        result = self.result()
        stages = result["stages"]
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        self.assertIn("GLIBC_2.99", stages["device"]["built"])
        with open(self.at("cmake.log"), encoding="utf-8") as file:
            configure = file.readline()
        for option in ("-DFMP_CUDA_ONLY=ON", "-DFMP_WERROR=OFF", "-DCMAKE_CUDA_ARCHITECTURES=90"):
            self.assertIn(option, configure)
        self.assertEqual(stages["kernels"]["status"], "passed")
        self.assertEqual(result["copy_bytes_per_s"], 1.5e12)
        for name in ("tests", "steps", "training"):
            self.assertIn("is not there", stages[name]["why"])


if __name__ == "__main__":
    unittest.main()
