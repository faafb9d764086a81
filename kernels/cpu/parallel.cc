// SPDX-License-Identifier: MIT
#include "kernels/cpu/parallel.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace fmp::cpu {
namespace {

// How long a thread looks for what it waits for before it sleeps. Waking a thread takes the system
// about as long, so that this costs no more than what it saves; loops that follow each other come
// sooner, as a rule.
constexpr std::chrono::microseconds kLook{20};

template <typename Condition>
void look_for(const Condition& condition) {
  const auto end = std::chrono::steady_clock::now() + kLook;
  while (!condition() && std::chrono::steady_clock::now() < end) {
  }
}

// A call of run_on_threads. All but `running` is read and written under the pool's lock.
struct Job {
  const std::function<void()>* work;
  int places;  // for helpers that may still join
  std::atomic<int> running = 0;
  std::exception_ptr error;
};

class Pool {
 public:
  ~Pool() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    work_to_do_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }

  void run(int helpers, const std::function<void()>& work) {
    Job job{&work, helpers, {}, {}};
    {
      const std::lock_guard lock(mutex_);
      while (helpers_.size() < static_cast<size_t>(helpers)) {
        helpers_.emplace_back([this] { help(); });
      }
      jobs_.push_back(&job);
      places_ += helpers;
    }
    for (int i = 0; i < helpers; ++i) work_to_do_.notify_one();
    try {
      work();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!job.error) job.error = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      close(job);
    }
    look_for([&] { return job.running.load(std::memory_order_relaxed) == 0; });
    std::unique_lock lock(mutex_);
    job_done_.wait(lock, [&] { return job.running == 0; });
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  // Lets no more helpers join.
  void close(Job& job) {
    places_ -= job.places;
    job.places = 0;
    std::erase(jobs_, &job);
  }

  void help() {
    std::unique_lock lock(mutex_);
    while (true) {
      lock.unlock();
      look_for([&] { return places_.load(std::memory_order_relaxed) > 0; });
      lock.lock();
      work_to_do_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
      if (stop_) return;
      Job& job = *jobs_.front();
      ++job.running;
      --places_;
      if (--job.places == 0) jobs_.pop_front();
      lock.unlock();
      std::exception_ptr error;
      try {
        (*job.work)();
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error && !job.error) job.error = error;
      if (--job.running == 0) job_done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable work_to_do_, job_done_;
  std::deque<Job*> jobs_;  // with places
  std::atomic<int> places_ = 0;
  bool stop_ = false;
  std::vector<std::thread> helpers_;
};

}  // namespace

void run_on_threads(int threads, const std::function<void()>& work) {
  if (threads <= 1) {
    work();
    return;
  }
  static Pool pool;
  pool.run(threads - 1, work);
}

}  // namespace fmp::cpu
