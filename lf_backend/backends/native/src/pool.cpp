// Why threads of our own, and not those of PyTorch (OpenMP's, by the exported torch_parallel_for): there a
// region ends when *every* thread has been through it, and threads that wait spin. On a busy machine one that
// was not given a core holds up all others, whether it has work or not. Here the caller works too, and waits
// only for tasks that somebody has begun; workers without work sleep.
//
// A pool is never destroyed: its threads may still sleep in it when the process ends. After a fork the child
// has none of them, and makes a new pool.
#include "pool.h"

#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace lf {
namespace {

constexpr size_t KEPT = size_t(64) << 20;  // scratch that a thread keeps; more goes back after the call

// One call of `run`. Shared with the workers, because one may look for a task when the caller has gone.
struct Job {
    int64_t tasks;
    bool (*work)(void*, int64_t);
    void* context;
    std::atomic<int64_t> next{0}, done{0};
    std::atomic<bool> failed{false};
    int64_t helpers;  // who may still join; under the pool's mutex
    std::mutex mutex;
    std::condition_variable finished;

    // Tasks until there are none.
    void help() {
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            if (!failed.load(std::memory_order_relaxed) && !work(context, task)) failed = true;
            if (done.fetch_add(1) + 1 == tasks) {
                std::lock_guard<std::mutex> lock(mutex);
                finished.notify_all();
            }
        }
    }

    void wait() {
        std::unique_lock<std::mutex> lock(mutex);
        finished.wait(lock, [this] { return done.load() == tasks; });
    }
};

class Pool {
  public:
    explicit Pool(pid_t owner) : owner(owner) {}

    const pid_t owner;

    void offer(const std::shared_ptr<Job>& job) {
        int64_t helpers = job->helpers;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            jobs_.push_back(job);
            while (workers_ < helpers && start()) ++workers_;
        }
        for (int64_t i = 0; i < helpers; ++i) wake_.notify_one();
    }

    void withdraw(const std::shared_ptr<Job>& job) {
        std::lock_guard<std::mutex> lock(mutex_);
        jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), job), jobs_.end());
    }

  private:
    // False where the system gives no more threads: the caller then works with those there are.
    bool start() {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the process's own threads
        bool started = true;
        try {
            std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {
            started = false;
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        return started;
    }

    void serve() {
        for (;;) take()->help();
    }

    std::shared_ptr<Job> take() {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return !jobs_.empty(); });
        std::shared_ptr<Job> job = jobs_.front();
        if (--job->helpers == 0) jobs_.pop_front();
        return job;
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::shared_ptr<Job>> jobs_;
    int64_t workers_ = 0;
};

// The pool of this process. One that a parent made is left alone: its mutex may be locked for ever.
Pool& pool() {
    static std::atomic<Pool*> current{nullptr};
    pid_t self = getpid();
    Pool* found = current.load(std::memory_order_acquire);
    while (found == nullptr || found->owner != self) {
        Pool* fresh = new Pool(self);
        if (current.compare_exchange_strong(found, fresh)) return *fresh;
        delete fresh;
    }
    return *found;
}

std::atomic<int64_t> pretended{0};

// Cores that the process may use.
int64_t cores() {
    if (int64_t count = pretended.load(std::memory_order_relaxed)) return count;
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

// Threads that take so many multiply-adds, each a tenth of a millisecond or more.
int64_t worth(int64_t products) {
    constexpr int64_t ENOUGH = 10'000'000;
    return pretended.load(std::memory_order_relaxed) ? INT64_MAX : 1 + products / ENOUGH;
}

struct Scratch {
    void* memory = nullptr;
    size_t bytes = 0;
    ~Scratch() { std::free(memory); }
};

}  // namespace

bool run(int64_t tasks, int64_t threads, int64_t products, bool (*work)(void*, int64_t), void* context) {
    threads = std::min({threads, tasks, cores(), worth(products)});
    if (threads <= 1) {
        for (int64_t task = 0; task < tasks; ++task)
            if (!work(context, task)) return false;
        return true;
    }
    try {
        auto job = std::make_shared<Job>();
        job->tasks = tasks, job->work = work, job->context = context, job->helpers = threads - 1;
        Pool& own = pool();
        own.offer(job);
        job->help();
        own.withdraw(job);
        job->wait();
        return !job->failed;
    } catch (const std::bad_alloc&) {  // before a task was begun: nothing later allocates
        return false;
    }
}

void pretend_cores(int64_t count) { pretended = count; }

void* scratch(size_t bytes) {
    thread_local Scratch own;
    if (own.bytes < bytes || (own.bytes > KEPT && bytes <= KEPT)) {
        std::free(own.memory);
        own.bytes = (bytes + 4095) / 4096 * 4096;
        own.memory = std::aligned_alloc(4096, own.bytes);
        if (own.memory == nullptr) own.bytes = 0;
    }
    return own.memory;
}

}  // namespace lf
