// A small thread pool: parallel_for(tasks, threads, f) calls f(0) ... f(tasks - 1), each once, on up to `threads`
// threads, the caller among them.
//
// Which thread runs which task is not fixed, so a task's result must depend on its index alone. The pool survives
// fork (a child starts its own), and a second caller at the same time runs its tasks itself instead of waiting.
#pragma once

#include <cstdint>
#include <functional>

namespace lk {

void parallel_for(int64_t tasks, int threads, const std::function<void(int64_t)>& f);

}  // namespace lk
