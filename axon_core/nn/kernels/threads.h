// Threads that help with a job, and that nobody waits for unless they are at it.
//
// torch's own (OpenMP's) must all come before a loop ends: one that the system has put aside keeps the others waiting for
// milliseconds, and a decoding step has a hundred loops. Here the caller does what no helper has taken, and waits only for
// what a helper has begun.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>

namespace axon {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Helpers {
 public:
  // Runs work() in this thread and in up to `helpers` others; each call takes from what is left, and any may come late.
  template <typename Work>
  void run(int64_t helpers, const Work& work) {
    std::unique_lock<std::mutex> alone(busy_, std::try_to_lock);
    if (!alone.owns_lock()) return work();  // they help another thread of this process
    for (; made_ < helpers; made_++) std::thread([this, number = made_] { help(number); }).detach();
    wanted_ = helpers;
    work_ = [](const void* work) { (*static_cast<const Work*>(work))(); };
    argument_ = &work;
    open_ = true;
    job_++;
    job_.notify_all();
    work();
    open_ = false;
    for (int spins = 0; inside_; spins++) spins < 1000 ? pause() : std::this_thread::yield();
  }

  // The helpers of this process: a forked one has none of its parent's threads.
  static Helpers& here() {
    static std::mutex making;
    static Helpers* helpers = nullptr;  // never destroyed: its threads may outlive everything else
    static pid_t owner = 0;
    std::lock_guard<std::mutex> guard(making);
    if (owner != getpid()) helpers = new Helpers, owner = getpid();
    return *helpers;
  }

 private:
  void help(int64_t number) {
    for (uint32_t done = 0;;) {
      uint32_t job = next(done);
      inside_++;  // before `open_` is read: whoever closes a job then waits for this thread
      if (open_ && number < wanted_) work_(argument_);
      inside_--;
      done = job;
    }
  }

  // The number of a job after `done`. It is expected soon: a sleeping thread takes longer to wake than a product.
  uint32_t next(uint32_t done) {
    auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
    while (std::chrono::steady_clock::now() < until)
      for (int spins = 0; spins < 32; spins++, pause())
        if (job_ != done) return job_;
    job_.wait(done);
    return job_;
  }

  std::mutex busy_;
  int64_t made_ = 0;
  std::atomic<int64_t> wanted_{0};
  std::atomic<uint32_t> job_{0};
  std::atomic<int32_t> inside_{0};
  std::atomic<bool> open_{false};
  void (*work_)(const void*) = nullptr;
  const void* argument_ = nullptr;
};

// Calls work(take) in up to `threads` threads, where each call of take() returns another of 0 … n − 1, and n when none is
// left; fewer than `least` are not worth a thread.
template <typename Work>
void take_turns(int64_t n, int64_t least, int64_t threads, const Work& work) {
  std::atomic<int64_t> next{0};
  auto take = [&] { return std::min(next.fetch_add(1), n); };
  int64_t worth = std::min(threads, (n + least - 1) / least);
  if (worth <= 1) return work(take);
  Helpers::here().run(worth - 1, [&] { work(take); });
}

}  // namespace axon
