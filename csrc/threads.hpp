// A small team of threads that runs one job at a time. What a job writes must not depend on which worker takes which
// part: that is how results stay the same for any number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace mify {

class ThreadTeam {
 public:
  explicit ThreadTeam(unsigned threads) : size_(std::max(1u, threads)) {
    for (unsigned worker = 1; worker < size_; ++worker) {
      threads_.emplace_back([this, worker] { serve(worker); });
    }
  }
  ~ThreadTeam() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  unsigned size() const { return size_; }

  // Calls job(worker) once on each of the size() workers, the caller being worker 0; rethrows the first exception.
  void run(const std::function<void(unsigned)>& job) {
    if (size_ == 1) return job(0);
    {
      const std::lock_guard lock(mutex_);
      job_ = &job;
      running_ = size_ - 1;
      ++generation_;
    }
    wake_.notify_all();
    guarded(0);
    spin([this] { return running_ == 0; });
    std::unique_lock lock(mutex_);
    finished_.wait(lock, [this] { return running_ == 0; });
    job_ = nullptr;
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  // Calls body(worker, begin, end) over pieces of [0, count) of at most `grain`, taken as workers become free.
  template <class Body>
  void for_ranges(size_t count, size_t grain, Body&& body) {
    if (count == 0) return;
    if (size_ == 1 || count <= grain) return body(0u, size_t{0}, count);
    std::atomic<size_t> next{0};
    run([&](unsigned worker) {
      for (;;) {
        const size_t begin = next.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= count) return;
        body(worker, begin, std::min(count, begin + grain));
      }
    });
  }

 private:
  void guarded(unsigned worker) {
    try {
      (*job_)(worker);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  // A sleeping thread takes 60 us to wake on a virtual machine, so who waits looks on for about as long first.
  template <class Condition>
  static void spin(Condition&& met) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
    while (!met() && std::chrono::steady_clock::now() < until) std::this_thread::yield();
  }

  void serve(unsigned worker) {
    size_t seen = 0;
    for (;;) {
      spin([&] { return stopping_ || generation_ != seen; });
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
        if (stopping_) return;
        seen = generation_;
      }
      guarded(worker);
      {
        const std::lock_guard lock(mutex_);
        --running_;
      }
      finished_.notify_one();
    }
  }

  const unsigned size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, finished_;
  const std::function<void(unsigned)>* job_ = nullptr;
  // These change under the mutex and are looked at without it.
  std::atomic<size_t> generation_{0};
  std::atomic<unsigned> running_{0};
  std::atomic<bool> stopping_{false};
  std::exception_ptr error_;
};

}  // namespace mify
