// SPDX-License-Identifier: MIT
// The emitted C code: compiled as strictly as compilers go, run on many frames, and compared bit by
// bit with the integer network; for a Cortex-M4 too where its compiler and an emulator are there.
#include "framework/inference/emit_c.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "framework/data/dataset.h"
#include "framework/error.h"
#include "framework/inference/model_file.h"
#include "framework/network/checkpoint.h"
#include "framework/network/compaction.h"
#include "framework/onnx/evaluate.h"
#include "framework/onnx/export.h"
#include "framework/onnx/import.h"
#include "framework/training/trainer.h"
#include "tests/base64.h"
#include "tests/integer_fixture.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;

// A directory that vanishes with the test.
class Directory {
 public:
  Directory() {
    std::string name = (fs::temp_directory_path() / "fmp_emit_c_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw Error("no temporary directory");
    path_ = name;
  }
  ~Directory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  fs::path operator/(const char* file) const { return path_ / file; }
  const fs::path& path() const { return path_; }
  void write(const char* file, const std::string& text) const {
    std::ofstream(path_ / file, std::ios::binary) << text;
  }
  std::string read(const char* file) const {
    std::ifstream in(path_ / file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // Runs a shell command in the directory.
  bool run(const std::string& command) const {
    // NOLINTNEXTLINE(concurrency-mt-unsafe): the test has one thread
    const int status = std::system(("cd '" + path_.string() + "' && " + command).c_str());
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }

 private:
  fs::path path_;
};

bool installed(const std::string& program) {
  // NOLINTNEXTLINE(concurrency-mt-unsafe): the test has one thread
  return std::system(("command -v " + program + " >/dev/null 2>&1").c_str()) == 0;
}

// Frames from standard input; per frame the class and the logits as 32-bit integers to standard
// output.
constexpr const char* kMain = R"(
#include <stdio.h>
#include "net.h"
static int8_t iq[NET_LENGTH * NET_CHANNELS];
int main(void)
{
    int32_t result[1 + NET_CLASSES];
    while (fread(iq, 1, sizeof iq, stdin) == sizeof iq) {
        result[0] = net_logits(iq, result + 1);
        if (net_classify(iq) != result[0]) return 1;
        if (fwrite(result, sizeof result[0], 1 + NET_CLASSES, stdout) != 1 + NET_CLASSES) return 1;
    }
    return 0;
}
)";

constexpr const char* kStrict = " -std=c99 -Wall -Wextra -pedantic -Werror ";

// Class and logits of every frame, as the emitted program writes them.
std::vector<int32_t> expected_results(const IntegerNetwork& network, const FrameBatch& batch) {
  const size_t classes = static_cast<size_t>(network.config().classes);
  const size_t count = static_cast<size_t>(batch.count);
  std::vector<int32_t> logits(count * classes), results;
  std::vector<uint8_t> predicted(count);
  network.run(batch.codes, logits, predicted, 1);
  for (size_t n = 0; n < count; ++n) {
    results.push_back(predicted[n]);
    const auto first = logits.begin() + static_cast<ptrdiff_t>(n * classes);
    results.insert(results.end(), first, first + static_cast<ptrdiff_t>(classes));
  }
  return results;
}

void expect_equal(const std::string& output, const std::vector<int32_t>& expected) {
  ASSERT_EQ(output.size(), expected.size() * sizeof(int32_t));
  std::vector<int32_t> results(expected.size());
  std::memcpy(results.data(), output.data(), output.size());
  EXPECT_EQ(results, expected);
}

void compile_and_compare(const IntegerNetwork& network, int64_t frames,
                         const std::string& options) {
  const Directory directory;
  const CCode code = emit_c(network, "net", "a test");
  directory.write("net.c", code.source);
  directory.write("net.h", code.header);
  directory.write("main.c", kMain);
  ASSERT_TRUE(directory.run("cc" + std::string(kStrict) + options + " net.c main.c -o program"));
  const FrameBatch batch = random_frames(network.config(), frames, 77);
  directory.write(
      "frames", std::string(reinterpret_cast<const char*>(batch.codes.data()), batch.codes.size()));
  ASSERT_TRUE(directory.run("./program <frames >results"));
  expect_equal(directory.read("results"), expected_results(network, batch));
}

ChainConfig config_of(int bits) {
  ChainConfig config;
  config.length = 64;
  config.classes = 9;
  config.filters = {6, 9};
  config.dense = {10};
  config.input_bits = bits;
  config.weight_bits = {bits};
  config.act_bits = {bits};
  return config;
}

TEST(EmitC, EqualsTheIntegerNetworkBitByBit) {
  if (!installed("cc")) GTEST_SKIP() << "cc is not installed";
  for (const int bits : {2, 4, 5, 8}) {
    for (const double density : {1.0, 0.5}) {
      SCOPED_TRACE(testing::Message() << bits << " bits, density " << density);
      const IntegerNetwork network(random_network(config_of(bits), density, 40));
      // Undefined behaviour ends the program.
      compile_and_compare(network, 2500, "-O2 -fsanitize=undefined -fno-sanitize-recover=all");
    }
  }
}

TEST(EmitC, EqualsNetworksThatBranch) {
  if (!installed("cc")) GTEST_SKIP() << "cc is not installed";
  for (const int bits : {4, 8}) {
    const IntegerNetwork network(random_network(graph_config(bits), 0.7, 45));
    compile_and_compare(network, 1000, "-O1 -fsanitize=undefined -fno-sanitize-recover=all");
  }
}

TEST(EmitC, EqualsNetworksOfAnyLengths) {
  if (!installed("cc")) GTEST_SKIP() << "cc is not installed";
  for (const NetworkConfig& config : {lengths_config(5), averages_config(4)}) {
    const IntegerNetwork network(random_network(config, 0.9, 46));
    compile_and_compare(network, 1000, "-O1 -fsanitize=undefined -fno-sanitize-recover=all");
  }
}

TEST(EmitC, HandlesShapesOfAllKinds) {
  if (!installed("cc")) GTEST_SKIP() << "cc is not installed";
  ChainConfig config = config_of(8);
  config.filters = {3, 5};
  config.dense = {};
  config.kernel = {5};
  config.pool = {3};
  config.length = 45;
  config.input_channels = 3;
  config.weight_bits = {4, 8, 2};
  config.act_bits = {3, 8};
  compile_and_compare(IntegerNetwork(random_network(config, 0.7, 41)), 1000, "-O1");
  config = config_of(8);
  config.length = 96;
  config.filters = {6, 6, 8};
  config.kernel = {6, 5, 4};
  config.stride = {2, 1, 2};
  config.groups = {1, 6, 2};
  config.padding = {3, 2, 0};
  config.pool = {1, 2, 4};
  config.weight_bits = {8, 4, 8, 4, 8};
  config.dense = {7};
  config.act_bits = {8, 4, 4, 8};
  compile_and_compare(IntegerNetwork(random_network(config, 0.7, 44)), 1000, "-O1");
  config = config_of(4);
  config.kernel = {1};
  config.pool = {1};
  config.length = 7;
  compile_and_compare(IntegerNetwork(random_network(config, 0.8, 42)), 1000, "-O1");
}

TEST(EmitC, EqualsThePublishedNetworkAndStatesItsSize) {
  if (!installed("cc")) GTEST_SKIP() << "cc is not installed";
  ChainConfig config;
  config.input_bits = 4;
  config.weight_bits = {4};
  config.act_bits = {4};
  const IntegerNetwork network(random_network(config, 0.1, 43));
  compile_and_compare(network, 203, "-O3");

  const CCode code = emit_c(network, "net", "a test");
  EXPECT_EQ(code.working_bytes, 64 * 512 + 64 * 256 + 4 * 1024);
  EXPECT_THAT(code.header,
              testing::HasSubstr(fmt::format("{} bytes of constants", code.constant_bytes)));
  if (!installed("size")) GTEST_SKIP() << "size is not installed";
  const Directory directory;
  directory.write("net.c", code.source);
  directory.write("net.h", code.header);
  ASSERT_TRUE(directory.run("cc -std=c99 -Os -c net.c && size net.o | tail -1 >size"));
  std::istringstream line(directory.read("size"));
  int64_t text = 0, data = 0, bss = 0;
  ASSERT_TRUE(line >> text >> data >> bss) << line.str();
  std::cout << "text " << text << ", data " << data << ", bss " << bss << "; stated constants "
            << code.constant_bytes << ", working memory " << code.working_bytes << "\n";
  // Code and alignment are extra. Pointers in tables are data in a position-independent object.
  EXPECT_GE(text + data, code.constant_bytes - 64 * 10);
  EXPECT_LE(text + data, code.constant_bytes + 4096);
  EXPECT_NEAR(static_cast<double>(bss), static_cast<double>(code.working_bytes), 64.0);
}

// Bare metal: a vector table, and results through semihosting, 4 bits a character.
constexpr const char* kCortexMain = R"(
#include "net.h"
#include "frames.h"
/* Compilers call it even where there is no library. */
void *memset(void *to, int value, unsigned count)
{
    char *at = to;
    while (count--) *at++ = (char)value;
    return to;
}
static int semihost(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}
static void put(char c) { semihost(3, &c); }
static void put_word(uint32_t word)
{
    int i;
    for (i = 0; i < 8; ++i) {
        const uint32_t nibble = word >> (4 * i) & 15;
        put((char)(nibble < 10 ? '0' + nibble : 'a' + nibble - 10));
    }
}
void reset(void)
{
    static int32_t logits[NET_CLASSES];
    int n, c;
    for (n = 0; n < FRAMES; ++n) {
        put_word((uint32_t)net_logits(frames[n], logits));
        for (c = 0; c < NET_CLASSES; ++c) put_word((uint32_t)logits[c]);
    }
    put('.');
    semihost(0x18, (const void *)0x20026);
    for (;;) {
    }
}
extern uint32_t stack_top;
__attribute__((section(".vectors"), used)) static const void *const vectors[2] = {&stack_top,
                                                                                  (const void *)reset};
)";
constexpr const char* kCortexScript = R"(
SECTIONS {
    .text 0 : { KEEP(*(.vectors)) *(.text* .rodata*) }
    .bss 0x20000000 (NOLOAD) : { *(.data* .bss* COMMON) }
    stack_top = 0x20080000;
    /DISCARD/ : { *(.ARM.exidx* .ARM.extab*) }
}
)";

