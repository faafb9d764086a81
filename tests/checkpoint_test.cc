// SPDX-License-Identifier: MIT
#include "framework/network/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

#include "framework/error.h"
#include "framework/random.h"

namespace fmp {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

ChainConfig small_config() {
  ChainConfig config;
  config.length = 8;
  config.classes = 3;
  config.filters = {4, 3};
  config.dense = {5};
  config.weight_bits = {2, 3, 4, 5};
  config.act_bits = {4, 32, 6};
  return config;
}

// Every array filled with values of its own, as after some training and pruning.
Network busy_network(uint64_t seed) {
  Network network(small_config(), seed);
  Random random(seed, "busy");
  network.steps = 301;
  network.optimizer_steps = 17;
  for (Layer& layer : network.layers()) {
    for (Parameter* parameter : layer.parameters()) {
      for (Tensor* tensor : {&parameter->value, &parameter->moment1, &parameter->moment2}) {
        for (float& value : tensor->floats()) value = random.uniform(-1.0F, 1.0F);
      }
      for (uint8_t& alive : parameter->mask) alive = random.below(3) > 0;
    }
    for (float& value : layer.running_mean.floats()) value = random.uniform(-1.0F, 1.0F);
    for (float& value : layer.running_var.floats()) value = random.uniform(0.0F, 2.0F);
  }
  network.apply_masks();
  return network;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return std::ranges::equal(std::as_bytes(a.floats()), std::as_bytes(b.floats()));
}

void expect_equal(const Network& a, const Network& b) {
  EXPECT_EQ(a.config(), b.config());
  EXPECT_EQ(a.steps, b.steps);
  EXPECT_EQ(a.optimizer_steps, b.optimizer_steps);
  for (size_t i = 0; i < a.layers().size(); ++i) {
    const Layer& x = a.layers()[i];
    const Layer& y = b.layers()[i];
    const auto of_x = x.parameters(), of_y = y.parameters();
    ASSERT_EQ(of_x.size(), of_y.size());
    for (size_t p = 0; p < of_x.size(); ++p) {
      EXPECT_EQ(of_x[p]->mask, of_y[p]->mask) << of_x[p]->name;
      EXPECT_TRUE(same_bits(of_x[p]->value, of_y[p]->value)) << of_x[p]->name;
      EXPECT_TRUE(same_bits(of_x[p]->moment1, of_y[p]->moment1)) << of_x[p]->name;
      EXPECT_TRUE(same_bits(of_x[p]->moment2, of_y[p]->moment2)) << of_x[p]->name;
    }
    EXPECT_TRUE(same_bits(x.running_mean, y.running_mean)) << x.name;
    EXPECT_TRUE(same_bits(x.running_var, y.running_var)) << x.name;
  }
}

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest()
      : directory_(fs::temp_directory_path() /
                   ("fmp_checkpoint_test_" + std::to_string(::getpid()))) {
    fs::create_directories(directory_);
  }
  ~CheckpointTest() override { fs::remove_all(directory_); }

  fs::path path(const std::string& name = "a.ckpt") const { return directory_ / name; }

  std::string bytes() const {
    std::ifstream file(path(), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write_bytes(const std::string& content) const {
    std::ofstream(path(), std::ios::binary) << content;
  }
  std::string load_error() const {
    try {
      load_checkpoint(path());
    } catch (const UsageError&) {
      ADD_FAILURE() << "a bad file is no wrong usage";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(path().string()));
      EXPECT_THAT(error.what(), Not(HasSubstr("\n")));
      return error.what();
    }
    return "";
  }
  // Saves a network, rewrites the file's text with the checksum made right again, and loads it.
  std::string error_after_edit(const std::string& from, const std::string& to) const;

  fs::path directory_;
};

// Bit by bit, unlike the table that the implementation uses.
uint32_t slow_crc32(const std::string& bytes) {
  uint32_t crc = 0xFFFFFFFF;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0xEDB88320 : crc >> 1;
  }
  return ~crc;
}

