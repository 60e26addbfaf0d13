#include "host/dispatch.hpp"

#include <atomic>
#include <cstring>

namespace lk {
namespace {

int find_builds() {
#ifdef LK_X86
  __builtin_cpu_init();
  // F16C is older than AVX2, and GCC 10 does not know its name.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return avx512 ? 3 : 2;
#else
  return 1;
#endif
}

std::atomic<int> selected{-1};

}  // namespace

int runnable_builds() {
  static const int found = find_builds();
  return found;
}

int active_build() {
  const int build = selected.load(std::memory_order_relaxed);
  return build >= 0 ? build : runnable_builds() - 1;
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
