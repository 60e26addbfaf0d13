#include "host/threads.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace lk {
namespace {

struct Job {
  const std::function<void(int64_t)>* f;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr failure{};  // read when all workers are done

  // A task that throws (for want of memory) ends the job; the first exception is kept for the caller.
  void work() {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) (*f)(i);
    } catch (const std::exception&) {
      next.store(tasks, std::memory_order_relaxed);
      if (!failed.test_and_set()) failure = std::current_exception();
    }
  }
  void finish() const {
    if (failure) std::rethrow_exception(failure);
  }
};

class Pool {
 public:
  void run(int64_t tasks, int threads, const std::function<void(int64_t)>& f) {
    Job job;
    job.f = &f;
    job.tasks = tasks;
    std::unique_lock<std::mutex> in_use(in_use_, std::try_to_lock);
    const int helpers = in_use ? start_workers(static_cast<int>(std::min<int64_t>(threads, tasks)) - 1) : 0;
    if (helpers == 0) {
      job.work();
      return job.finish();
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      wanted_ = helpers;
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;  // workers that have not begun by now find nothing left to do
    idle_.wait(lock, [this] { return running_ == 0; });
    job_ = nullptr;
    lock.unlock();
    job.finish();
  }

 private:
  // Makes sure that `count` workers exist, as far as the system allows, and returns how many can be used.
  int start_workers(int count) {
    try {
      while (workers_ < count) {
        std::thread([this] { serve(); }).detach();
        ++workers_;
      }
    } catch (const std::system_error&) {  // the system has no more threads: go on with fewer
    }
    return std::min(workers_, count);
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      ++running_;
      Job* job = job_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--running_ == 0) idle_.notify_one();
    }
  }

  std::mutex in_use_, mutex_;
  std::condition_variable wake_, idle_;
  Job* job_ = nullptr;
  int workers_ = 0, wanted_ = 0, running_ = 0;
};

// Never destroyed: detached workers wait in it until the process ends. A forked child has none of the workers,
// and perhaps a locked mutex, so it leaves the old pool alone and starts anew.
std::atomic<Pool*> pool{nullptr};

Pool& current_pool() {
  Pool* p = pool.load(std::memory_order_acquire);
  if (p != nullptr) return *p;
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
  (void)registered;
  Pool* fresh = new Pool;
  if (pool.compare_exchange_strong(p, fresh)) return *fresh;
  delete fresh;
  return *p;
}

}  // namespace

void parallel_for(int64_t tasks, int threads, const std::function<void(int64_t)>& f) {
  if (threads <= 1 || tasks <= 1) {
    for (int64_t i = 0; i < tasks; ++i) f(i);
    return;
  }
  current_pool().run(tasks, threads, f);
}

}  // namespace lk