constexpr size_t kHeaderBytes = 24;

std::string CheckpointTest::error_after_edit(const std::string& from, const std::string& to) const {
  save_checkpoint(path(), {.networks = {{"current", busy_network(1)}}, .state = {}});
  std::string payload = bytes().substr(kHeaderBytes);
  const size_t at = payload.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  payload.replace(at, from.size(), to);
  uint64_t text_bytes = 0;
  std::memcpy(&text_bytes, payload.data(), sizeof(text_bytes));
  text_bytes += to.size() - from.size();
  std::memcpy(payload.data(), &text_bytes, sizeof(text_bytes));
  std::string header = bytes().substr(0, kHeaderBytes);
  const uint32_t checksum = slow_crc32(payload);
  const uint64_t payload_bytes = payload.size();
  std::memcpy(header.data() + 12, &checksum, sizeof(checksum));
  std::memcpy(header.data() + 16, &payload_bytes, sizeof(payload_bytes));
  write_bytes(header + payload);
  return load_error();
}

TEST_F(CheckpointTest, GivesBackEveryBit) {
  const nlohmann::json state = {{"round", 3}, {"p", 0.1}, {"history", {1, 2.5, "x"}}};
  const Network current = busy_network(1), best = busy_network(2);
  save_checkpoint(path(), {.networks = {{"current", current}, {"best", best}}, .state = state});
  const Checkpoint loaded = load_checkpoint(path());
  EXPECT_EQ(loaded.state, state);
  ASSERT_EQ(loaded.networks.size(), 2U);
  expect_equal(loaded.networks.at("current"), current);
  expect_equal(loaded.networks.at("best"), best);
}

TEST_F(CheckpointTest, TheSameStateGivesTheSameBytes) {
  const Checkpoint checkpoint{.networks = {{"current", busy_network(1)}}, .state = {{"a", 1}}};
  save_checkpoint(path(), checkpoint);
  const std::string first = bytes();
  save_checkpoint(path(), load_checkpoint(path()));
  EXPECT_EQ(bytes(), first);
}

TEST_F(CheckpointTest, HoldsNoNetworkOrNoState) {
  save_checkpoint(path(), {});
  const Checkpoint loaded = load_checkpoint(path());
  EXPECT_TRUE(loaded.networks.empty());
  EXPECT_TRUE(loaded.state.is_null());
}

TEST_F(CheckpointTest, ReplacesTheOldFileAndLeavesNoTemporary) {
  save_checkpoint(path(), {.networks = {}, .state = 1});
  save_checkpoint(path(), {.networks = {}, .state = 2});
  EXPECT_EQ(load_checkpoint(path()).state, 2);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), fs::directory_iterator()), 1);
}

TEST_F(CheckpointTest, AFailedWriteLeavesTheOldFile) {
  save_checkpoint(path(), {.networks = {}, .state = 1});
  // Longer than files may be from now on.
  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit small{1 << 12, limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_THROW(save_checkpoint(path(), {.networks = {}, .state = std::string(1 << 14, 'x')}),
               Error);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::signal(SIGXFSZ, before);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), fs::directory_iterator()), 1);
  EXPECT_EQ(load_checkpoint(path()).state, 1);
}

TEST_F(CheckpointTest, NamesTheDirectoryThatIsMissing) {
  try {
    save_checkpoint(directory_ / "missing" / "a.ckpt", {});
    FAIL() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("missing/a.ckpt"));
    EXPECT_THAT(error.what(), HasSubstr("No such file or directory"));
  }
}

TEST_F(CheckpointTest, RefusesWhatIsNoCheckpoint) {
  EXPECT_THAT(load_error(), HasSubstr("No such file"));
  write_bytes("");
  EXPECT_THAT(load_error(), HasSubstr("not a checkpoint"));
  write_bytes("round,method,p\n1,unstructured-l1,0.2\n");
  EXPECT_THAT(load_error(), HasSubstr("not a checkpoint"));
}

