// SPDX-License-Identifier: MIT
#include "framework/data/dataset.h"

#include <algorithm>
#include <bit>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "framework/error.h"
#include "framework/random.h"

namespace fmp {
namespace {

// Batches that are read before the caller asks for them. With one alone, reader and caller wait for
// each other at every batch; several even out what one of them takes longer for.
constexpr size_t kBatchesAhead = 3;

std::vector<size_t> batch_sizes(size_t frames, int batch_size) {
  if (batch_size < 1) fail("batch size is {}, expected at least 1", batch_size);
  std::vector<size_t> sizes;
  for (size_t first = 0; first < frames; first += sizes.back())
    sizes.push_back(std::min(frames - first, static_cast<size_t>(batch_size)));
  return sizes;
}

}  // namespace

// A queue: `reader` appends a batch while there are fewer than kBatchesAhead, the caller takes the
// first one and gives the buffers of the one before it back.
struct BatchReader::State {
  const Dataset& dataset;
  const std::vector<int64_t> frames;
  const std::vector<size_t> sizes;  // of the batches

  FrameBatch current;  // the caller's
  std::mutex mutex;    // of the following
  std::condition_variable changed;
  std::deque<FrameBatch> ready;   // batches that next() has not taken yet
  std::vector<FrameBatch> spare;  // buffers for further ones
  bool finished = false;          // no batch follows those that are ready
  bool stop = false;              // the BatchReader is going away
  std::exception_ptr error;       // what read() threw
  std::thread reader;             // last: starts when everything above exists

  State(const Dataset& source, std::vector<int64_t> order, std::vector<size_t> batch_sizes)
      : dataset(source), frames(std::move(order)), sizes(std::move(batch_sizes)) {}

  static std::unique_ptr<State> start(const Dataset& source, std::vector<int64_t> order,
                                      std::vector<size_t> batch_sizes) {
    auto state = std::make_unique<State>(source, std::move(order), std::move(batch_sizes));
    state->reader = std::thread(&State::run, state.get());
    return state;
  }

  void read_all() {
    size_t first = 0;
    for (const size_t count : sizes) {
      std::unique_lock lock(mutex);
      changed.wait(lock, [this] { return ready.size() < kBatchesAhead || stop; });
      if (stop) return;
      FrameBatch batch;
      if (!spare.empty()) {
        batch = std::move(spare.back());
        spare.pop_back();
      }
      lock.unlock();
      if (count > 0) {
        dataset.read(std::span(frames).subspan(first, count), batch);
      } else {
        batch = {};
      }
      first += count;
      lock.lock();
      ready.push_back(std::move(batch));
      changed.notify_one();
    }
  }

  void run() {
    std::exception_ptr thrown;
    try {
      read_all();
    } catch (...) {
      thrown = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    error = thrown;
    finished = true;
    changed.notify_one();
  }
};

BatchReader::BatchReader(const Dataset& dataset, std::vector<int64_t> frames, int batch_size) {
  std::vector<size_t> sizes = batch_sizes(frames.size(), batch_size);
  state_ = State::start(dataset, std::move(frames), std::move(sizes));
}

BatchReader::BatchReader(const Dataset& dataset, std::vector<int64_t> frames,
                         std::vector<size_t> sizes)
    : state_(State::start(dataset, std::move(frames), std::move(sizes))) {}

BatchReader::~BatchReader() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
    state_->changed.notify_one();
  }
  state_->reader.join();
}

const FrameBatch* BatchReader::next() {
  State& state = *state_;
  std::unique_lock lock(state.mutex);
  state.changed.wait(lock, [&state] { return !state.ready.empty() || state.finished; });
  if (state.ready.empty()) {
    if (state.error) std::rethrow_exception(state.error);
    return nullptr;
  }
  std::swap(state.current, state.ready.front());
  state.spare.push_back(std::move(state.ready.front()));
  state.ready.pop_front();
  state.changed.notify_one();
  return &state.current;
}

std::vector<int64_t> shuffled(std::span<const int64_t> frames, uint64_t seed, uint64_t epoch) {
  std::vector<int64_t> order(frames.begin(), frames.end());
  Random random(seed, "epoch-order", epoch);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

std::vector<int64_t> epoch_order(std::span<const int64_t> frames, int64_t most, uint64_t seed,
                                 uint64_t epoch) {
  const auto count = static_cast<int64_t>(frames.size());
  const int64_t epochs = most == 0 || count == 0 ? 1 : (count + most - 1) / most;  // of a pass
  const int64_t part = static_cast<int64_t>(epoch) % epochs;
  std::vector<int64_t> order = shuffled(frames, seed, epoch / static_cast<uint64_t>(epochs));
  order.erase(order.begin() + count * (part + 1) / epochs, order.end());
  order.erase(order.begin(), order.begin() + count * part / epochs);
  return order;
}

}  // namespace fmp