TEST(EmitC, RunsOnACortexM4) {
  for (const char* program : {"arm-none-eabi-gcc", "qemu-system-arm"}) {
    if (!installed(program)) GTEST_SKIP() << program << " is not installed";
  }
  const IntegerNetwork network(random_network(config_of(4), 0.5, 44));
  const Directory directory;
  const CCode code = emit_c(network, "net", "a test");
  directory.write("net.c", code.source);
  directory.write("net.h", code.header);
  directory.write("main.c", kCortexMain);
  directory.write("script.ld", kCortexScript);
  const FrameBatch batch = random_frames(network.config(), 40, 78);
  std::string frames =
      fmt::format("#define FRAMES {}\nstatic const int8_t frames[FRAMES][{}] = {{", batch.count,
                  batch.codes.size() / static_cast<size_t>(batch.count));
  for (size_t i = 0; i < batch.codes.size(); ++i) {
    if (i % (batch.codes.size() / static_cast<size_t>(batch.count)) == 0) {
      frames += i == 0 ? "{" : "},{";
    }
    frames += fmt::format("{},", int{batch.codes[i]});
  }
  directory.write("frames.h", frames + "}};\n");
  ASSERT_TRUE(directory.run("arm-none-eabi-gcc -mcpu=cortex-m4 -mthumb -O2 -ffreestanding -c" +
                            std::string(kStrict) + "net.c"));
  ASSERT_TRUE(
      directory.run("arm-none-eabi-gcc -mcpu=cortex-m4 -mthumb -O2 -ffreestanding "
                    "-fno-tree-loop-distribute-patterns -nostdlib -T script.ld main.c "
                    "net.o -lgcc -o program.elf"));
  ASSERT_TRUE(directory.run(
      "timeout 500 qemu-system-arm -M mps2-an386 -display none -serial none -monitor none "
      "-semihosting-config enable=on,target=native -kernel program.elf >results 2>&1 </dev/null"));
  const std::string text = directory.read("results");
  const std::vector<int32_t> expected = expected_results(network, batch);
  ASSERT_EQ(text.size(), 8 * expected.size() + 1) << text.substr(0, 200);
  for (size_t i = 0; i < expected.size(); ++i) {
    std::string digits = text.substr(8 * i, 8);
    std::ranges::reverse(digits);
    ASSERT_EQ(static_cast<int32_t>(std::stoul(digits, nullptr, 16)), expected[i]) << "word " << i;
  }
}