TEST_F(CheckpointTest, RefusesAnotherVersion) {
  save_checkpoint(path(), {});
  std::string content = bytes();
  content[8] = 9;
  write_bytes(content);
  EXPECT_THAT(load_error(), HasSubstr("version 9, expected 2"));
}

TEST_F(CheckpointTest, NoticesEveryTruncation) {
  save_checkpoint(path(), {.networks = {{"current", busy_network(1)}}, .state = {}});
  const std::string content = bytes();
  for (size_t size = 0; size < content.size(); size += 1 + size / 16) {
    write_bytes(content.substr(0, size));
    EXPECT_NE(load_error(), "") << "cut to " << size << " of " << content.size() << " bytes";
  }
  write_bytes(content + "x");
  EXPECT_NE(load_error(), "");
}

TEST_F(CheckpointTest, NoticesEveryFlippedBit) {
  save_checkpoint(path(), {.networks = {{"current", busy_network(1)}}, .state = {}});
  const std::string content = bytes();
  constexpr uint64_t kSeed = 20'240'601;
  SCOPED_TRACE(kSeed);
  Random random(kSeed, "flips");
  for (int i = 0; i < 200; ++i) {
    std::string flipped = content;
    const size_t at = random.below(flipped.size());
    flipped[at] = static_cast<char>(flipped[at] ^ (1 << random.below(8)));
    write_bytes(flipped);
    EXPECT_NE(load_error(), "") << "byte " << at;
  }
}

// A file whose checksum is right need not be honest.
TEST_F(CheckpointTest, ChecksTheConfigurationBeforeItBelievesIt) {
  EXPECT_EQ(error_after_edit("\"length\":8", "\"length\":8"), "");
  EXPECT_THAT(error_after_edit("\"length\":8", "\"length\":0"), HasSubstr("length: 0"));
  EXPECT_THAT(error_after_edit("\"length\":8", "\"length\":1e99"), HasSubstr("length"));
  EXPECT_THAT(error_after_edit("\"length\":8", "\"width\":8"), HasSubstr("length"));
  EXPECT_THAT(error_after_edit("\"outputs\":4", "\"outputs\":[7]"), HasSubstr("outputs"));
  EXPECT_THAT(error_after_edit("\"outputs\":4", "\"outputs\":8000"), HasSubstr("missing"));
  EXPECT_THAT(error_after_edit("\"outputs\":4", "\"outputs\":5"), HasSubstr("missing"));
  EXPECT_THAT(error_after_edit("\"outputs\":4", "\"outputs\":3"), HasSubstr("damaged"));
  EXPECT_THAT(error_after_edit("\"steps\":301", "\"steps\":-1"), HasSubstr("steps"));
  EXPECT_THAT(error_after_edit("\"steps\":301", "\"steps\":3.5"), HasSubstr("steps"));
  EXPECT_THAT(error_after_edit("\"state\":null", "\"state\":nul"), HasSubstr("damaged"));
}

TEST(NetworkConfigJson, KeepsEveryField) {
  ChainConfig chain = small_config();
  chain.input_channels = 3;
  chain.kernel = {5};
  chain.stride = {2, 1};
  chain.padding = {4};
  chain.groups = {1, 2};
  chain.pool = {4};
  chain.input_bits = 6;
  chain.input_scale = 0.3F;
  chain.class_scales = true;
  chain.smallest_codes = {-8, 0, -31};
  NetworkConfig config = chain;
  LayerConfig sum, both, mean;
  sum.kind = LayerKind::kAdd;
  sum.name = "sum";
  sum.reads = {0, kReadsFrames};
  sum.form.pool = 2;
  both.kind = LayerKind::kConcat;
  both.reads = {0, 2};
  mean.kind = LayerKind::kAveragePool;
  mean.form.kernel = 8;
  mean.smallest_code = -127;
  config.layers.insert(config.layers.begin() + 2, {sum, both, mean});
  const nlohmann::json json = config;
  EXPECT_EQ(json.get<NetworkConfig>(), config);
}

}  // namespace
}  // namespace fmp
