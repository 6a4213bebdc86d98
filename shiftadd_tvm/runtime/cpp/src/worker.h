// One thread that makes all calls of a model: TVM keeps a pool of threads for each that calls it.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace shiftadd::internal {

class Worker {
 public:
  Worker() : thread_([this] { loop(); }) {}
  ~Worker() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ending_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Run `work` on the thread, after what others asked for; throws here what it throws.
  void run(const std::function<void()>& work) {
    Job job{work, false, nullptr, {}};
    std::unique_lock<std::mutex> lock(mutex_);
    jobs_.push_back(&job);
    wake_.notify_one();
    job.finished.wait(lock, [&job] { return job.done; });
    if (job.thrown) std::rethrow_exception(job.thrown);
  }

 private:
  struct Job {
    const std::function<void()>& work;
    bool done;
    std::exception_ptr thrown;
    std::condition_variable finished;
  };

  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return ending_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      Job* job = jobs_.front();
      jobs_.pop_front();
      lock.unlock();
      std::exception_ptr thrown;
      try {
        job->work();
      } catch (...) {
        thrown = std::current_exception();
      }
      lock.lock();
      job->thrown = thrown;
      job->done = true;
      job->finished.notify_one();  // under the lock: the job is gone once its caller has seen `done`
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job*> jobs_;
  bool ending_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace shiftadd::internal