TEST(EmitC, RefusesNamesThatAreNotIdentifiers) {
  const IntegerNetwork network(random_network(config_of(4), 1.0, 45));
  for (const char* name : {"", "1st", "a-b", "a b", "a;b", "../a"}) {
    EXPECT_THROW(emit_c(network, name, "a test"), UsageError) << name;
  }
  // Nothing that the origin holds ends the comment it stands in.
  const CCode code = emit_c(network, "net", "*/ int x; /*");
  EXPECT_THAT(code.header, testing::HasSubstr("__ int x; __"));
}

// --- Networks from elsewhere: fixtures/make_inference_fixtures.py ---

std::vector<float> flat(const nlohmann::json& rows) {
  std::vector<float> values;
  for (const nlohmann::json& row : rows) {
    for (const nlohmann::json& value : row) values.push_back(value.get<float>());
  }
  return values;
}

struct ForeignNetwork {
  std::string name;
  IntegerNetwork network;
  std::vector<float> logits;  // of the runtime that made the fixture
};

// Frames as the network reads them: [count][length][2].
std::vector<float> by_sample(const std::vector<float>& x, int length) {
  std::vector<float> values(x.size());
  const auto samples = static_cast<size_t>(length);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t frame = i / (2 * samples), c = i / samples % 2, l = i % samples;
    values[(frame * samples + l) * 2 + c] = x[i];
  }
  return values;
}

