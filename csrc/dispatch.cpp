// Chooses the build of the kernels at run time, by what the processor and the system support.
#include <atomic>
#include <cstring>

#include "kernels.hpp"

namespace lk {

namespace baseline {
extern const Kernels kernels;
}
#ifdef LK_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

const Builds& builds() {
  static const Builds found = [] {
    Builds b{{&baseline::kernels}, 1};
#ifdef LK_X86
    __builtin_cpu_init();
    // F16C is older than AVX2, and GCC 10 does not know its name.
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2) b.list[b.count++] = &avx2::kernels;
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
      b.list[b.count++] = &avx512::kernels;
#endif
    return b;
  }();
  return found;
}

namespace {
std::atomic<const Kernels*> selected{nullptr};
}

const Kernels& active_build() {
  const Kernels* build = selected.load(std::memory_order_relaxed);
  return build != nullptr ? *build : *builds().list[builds().count - 1];
}

bool select_build(const char* name) {
  for (int i = 0; i < builds().count; ++i) {
    if (std::strcmp(builds().list[i]->name, name) == 0) {
      selected = builds().list[i];
      return true;
    }
  }
  return false;
}

}  // namespace lk
