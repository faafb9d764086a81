// SPDX-License-Identifier: MIT
// A block of memory that goes from one stream to another while its kernels still use it, as it did
// when the allocator had one list for all streams, is reported; with a list for each stream it
// stays where it is.
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/runtime.h"
#include "tests/simt/runtime_fixture.h"

namespace fmp::cuda {
namespace {

constexpr size_t kFloats = 1000, kBytes = kFloats * sizeof(float);

class DeviceMemoryTest : public RuntimeTest {
 protected:
  // Frames on their way to a block that whoever released it still works on. copies: the stream that
  // the block is asked for.
  void copy_to_released_memory(Stream copies) {
    float* released = nullptr;
    {
      const MemoryStream memory(compute_);
      DeviceBuffer<float> gradient(kFloats);
      set_bytes(gradient.data(), 0, kBytes, compute_);  // work of the computing stream
      released = gradient.data();
    }
    const MemoryStream memory(copies);
    const DeviceBuffer<float> batch(kFloats);
    same_block_ = batch.data() == released;
    copy_to_device(batch.data(), frames_.data(), kBytes, copy_);
    synchronize(copy_);
  }
  const MemoryCache cache_;
  const OwnedStream compute_, copy_;
  const std::vector<float> frames_ = std::vector<float>(kFloats, 1.0F);
  bool same_block_ = false;
};

TEST_F(DeviceMemoryTest, ABlockThatCrossesStreamsIsARace) {
  try {
    copy_to_released_memory(compute_);
    FAIL() << "no race";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("by work of another stream with no event between"),
              std::string::npos)
        << error.what();
  }
  EXPECT_TRUE(same_block_);
}

TEST_F(DeviceMemoryTest, AStreamGetsItsOwnBlocks) {
  EXPECT_NO_THROW(copy_to_released_memory(copy_));
  EXPECT_FALSE(same_block_);
}

}  // namespace
}  // namespace fmp::cuda