std::vector<ForeignNetwork> foreign_networks(const nlohmann::json& fixture) {
  const Directory directory;
  std::vector<ForeignNetwork> networks;
  for (const nlohmann::json& entry : fixture.at("cases")) {
    directory.write("model.onnx", from_base64(entry.at("model").get<std::string>()));
    networks.push_back({entry.at("name").get<std::string>(),
                        IntegerNetwork(load_model(directory.path() / "model.onnx")),
                        flat(entry.at("y"))});
  }
  return networks;
}

nlohmann::json foreign_fixture() {
  std::ifstream file(fs::path(FMP_FIXTURES_DIR) / "inference.json");
  return nlohmann::json::parse(file);
}

// Float network, integers, checkpoint, and export (read again, and evaluated node by node) agree.
void expect_the_same_everywhere(const Network& network, const FrameBatch& batch,
                                std::span<const float> x, const fs::path& file) {
  const std::vector<float> logits = Trainer({}).logits(network, batch);
  const auto classes = static_cast<size_t>(network.config().classes);
  std::vector<int32_t> of_integers(logits.size());
  std::vector<uint8_t> predicted(logits.size() / classes);
  IntegerNetwork(network).run(batch.codes, of_integers, predicted, 1);
  for (size_t n = 0; n < predicted.size(); ++n) {
    const auto row = logits.begin() + static_cast<ptrdiff_t>(n * classes);
    EXPECT_EQ(predicted[n], std::max_element(row, row + static_cast<ptrdiff_t>(classes)) - row);
  }
  Checkpoint checkpoint;
  checkpoint.networks.emplace("network", network);
  fs::path saved = file;
  saved.replace_extension(".fmp");
  save_checkpoint(saved, checkpoint);
  EXPECT_EQ(Trainer({}).logits(load_model(saved), batch), logits);
  onnx::export_network(network, file);
  EXPECT_EQ(Trainer({}).logits(onnx::import_network(file), batch), logits);
  EXPECT_EQ(onnx::GraphEvaluator(onnx::load(file)).run(x, 1), logits);
}

