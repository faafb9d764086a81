// SPDX-License-Identifier: MIT
// What the stand-ins for libraries share: checks of operands, and the refusal that names what is
// wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>

#include "tests/simt/cuda_runtime.h"
#include "tests/simt/internal.h"

namespace simt {

// Device memory is open for the host's code as long as one of these lives.
class OpenDeviceMemory {
 public:
  OpenDeviceMemory() { protect_device_memory(true); }
  ~OpenDeviceMemory() { protect_device_memory(false); }
  OpenDeviceMemory(const OpenDeviceMemory&) = delete;
  OpenDeviceMemory& operator=(const OpenDeviceMemory&) = delete;
};

// A refused call: thrown by checks, turned into a status by the call.
template <typename Status>
struct Refusal {
  Status status;
  std::string why;
};

template <typename Status>
void require(bool holds, Status status, const std::string& why) {
  if (!holds) throw Refusal<Status>{status, why};
}

// The status of a call that may be refused, and why it was.
template <typename Status, typename Call>
Status answer(Status success, std::string& why, const Call& call) {
  try {
    call();
    return success;
  } catch (const Refusal<Status>& refusal) {
    why = refusal.why;
    return refusal.status;
  }
}

// Whether the environment's SIMT_REFUSE, names of calls with commas between, asks this call to be
// refused as not supported: how tests see what a program makes of a library that refuses.
bool is_to_be_refused(const std::string& call);

// Rows of memory of one matrix after another: `batches` times `lines` runs of `run` elements of 4
// bytes.
struct Extent {
  const char* what;
  const void* data;
  int64_t run, lines, line_stride, batches, batch_stride;

  const std::byte* at(int64_t batch, int64_t line) const {
    return static_cast<const std::byte*>(data) + 4 * (batch * batch_stride + line * line_stride);
  }
  const std::byte* end() const {
    return lines == 0 || batches == 0 ? static_cast<const std::byte*>(data)
                                      : at(batches - 1, lines - 1) + 4 * run;
  }
  bool overlaps(const Extent& other) const {
    return static_cast<const std::byte*>(data) < other.end() &&
           static_cast<const std::byte*>(other.data) < end();
  }
  // Empty if all is well, otherwise what is not. The memory counts as read or written by the
  // present operation.
  std::string unreadable() const { return check(true); }
  std::string unwritable() const { return check(false); }
  void mark_written() const {
    for (int64_t b = 0; b < batches; ++b) {
      for (int64_t l = 0; l < lines; ++l) mark_initialised(at(b, l), static_cast<size_t>(4 * run));
    }
  }

 private:
  std::string check(bool is_read) const;
};

void begin_operation(cudaStream_t stream);
bool stream_exists(cudaStream_t stream);
bool stream_captures(cudaStream_t stream);
bool device_failed();  // a kernel did, and every call fails until cudaDeviceReset()

// Runs what a call of a library puts on its stream, now or in every launch of the graph that is
// captured; `work` must own what it needs. Returns `failure` where a capture cannot take it.
template <typename Status, typename Work>
Status put_on_stream(cudaStream_t stream, Status success, Status failure, const Work& work) {
  if (!stream_captures(stream)) {
    begin_operation(stream);
    return work();
  }
  const auto captured = [=] { return work() == success ? cudaSuccess : cudaErrorLaunchFailure; };
  return enqueue(stream, captured) == cudaSuccess ? success : failure;
}
bool is_initialised(const void* address, size_t bytes);

}  // namespace simt
