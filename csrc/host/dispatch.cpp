#include "host/dispatch.hpp"

#include <atomic>
#include <cstring>
#include <stdexcept>

namespace lk {
namespace {

int find_builds() {
  constexpr int all = sizeof(kBuilds) / sizeof(kBuilds[0]);
#ifdef LK_X86
  __builtin_cpu_init();
  // F16C is older than AVX2, and GCC 10 has no name for it.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return all - 2;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (!avx512) return all - 1;
#endif
  return all;
}

std::atomic<int> selected{-1};

}  // namespace

int runnable_builds() {
  static const int found = find_builds();
  return found;
}

int active_build() {
  const int build = selected.load(std::memory_order_relaxed);
  if (build >= 0) return build;
  if (runnable_builds() == 0) throw std::runtime_error("the compiled kernels need a processor with AVX2 and FMA");
  return runnable_builds() - 1;
}

bool select_build(const char* name) {
  for (int i = 0; i < runnable_builds(); ++i) {
    if (std::strcmp(kBuilds[i].name, name) == 0) {
      selected = i;
      return true;
    }
  }
  return false;
}

}  // namespace lk