// Scales of channels and classes, float biases, signed activations, any scale of the input.
TEST(EmitC, ForeignNetworksAnswerAsQonnxDoes) {
  const nlohmann::json fixture = foreign_fixture();
  const std::vector<float> x = flat(fixture.at("x"));
  const std::vector<ForeignNetwork> networks = foreign_networks(fixture);
  EXPECT_EQ(networks.size(), 13U);
  for (const auto& [name, network, expected] : networks) {
    const auto classes = static_cast<size_t>(network.config().classes);
    std::vector<int8_t> codes(x.size());
    quantize_input(by_sample(x, network.config().length), network.config().input_quantizer(),
                   codes.data());
    std::vector<int32_t> logits(expected.size());
    std::vector<uint8_t> predicted(expected.size() / classes);
    network.run(codes, logits, predicted, 2);
    for (size_t n = 0; n < predicted.size(); ++n) {
      const auto row = expected.begin() + static_cast<ptrdiff_t>(n * classes);
      EXPECT_EQ(predicted[n], std::max_element(row, row + static_cast<ptrdiff_t>(classes)) - row)
          << name << ", frame " << n;
      for (size_t c = 0; c < classes; ++c) {
        const float logit = static_cast<float>(logits[n * classes + c]) * network.logit_scale();
        EXPECT_NEAR(logit, row[static_cast<ptrdiff_t>(c)], network.logit_scale())
            << name << ", frame " << n;
      }
    }
  }
}

// As the first network of a run (--init): with qonnx's answers, before and after a step of
// training.
TEST(OnnxImport, ForeignNetworksGoOnTrainingAsTheyAre) {
  const nlohmann::json fixture = foreign_fixture();
  const std::vector<float> x = flat(fixture.at("x"));
  const Directory directory;
  for (const nlohmann::json& entry : fixture.at("cases")) {
    SCOPED_TRACE(entry.at("name").get<std::string>());
    const fs::path file = directory.path() / "model.onnx";
    directory.write("model.onnx", from_base64(entry.at("model").get<std::string>()));
    Network network = onnx::import_network(file);
    const NetworkConfig& config = network.config();
    FrameBatch batch;
    batch.count = static_cast<int64_t>(fixture.at("x").size());
    batch.codes.resize(x.size());
    quantize_input(by_sample(x, config.length), config.input_quantizer(), batch.codes.data());
    const std::vector<float> expected = flat(entry.at("y"));
    const std::vector<float> logits = Trainer({}).logits(network, batch);
    ASSERT_EQ(logits.size(), expected.size());
    for (size_t i = 0; i < logits.size(); ++i) {
      EXPECT_NEAR(logits[i], expected[i], 1e-5F * (1 + std::abs(expected[i])));
    }
    expect_the_same_everywhere(network, batch, x, file);

    for (int64_t n = 0; n < batch.count; ++n) {
      batch.labels.push_back(static_cast<uint8_t>(n % config.classes));
      batch.snr_db.push_back(0);
    }
    Trainer trainer({});
    double first = 0, last = 0;
    for (int step = 0; step < 40; ++step) {
      last = trainer.train_step(network, batch, 0.005).loss;
      if (step == 0) first = last;
    }
    EXPECT_LT(last, 0.9 * first);
    EXPECT_NE(Trainer({}).logits(network, batch), logits);
    // Some weights and bits less: ranges of signed codes stay what they are.
    for (Layer& layer : network.layers()) {
      for (size_t i = 1; i < layer.weight.mask.size(); i += 3) layer.weight.mask[i] = 0;
    }
    network.apply_masks();
    compact(network);
    expect_the_same_everywhere(network, batch, x, file);
  }
}

TEST(EmitC, ForeignNetworksInC) {
  for (const auto& [name, network, expected] : foreign_networks(foreign_fixture())) {
    SCOPED_TRACE(name);
    compile_and_compare(network, 300, "-O1");
  }
}

}  // namespace
}  // namespace fmp
